"""Requests that nobody would send: whatever a call is asked, its answer is in our shape and never a fault of ours."""

import asyncio
import json
from collections.abc import Iterator
from random import Random
from typing import Any
from urllib.parse import quote

from aggregator.api import (
    advertisers,
    approvals,
    blocks,
    caps,
    coupons,
    domains,
    keys,
    links,
    me,
    offers,
    partners,
    programme,
    system,
    terms,
)
from aggregator.api.app import ROUTES
from aggregator.api.keys import Wanted
from aggregator.db.connect import Connection
from schemas import limits
from tests.aggregator.api.conftest import Client, Made, offer_body

SEED, REQUESTS = 1, 2_000
CPA = {"model": "cpa", "amount_minor": 1, "currency": "EUR"}
CAP = {"kind": "clicks", "period": "day", "partner_id": 1, "clicks": 5}
# a body that is good, and the fields that may stand in it, by call
BODIES: dict[tuple[str, str], tuple[dict[str, Any], Any]] = {
    ("PATCH", "/v1/programme"): ({}, programme.ProgrammeChange),
    ("POST", "/v1/domains"): ({"host": "go.other.example"}, domains.DomainBody),
    ("PATCH", "/v1/domains/{id}"): ({}, domains.DomainChange),
    ("POST", "/v1/advertisers"): ({"name": "A"}, advertisers.AdvertiserBody),
    ("PATCH", "/v1/advertisers/{id}"): ({}, advertisers.AdvertiserChange),
    ("POST", "/v1/partners"): ({"name": "P"}, partners.PartnerBody),
    ("PATCH", "/v1/partners/{id}"): ({}, partners.PartnerChange),
    ("POST", "/v1/offers"): (offer_body(1), offers.OfferBody),
    ("PATCH", "/v1/offers/{id}"): ({}, offers.OfferChange),
    ("POST", "/v1/offers/{id}/terms"): (CPA, terms.CpaFrom),
    ("PUT", "/v1/offers/{id}/partners/{partner_id}"): ({"status": "approved"}, approvals.ApprovalBody),
    ("POST", "/v1/links"): ({"offer_id": 1, "partner_id": 1}, links.LinkBody),
    ("PATCH", "/v1/links/{id}"): ({}, links.LinkChange),
    ("POST", "/v1/caps"): (CAP, caps.CapBody),
    ("PATCH", "/v1/caps/{id}"): ({}, caps.CapChange),
    ("POST", "/v1/coupons"): ({"code": "X", "offer_id": 1, "partner_id": 1}, coupons.CouponBody),
    ("PATCH", "/v1/coupons/{id}"): ({}, coupons.CouponChange),
    ("POST", "/v1/me/links"): ({"offer_id": 1}, me.OwnLinkBody),
    ("PATCH", "/v1/me/links/{id}"): ({"status": "active"}, me.OwnLinkChange),
    ("POST", "/v1/blocks"): ({"partner_id": 1, "sub1": "x"}, blocks.BlockBody),
    ("POST", "/v1/keys"): ({"role": "partner", "partner_id": 1}, keys.KeyBody),
    ("PATCH", "/v1/keys/{id}"): ({}, keys.KeyChange),
    ("POST", "/v1/keys/{id}/rotate"): ({}, keys.RotationBody),
    ("POST", "/v1/system/edges/{incarnation}/write-off"): ({}, system.WriteOffBody),
    ("POST", "/v1/system/partitions/resume"): ({"source": "s", "partition": 0}, system.ResumeBody),
}
# these would end what the others are sent with
LEFT_OUT = {("DELETE", "/v1/partners/{id}"), ("DELETE", "/v1/keys/{id}"), ("POST", "/v1/keys/{id}/rotate")}
TEXTS = [
    "", " ", "x", "X" * 70, "x" * 2_100, "0", "1", "-1", "1.5", "1e3", "2147483647", "2147483648", "9" * 30, "\u0661",
    "\x00", "a\x00b", "\n", "\udcff", "\U0001f600", "ä", "null", "*", '"1"', "active", "paused", "archived", "day",
    "2026-01-01", "2026-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-02-30",
    "2026-01-01T00:00:00+24:00", "2026-01-01T25:00:00Z", "2026-12-31T23:59:60Z", "UTC", "Europe/Berlin",
    "../etc/passwd", "https://shop.example/", "https://[::1", "https://[::1]/", "https://[", "https://",
    "https://shop.example:x/", "https://shop.example:99999/", "https://shop.example/{",
    "https://shop.example/{raw:sub1}", "https://\udcff.example/", "https://xn--/", "https://a..b/",
    "https://\u2100.example/", "EUR", "eur", "shop.example", "*.shop.example", "go.example",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31 - 1, 2**31, 2**53, 2**63, 10**30, 1.5, -0.0, 1e300, [], {}, [[]], [None], [{}],
    {"": ""}, {"model": "cpa", "amount_minor": 10**15, "currency": "JPY"},
    {"model": "cps", "percent": "100", "currency": "EUR"}, {"model": "cps", "percent": "0.000001", "currency": "XXX"},
    {"include": {"country": ["DE", "\x00"]}}, {"include": {"country": ["de"]}, "exclude": {"language": ["de-DE"]}},
    {"hours": [{"days": [1], "since": 0, "until": 1440}]}, {"hours": [{"days": [], "since": -1, "until": 10**12}]},
    [{"url": "https://shop.example/", "weight": 10**9}], [{"url": "https://[", "weight": 1}],
    ["shop.example", "\udcff"], ["*"], ["a" * 300], "\ud800", *TEXTS,
]  # fmt: skip
QUERY_NAMES = """status name external_id offer_id partner_id advertiser_id code domain_id host kind period source_id
    sub1 role replaces access approval from to timezone granularity group_by metrics link_id limit cursor country device
    subject actor action dry_run safe x""".split()
HEADERS = {
    "If-Match": ["*", '"1"', '"1", "2"', "W/\"1\"", "", '"' + "9" * 400 + '"', "\udcff"],
    "Idempotency-Key": ["k", "k2", "", " ", "\udcff", "x" * 255, "x" * 256, "a b"],
    "Accept": ["application/x-ndjson", "text/csv", "*/*;q=x", "\udcff"],
    "Content-Type": ["text/csv", "application/x-ndjson", "text/csv; charset=utf-16", "application/json; charset=x", ""],
    "Content-Encoding": ["gzip", "deflate", "br", "zstd", "x"],
}  # fmt: skip
FILES = [
    b"", b"\n", b"name\n", b'name\n"x\n', b"external_id,name\ne1,x\ne1,y\n", b"\xff\xfea\x00",
    b"external_id,name\n\xff,x\n", b"code,offer_id,partner_id,external_id\nodd,1,1,e\n\x00,1,1,f\n",
    b'{"external_id": "e", "name": "x"}\n{\n[]\n', b'{"external_id": "\\ud800", "name": "x"}\n', b"name,name\n",
    b"payout.model,payout\ncpa,1\n", b"id\n1\n", b'{"id": 1e400}\n',
    b'{"external_id": "e9", "payout.model": "cpa", "payout": 5}\n',
    b"external_id,starts_at\ne,0001-01-01T00:00:00+14:00\n", b"external_id;targeting\ne;{\n",
    b"click_id,clicked_at,offer_id,partner_id,sub1\nf1,2026-01-01T00:00:00Z,1,1,x\nf2,2026-01-01,1,1,\n",
    b"external_id\ttargeting\ne\t{}\n", b'{"external_id": {"a": 1}, "": 2, ".": 3}\n',
]  # fmt: skip


def requests(seed: int) -> Iterator[tuple[str, str, dict[str, str], bytes]]:
    """Method, target, headers, body."""
    rng = Random(seed)
    calls = [(method, path) for method, path, *_ in ROUTES if (method, path) not in LEFT_OUT]
    while True:
        method, template = rng.choice(calls)
        headers = {name: rng.choice(values) for name, values in HEADERS.items() if rng.random() < 0.1}
        if template.endswith("/import"):
            headers |= {"Content-Type": rng.choice(("text/csv", "application/x-ndjson"))}
        yield method, _path(rng, template) + _query(rng), headers, _body(rng, method, template)


def _path(rng: Random, template: str) -> str:
    for name in ("id", "partner_id", "incarnation"):
        text = rng.choice(("1", "2", "3")) if rng.random() < 0.8 else rng.choice(TEXTS)
        template = template.replace(f"{{{name}}}", quote(text, safe="", errors="surrogateescape") or "%20")
    return template


def _query(rng: Random) -> str:
    named = [(rng.choice(QUERY_NAMES), rng.choice(TEXTS)) for _ in range(rng.choice((0, 0, 1, 1, 2)))]
    # as it is, but for what would end the line, or percent-encoded
    plain = str.maketrans(dict.fromkeys("\x00\n\r #", "%00"))
    coded = [
        f"{name}={text.translate(plain) if rng.random() < 0.5 else quote(text, errors='surrogateescape')}"
        for name, text in named
    ]
    return f"?{'&'.join(coded)}" if coded else ""


def _body(rng: Random, method: str, template: str) -> bytes:
    if template.endswith("/import"):
        return rng.choice(FILES)
    if (method, template) not in BODIES:
        return rng.choice((b"", b"", b"{}", b"{"))
    good, kind = BODIES[method, template]
    odd = {name: rng.choice(VALUES) for name in rng.sample(kind.__struct_fields__, 1)}
    return json.dumps(good | (odd if rng.random() < 0.9 else {})).encode()


async def ask(port: int, key: str, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
    """Status and what follows the head, of a connection of its own."""
    sent = {"Host": "api", "Authorization": f"Bearer {key}", "Connection": "close", "Content-Length": str(len(body))}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in (sent | headers).items())]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body)
        head, _, rest = (await reader.read(-1)).partition(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]), rest
    finally:
        writer.close()


def is_in_our_shape(status: int, answer: bytes) -> bool:
    if status < 400:
        return True
    return status < 500 and set(json.loads(answer)) == {"error"}


async def test_no_request_to_any_call_is_a_fault_of_ours(admin: Client, made: Made, db: Connection) -> None:
    for method, path, body in (
        ("POST", "/v1/domains", {"host": "go.other.example"}),
        ("POST", "/v1/caps", CAP | {"partner_id": made.partner_id}),
        ("POST", "/v1/blocks", {"partner_id": made.partner_id}),
    ):
        assert (await admin(method, path, json=body))[0] == 201
    many = limits.REQUESTS_PER_MINUTE_MAX
    partner = await keys.create(db, Wanted("partner", made.partner_id, requests_per_minute=many))
    port = admin.session._base_url.port  # type: ignore[union-attr]
    assert port
    faults, statuses = [], set()
    for _, (method, target, headers, body) in zip(range(REQUESTS), requests(SEED), strict=False):
        key = partner.key if "/me" in target else admin.key
        status, answer = await ask(port, key, method, target, headers, body)
        statuses.add(status)
        if not is_in_our_shape(status, answer):
            faults.append((status, method, target, headers, body[:200], answer[:200]))
    assert faults == [], f"{len(faults)} with the seed {SEED}"
    assert {200, 201, 400, 404, 409, 412} <= statuses
