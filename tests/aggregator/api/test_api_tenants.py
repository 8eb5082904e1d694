"""Two partners and two advertisers who ask for everything that can be read, all at once and in every way, are never
shown a row, a name, an id or an amount of another: however Redis is, whatever is remembered, and whosever cursors and
ETags they bring."""

import asyncio
import base64
import contextlib
import csv
import io
import json
import os
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

import aiohttp
import pytest

from aggregator.api import keys
from aggregator.api.app import READING, ROUTES
from aggregator.api.described import DESCRIBED
from aggregator.api.keys import Wanted
from aggregator.conversions import change
from aggregator.db.connect import Connection
from aggregator.db.partitions import ensure
from aggregator.reports.figures import METRICS
from aggregator.settled import days, quarters
from loadtests.faults.proxy import Mode
from schemas import limits
from schemas.click_id import uuid7_bytes
from schemas.redis import Redis, done
from schemas.settings import ApiSettings
from tests.aggregator.api.conftest import Client, Made, answering, offer_body, proxied, proxy_of, sold
from tests.aggregator.api.test_api_cached_reports import CLOSED, OPEN, TODAY

READ = [(method, path, roles) for method, path, roles, _, handler in ROUTES if method == "GET" or handler in READING]
CALLS = [(method, path, roles) for method, path, roles in READ if roles]
# Whose something is: partners 0 and 1, advertisers 2 and 3, and of each pair of them two links, 4 to 11. An owner's ids
# are of a million of their own, its names have `zz<owner>zz` in them, the ids of its clicks end in its number, and all
# of its amounts are one power of two, so that any sum says whose amounts are in it.
OWNERS = range(12)
LINKS = OWNERS[4:]
AT = TODAY - timedelta(hours=36)  # of a day that is settled
AT_MS = int(AT.timestamp() * 1000)
FIRST_ID, IDS_EACH = 700_000_000, 1_000_000
# of no owner, as far as they can be seen here
NEUTRAL = {
    "/v1/programme", "/v1/domains", "/v1/domains/{id}", "/v1/exchange-rates", "/v1/export/programme",
    "/v1/export/domains", "/v1/export/exchange-rates", "/v1/reconciliation", "/v1/system",
}  # fmt: skip
# sums of one amount per sale or click, in the answers of all calls; others are counts and quotients
AMOUNTS = {
    *(set(METRICS) - {"conversions", "pending", "approved", "rejected", "reversed", "profit", "cr", "epc", "aov"}),
    "amount_minor", "sale_amount_minor", "payout_minor", "revenue_minor", "booked_payout_minor",
    "booked_revenue_minor", "base_minor", "remaining_minor",
}  # fmt: skip
MODES: tuple[Mode, ...] = ("pass", "refuse", "blackhole", "pass")
WORDS: dict[str, list[str]] = {
    "status": ["active", "approved", "pending", "archived"], "access": ["private", "open"], "approval": ["approved"],
    "class": ["normal", "flagged"], "country": ["DE", "AT"], "device": ["mobile", "tablet"], "os": ["android"],
    "browser": ["chrome mobile"], "currency": ["EUR", "USD"], "in_currency": ["EUR"], "event": ["sale", "lead"],
    "kind": ["clicks", "conversion", "adjustment"], "period": ["day", "month"], "reason": ["over_cap"],
    "result": ["accepted", "rejected"], "role": ["partner", "advertiser"], "action": ["create"],
    "subject": ["partner"], "actor": ["admin"], "timezone": ["UTC", "Asia/Kathmandu"], "from": [CLOSED[5:15]],
    "to": [CLOSED[19:29]], "updated_since": [CLOSED[5:15]], "date_basis": ["click", "conversion", "ledger"],
    "granularity": ["total", "hour"], "metrics": ["clicks,sale_amount", "payout"], "totals": ["1"],
    "group_by": ["day", "link", "offer", "partner", "advertiser", "sub1", "source,sub10", "country,device", "status"],
    "sort": ["-clicks", "payout"], "limit": ["1", "3"], "live": ["1"],
    "corrections": ["0", "1"],
}  # fmt: skip
OWN_WORDS = {
    "host",
    "name",
    "external_id",
    "code",
    "click_ref",
    "source_id",
    "order_id",
    *(f"sub{n}" for n in range(1, 11)),
}
OWN_IDS = {"partner_id", "advertiser_id", "offer_id", "link_id", "domain_id", "replaces", "click_id", "conversion_id"}
PATHS = {
    "advertisers": "advertiser_id", "partners": "partner_id", "offers": "offer_id", "links": "link_id",
    "conversions": "conversion_id", "caps": "cap_id", "coupons": "coupon_id", "blocks": "block_id", "keys": "key_id",
    "domains": "domain_id",
}  # fmt: skip
QUESTIONS = [
    f"{time}&metrics=clicks,sale_amount{more}"
    for time in (CLOSED, OPEN)
    for more in (
        "", "&granularity=total", "&granularity=total&totals=1", "&group_by=offer", "&group_by=partner",
        "&group_by=day,offer&limit=3", "&partner_id=-2", "&format=csv",
    )
]  # fmt: skip


def word(owner: int) -> str:
    return f"zz{owner}zz"


def amount(owner: int) -> int:
    """The least are those of links, which have as many clicks."""
    return 1 << (owner - LINKS[0]) % len(OWNERS)


@dataclass
class World:
    """What is whose: `ids` by name, `uuids` that do not say it themselves, secrets."""

    ids: dict[str, dict[int, list[Any]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    uuids: dict[str, int] = field(default_factory=dict)
    secrets: dict[str, int] = field(default_factory=dict)

    def note(self, name: str, owner: int, row: dict[str, Any]) -> Any:
        self.ids[name][owner].append(row["id"])
        self.secrets |= {row[name]: owner for name in ("token", "key", "pixel_key") if row.get(name)}
        return row["id"]


class Seen(NamedTuple):
    """Whose names, and whose ids and secrets, are in an answer, and the sums of amounts."""

    words: frozenset[int]
    ids: frozenset[int]
    amounts: tuple[int, ...]


@dataclass(frozen=True)
class Tenant:
    """A caller. `named`: whose names it may see; `numbered`: whose ids as well; `mask`: whose amounts, as bits."""

    role: str
    owner: int
    key: str
    named: frozenset[int]
    numbered: frozenset[int]

    @property
    def mask(self) -> int:
        return sum(map(amount, self.named))

    def foreign(self, seen: Seen) -> list[Any]:
        amounts = [one for one in seen.amounts if abs(one) & ~self.mask]
        found = [*(seen.words - self.named), *(seen.ids - self.numbered)]
        return found if self.role == "admin" else [*found, *amounts]


def pair(link: int) -> tuple[int, int]:
    """The partner and the advertiser of a link."""
    return (link - 4) // 2 % 2, 2 + (link - 4) // 4


async def world_of(admin: Client, db: Connection) -> World:
    """Everything that can be listed, of each owner."""
    world = World()

    async def make(path: str, owner: int, **body: Any) -> Any:
        status, row = await admin("POST", path, json=body)
        assert status == 201, (path, row)
        return world.note(f"{path.removeprefix('/v1/').removesuffix('s')}_id", owner, row)

    for owner in OWNERS:
        await db.execute(
            "SELECT setval(oid::regclass, $1) FROM pg_class WHERE relkind = 'S'", FIRST_ID + owner * IDS_EACH
        )
        named = {"name": f"Name {word(owner)}", "external_id": f"own-{word(owner)}"}
        if owner < 2:
            await make("/v1/partners", owner, **named)
        elif owner < 4:
            await make("/v1/advertisers", owner, **named, pixel_origins=[f"https://{word(owner)}.example"])
            await make("/v1/domains", owner, host=f"{word(owner)}.example")
        else:
            await link_of(world, make, admin, db, owner, named)
    for partner in (0, 1):
        await db.execute("SELECT setval('ledger_entry_id_seq', $1)", FIRST_ID + partner * IDS_EACH + 500_000)
        async with db.transaction():
            partner_id = world.ids["partner_id"][partner][0]
            await change.adjust(db, partner_id, amount(partner), "EUR", f"said {word(partner)}", "admin:1", None)
    await db.execute("INSERT INTO edge (incarnation, name, closed_at) VALUES ('a', 'a', $1)", TODAY)
    now_ms = int(TODAY.timestamp() * 1000)
    while await quarters.settle_once(db, now_ms) | await days.settle_once(db, now_ms):
        pass
    for row in await db.fetch("SELECT intake_id, conversion_id FROM conversion_intake"):
        world.uuids[str(row["intake_id"])] = world.uuids[str(row["conversion_id"])]
    return world


async def link_of(world: World, make: Any, admin: Client, db: Connection, owner: int, named: Any) -> None:
    """An offer of its own with terms, a link, a cap, a coupon, a block, clicks, and a sale."""
    partner, shop = pair(owner)
    (partner_id,), (shop_id,) = world.ids["partner_id"][partner], world.ids["advertiser_id"][shop]
    payout = {"model": "cpa", "amount_minor": amount(owner), "currency": "EUR"}
    leads = {"access": "private", "destination_url": f"https://{word(owner)}.example"}
    offer = await make("/v1/offers", owner, **offer_body(shop_id, payout=payout, **leads, **named))
    status, _ = await admin("POST", f"/v1/offers/{offer}/terms", json={"side": "revenue", **payout})
    assert status == 201
    assert (await admin("PUT", f"/v1/offers/{offer}/partners/{partner_id}", json={"status": "approved"}))[0] == 200
    both = {"offer_id": offer, "partner_id": partner_id}
    link = await make("/v1/links", owner, **both, code=word(owner), external_id=word(owner))
    await make("/v1/caps", owner, **both, kind="clicks", period="day", clicks=amount(owner))
    await make("/v1/coupons", owner, **both, code=word(owner).upper())
    await make("/v1/blocks", owner, **both, sub1=word(owner))
    await clicked(db, world, owner, (link, offer, partner_id))
    made = Made(shop_id, "", partner_id, offer, link, word(owner))
    said = {"event_at_ms": AT_MS, "click_uuid": UUID(world.ids["click_id"][owner][0]), "amount_minor": amount(owner)}
    said |= {"raw": f"order_id={word(owner)}", "customer_id": word(owner), "adv": {"adv1": word(owner)}}
    sale = await sold(db, made, word(owner), **said)
    await db.execute(
        "UPDATE conversion SET source_id = $2, click_ref = $2, subs = $3, changed_at = now() - interval '1 hour'"
        " WHERE conversion_id = $1",
        sale, word(owner), subs(owner),
    )  # fmt: skip
    world.ids["conversion_id"][owner].append(str(sale))
    world.uuids[str(sale)] = owner


async def clicked(db: Connection, world: World, owner: int, of: tuple[int, int, int]) -> None:
    """As many clicks as the owner's amount, each of a visitor of its own, and what is rolled up of them."""
    await ensure(db, [AT.date()])
    last = b"\0\0\xfa\xca\xde" + owner.to_bytes(3)
    ids = [UUID(bytes=uuid7_bytes(AT_MS, n.to_bytes(2) + last)) for n in range(amount(owner))]
    await db.executemany(
        "INSERT INTO click (id, link_id, offer_id, partner_id, click_class, country, device, os, browser, visitor, ip,"
        " referer, source_id, click_ref, subs)"
        " VALUES ($1, $2, $3, $4, 0, 'DE', 'mobile', 'android', 'chrome mobile', $5, '203.0.113.0', $6, $6, $6, $7)",
        [(one, *of, os.urandom(8).hex(), word(owner), subs(owner)) for one in ids],
    )
    await db.execute(
        "INSERT INTO click_rollup (quarter, link_id, country, device, shard, clicks, invalid_clicks, offer_id,"
        " partner_id) VALUES ($1, $2, 'DE', 'mobile', 0, $5, 0, $3, $4)",
        AT, *of, len(ids),
    )  # fmt: skip
    world.ids["click_id"][owner] += [str(one) for one in ids[:3]]


def subs(owner: int) -> dict[str, str]:
    return {f"sub{n}": word(owner) for n in range(1, 11)}


async def tenants_of(db: Connection, world: World) -> list[Tenant]:
    found = [Tenant("admin", 0, await key_of(db, world, "admin", 0), frozenset(OWNERS), frozenset(OWNERS))]
    for owner in OWNERS[:4]:
        role = "partner" if owner < 2 else "advertiser"
        own = frozenset({owner, *(link for link in LINKS if owner in pair(link))})
        # an advertiser is told which partners sell for it, by their ids
        numbered = own if owner < 2 else own | {0, 1}
        found.append(Tenant(role, owner, await key_of(db, world, role, owner), own, numbered))
    return found


async def key_of(db: Connection, world: World, role: str, owner: int) -> str:
    own = {} if role == "admin" else {f"{role}_id": world.ids[f"{role}_id"][owner][0]}
    await db.execute("SELECT setval('api_key_id_seq', $1)", FIRST_ID + owner * IDS_EACH + len(world.secrets) + 1)
    wanted = Wanted(role, **own, name=f"Key {word(owner)}", requests_per_minute=limits.REQUESTS_PER_MINUTE_MAX)
    made = await keys.create(db, wanted)
    world.ids["key_id"][owner].append(made.id)
    world.secrets[made.key] = owner
    return made.key


@dataclass
class Asked:
    """A call as it is made."""

    method: str
    path: str
    url: str
    body: Any = None
    accept: str = "application/json"
    etag: str = ""


@dataclass
class Hammer:
    """What has been said to whom: `etags` by URL, `cursors` by path, and `shown`: whose things each role was shown by a
    call, in answers that were 200."""

    world: World
    chance: random.Random
    etags: dict[str, dict[str, Seen]] = field(default_factory=lambda: defaultdict(dict))
    cursors: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    shown: dict[tuple[str, str], set[int]] = field(default_factory=lambda: defaultdict(set))
    statuses: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def plain(self, tenant: Tenant, method: str, path: str) -> Asked:
        """About what is the caller's own, and about all of it."""
        url = self.filled(path, sorted(tenant.named))
        return Asked(method, path, url, {} if method == "POST" else None, etag=self.etag(url))

    def tried(self, method: str, path: str) -> Asked:
        """About anybody's, by any parameters, in any form, with what anybody was given."""
        described, chance = DESCRIBED[f"{method} {path}"], self.chance
        names = chance.sample(sorted(described.query), min(len(described.query), chance.randint(0, 3)))
        given = {name: value for name in names if (value := self.value(path, name, described.query[name]))}
        if path == "/v1/reports" and chance.random() < 0.5:
            given = dict(part.split("=") for part in chance.choice(QUESTIONS).split("&"))
        url = self.filled(path, OWNERS)
        if method == "POST":
            return Asked(method, path, url, self.body(), accept=chance.choice(described.forms))
        url += "?" * bool(given) + "&".join(f"{name}={value}" for name, value in given.items())
        return Asked(method, path, url, accept=chance.choice(described.forms), etag=self.etag(url))

    def etag(self, url: str) -> str:
        """What anybody was given for it."""
        known = sorted(self.etags[url])
        return ", ".join(self.chance.sample(known, min(len(known), self.chance.randint(0, 2))))

    def body(self) -> dict[str, Any]:
        """A question of `POST /v1/reports/query`."""
        owner = self.chance.choice(OWNERS)
        name = self.chance.choice(["partner_id", "offer_id", "link_id", "sub1", "country"])
        values = self.world.ids[name][owner] or [word(owner)]
        grouped = self.chance.choice(WORDS["group_by"]).split(",")
        return {"group_by": grouped, self.chance.choice(["filters", "exclusions"]): {name: values}, "totals": True}

    def filled(self, path: str, owners: Any) -> str:
        if "{id}" not in path:
            return path
        found = self.world.ids[PATHS[path.partition("/{id}")[0].rpartition("/")[2]]]
        of = [one for owner in owners for one in found[owner]] or [one for ids in found.values() for one in ids]
        return path.replace("{id}", str(self.chance.choice(of)))

    def value(self, path: str, name: str, kind: Any) -> str | None:
        owner = self.chance.choice(OWNERS)
        if name == "cursor":
            return self.chance.choice(self.cursors[path] or [""])
        if name in OWN_IDS:
            found = self.world.ids[name][owner]
            return f"{self.chance.choice(['', '-'])}{self.chance.choice(found)}" if found else None
        if name in OWN_WORDS:
            return word(owner)
        return str(self.chance.choice(kind.get("enum") or WORDS[name]))

    def read(self, text: str) -> Seen:
        """Whose things are in an answer: in its headers and body, and in the cursor that is in them."""
        for cursor in re.findall(r'"next_cursor": ?"([^"]+)"', text):
            with contextlib.suppress(ValueError):
                text += base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).decode()
        ids = {(int(one) - FIRST_ID) // IDS_EACH for one in re.findall(r"(?<![0-9A-Za-z])7\d{8}(?![0-9A-Za-z])", text)}
        uuids = set(re.findall(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", text))
        ids |= {self.world.uuids[one] for one in uuids & self.world.uuids.keys()}
        ids |= {int(one[-6:], 16) for one in uuids if one[-12:-6] == "facade"}
        ids |= {owner for secret, owner in self.world.secrets.items() if secret in text}
        return Seen(frozenset(map(int, re.findall(r"(?i)zz(\d+)zz", text))), frozenset(ids), ())

    async def ask(self, session: aiohttp.ClientSession, tenant: Tenant, asked: Asked) -> None:
        headers = {"Authorization": f"Bearer {tenant.key}", "Accept": asked.accept, "If-None-Match": asked.etag}
        async with session.request(asked.method, asked.url, headers=headers, json=asked.body) as answer:
            text = await answer.text()
        self.statuses[answer.status] += 1
        said = "\n".join([text, *answer.headers.values()])
        amounts = tuple(amounts_of(text, answer.content_type)) if answer.status == 200 else ()
        seen = self.read(said)._replace(amounts=amounts)
        etag = answer.headers.get("ETag", "")
        if answer.status == 304:
            seen = self.etags[asked.url][etag]
        elif answer.status >= 400:  # it may say what it was asked
            sent = self.read(asked.url + json.dumps(asked.body))
            seen = Seen(seen.words - sent.words, seen.ids - sent.ids, ())
        assert tenant.foreign(seen) == [], (tenant.role, tenant.owner, asked, answer.status, text[:2000])
        assert answer.status in (200, 304, 400, 403, 404, 429, 503), (asked, text)
        if answer.status == 200:
            self.shown[tenant.role, asked.path] |= seen.words | seen.ids | whose(seen.amounts)
            self.cursors[asked.path] += re.findall(r'"next_cursor": ?"([^"]+)"', text)[:1]
            if etag and asked.method == "GET":
                self.etags[asked.url][etag] = seen


def whose(amounts: tuple[int, ...]) -> set[int]:
    return {owner for one in amounts for owner in OWNERS if abs(one) & amount(owner)}


def amounts_of(text: str, content_type: str) -> Iterator[int]:
    if content_type == "application/json":
        yield from _amounts(json.loads(text))
    elif content_type == "text/csv":
        for row in csv.DictReader(io.StringIO(text, newline="")):
            yield from (int(value) for name, value in row.items() if name in AMOUNTS and value)


def _amounts(found: Any) -> Iterator[int]:
    if isinstance(found, list):
        for one in found:
            yield from _amounts(one)
    elif isinstance(found, dict):
        of = {"counted_clicks"} if "per_clicks" in found else AMOUNTS  # a score's payout is one to expect
        yield from (one for name, one in found.items() if name in of and isinstance(one, int))
        yield from _amounts(list(found.values()))


async def hammer(of: Hammer, session: aiohttp.ClientSession, tenant: Tenant) -> None:
    """Every call that there is for a role: about one's own, and twice about anything; some that are not for it."""
    for method, path, roles in of.chance.sample(CALLS, len(CALLS)):
        if tenant.role in roles or of.chance.random() < 0.2:
            await of.ask(session, tenant, of.plain(tenant, method, path))
        for _ in range(2 if tenant.role in roles else 0):
            await of.ask(session, tenant, of.tried(method, path))


async def its_sums(session: aiohttp.ClientSession, tenant: Tenant) -> None:
    """What it is shown is all of its own, too."""
    headers = {"Authorization": f"Bearer {tenant.key}"}
    links = sum(amount(owner) for owner in tenant.named & set(LINKS))
    for query in QUESTIONS:
        if any(one in query for one in ("partner_id", "limit", "totals")):
            continue
        async with session.get(f"/v1/reports?{query}", headers=headers) as answer:
            text = await answer.text()
        if answer.status == 503 and "format=csv" in query:  # as many files as may be are being sent
            continue
        assert answer.status == 200, text
        assert sum(amounts_of(text, answer.content_type)) == 2 * links, (tenant, query)


@pytest.mark.parametrize(("method", "path"), [(method, path) for method, path, _ in CALLS])
def test_every_parameter_of_a_call_that_reads_has_something_to_be_asked_for(method: str, path: str) -> None:
    """A call that is new is hammered by itself; what it takes that nobody took before has to be given values here."""
    known = {"cursor", "format", *WORDS, *OWN_WORDS, *OWN_IDS}
    assert {name for name, kind in DESCRIBED[f"{method} {path}"].query.items() if not kind.get("enum")} <= known
    assert set(re.findall(r"{(\w+)}", path)) <= {"id"}
    assert method == "GET" or path == "/v1/reports/query"
    assert "{id}" not in path or path.partition("/{id}")[0].rpartition("/")[2] in PATHS


async def test_tenants_who_ask_for_everything_at_once_are_shown_nothing_foreign(
    settings: ApiSettings, admin: Client, db: Connection, redis: Redis
) -> None:
    world = await world_of(admin, db)
    everybody = await tenants_of(db, world)
    of = Hammer(world, random.Random(8))
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(proxy_of(settings.redis_url))
        near = settings.model_copy(update={"redis_url": proxied(settings.redis_url, proxy)})
        sessions = [await stack.enter_async_context(answering(near)) for _ in range(2)]  # two processes, one Redis
        for mode in MODES:
            proxy.mode = mode
            callers = [(sessions[0], tenant) for tenant in everybody] + [
                (sessions[1], tenant) for tenant in everybody if tenant.role != "admin"
            ]
            await asyncio.gather(*(hammer(of, *one) for one in callers), *(its_sums(*one) for one in callers[:5]))
    assert await done(redis.keys("remembered:report:*"))
    unseen = [
        (role, path) for _, path, roles in CALLS for role in roles if not of.shown[role, path] and path not in NEUTRAL
    ]
    assert unseen == []
    assert of.statuses[200] > sum(of.statuses.values()) // 2
    assert of.statuses[304]
    print(f"{dict(of.statuses)} for {len(everybody)} tenants by {len(CALLS)} calls, nothing foreign")
