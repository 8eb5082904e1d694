"""Months are closed and ranges re-rated by adjustments: each difference is booked once, and nothing earned changes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import accumulate
from random import Random
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.conversions import change, ledger
from aggregator.conversions import settle as settling
from aggregator.conversions.periods import Difference, Sale, amounts, bounds, close, last_month, rerate, what_if
from aggregator.conversions.rates import Rates, day_of
from aggregator.conversions.terms import Offer, Terms, Tier, Worth
from aggregator.db.connect import Connection, connect
from aggregator.db.instants import to_ms
from loadtests.faults.journals import conversion, uuid7
from schemas.errors import Refused

FOREVER = float("-inf")
SEPTEMBER, OCTOBER, NOVEMBER = (datetime(2025, month, 1, tzinfo=UTC) for month in (9, 10, 11))
MINUTE = timedelta(minutes=1)


def sale(
    number: int, amount_minor: int | None = None, event: str = "sale", said: tuple[int, str] | None = None
) -> Sale:
    when = OCTOBER + number * MINUTE
    worth = Worth(amount_minor, "EUR", day_of(to_ms(when)))
    return Sale(1, event, to_ms(when), when, worth, said)


def tiered(*amounts_minor: tuple[int, int], base_minor: int = 100, **fields: Any) -> Terms:
    tiers = tuple(Tier(since, amount_minor, None) for since, amount_minor in amounts_minor)
    return Terms(FOREVER, "cpa", base_minor, None, "EUR", tiers=tiers, **fields)


def paid(terms: Sequence[Terms], sales: Sequence[Sale]) -> list[int | None]:
    return [amount_minor for amount_minor, _ in amounts(Offer(1, tuple(terms)), sales, Rates())]


FOUR = [sale(n) for n in range(4)]
LATER = Terms(to_ms(OCTOBER + 2 * MINUTE), "cpa", 500, None, "EUR")
TEN_FROM_TWO = Terms(FOREVER, "cps", None, Decimal(5), "EUR", tiers=(Tier(2, None, Decimal(10)),))


@pytest.mark.parametrize(
    ("terms", "sales", "wanted"),
    [
        ([tiered()], FOUR, [100, 100, 100, 100]),
        ([tiered((3, 150))], FOUR, [100, 100, 150, 150]),
        ([tiered((3, 150), (4, 300))], FOUR, [100, 100, 150, 300]),
        ([tiered((5, 150))], FOUR, [100, 100, 100, 100]),
        ([tiered((3, 150), marginal=False)], FOUR, [150, 150, 150, 150]),
        ([tiered((3, 150), (5, 300), marginal=False)], FOUR, [150, 150, 150, 150]),
        ([TEN_FROM_TWO], [sale(0, 1000), sale(1, 1000), sale(2, 105)], [50, 100, 11]),
        ([TEN_FROM_TWO], [sale(0, 1000), sale(1)], [50, None]),
        # leads do not raise the price of sales, where they have a price of their own
        (
            [tiered((2, 150)), tiered(base_minor=7, event="lead")],
            [sale(0, event="lead"), *FOUR[1:]],
            [7, 100, 150, 150],
        ),
        ([tiered((2, 150))], [sale(0, event="lead"), *FOUR[1:]], [100, 150, 150, 150]),
        # what a sender says counts, and pays what it says
        ([tiered((2, 150))], [sale(0, said=(9, "EUR")), sale(1), sale(2, said=(8, "EUR"))], [9, 150, 8]),
        ([], [sale(0, said=(9, "EUR")), sale(1)], [9, None]),
        # terms that changed in mid-month: each pays by those of its click, all of them count
        ([tiered((2, 150)), LATER], FOUR, [100, 150, 500, 500]),
    ],
)
def test_tiers_count_the_sales_of_a_month_in_their_order(
    terms: Sequence[Terms], sales: Sequence[Sale], wanted: list[int | None]
) -> None:
    assert paid(terms, sales) == wanted


@given(
    st.lists(st.integers(0, 10**6), max_size=40),
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 5000)), max_size=4),
    st.booleans(),
)
def test_tiers_pay_what_a_plain_walk_up_the_ladder_does(
    sold: list[int], steps: list[tuple[int, int]], marginal: bool
) -> None:
    """The oracle fills a list of prices, step by step, and reads it by number."""
    begins = list(accumulate((step for step, _ in steps), initial=1))[1:]
    ladder = list(zip(begins, (price for _, price in steps), strict=True))
    prices = [100] * (len(sold) + 1)
    for since, price in ladder:
        prices[since:] = [price] * len(prices[since:])
    wanted = prices[1:] if marginal else [prices[-1] for _ in sold]
    assert paid([tiered(*ladder, marginal=marginal)], [sale(n, m) for n, m in enumerate(sold)]) == wanted


@pytest.mark.parametrize(
    ("period", "zone", "begins", "ends"),
    [
        ("2025-10", "UTC", "2025-10-01T00:00Z", "2025-11-01T00:00Z"),
        ("2025-12", "UTC", "2025-12-01T00:00Z", "2026-01-01T00:00Z"),
        ("2024-02", "UTC", "2024-02-01T00:00Z", "2024-03-01T00:00Z"),
        ("2025-10", "Europe/Berlin", "2025-09-30T22:00Z", "2025-10-31T23:00Z"),
        ("2025-10", "Asia/Kathmandu", "2025-09-30T18:15Z", "2025-10-31T18:15Z"),
    ],
)
def test_a_month_is_that_of_the_programmes_zone(period: str, zone: str, begins: str, ends: str) -> None:
    wanted = datetime.fromisoformat(begins), datetime.fromisoformat(ends)
    assert bounds(period, ZoneInfo(zone)) == wanted
    assert last_month(wanted[1], ZoneInfo(zone)) == wanted


@pytest.mark.parametrize("period", ["", "2025", "2025-13", "2025-00", "2025-1", "25-10", "2025-10-01", "x", "٢٠٢٥-10"])
def test_what_is_no_month_is_refused(period: str) -> None:
    with pytest.raises(Refused):
        bounds(period, ZoneInfo("UTC"))


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Connection]:
    """One advertiser, partners 1 to 3, and offer 1: 1 EUR, 2 EUR from the third of a month on."""
    connection = await connect(database_url, command_timeout_s=10)
    await connection.execute("""
        INSERT INTO advertiser (name, token_sha256) VALUES ('a', 'x');
        INSERT INTO partner (name) VALUES ('p'), ('q'), ('r');
        INSERT INTO offer (advertiser_id, name, destination_url, currency)
        VALUES (1, 'o', 'https://shop.example', 'EUR'), (1, 'other', 'https://shop.example', 'EUR');
        INSERT INTO offer_terms (offer_id, model, amount_minor, currency, tiers)
        VALUES (1, 'cpa', 100, 'EUR', '[{"from": 3, "amount_minor": 200}]'), (2, 'cpa', 100, 'EUR', NULL)""")
    yield connection
    await connection.close()


async def sell(db: Connection, when: datetime, count: int = 1, **fields: Any) -> list[UUID]:
    """Approved conversions, a minute apart, each with its 1 EUR in the ledger."""
    ids = []
    for n in range(count):
        event_at = when + n * MINUTE
        columns = {
            "conversion_id": uuid7(to_ms(event_at)), "intake_id": uuid7(), "click_id": uuid7(to_ms(event_at)),
            "link_id": 1, "offer_id": 1, "partner_id": 1, "advertiser_id": 1, "event": "sale", "event_at": event_at,
            "received_at": event_at, "status": "approved", "sale_amount_minor": 1000, "sale_currency": "EUR",
            "payout_minor": 100, "booked_payout_minor": 100, "currency": "EUR",
        } | fields  # fmt: skip
        places = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
        await db.execute(f"INSERT INTO conversion ({', '.join(columns)}) VALUES ({places})", *columns.values())
        ids.append(columns["conversion_id"])
        await _book(db, columns["conversion_id"], columns["partner_id"], columns["booked_payout_minor"])
    return ids


async def _book(db: Connection, conversion_id: UUID, partner_id: int, amount_minor: int) -> None:
    if amount_minor:
        lines = ledger.balanced(ledger.Line(ledger.partner(partner_id), amount_minor, "EUR"))
        await ledger.book(db, [ledger.Entry("accrual", lines, "sender", conversion_id=conversion_id)])


async def take_back(db: Connection, conversion_id: UUID, partner_id: int = 1) -> None:
    await db.execute(
        "UPDATE conversion SET status = 'reversed', booked_payout_minor = 0, changed_at = now()"
        " WHERE conversion_id = $1",
        conversion_id,
    )
    await _book(db, conversion_id, partner_id, -100)


async def settle(db: Connection, period: str, *, dry_run: bool = False) -> list[tuple[int, str, int]]:
    """Partner, month and what is booked, where there is something."""
    async with db.transaction():
        found = await close(db, period, "admin:1", dry_run=dry_run)
    return [(one.partner_id, one.period, one.difference_minor) for one in found if one.difference_minor]


async def owed(db: Connection, partner_id: int = 1) -> int:
    return (await ledger.balance(db, ledger.partner(partner_id))).get("EUR", 0)


async def entries(db: Connection) -> int:
    count: int = await db.fetchval("SELECT count(*) FROM ledger_entry")
    return count


async def test_closing_a_month_books_what_its_tiers_add_and_only_once(db: Connection) -> None:
    await sell(db, OCTOBER, 5)
    await sell(db, OCTOBER, 2, partner_id=2)
    await sell(db, OCTOBER, 4, partner_id=3)
    await sell(db, OCTOBER - MINUTE, 1)  # September's
    await sell(db, NOVEMBER, 9)
    await sell(db, OCTOBER, 9, offer_id=2)
    await sell(db, OCTOBER, 9, status="pending", booked_payout_minor=0)
    before = await entries(db)
    wanted = [(1, "2025-10", 300), (3, "2025-10", 200)]
    assert await settle(db, "2025-10", dry_run=True) == wanted
    assert (await entries(db), await db.fetchval("SELECT count(*) FROM closed_period")) == (before, 0)
    assert await settle(db, "2025-10") == wanted
    assert await settle(db, "2025-10") == []
    assert await entries(db) == before + 2
    assert await owed(db, 3) == 400 + 200
    rows = await db.fetch("SELECT kind, offer_id, period, actor, once FROM ledger_entry ORDER BY id DESC LIMIT 2")
    assert [tuple(row) for row in rows] == [
        ("adjustment", 1, "2025-10", "admin:1", "tiers:1:2025-10:3:0"),
        ("adjustment", 1, "2025-10", "admin:1", "tiers:1:2025-10:1:0"),
    ]
    assert [tuple(row) for row in await db.fetch("SELECT period FROM closed_period")] == [("2025-10",)]
    assert await ledger.check(db) == []


async def test_what_changes_after_its_month_was_closed_is_carried_by_the_next_close(db: Connection) -> None:
    sold = await sell(db, OCTOBER, 5)
    await sell(db, SEPTEMBER, 9)  # never closed, so not carried either
    assert await settle(db, "2025-10") == [(1, "2025-10", 300)]
    await sell(db, NOVEMBER, 3)
    await take_back(db, sold[0])
    assert await settle(db, "2025-11", dry_run=True) == [(1, "2025-10", -100), (1, "2025-11", 100)]
    assert await settle(db, "2025-11") == [(1, "2025-10", -100), (1, "2025-11", 100)]
    assert await settle(db, "2025-11") == []
    await sell(db, OCTOBER + 10 * MINUTE, 2)  # approved late
    await sell(db, OCTOBER, 4, partner_id=2)  # of whom October knew nothing
    assert await settle(db, "2025-11") == [(1, "2025-10", 200), (2, "2025-10", 200)]
    for conversion_id in sold[1:]:
        await take_back(db, conversion_id)
    assert await settle(db, "2025-10") == [(1, "2025-10", -400)]  # two are left: no tier is reached
    assert await owed(db) == (2 + 9 + 3) * 100 + 100
    assert await ledger.check(db) == []


async def test_a_month_that_had_nothing_approved_when_it_was_closed_is_looked_at_again(db: Connection) -> None:
    """As where an advertiser looks at a month's sales in the middle of the next."""
    assert await settle(db, "2025-10") == []
    await sell(db, OCTOBER, 4)
    assert await settle(db, "2025-11") == [(1, "2025-10", 200)]
    assert await settle(db, "2025-11") == []


async def test_what_was_changing_while_a_month_was_closed_is_carried_by_the_next_close(
    db: Connection, database_url: str
) -> None:
    """Its time is that at which its transaction began."""
    other = await connect(database_url, command_timeout_s=10)
    async with other.transaction():
        await sell(other, OCTOBER, 4)
        assert await settle(db, "2025-10") == []
    await other.close()
    assert await settle(db, "2025-11") == [(1, "2025-10", 200)]


async def test_months_may_be_closed_in_any_order(db: Connection) -> None:
    """Each carries what changed in all that were closed, in later ones too: the next looks no further back."""
    later = await sell(db, NOVEMBER, 3)
    await sell(db, OCTOBER, 3)
    assert await settle(db, "2025-11") == [(1, "2025-11", 100)]
    await take_back(db, later[0])
    assert await settle(db, "2025-10") == [(1, "2025-10", 100), (1, "2025-11", -100)]


async def test_a_close_once_nothing_is_left_takes_all_back(db: Connection) -> None:
    sold = await sell(db, OCTOBER, 3)
    await settle(db, "2025-10")
    for conversion_id in sold:
        await take_back(db, conversion_id)
    assert await settle(db, "2025-10") == [(1, "2025-10", -100)]
    assert await owed(db) == 0


async def test_closing_at_once_books_once(db: Connection, database_url: str) -> None:
    await sell(db, OCTOBER, 5)
    others = [await connect(database_url, command_timeout_s=10) for _ in range(4)]
    settled = await asyncio.gather(*(settle(other, "2025-10") for other in others))
    for other in others:
        await other.close()
    assert sorted(settled) == [[], [], [], [(1, "2025-10", 300)]]
    assert await owed(db) == 500 + 300


async def test_tiers_go_by_the_time_of_sales_and_then_by_their_ids(db: Connection) -> None:
    await db.execute("""
        UPDATE offer_terms SET model = 'cps', amount_minor = NULL, percent = 10,
            tiers = '[{"from": 3, "percent": "20"}]' WHERE offer_id = 1""")
    for minute, number, amount_minor in ((1, 1, 7000), (0, 9, 300), (0, 8, 50)):
        when, sold = OCTOBER + minute * MINUTE, UUID(int=number)
        await sell(db, when, conversion_id=sold, sale_amount_minor=amount_minor)
    assert await settle(db, "2025-10") == [(1, "2025-10", 700)]
    await sell(db, OCTOBER, conversion_id=UUID(int=7), sale_amount_minor=20)
    assert await settle(db, "2025-10") == [(1, "2025-10", 30)]  # the one with the id 9 is the third now


async def test_a_month_that_is_not_over_stays_open(db: Connection) -> None:
    now = await db.fetchval("SELECT now()")
    with pytest.raises(Refused, match="not over yet"):
        await settle(db, now.strftime("%Y-%m"))


async def test_tiers_follow_the_programmes_calendar(db: Connection) -> None:
    await db.execute("UPDATE programme SET timezone = 'Asia/Kathmandu'")
    begins = datetime(2025, 9, 30, 18, 15, tzinfo=UTC)
    await sell(db, begins - 2 * MINUTE, 5)  # two of September's, three of October's
    assert await settle(db, "2025-10") == [(1, "2025-10", 100)]
    assert await settle(db, "2025-09") == []


async def test_a_payout_that_a_sender_may_not_set_is_none(db: Connection) -> None:
    await sell(db, OCTOBER, 3, payout_override_minor=7)
    assert await settle(db, "2025-10", dry_run=True) == [(1, "2025-10", 100)]
    await db.execute("UPDATE offer SET payout_override_max_minor = 1000")
    assert await settle(db, "2025-10", dry_run=True) == []


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_in_whatever_order_the_last_closes_settle_it(seed: int, db: Connection) -> None:
    """The oracle knows only what is approved in the end, and which months were closed."""
    random = Random(seed)
    months = {"2025-09": SEPTEMBER, "2025-10": OCTOBER, "2025-11": NOVEMBER}
    approved: dict[UUID, tuple[str, int]] = {}
    closed = set()
    for _ in range(40):
        period, act = random.choice(list(months)), random.random()
        if act < 0.6:
            partner_id, minute = random.randint(1, 2), random.randint(0, 40_000)
            [sold] = await sell(db, months[period] + minute * MINUTE, partner_id=partner_id)
            approved[sold] = (period, partner_id)
        elif act < 0.8 and approved:
            gone = random.choice(list(approved))
            await take_back(db, gone, approved.pop(gone)[1])
        else:
            await settle(db, period)
            closed.add(period)
    for period in closed:
        await settle(db, period)
    assert [await settle(db, period) for period in closed] == [[] for _ in closed]
    for partner_id in (1, 2):
        counts = Counter(period for period, of in approved.values() if of == partner_id)
        tiers = sum(100 * max(0, count - 2) for period, count in counts.items() if period in closed)
        assert await owed(db, partner_id) == 100 * counts.total() + tiers
    assert await ledger.check(db) == []


async def test_each_partner_climbs_its_own_ladder(db: Connection) -> None:
    await db.execute("""
        INSERT INTO offer_terms (offer_id, partner_id, model, amount_minor, currency, tiers, marginal)
        VALUES (1, 2, 'cpa', 100, 'EUR', '[{"from": 4, "amount_minor": 150}]', false)""")
    await sell(db, OCTOBER, 4)
    await sell(db, OCTOBER, 4, partner_id=2)
    assert await settle(db, "2025-10") == [(1, "2025-10", 200), (2, "2025-10", 200)]


async def change_terms(db: Connection, amount_minor: int, currency: str = "EUR") -> None:
    await db.execute(
        "INSERT INTO offer_terms (offer_id, valid_from, model, amount_minor, currency)"
        " VALUES (2, clock_timestamp(), 'cpa', $1, $2)",
        amount_minor, currency,
    )  # fmt: skip


async def rated(db: Connection, since: datetime, until: datetime, *, dry_run: bool = False) -> list[Difference]:
    async with db.transaction():
        return await rerate(db, 2, since, until, "admin:1", "agreed in May", dry_run=dry_run)


async def test_a_range_is_re_rated_by_todays_terms_once(db: Connection) -> None:
    await db.execute("UPDATE offer SET payout_override_max_minor = 1000 WHERE id = 2")
    await sell(db, OCTOBER, 3, offer_id=2)
    await sell(db, NOVEMBER - MINUTE, 2, offer_id=2)  # the second is November's
    await sell(db, OCTOBER, 2, offer_id=2, partner_id=2, payout_override_minor=100)
    await change_terms(db, 130)
    await db.execute(
        "INSERT INTO offer_terms (offer_id, valid_from, model, amount_minor, currency)"
        " VALUES (2, now() + interval '1 day', 'cpa', 9999, 'EUR')"
    )  # tomorrow's are not today's
    before = await entries(db)
    wanted = [Difference(2, 1, "2025-10", "EUR", 4, 400, 520), Difference(2, 2, "2025-10", "EUR", 2, 200, 200)]
    assert await rated(db, OCTOBER, NOVEMBER, dry_run=True) == wanted
    assert await entries(db) == before
    first, second = await rated(db, OCTOBER, NOVEMBER)
    assert (first.difference_minor, first.entry_id is None, second.entry_id) == (120, False, None)
    assert await owed(db) == 500 + 120
    assert [one.difference_minor for one in await rated(db, OCTOBER, NOVEMBER)] == [0, 0]
    await change_terms(db, 90)
    assert [one.difference_minor for one in await rated(db, OCTOBER, NOVEMBER)] == [-160, 0]
    assert await owed(db) == 500 - 40
    assert await db.fetchval("SELECT payout_minor FROM conversion WHERE offer_id = 2 LIMIT 1") == 100
    row = await db.fetchrow("SELECT kind, offer_id, actor, reason FROM ledger_entry ORDER BY id DESC LIMIT 1")
    assert tuple(row) == ("adjustment", 2, "admin:1", "agreed in May")
    assert await ledger.check(db) == []


async def test_a_range_ends_before_its_end(db: Connection) -> None:
    await sell(db, OCTOBER, 2, offer_id=2)
    await change_terms(db, 130)
    assert [one.conversions for one in await rated(db, OCTOBER, OCTOBER + MINUTE, dry_run=True)] == [1]
    assert [one.conversions for one in await rated(db, OCTOBER + MINUTE, NOVEMBER)] == [1]
    # what is less than a millisecond is nothing: it would be forgotten, and paid again
    assert await rated(db, OCTOBER, OCTOBER + timedelta(microseconds=999)) == []


async def test_a_range_that_overlaps_an_earlier_one_in_part_is_refused(db: Connection) -> None:
    await sell(db, OCTOBER, 1, offer_id=2)
    await change_terms(db, 130)
    await rated(db, OCTOBER, NOVEMBER)
    for since_days, until_days in ((-1, 1), (30, 40), (5, 6), (-9, 99), (0, 32)):
        with pytest.raises(Refused, match="re-rated before"):
            await rated(db, OCTOBER + timedelta(days=since_days), OCTOBER + timedelta(days=until_days))
    for since_days, until_days in ((-5, 0), (31, 40)):
        await rated(db, OCTOBER + timedelta(days=since_days), OCTOBER + timedelta(days=until_days))
    assert await owed(db) == 130


async def test_two_that_re_rate_ranges_with_a_sale_in_common_come_one_after_the_other(
    db: Connection, database_url: str
) -> None:
    await sell(db, OCTOBER, 1, offer_id=2)
    await change_terms(db, 130)
    other = await connect(database_url, command_timeout_s=10)
    async with db.transaction():
        await rerate(db, 2, OCTOBER, NOVEMBER, "admin:1", "agreed in May", dry_run=False)
        second = asyncio.create_task(rated(other, OCTOBER, NOVEMBER - timedelta(days=1)))
        await asyncio.sleep(0.3)  # in which it would have booked as well
    with pytest.raises(Refused, match="re-rated before"):
        await second
    await other.close()
    assert await owed(db) == 130


async def test_terms_in_another_currency_give_back_one_and_pay_the_other(db: Connection) -> None:
    await sell(db, OCTOBER, 2, offer_id=2)
    await db.execute("INSERT INTO rate VALUES ('EUR', 'USD', '2025-10-01', 1.1)")
    await change_terms(db, 120, "USD")
    found = await rated(db, OCTOBER, NOVEMBER)
    assert sorted((one.currency, one.difference_minor) for one in found) == [("EUR", -200), ("USD", 240)]
    # each is an entry of its own: a list of adjustments goes page by page in the order of entries
    assert len({one.entry_id for one in found} - {None}) == 2
    assert await ledger.balance(db, ledger.partner(1)) == {"EUR": 0, "USD": 240}
    assert [one.difference_minor for one in await rated(db, OCTOBER, NOVEMBER)] == [0, 0]


async def would(db: Connection, offer_id: int, proposed: Terms, since: datetime, until: datetime) -> list[Any]:
    async with db.transaction(readonly=True):
        found = await what_if(db, offer_id, proposed, since, until)
    return [(one.partner_id, one.period, one.conversions, one.was_minor, one.will_be_minor) for one in found]


async def test_what_terms_would_have_paid_is_told_without_writing(db: Connection) -> None:
    await sell(db, SEPTEMBER, 4)
    await sell(db, OCTOBER, 4)
    await sell(db, OCTOBER, 1, partner_id=2, sale_amount_minor=995)
    await sell(db, OCTOBER, 1, partner_id=3, sale_amount_minor=None)
    share = Terms(0, "cps", None, Decimal(10), "EUR")
    month = (OCTOBER, NOVEMBER)
    # by its tiers the first partner had 100 + 100 + 200 + 200; without an amount there is no share: as it was
    assert await would(db, 1, share, *month) == [
        (1, "2025-10", 4, 600, 400), (2, "2025-10", 1, 100, 100), (3, "2025-10", 1, 100, 100),
    ]  # fmt: skip
    assert await would(db, 1, Terms(0, "cpa", 7, None, "EUR", partner_id=2), *month) == [
        (1, "2025-10", 4, 600, 600), (2, "2025-10", 1, 100, 7), (3, "2025-10", 1, 100, 100),
    ]  # fmt: skip
    assert await would(db, 1, tiered((2, 150)), SEPTEMBER, NOVEMBER) == [
        (1, "2025-09/2025-10", 8, 1200, 1100), (2, "2025-10", 1, 100, 100), (3, "2025-10", 1, 100, 100),
    ]  # fmt: skip
    # in part of a month, tiers still count from its beginning
    assert await would(db, 1, tiered((2, 150)), OCTOBER + 3 * MINUTE, NOVEMBER) == [(1, "2025-10", 1, 200, 150)]


async def test_what_revenue_would_have_been_is_told_as_well(db: Connection) -> None:
    await sell(db, OCTOBER, 2)
    await sell(db, OCTOBER, 1, revenue_stated_minor=70, revenue_minor=70, revenue_currency="EUR")
    proposed = Terms(0, "cps", None, Decimal(30), "EUR", side="revenue")
    assert await would(db, 1, proposed, OCTOBER, NOVEMBER) == [(1, "2025-10", 3, 70, 670)]


async def test_a_sale_without_a_click_counts_by_its_own_time(db: Connection) -> None:
    await db.execute(
        "INSERT INTO offer_terms (offer_id, valid_from, model, amount_minor, currency)"
        " VALUES (2, $1, 'cpa', 700, 'EUR')",
        OCTOBER,
    )
    await sell(db, OCTOBER, 1, offer_id=2, click_id=None)
    await sell(db, OCTOBER, 1, offer_id=2, click_id=uuid7(to_ms(OCTOBER) - 1))
    proposed = Terms(0, "cpa", 1, None, "EUR", event="lead")  # changes nothing
    assert await would(db, 2, proposed, OCTOBER, NOVEMBER) == [(1, "2025-10", 2, 800, 800)]


async def test_months_of_sales_as_they_are_settled_come_to_what_the_ledger_holds(db: Connection) -> None:
    """The same through the doors of settling: sales, a close, a reversal by hand, the next close."""
    sales = [conversion(to_ms(OCTOBER + n * MINUTE), order_id=f"o-{n}", partner_id=1) for n in range(1, 7)]
    async with db.transaction():
        await settling.settle(db, sales, 0)
    assert await settle(db, "2025-10") == [(1, "2025-10", 400)]
    async with db.transaction():
        await change.reverse(db, [sales[2].conversion_id], "admin:1", "returned")
    assert await settle(db, "2025-11") == [(1, "2025-10", -100)]
    assert await settle(db, "2025-11") == []
    assert await owed(db) == 5 * 100 + 300
    assert await ledger.check(db) == []
