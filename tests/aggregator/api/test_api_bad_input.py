import itertools
from typing import Any

import aiohttp

from aggregator.api import authentication
from aggregator.api.secret_text import LENGTH, api_key, random_base62
from aggregator.db.connect import Connection

TABLES = ("advertiser", "partner", "offer", "offer_terms", "link", "api_key", "outbox", "audit")
HUGE_ID = 99_999_999_999
CPA = {"model": "cpa", "amount_minor": 1, "currency": "EUR"}
CPS = {"model": "cps", "percent": "5", "currency": "EUR"}


def offer(**changed: Any) -> dict[str, Any]:
    return {"advertiser_id": 1, "name": "x", "destination_url": "https://a.example/", "payout": CPA} | changed


def link(**changed: Any) -> dict[str, Any]:
    return {"offer_id": 1, "partner_id": 1} | changed


BAD_NAMES: list[Any] = [
    "",
    "   ",
    "x" * 201,
    "nul\x00",
    "line\nbreak",
    "trailing\n",
    "\x1b[31m",
    "\x85",
    5,
    None,
    [],
    True,
]
BAD_IDS: list[Any] = [0, -1, HUGE_ID, 10**30, 1.5, 1.0, "1", None, True, [1], 2**31]
BAD_DESTINATIONS: list[Any] = [
    "",
    "shop.example",
    "ftp://shop.example/",
    "javascript:alert(1)",
    "https://user:secret@shop.example/",
    "https://shop.example/\r\nSet-Cookie: a=b",
    "https://shop.example/\x00",
    "https://shop.example/a b",
    "https://{sub1}.example/",
    "{sub1}://shop.example/",
    "https://shop.example:{sub1}/",
    "https://go.example/c/loop",
    "https://GO.example:443/",
    "https://go.example./",
    "https://shop.example:99999/",
    "//shop.example/",
    "https:///path",
    "https://shop.example/" + "x" * 2048,
    "https:\\\\shop.example",
    7,
    None,
]
BAD_PAYOUTS: list[Any] = [
    None,
    "cpa",
    {},
    {"model": "cpm", "amount_minor": 1, "currency": "EUR"},
    {"model": "cpc", "amount_minor": 10**9 + 1, "currency": "EUR"},
    {"model": "cpc", "percent": "5", "currency": "EUR"},
    {"model": "cpa", "currency": "EUR"},
    {"model": "cpa", "amount_minor": 1},
    {**CPA, "percent": "5"},
    {**CPA, "amount_minor": -1},
    {**CPA, "amount_minor": 10**15 + 1},
    {**CPA, "amount_minor": 10**40},
    {**CPA, "amount_minor": 1.5},
    {**CPA, "amount_minor": "1"},
    {**CPA, "currency": "eur"},
    {**CPA, "currency": "XXX"},
    {**CPA, "currency": "EU\x00"},
    {**CPA, "currency": "€"},
    {**CPA, "currency": 978},
    *(
        {**CPS, "percent": p}
        for p in ("0", "0.0", "100.000001", "101", "-1", "5%", "5,5", "1e1", "NaN", "Infinity", " 5", "5.", ".5", "")
    ),
    {**CPS, "percent": "1.0000001"},
    {**CPS, "percent": "\u0665"},
    {**CPS, "percent": 5},
    {**CPS, "percent": "9" * 5000},
]
BAD_CODES: list[Any] = ["", "-a", "_a", "a b", "a/b", "a.b", "ä", "x" * 65, "a\x00", "a\n", "../x", "%2e", 5, [], True]
BAD_KEYS: list[Any] = [
    {},
    {"role": "root"},
    {"role": None},
    {"role": "admin", "partner_id": 1},
    {"role": "partner"},
    {"role": "partner", "partner_id": None},
    {"role": "partner", "advertiser_id": 1},
    {"role": "partner", "partner_id": 1, "advertiser_id": 1},
    {"role": "advertiser", "partner_id": 1},
    {"role": "partner", "partner_id": HUGE_ID},
    {"role": "partner", "partner_id": 404},
    {"role": "advertiser", "advertiser_id": 404},
    {"role": "admin", "scope": "all"},
    {"role": "adm\x00in"},
]
BAD_PARTITIONS: list[Any] = [
    {},
    {"source": "s"},
    {"partition": 0},
    {"source": "", "partition": 0},
    {"source": "s\x00", "partition": 0},
    {"source": "x" * 301, "partition": 0},
    {"source": 5, "partition": 0},
    *({"source": "s", "partition": partition} for partition in (-1, 2**31, 10**30, 1.5, "0", None, True)),
    {"source": "s", "partition": 0, "next": 7},
]
NOT_OBJECTS: list[Any] = [None, 5, "text", [], [{}]]
CASES: list[tuple[str, str, Any]] = [
    *(("POST", path, {"name": name}) for path in ("/v1/advertisers", "/v1/partners") for name in BAD_NAMES),
    *(("POST", path, body) for path in ("/v1/advertisers", "/v1/partners") for body in ({}, {"name": "x", "id": 1})),
    *(("POST", "/v1/offers", offer(name=name)) for name in BAD_NAMES),
    *(("POST", "/v1/offers", offer(advertiser_id=one)) for one in [*BAD_IDS, 404]),
    *(("POST", "/v1/offers", offer(destination_url=url)) for url in BAD_DESTINATIONS),
    *(("POST", "/v1/offers", offer(payout=payout)) for payout in BAD_PAYOUTS),
    ("POST", "/v1/offers", offer(status="archived")),
    *(("POST", "/v1/links", link(offer_id=one)) for one in [*BAD_IDS, 404]),
    *(("POST", "/v1/links", link(partner_id=one)) for one in [*BAD_IDS, 404]),
    *(("POST", "/v1/links", link(code=code)) for code in BAD_CODES),
    ("POST", "/v1/links", link(url="https://a.example")),
    *(("PATCH", "/v1/links/1", {"status": status}) for status in ("deleted", "", None, 1, "paused\x00", ["paused"])),
    ("PATCH", "/v1/links/1", {"status": "paused", "code": "other"}),
    *(("POST", "/v1/keys", body) for body in BAD_KEYS),
    *(("POST", "/v1/system/edges/i/write-off", {"reason": reason}) for reason in BAD_NAMES if reason is not None),
    ("POST", "/v1/system/edges/i/write-off", {"force": True}),
    *(("POST", "/v1/system/partitions/resume", body) for body in BAD_PARTITIONS),
    *(
        (method, path, body)
        for method, path in (("POST", "/v1/offers"), ("PATCH", "/v1/links/1"), ("POST", "/v1/keys"))
        for body in NOT_OBJECTS
    ),
]


async def counts(db: Connection) -> list[int]:
    return [await db.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES]


def is_refusal(body: Any) -> bool:
    error = body["error"]
    return (
        set(body) == {"error"}
        and {"code", "message"} <= set(error) <= {"code", "message", "field"}
        and all(isinstance(value, str) and value and len(value) < 400 for value in error.values())
    )


async def test_bad_bodies_are_refused_by_field_and_write_nothing(admin: Any, made: Any, db: Connection) -> None:
    """One test for all, because each would make a database of its own."""
    before = await counts(db)
    for method, path, body in CASES:
        status, answer = await admin(method, path, json=body)
        assert status == 400, (method, path, body, status, answer)
        assert is_refusal(answer), (body, answer)
        if isinstance(body, dict) and body:
            assert answer["error"].get("field"), (body, answer)
    assert await counts(db) == before
    assert await db.fetchval("SELECT array_agg(DISTINCT version) FROM link") == [1]


NO_JSON = [
    b"",
    b"{",
    b"\xff\xfe",
    b'{"name": "\xff"}',
    b'{"name": "\xed\xa0\x80"}',
    b'{"name": "\\ud800"}',
    b'{"name": "a\x00b"}',
    b'{"name": "x"} trailing',
    b"[" * 100_000,
    b'{"name":' * 20_000,
    b"NaN",
    b'{"name": "x",}',
]


async def test_a_body_that_is_no_json_is_refused(admin: Any, db: Connection) -> None:
    for raw in NO_JSON:
        status, answer = await admin("POST", "/v1/partners", data=raw)
        assert status == 400, raw[:20]
        assert is_refusal(answer), raw[:20]
    assert await db.fetchval("SELECT count(*) FROM partner") == 0


async def test_a_body_beyond_the_limit_is_too_large(admin: Any) -> None:
    status, answer = await admin("POST", "/v1/partners", data=b" " * 300_000)
    assert (status, answer["error"]["code"]) == (413, "too_large")
    status, answer = await admin("POST", "/v1/partners", data=_chunks())
    assert (status, answer["error"]["code"]) == (413, "too_large")


async def _chunks() -> Any:
    for _ in range(10):
        yield b" " * 60_000


async def test_a_body_that_says_it_is_compressed_and_is_not_is_refused(admin: Any) -> None:
    status, answer = await admin("POST", "/v1/partners", data=b"not gzip", headers={"Content-Encoding": "gzip"})
    assert status == 400
    assert is_refusal(answer)


async def test_a_link_that_cannot_be_is_not_found(admin: Any) -> None:
    for link_id in ("0", "-1", "99999999999", "9" * 400, "1e3", "abc", "%00", "1%0a", "%D9%A1", "2147483647"):
        status, answer = await admin("PATCH", f"/v1/links/{link_id}", json={"status": "paused"})
        assert (status, answer["error"]["code"]) == (404, "not_found"), link_id


WRONG_PATHS = [
    ("GET", "/", 404, "not_found"),
    ("GET", "/v1", 404, "not_found"),
    ("GET", "/v1/reports/", 404, "not_found"),
    ("GET", "/v1/%ff%00", 404, "not_found"),
    ("GET", "/v1/links/1/2", 404, "not_found"),
    ("PUT", "/v1/partners", 405, "method_not_allowed"),
    ("PUT", "/v1/links/1", 405, "method_not_allowed"),
    ("POST", "/v1/reports", 405, "method_not_allowed"),
    ("PUT", "/v1/keys", 405, "method_not_allowed"),
    ("POST", "/live", 405, "method_not_allowed"),
    ("GET", "/v1/reports?" + "x" * 20_000, 414, "too_long"),
]


async def test_wrong_paths_and_methods_have_our_shape(admin: Any) -> None:
    for method, path, status, code in WRONG_PATHS:
        found, answer = await admin(method, path)
        assert (found, answer["error"]["code"]) == (status, code), path
        assert is_refusal(answer)


GOOD = api_key(random_base62(LENGTH))
BAD_AUTHORIZATIONS = [
    None,
    "",
    "Bearer",
    "Bearer ",
    "Bearer cd_",
    f"Basic {GOOD}",
    GOOD,
    f"Bearer {GOOD}",  # well formed, not known
    f"Bearer {GOOD[:-1]}{'a' if GOOD[-1] != 'a' else 'b'}",  # wrong checksum
    f"Bearer {GOOD}x",
    f"Bearer  {GOOD} {GOOD}",
    f"Bearer {GOOD[3:]}",
    "Bearer cd_" + "ü" * 38,
    "Bearer " + "x" * 5_000,
]
ENDPOINTS = [
    ("POST", "/v1/advertisers"),
    ("POST", "/v1/partners"),
    ("POST", "/v1/offers"),
    ("POST", "/v1/links"),
    ("PATCH", "/v1/links/1"),
    ("POST", "/v1/keys"),
    ("GET", "/v1/reports"),
    ("GET", "/v1/reports/days"),
    ("GET", "/v1/reconciliation"),
    ("GET", "/v1/system"),
    ("POST", "/v1/system/edges/i/write-off"),
    ("POST", "/v1/system/partitions/resume"),
    ("GET", "/v1/audit"),
]


async def test_without_a_known_key_there_is_nothing_to_see(session: aiohttp.ClientSession, db: Connection) -> None:
    for (method, path), authorization in itertools.product(ENDPOINTS, BAD_AUTHORIZATIONS):
        headers = {} if authorization is None else {"Authorization": authorization}
        async with session.request(method, path, headers=headers, json={"name": "x"}) as answer:
            assert answer.status == 401, authorization
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert is_refusal(await answer.json())
    assert sum(await counts(db)) == 0


BAD_AUDITS = {
    "limit=0": "limit",
    "limit=201": "limit",
    "cursor=x": "cursor",
    "cursor=" + "9" * 19: "cursor",
    "to=1": "to",
}


async def test_bad_parameters_of_the_audit_are_refused_by_name(admin: Any) -> None:
    for query, field in BAD_AUDITS.items():
        status, answer = await admin("GET", f"/v1/audit?{query}")
        assert (status, answer["error"]["field"]) == (400, field), query
        assert is_refusal(answer)


async def test_a_removed_key_is_refused(admin: Any, db: Connection) -> None:
    _, key = await admin("POST", "/v1/keys", json={"role": "admin"})
    other = admin.with_key(key["key"])
    assert (await other("POST", "/v1/partners", json={"name": "x"}))[0] == 201
    await db.execute("DELETE FROM api_key WHERE id = $1", key["id"])
    assert (await other("POST", "/v1/partners", json={"name": "x"}))[0] == 401


async def test_each_role_may_call_just_what_is_its_own(admin: Any, made: Any, db: Connection) -> None:
    _, partner = await admin("POST", "/v1/keys", json={"role": "partner", "partner_id": made.partner_id})
    _, advertiser = await admin("POST", "/v1/keys", json={"role": "advertiser", "advertiser_id": made.advertiser_id})
    before = await counts(db)
    for method, path in ENDPOINTS:
        for role, key in (("partner", partner), ("advertiser", advertiser)):
            status, answer = await admin.with_key(key["key"])(method, path, json={} if method != "GET" else None)
            allowed = path == "/v1/reports" or (role, path) == ("partner", "/v1/reports/days")
            assert status == (200 if allowed else 403), (role, path, answer)
            assert allowed or (is_refusal(answer) and answer["error"]["code"] == "forbidden")
    assert await counts(db) == before


def test_a_mistyped_key_is_told_by_its_checksum() -> None:
    assert authentication.is_well_formed(GOOD)
    flipped = GOOD[:5] + ("a" if GOOD[5] != "a" else "b") + GOOD[6:]
    assert not authentication.is_well_formed(flipped)
