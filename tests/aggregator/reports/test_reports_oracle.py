"""Random questions, against a plain computation over the events themselves that shares nothing with the product but the
words of the question."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import asyncpg
import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from aggregator.db.connect import Connection, connect
from aggregator.reports.asked import QueryBody, Scope, read_query
from aggregator.reports.report import Report, lines, report
from aggregator.reports.state import State
from schemas.click_id import uuid7_bytes

EXAMPLES = int(os.environ.get("CLICKDAM_ORACLE_EXAMPLES", "1000"))
PAGES = 4
ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Asia/Kolkata", "Australia/Lord_Howe",
    "America/St_Johns", "Pacific/Chatham", "America/Havana", "Africa/Cairo", "Pacific/Apia", "America/Sao_Paulo",
)  # fmt: skip
# weeks in which clocks are changed somewhere among them
WEEKS = ("2026-03-05", "2026-03-26", "2026-04-02", "2026-04-22", "2026-09-24", "2026-10-01", "2026-10-22", "2026-10-29")
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
SETTLED = datetime(2026, 10, 25, 3, 15, tzinfo=UTC)
DETAILS = ("os", "browser", "source_id", "sub1", "sub2")
IDS = ("link_id", "offer_id", "partner_id", "advertiser_id")
NAMES = {"link": "link_id", "offer": "offer_id", "partner": "partner_id", "advertiser": "advertiser_id",
         "country": "country", "device": "device", "os": "os", "browser": "browser", "source": "source_id",
         "sub1": "sub1", "sub2": "sub2", "event": "event", "status": "status"}  # fmt: skip
VALUES: dict[str, list[Any]] = {
    "link_id": [1, 2, 3, 4, 5, 99], "offer_id": [1, 2, 3], "partner_id": [1, 2, 3], "advertiser_id": [1, 2, 3],
    "country": ["DE", "US", "NP"], "device": ["mobile", "desktop"], "os": ["iOS", "Linux"], "browser": ["Firefox"],
    "source_id": ["a", "b,c", "-d"], "sub1": ["x", "y", "Ä"], "sub2": ["z"], "event": ["sale", "lead"],
    "status": ["approved", "pending", "rejected", "reversed"], "currency": ["EUR", "USD", "JPY"],
}  # fmt: skip
LINKS = {1: (1, 1), 2: (1, 2), 3: (2, 1), 4: (2, 2), 5: (3, 2)}  # offer, partner
ADVERTISERS = {1: 1, 2: 1, 3: 2}  # of offers
CLICK_METRICS = ("clicks", "invalid_clicks", "unique_clicks", "duplicate_clicks")
SALE_METRICS = ("conversions", "approved", "pending", "rejected", "reversed", "sale_amount", "revenue", "payout",
                "payout_pending", "payout_reversed", "profit", "aov")  # fmt: skip
RATES = ("cr", "epc")
BOOKED_METRICS = ("payout", "payout_reversed", "revenue", "profit")
BOOKED_NAMES = ("partner_id", "offer_id", "advertiser_id", "event", "currency")


@dataclass(frozen=True)
class Event:
    """A click, a conversion or an entry of the ledger, and all that a report may ask of it; `None` for what is not
    known. `kind` is the entry's, `sale` the place of its conversion among all."""

    at: datetime
    clicked_at: datetime
    said: dict[str, Any]
    unique: bool = False
    invalid: bool = False
    money: tuple[tuple[str, str, int], ...] = ()  # currency, metric, amount
    kind: str = ""
    sale: int | None = None


def some(chosen: random.Random, name: str, missing: float = 0.2) -> Any:
    return None if chosen.random() < missing else chosen.choice(VALUES[name])


def visit(chosen: random.Random) -> dict[str, Any]:
    link_id = chosen.choice(list(LINKS))
    offer_id, partner_id = LINKS[link_id]
    said = {"link_id": link_id, "offer_id": offer_id, "partner_id": partner_id, "advertiser_id": ADVERTISERS[offer_id]}
    return said | {name: some(chosen, name) for name in ("country", "device", *DETAILS)}


def moment(chosen: random.Random) -> datetime:
    begins = datetime.fromisoformat(chosen.choice(WEEKS)).replace(tzinfo=UTC)
    return begins + timedelta(milliseconds=chosen.randrange(7 * 86_400_000))


def clicks(chosen: random.Random, number: int) -> list[Event]:
    found = []
    for _ in range(number):
        at = moment(chosen)
        invalid = chosen.random() < 0.2
        unique = not invalid and at < SETTLED and chosen.random() < 0.7
        found.append(Event(at, at, visit(chosen), unique, invalid))
    return found


def sales(chosen: random.Random, of: list[Event]) -> list[Event]:
    """Conversions of some of these clicks, up to two weeks later."""
    found = []
    for click in of:
        status, event = chosen.choice(VALUES["status"]), chosen.choice(VALUES["event"])
        paid_in, sold_in, earned_in = (chosen.choice(VALUES["currency"]) for _ in range(3))
        payout, sale, revenue = (chosen.randrange(10_000) for _ in range(3))
        money = [(paid_in, "conversions" if status == "approved" else status, 1)]
        kept = {"approved": "payout", "pending": "payout_pending", "reversed": "payout_reversed"}
        if status in kept:
            money.append((paid_in, kept[status], payout))
        if status == "approved":
            money += [(sold_in, "sale_amount", sale), (earned_in, "revenue", revenue)]
        at = click.at + timedelta(milliseconds=chosen.randrange(14 * 86_400_000))
        said = click.said | {"event": event, "status": status}
        amounts = {"payout": payout, "sale": sale, "revenue": revenue}
        currencies = {"paid_in": paid_in, "sold_in": sold_in, "earned_in": earned_in}
        found.append(Event(at, click.at, said | amounts | currencies, money=tuple(money)))
    return found


def entries(chosen: random.Random, of: list[Event]) -> list[Event]:
    """What was booked for conversions, some of it taken back or changed later, and for no conversion at all."""
    found = []
    for n, sale in enumerate(of):
        at, said = sale.at, sale.said
        for kind in ("accrual", *chosen.sample(("reversal", "refund", "chargeback", "change"), chosen.randrange(3))):
            sign = {"accrual": 1, "change": chosen.choice((1, -1))}.get(kind, -1)
            paid, earned = sign * chosen.randrange(5_000), sign * chosen.randrange(5_000)
            money = [(said["paid_in"], "payout", paid), (said["earned_in"], "revenue", earned)]
            if kind in ("reversal", "refund", "chargeback"):
                money.append((said["paid_in"], "payout_reversed", -paid))
            found.append(Event(at, at, said, money=tuple(money), kind=kind, sale=n))
            at += timedelta(milliseconds=chosen.randrange(9 * 86_400_000))
    for _ in range(60):
        offer_id = chosen.choice((0, *ADVERTISERS))
        owners = {
            "partner_id": chosen.choice((1, 2)),
            "offer_id": offer_id,
            "advertiser_id": ADVERTISERS.get(offer_id, 0),
        }
        money = [(chosen.choice(VALUES["currency"]), "payout", chosen.randrange(-5_000, 5_000))]
        at = moment(chosen)
        found.append(Event(at, at, owners | {"event": None}, money=tuple(money), kind="adjustment"))
    for _ in range(60):  # paid clicks, of both sides or one
        offer_id, at = chosen.choice(list(ADVERTISERS)), moment(chosen)
        owners = {"partner_id": chosen.choice((1, 2)), "offer_id": offer_id, "advertiser_id": ADVERTISERS[offer_id]}
        money = [(chosen.choice(VALUES["currency"]), side, chosen.randrange(5_000)) for side in ("payout", "revenue")]
        sides = chosen.sample(money, chosen.choice((1, 2)))
        found.append(Event(at, at, owners | {"event": None}, money=tuple(sides), kind="clicks"))
    return found


@dataclass(frozen=True, repr=False)
class World:
    db: Connection
    clicks: list[Event]
    sales: list[Event]
    booked: list[Event]


@pytest.fixture(scope="module")
async def world(shared_database_url: str) -> AsyncIterator[World]:
    filling = await asyncpg.connect(shared_database_url)
    events = await fill(filling)
    await filling.close()
    db = await connect(shared_database_url, command_timeout_s=30)
    yield World(db, *events)
    await db.close()


async def fill(db: Connection) -> tuple[list[Event], list[Event], list[Event]]:
    chosen = random.Random(20261101)
    made = clicks(chosen, 1_500)
    sold = sales(chosen, chosen.sample(made, 400))
    booked = entries(chosen, sold)
    await db.execute(
        "INSERT INTO advertiser (name, token_sha256) VALUES ('One', '\\x01'), ('Two', '\\x02');"
        "INSERT INTO partner (name) VALUES ('One'), ('Two')"
    )
    for offer_id, advertiser_id in ADVERTISERS.items():
        await db.execute(
            "INSERT INTO offer (advertiser_id, name, destination_url, currency) VALUES ($1, $2, 'https://a.b', 'EUR')",
            advertiser_id, str(offer_id),
        )  # fmt: skip
    await db.execute("UPDATE settling SET through = $1", SETTLED)
    ids = {id(one): UUID(bytes=uuid7_bytes(int(one.at.timestamp() * 1000), os.urandom(10))) for one in made}
    await write_clicks(db, made, ids)
    await write_rollups(db, made, sold)
    by_moment = {(one.at, one.said["link_id"], one.said["sub1"]): ids[id(one)] for one in made}
    await write_sales(db, sold, by_moment)
    await write_ledger(db, booked)
    await db.execute("ANALYZE")
    return made, sold, booked


async def write_clicks(db: Connection, made: list[Event], ids: dict[int, UUID]) -> None:
    days = sorted({one.at.date() for one in made})
    for day in days:
        first, end = (UUID(int=int(datetime(d.year, d.month, d.day, tzinfo=UTC).timestamp() * 1000) << 80)
                      for d in (day, day + timedelta(days=1)))  # fmt: skip
        await db.execute(
            f"CREATE TABLE click_{day:%Y_%m_%d} PARTITION OF click FOR VALUES FROM ('{first}') TO ('{end}')"
        )
    columns = ("link_id", "offer_id", "partner_id", "country", "device", "os", "browser", "source_id")
    rows = [
        (ids[id(one)], int(one.invalid), f"{n:016x}", *(one.said[name] for name in columns), subs(one))
        for n, one in enumerate(made)
    ]
    # clicks that are in no report
    rows += [(UUID(int=row[0].int ^ 1), 4 + n % 2, *row[2:]) for n, row in enumerate(rows[:300])]
    await db.copy_records_to_table("click", records=rows, columns=("id", "click_class", "visitor", *columns, "subs"))
    firsts = [(one.at.date(), one.said["partner_id"], one.said["offer_id"], n, ids[id(one)])
              for n, one in enumerate(made) if one.unique]  # fmt: skip
    await db.copy_records_to_table("first_click", records=firsts)


def subs(one: Event) -> str | None:
    found = {name: one.said[name] for name in ("sub1", "sub2") if one.said[name] is not None}
    return orjson.dumps(found).decode() if found else None


def quarter(at: datetime) -> datetime:
    return at - timedelta(minutes=at.minute % 15, seconds=at.second, microseconds=at.microsecond)


async def write_rollups(db: Connection, made: list[Event], sold: list[Event]) -> None:
    """What the aggregator and the settling keep of them, on two shards."""
    rolled: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0, 0, 0])
    detailed: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0, 0, 0])
    for n, one in enumerate(made):
        said, added = one.said, (1, int(one.invalid), int(one.unique))
        owners = (said["link_id"], said["offer_id"], said["partner_id"])
        add(rolled[quarter(one.at), *owners, said["country"] or "", said["device"] or "", n % 2], added)
        for name in DETAILS:
            if said[name] is not None:
                add(detailed[said["partner_id"], name, quarter(one.at), said["offer_id"], said[name]], added)
    columns = ("quarter", "link_id", "offer_id", "partner_id", "country", "device", "shard", "clicks",
               "invalid_clicks", "unique_clicks")  # fmt: skip
    await db.copy_records_to_table("click_rollup", records=[(*k, *v) for k, v in rolled.items()], columns=columns)
    await db.copy_records_to_table("detail_rollup", records=[(*k, *v) for k, v in detailed.items()])
    sums: dict[tuple[Any, ...], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for n, one in enumerate(sold):
        for currency, metric, amount in one.money:
            owners = (one.said["link_id"], one.said["offer_id"], one.said["partner_id"])
            sums[quarter(one.at), *owners, currency, n % 2][metric] += amount
    counts = ("conversions", "pending", "rejected", "reversed")
    money = ("sale_amount", "revenue", "payout", "payout_pending", "payout_reversed")
    await db.copy_records_to_table(
        "conversion_rollup",
        records=[(*k, *(v[m] for m in (*counts, *money))) for k, v in sums.items()],
        columns=("quarter", "link_id", "offer_id", "partner_id", "currency", "shard", *counts,
                 *(f"{one}_minor" for one in money)),
    )  # fmt: skip


def add(sums: list[int], added: tuple[int, ...]) -> None:
    sums[:] = [one + other for one, other in zip(sums, added, strict=True)]


async def write_sales(db: Connection, sold: list[Event], click_ids: dict[tuple[Any, ...], UUID]) -> None:
    rows: list[tuple[Any, ...]] = []
    for one in sold:
        said = one.said
        click_id = click_ids[one.clicked_at, said["link_id"], said["sub1"]]
        names = ("link_id", "offer_id", "partner_id", "advertiser_id", "event", "status", "country", "device",
                 "source_id")  # fmt: skip
        new = UUID(int=len(rows) + 1)
        money = (said[name] for name in ("payout", "paid_in", "sale", "sold_in", "revenue", "earned_in"))
        rows.append((new, new, click_id, one.at, one.at, *(said[name] for name in names), subs(one), *money, 0))
    columns = ("conversion_id", "intake_id", "click_id", "event_at", "received_at", "link_id", "offer_id", "partner_id",
               "advertiser_id", "event", "status", "country", "device", "source_id", "subs", "payout_minor", "currency",
               "sale_amount_minor", "sale_currency", "revenue_minor", "revenue_currency",
               "booked_payout_minor")  # fmt: skip
    await db.copy_records_to_table("conversion", records=rows, columns=columns)


async def write_ledger(db: Connection, booked: list[Event]) -> None:
    """Of each entry what a partner is owed, what an advertiser owes, and the programme's other side."""
    heads, account_lines = [], []
    for n, one in enumerate(booked, 1):
        sale = None if one.sale is None else UUID(int=one.sale + 1)
        partner_id = one.said["partner_id"] if one.kind == "clicks" else None
        heads.append((n, one.at, one.kind, sale, one.said["offer_id"] or None, "sender", partner_id))
        sums: dict[tuple[str, str], int] = defaultdict(int)
        for currency, metric, amount in one.money:
            owner = {"payout": ("partner", "partner_id", 1), "revenue": ("advertiser", "advertiser_id", -1)}.get(metric)
            if owner:
                sums[f"{owner[0]}:{one.said[owner[1]]}", currency] += owner[2] * amount
                sums["programme", currency] -= owner[2] * amount
        account_lines += [(n, account, amount, currency) for (account, currency), amount in sums.items()]
    columns = ("id", "at", "kind", "conversion_id", "offer_id", "actor", "partner_id")
    await db.copy_records_to_table("ledger_entry", records=heads, columns=columns)
    await db.copy_records_to_table("ledger_line", records=account_lines)


# The oracle


def label(at: datetime, zone: ZoneInfo, granularity: str) -> str:
    """Of the time that an event lies in, by its own wall clock; of hours and quarters the beginning."""
    local = at.astimezone(zone)
    if granularity == "day":
        return str(local.date())
    if granularity == "week":
        return str(local.date() - timedelta(days=local.weekday()))
    if granularity == "month":
        return str(local.date().replace(day=1))
    begins = quarter(at)
    while granularity == "hour":
        before = (begins - timedelta(minutes=15)).astimezone(zone)
        if (before.date(), before.hour, before.utcoffset()) != (local.date(), local.hour, local.utcoffset()):
            break
        begins -= timedelta(minutes=15)
    return begins.strftime("%Y-%m-%dT%H:%M:%SZ")


Question = dict[str, Any]


def wanted(one: Event, question: Question, scope: Scope) -> bool:
    said = one.said
    owned = (scope.partner_id in (None, said["partner_id"])) and (scope.advertiser_id in (None, said["advertiser_id"]))
    for side, excluded in (("filters", False), ("exclusions", True)):
        for name, values in question.get(side, {}).items():
            if name == "currency":
                continue
            if said.get(name) is None and name in (*DETAILS, "event"):
                return False
            if (said.get(name) in values) is excluded:
                return False
    grouped = [NAMES[one] for one in question["group_by"] if one in NAMES]
    return owned and all(said[name] is not None for name in grouped if name in (*DETAILS, "event"))


def expected(world: World, question: Question, scope: Scope, cut: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows, of which nothing but their order is said by the question's sort."""
    groups = [NAMES[one] for one in question["group_by"] if one in NAMES] if cut["grouped"] else []
    granularity = cut["granularity"]
    clicked: dict[tuple[Any, ...], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    sold: dict[tuple[Any, ...], dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(int)))

    def key(at: datetime, one: Event) -> tuple[Any, ...]:
        time = () if granularity == "total" else (cut["label"](at),)
        return (*time, *(one.said[name] for name in groups))

    metrics = set(question["metrics"])
    if metrics & {*CLICK_METRICS, *RATES}:
        for one in world.clicks:
            if cut["from"] <= one.at < cut["to"] and wanted(one, question, scope):
                sums = clicked[key(one.at, one)]
                sums["clicks"] += 1
                sums["invalid_clicks"] += one.invalid
                sums["unique_clicks"] += one.unique
                sums["duplicate_clicks"] += not one.invalid and not one.unique and quarter(one.at) < SETTLED
    needed = needs(metrics)
    for one in world.booked if question["date_basis"] == "ledger" else world.sales:
        at = one.clicked_at if question["date_basis"] == "click" else one.at
        if cut["from"] <= at < cut["to"] and wanted(one, question, scope):
            for currency, metric, amount in one.money:
                if metric in needed and kept(currency, question):
                    sold[key(at, one)][currency][metric] += amount
    zeros: list[tuple[Any, ...]] = [(text,) for text in cut["begun"]] if not groups and granularity != "total" else []
    zeros += [()] if not groups and granularity == "total" and cut["from"] <= NOW else []
    rows = []
    for of in {*clicked, *sold, *zeros} if cut["grouped"] else {*clicked, *sold} or {()}:
        valid = clicked[of]["clicks"] - clicked[of]["invalid_clicks"]
        paid = {c: sums for c, sums in sorted(sold[of].items()) if any(sums.values())}
        for place, currency in enumerate(paid or ["EUR"]):
            sums = defaultdict(int, paid.get(currency, {}))
            sums.update({name: clicked[of][name] if place == 0 else 0 for name in CLICK_METRICS})
            names = ([granularity] if granularity != "total" else []) + groups
            rows.append(dict(zip(names, of, strict=True)) | shown(sums, valid, question) | {"currency": currency})
    return rows


def needs(metrics: set[str]) -> set[str]:
    made_of = {"approved": {"conversions"}, "profit": {"revenue", "payout"}, "aov": {"sale_amount", "conversions"},
               "cr": {"conversions"}, "epc": {"payout"}}  # fmt: skip
    return set().union(*(made_of.get(one, {one}) for one in metrics))


def kept(currency: str, question: Question) -> bool:
    in_, out = question.get("filters", {}).get("currency"), question.get("exclusions", {}).get("currency", ())
    return (in_ is None or currency in in_) and currency not in out


def shown(sums: dict[str, int], valid: int, question: Question) -> dict[str, Any]:
    all_ = dict(sums) | {
        "approved": sums["conversions"],
        "profit": sums["revenue"] - sums["payout"],
        "cr": ratio(sums["conversions"], valid),
        "epc": ratio(sums["payout"], valid),
        "aov": ratio(sums["sale_amount"], sums["conversions"]),
    }
    return {name: all_.get(name, 0) for name in question["metrics"]}


def ratio(upper: int, lower: int) -> float | None:
    if lower == 0:
        return None
    millionths = Fraction(upper * 1_000_000, lower)
    whole = Decimal(millionths.numerator) / Decimal(millionths.denominator)
    return float(whole.quantize(Decimal(1), ROUND_HALF_UP) / 1_000_000)


# The questions


@st.composite
def questions(draw: st.DrawFn) -> tuple[Question, Scope]:
    begins = date.fromisoformat(draw(st.sampled_from(WEEKS))) + timedelta(days=draw(st.integers(-2, 6)))
    days = draw(st.integers(1, 12))
    granularity = draw(st.sampled_from(("quarter", "hour", "day", "day", "week", "month", "total", "total")))
    date_basis = draw(st.sampled_from(("conversion", "conversion", "click", "ledger")))
    names = [name for name in VALUES if date_basis != "ledger" or name in BOOKED_NAMES]
    groups = draw(
        st.lists(st.sampled_from([one for one, name in NAMES.items() if name in names]), max_size=2, unique=True)
    )
    sides: dict[str, dict[str, list[Any]]] = {"filters": {}, "exclusions": {}}
    for name in draw(st.lists(st.sampled_from(names), max_size=2, unique=True)):
        values = draw(st.lists(st.sampled_from(VALUES[name]), min_size=1, max_size=2, unique=True))
        sides[draw(st.sampled_from(("filters", "exclusions")))][name] = values
    sale_only = {"event", "status", "currency"} & {*groups, *sides["filters"], *sides["exclusions"]}
    known: tuple[str, ...] = SALE_METRICS if sale_only else (*CLICK_METRICS, *SALE_METRICS, *RATES)
    known = BOOKED_METRICS if date_basis == "ledger" else known
    metrics = draw(st.lists(st.sampled_from(known), min_size=1, max_size=5, unique=True))
    sort = draw(st.one_of(st.none(), st.sampled_from(metrics), st.sampled_from(metrics).map(lambda one: f"-{one}")))
    scope = draw(st.sampled_from((Scope(), Scope(), Scope(partner_id=1), Scope(partner_id=2), Scope(None, 1))))
    words = {
        "from_": begins.isoformat(), "to": (begins + timedelta(days=days)).isoformat(), "granularity": granularity,
        "timezone": draw(st.sampled_from(ZONES)), "group_by": groups, "metrics": metrics, "sort": sort,
        "date_basis": date_basis,
        "limit": draw(st.sampled_from((3, 50, 1000, 1000))), "totals": draw(st.booleans()), **sides,
    }  # fmt: skip
    return words, scope


def order(row: dict[str, Any], names: list[str]) -> tuple[Any, ...]:
    return (*(row[name] if row[name] is not None else "" for name in names), row["currency"])


async def ask_all(db: Connection, question: Question, scope: Scope) -> tuple[list[Any], list[Any] | None, list[Any]]:
    """All pages, up to PAGES of them, the totals, and the same by a cursor of the database."""
    wanted_rows: list[Any] = []
    answer: dict[str, Any] = {"next_cursor": None}
    state = State(None, None, None, NOW, "UTC", "EUR", False)
    for _ in range(PAGES):
        body = QueryBody(**question | {"cursor": answer["next_cursor"]})
        made = Report(read_query(body, "UTC", NOW, "admin"), "EUR", scope)
        answer = await report(db, made, state)
        wanted_rows += answer["data"]
        assert len(answer["data"]) <= question["limit"]
        if not answer["truncated"]:
            break
    whole = Report(read_query(QueryBody(**question), "UTC", NOW, "admin"), "EUR", scope)
    async with db.transaction():
        streamed = [row async for row in lines(db, whole)]
    return wanted_rows, answer.get("totals"), streamed


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(
    asked=(
        {
            "from_": "2026-11-02",
            "to": "2026-11-03",
            "granularity": "total",
            "timezone": "UTC",
            "group_by": [],
            "metrics": ["clicks"],
            "sort": None,
            "date_basis": "conversion",
            "limit": 3,
            "totals": False,
            "filters": {},
            "exclusions": {},
        },
        Scope(),
    )
)
@given(asked=questions())
async def test_any_question_is_answered_as_the_events_themselves_say(
    world: World, asked: tuple[Question, Scope]
) -> None:
    question, scope = asked
    zone, granularity = ZoneInfo(question["timezone"]), question["granularity"]
    span = [datetime.fromisoformat(question[name]).replace(tzinfo=zone).astimezone(UTC) for name in ("from_", "to")]
    quarters = [span[0] + n * timedelta(minutes=15) for n in range((span[1] - span[0]) // timedelta(minutes=15))]
    labels = {at: "" if granularity == "total" else label(at, zone, granularity) for at in quarters}
    cut = {
        "from": span[0], "to": span[1], "granularity": granularity, "grouped": True,
        "label": lambda at: labels[quarter(at)], "begun": {one for at, one in labels.items() if at <= NOW},
    }  # fmt: skip
    rows, totals, streamed = await ask_all(world.db, question, scope)
    names = ([granularity] if granularity != "total" else []) + [NAMES[one] for one in question["group_by"]]
    whole = expected(world, question, scope, cut)
    in_order = sorted(whole, key=lambda row: order(row, names))
    if question["sort"]:
        by, descending = question["sort"].removeprefix("-"), question["sort"].startswith("-")
        with_value = [row for row in in_order if row[by] is not None]
        with_value.sort(key=lambda row: -row[by] if descending else row[by])
        in_order = with_value + [row for row in in_order if row[by] is None]
    assert streamed == in_order
    assert rows == in_order[: len(rows)]
    assert len(rows) == min(len(in_order), PAGES * question["limit"])
    if totals is not None:
        total = expected(world, question, scope, cut | {"granularity": "total", "grouped": False})
        assert sorted(totals, key=lambda row: row["currency"]) == sorted(total, key=lambda row: row["currency"])
