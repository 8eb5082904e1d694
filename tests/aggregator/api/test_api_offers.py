"""Offers and their terms through the API: what is typed in comes back, what cannot be is refused by field."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.api.targeting import read_targeting
from aggregator.db.connect import Connection
from schemas import limits, links, redis_keys
from schemas.redis import Redis, done

FULL = {
    "name": "Tents",
    "destination_url": "https://tents.example/{sub1}",
    "currency": "USD",
    "status": "paused",
    "access": "approval",
    "external_id": "tents-7",
    "fallback_url": "https://tents.example/sorry",
    "click_id_parameter": "irclickid",
    "deep_link_hosts": ["*.Tents.example", "tents.example", "tents.example:8443"],
    "pass_parameters": True,
    "starts_at": "2026-11-01T00:00:00.123456+01:00",
    "ends_at": "2026-12-01T00:00:00Z",
    "timezone": "Asia/Kathmandu",
    "targeting": {
        "include": {"country": ["DE", "at"], "device": ["mobile"]},
        "exclude": {"language": ["PT"], "os": ["Windows"]},
        "hours": [{"days": [7, 1], "since": 480, "until": 1200}],
    },
    "landings": [
        {"url": "https://a.tents.example/", "weight": 3},
        {"url": "https://b.tents.example/", "targeting": {"include": {"browser": ["Firefox"]}}},
    ],
}
KEPT = FULL | {
    "deep_link_hosts": ["*.tents.example", "tents.example", "tents.example:8443"],
    "starts_at": "2026-10-31T23:00:00.123Z",
    "ends_at": "2026-12-01T00:00:00.000Z",
    "targeting": {
        "include": {"country": ["at", "de"], "device": ["mobile"]},
        "exclude": {"language": ["pt"], "os": ["windows"]},
        "hours": [{"days": [1, 7], "since": 480, "until": 1200}],
    },
    "landings": [
        {"url": "https://a.tents.example/", "weight": 3},
        {"url": "https://b.tents.example/", "weight": 1, "targeting": {"include": {"browser": ["firefox"]}}},
    ],
}
CPS = {"model": "cps", "percent": "7.50", "currency": "EUR"}


async def test_an_offer_comes_back_as_it_was_typed_in_and_edges_know_all_of_it(
    admin: Any, made: Any, redis: Redis
) -> None:
    body = FULL | {"advertiser_id": made.advertiser_id, "payout": CPS}
    status, offer = await admin("POST", "/v1/offers", json=body)
    assert (status, offer.pop("live")) == (201, True)
    assert {name: offer[name] for name in KEPT} == KEPT
    assert offer["payout"] == {"model": "cps", "percent": "7.5", "currency": "EUR", "valid_from": None}
    assert await admin("GET", f"/v1/offers/{offer['id']}") == (200, offer)
    config = msgspec.json.decode(await done(redis.get(redis_keys.offer(offer["id"]))), type=links.Offer)
    assert (config.access, config.click_id_parameter, config.timezone) == ("approval", "irclickid", "Asia/Kathmandu")
    assert config.deep_link_hosts == frozenset(KEPT["deep_link_hosts"])
    assert config.starts_ms == round(datetime(2026, 10, 31, 23, 0, 0, 123_000, UTC).timestamp() * 1000)
    assert config.targeting is not None
    assert config.targeting.include == {"country": {"at", "de"}, "device": {"mobile"}}
    assert config.targeting.hours == (links.Hours(days=frozenset((1, 7)), since=480, until=1200),)
    assert [landing.weight for landing in config.landings] == [3, 1]
    reference = await done(redis.get(redis_keys.offer_reference("tents-7")))
    assert msgspec.json.decode(reference, type=links.Reference).id == offer["id"]


async def test_a_patch_changes_what_it_names_and_null_takes_back(admin: Any, made: Any, redis: Redis) -> None:
    path = f"/v1/offers/{made.offer_id}"
    patch = {name: value for name, value in FULL.items() if name != "name"}
    status, offer = await admin("PATCH", path, json=patch)
    assert (status, offer["name"], offer["live"]) == (200, "Shoes", True)
    assert {name: offer[name] for name in patch} == {name: KEPT[name] for name in patch}
    none = dict.fromkeys(("external_id", "fallback_url", "starts_at", "ends_at", "timezone", "targeting"))
    status, offer = await admin("PATCH", path, json=none | {"landings": [], "deep_link_hosts": []})
    assert status == 200
    assert {name: offer[name] for name in none} == none
    config = msgspec.json.decode(await done(redis.get(redis_keys.offer(made.offer_id))), type=links.Offer)
    assert (config.targeting, config.landings, config.deep_link_hosts) == (None, (), frozenset())
    assert config.v[1] == 3


async def test_an_archived_offer_stops_is_out_of_lists_and_a_patch_brings_it_back(
    admin: Any, made: Any, redis: Redis, db: Connection
) -> None:
    path = f"/v1/offers/{made.offer_id}"
    status, offer = await admin("DELETE", path)
    assert (status, offer["status"], offer["live"]) == (200, "archived", True)
    assert (await admin("GET", "/v1/offers"))[1]["data"] == []
    assert [row["id"] for row in (await admin("GET", "/v1/offers?status=archived"))[1]["data"]] == [made.offer_id]
    config = msgspec.json.decode(await done(redis.get(redis_keys.offer(made.offer_id))), type=links.Offer)
    assert config.status == "archived"
    assert (await admin("PATCH", path, json={"status": "active"}))[1]["status"] == "active"
    actions = await db.fetch("SELECT action FROM audit WHERE subject = $1 ORDER BY id", f"offer:{made.offer_id}")
    assert [row["action"] for row in actions] == ["create_offer", "archive_offer", "change_offer"]


async def test_offers_are_listed_by_what_is_asked_for_page_by_page(admin: Any, made: Any) -> None:
    _, other = await admin("POST", "/v1/advertisers", json={"name": "Other"})
    for number in range(4):
        body = FULL | {"advertiser_id": other["id"], "payout": CPS, "external_id": f"t-{number}"}
        assert (await admin("POST", "/v1/offers", json=body))[0] == 201
    for query, found in (
        (f"advertiser_id={other['id']}", 4), ("access=open", 1), ("status=paused", 4), ("name=Shoes", 1),
        ("external_id=t-2", 1), ("external_id=t-9", 0), (f"advertiser_id={made.advertiser_id}&access=private", 0),
    ):  # fmt: skip
        assert len((await admin("GET", f"/v1/offers?{query}"))[1]["data"]) == found, query
    seen: list[int] = []
    cursor = ""
    for _ in range(3):
        _, page = await admin("GET", f"/v1/offers?limit=2{cursor}")
        seen += [row["id"] for row in page["data"]]
        cursor = f"&cursor={page['next_cursor']}"
    assert (len(set(seen)), seen, page["truncated"]) == (5, sorted(seen), False)
    assert all(row["payout"] for row in page["data"])


BAD: list[tuple[str, Any]] = [
    *(("destination_url", url) for url in ("ftp://a.example", "https://go.example/x", "https://track.example/c/x")),
    ("destination_url", "http://track.example/"),
    *(("fallback_url", url) for url in ("", "https://u:p@a.example/", "https://track.example/", 5)),
    *(("click_id_parameter", name) for name in ("", "a b", "a&b", "1a", "ä", "a=b", "x" * 65, None, "a\n")),
    *(
        ("deep_link_hosts", [host])
        for host in ("", "*", "*.com", "https://a.example", "a.example:80", "a_b.example", "a.example/", "-a.example")
    ),
    *(("deep_link_hosts", [host]) for host in ("a.example:x", "a.example:", "a.example:443", "a.example:99999999")),
    *(("deep_link_hosts", [host]) for host in ("GO.example", "*.track.example", "track.example", "a.*.example", "é")),
    ("deep_link_hosts", [f"h{n}.example" for n in range(limits.DEEP_LINK_HOSTS_MAX + 1)]),
    ("deep_link_hosts", "a.example"),
    *(("access", access) for access in ("public", "", None, 1)),
    *(("timezone", zone) for zone in ("Mars/Base", "", "UTC\x00", "+01:00", 1)),
    *(("starts_at", at) for at in ("2026-11-01", "2026-11-01T00:00:00", "yesterday", 1_700_000_000)),
    ("starts_at", "1999-01-01T00:00:00Z"),
    ("starts_at", "0001-01-01T00:00:00+14:00"),
    ("ends_at", "2201-01-01T00:00:00Z"),
    *(("currency", currency) for currency in ("", "eur", "XXX", 978)),
    *(("pass_parameters", value) for value in ("yes", 1, None)),
    *(("external_id", value) for value in ("", "a b", "x" * 65, "a/b", "é", "a\n")),
    *(("status", status) for status in ("deleted", "", None)),
]  # fmt: skip
TOO_MANY = ["".join(pair) for pair in itertools.product("abcdefghijklmnopqrs", repeat=2)]
BAD_PARTS: list[tuple[str, str, Any]] = [
    *(("targeting.include.country", "include", {"country": value}) for value in ([], ["deu"], ["d"], [""], ["d\n"])),
    ("targeting.include.country", "include", {"country": TOO_MANY}),
    ("targeting.exclude.device", "exclude", {"device": ["phone"]}),
    ("targeting.include.language", "include", {"language": ["deutsch"]}),
    ("targeting.include.language", "include", {"language": ["pt-br"]}),
    ("targeting.include.os", "include", {"os": ["x" * 65]}),
    ("targeting.include.browser", "include", {"browser": ["a\x00b"]}),
    ("targeting.include", "include", {"planet": ["mars"]}),
    ("targeting.include", "include", ["de"]),
    ("targeting.hours[0].days", "hours", [{"days": []}]),
    ("targeting.hours[0].days", "hours", [{"days": [0]}]),
    ("targeting.hours[0].days", "hours", [{"days": [8]}]),
    ("targeting.hours[1].until", "hours", [{}, {"since": 1320, "until": 360}]),
    ("targeting.hours[0].until", "hours", [{"until": 1441}]),
    ("targeting.hours[0].until", "hours", [{"since": -1}]),
    ("targeting.hours", "hours", [{}] * (limits.HOURS_MAX + 1)),
    ("targeting.hours[0].from", "hours", [{"from": 1}]),
    ("targeting.when", "when", []),
]  # fmt: skip
BAD_LANDINGS: list[tuple[str, Any]] = [
    ("landings[0].url", {"url": "javascript:alert(1)"}),
    ("landings[0].url", {"url": "https://track.example/c/loop"}),
    ("landings[0].weight", {"url": "https://a.example/", "weight": 0}),
    ("landings[0].weight", {"url": "https://a.example/", "weight": -1}),
    ("landings[0].weight", {"url": "https://a.example/", "weight": 10_001}),
    ("landings[0].weight", {"url": "https://a.example/", "weight": 1.5}),
    (
        "landings[0].targeting.include.country",
        {"url": "https://a.example/", "targeting": {"include": {"country": ["x"]}}},
    ),
    ("landings[0].url", {"weight": 1}),
]  # fmt: skip


def bad_bodies() -> list[tuple[str, dict[str, Any]]]:
    parts = [(field, {"targeting": {part: value}}) for field, part, value in BAD_PARTS]
    one = {"url": "https://a.example/"}
    return [
        *((field, {field: value}) for field, value in BAD),
        *parts,
        *((field, {"landings": [landing]}) for field, landing in BAD_LANDINGS),
        ("landings", {"landings": [one] * (limits.LANDINGS_MAX + 1)}),
        ("ends_at", {"starts_at": "2026-12-01T00:00:00Z", "ends_at": "2026-12-01T00:00:00Z"}),
        ("ends_at", {"starts_at": "2026-12-02T00:00:00Z", "ends_at": "2026-12-01T00:00:00Z"}),
    ]


async def test_what_an_offer_cannot_be_is_refused_by_field_and_changes_nothing(
    admin: Any, made: Any, db: Connection
) -> None:
    await db.execute("INSERT INTO domain (host) VALUES ('track.example'), ('a.track.example')")
    good = {"advertiser_id": made.advertiser_id, "name": "x", "destination_url": "https://a.example/", "payout": CPS}
    _, before = await admin("GET", f"/v1/offers/{made.offer_id}")
    for field, body in bad_bodies():
        for status, answer in (
            await admin("POST", "/v1/offers", json=good | body),
            await admin("PATCH", f"/v1/offers/{made.offer_id}", json=body),
        ):
            assert (status, answer.get("error", {}).get("field")) == (400, field), (body, answer)
    assert await admin("GET", f"/v1/offers/{made.offer_id}") == (200, before)
    assert await db.fetchval("SELECT count(*) FROM offer") == 1


VALUES: dict[str, st.SearchStrategy[str]] = {
    "country": st.sampled_from(["DE", "de", "At", "fr"]),
    "device": st.sampled_from(["Mobile", "tablet", "desktop", "robot", "OTHER"]),
    "os": st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), min_size=1, max_size=20),
    "browser": st.sampled_from(["Chrome Mobile", "firefox"]),
    "language": st.sampled_from(["DE", "pt", "fil"]),
}
RULES = st.fixed_dictionaries({}, optional={asked: st.frozensets(one, min_size=1) for asked, one in VALUES.items()})
HOURS = st.builds(
    lambda days, since, length: links.Hours(days=days, since=since, until=since + length),
    st.frozensets(st.integers(1, 7), min_size=1), st.integers(0, 1000), st.integers(1, 440),
)  # fmt: skip


@settings(deadline=None)
@given(st.builds(links.Targeting, include=RULES, exclude=RULES, hours=st.lists(HOURS, max_size=4).map(tuple)))
def test_targeting_is_kept_in_one_form_that_edges_read_as_it_was_meant(targeting: links.Targeting) -> None:
    kept = read_targeting(targeting)
    read = msgspec.convert(kept, links.Targeting)
    for said, as_kept in ((targeting.include, read.include), (targeting.exclude, read.exclude)):
        assert as_kept == {asked: {value.lower() for value in values} for asked, values in said.items()}
    assert read.hours == targeting.hours
    assert read_targeting(read) == kept


async def test_an_end_before_the_start_that_is_there_is_refused(admin: Any, made: Any) -> None:
    path = f"/v1/offers/{made.offer_id}"
    assert (await admin("PATCH", path, json={"starts_at": "2026-12-01T00:00:00Z"}))[0] == 200
    status, answer = await admin("PATCH", path, json={"ends_at": "2026-11-30T00:00:00Z"})
    assert (status, answer["error"]["field"]) == (400, "ends_at")
    assert (await admin("GET", path))[1]["ends_at"] is None


async def test_an_external_id_belongs_to_one_offer(admin: Any, made: Any) -> None:
    body = {"advertiser_id": made.advertiser_id, "name": "x", "destination_url": "https://a.example/", "payout": CPS}
    assert (await admin("POST", "/v1/offers", json=body | {"external_id": "e1"}))[0] == 201
    for method, path, sent in (("POST", "/v1/offers", body), ("PATCH", f"/v1/offers/{made.offer_id}", {})):
        status, answer = await admin(method, path, json=sent | {"external_id": "e1"})
        assert (status, answer["error"]["field"]) == (409, "external_id")


async def test_of_twenty_patches_of_one_version_exactly_one_wins(admin: Any, made: Any, db: Connection) -> None:
    async def patch(number: int) -> int:
        headers = {"If-Match": '"1"'}
        answer = await admin("PATCH", f"/v1/offers/{made.offer_id}", json={"name": f"n{number}"}, headers=headers)
        return int(answer[0])

    assert sorted(await asyncio.gather(*(patch(number) for number in range(20)))) == [200] + [412] * 19
    assert await db.fetchval("SELECT version FROM offer WHERE id = $1", made.offer_id) == 2
    assert await db.fetchval("SELECT count(*) FROM audit WHERE action = 'change_offer'") == 1


async def test_terms_begin_now_or_later_and_what_has_begun_stays(
    admin: Any, made: Any, db: Connection, redis: Redis
) -> None:
    path = f"/v1/offers/{made.offer_id}/terms"
    first = (await admin("GET", path))[1]["data"]
    general = {"side": "payout", "valid_from": None, "in_force": True}
    assert first == [general | {"model": "cpa", "amount_minor": 425, "currency": "EUR"}]
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    for body in (CPS, {"model": "cpa", "amount_minor": 7, "currency": "USD", "valid_from": later}):
        status, added = await admin("POST", path, json=body)
        assert (status, added["model"], added["live"]) == (201, body["model"], True)
    replaced = {"model": "cps", "percent": "9", "currency": "EUR", "valid_from": later}
    assert (await admin("POST", path, json=replaced))[0] == 201
    listed = (await admin("GET", path))[1]["data"]
    assert [(row["model"], row["in_force"]) for row in listed] == [("cpa", False), ("cps", True), ("cps", False)]
    assert (listed[0] | {"in_force": True}, listed[2]["percent"]) == (first[0], "9")
    payout = (await admin("GET", f"/v1/offers/{made.offer_id}"))[1]["payout"]
    assert payout == {name: listed[1][name] for name in ("model", "percent", "currency", "valid_from")}
    config = msgspec.json.decode(await done(redis.get(redis_keys.offer(made.offer_id))), type=links.Offer)
    assert config.v[1] == 4
    queued = await db.fetchval("SELECT count(*) FROM outbox WHERE kind = 'offer' AND row_id = $1", made.offer_id)
    assert queued == 4


BAD_TERMS: list[tuple[str, dict[str, Any]]] = [
    ("valid_from", {"valid_from": "2026-01-01T00:00:00Z"}),
    ("valid_from", {"valid_from": "2026-01-01T00:00:00"}),
    ("valid_from", {"valid_from": "2300-01-01T00:00:00Z"}),
    ("percent", {"percent": "0"}),
    ("percent", {"percent": 5}),
    ("currency", {"currency": "eur"}),
    ("amount_minor", {"amount_minor": 1}),
    ("model", {"model": "cpm"}),
]


async def test_terms_that_cannot_be_are_refused_by_field(admin: Any, made: Any, db: Connection) -> None:
    path = f"/v1/offers/{made.offer_id}/terms"
    for field, body in BAD_TERMS:
        status, answer = await admin("POST", path, json=CPS | body)
        assert (status, answer["error"].get("field")) == (400, field), body
    status, answer = await admin("POST", path, json=CPS, headers={"If-Match": '"9"'})
    assert (status, answer["error"]["code"]) == (412, "precondition_failed")
    assert (await admin("POST", "/v1/offers/404/terms", json=CPS))[0] == 404
    assert (await admin("GET", "/v1/offers/404/terms"))[0] == 404
    assert await db.fetchval("SELECT count(*) FROM offer_terms") == 1


async def test_an_offer_has_room_for_so_many_terms(admin: Any, made: Any, db: Connection) -> None:
    await db.execute(
        "INSERT INTO offer_terms (offer_id, valid_from, model, amount_minor, currency)"
        " SELECT $1, now() - make_interval(days => n), 'cpa', 1, 'EUR'"
        " FROM generate_series(1, $2) AS n",
        made.offer_id, limits.TERMS_PER_OFFER_MAX - 1,
    )  # fmt: skip
    status, answer = await admin("POST", f"/v1/offers/{made.offer_id}/terms", json=CPS)
    assert (status, answer["error"]["code"]) == (409, "conflict")
    assert await db.fetchval("SELECT count(*) FROM offer_terms") == limits.TERMS_PER_OFFER_MAX
