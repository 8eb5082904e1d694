"""Days are settled once, a day after they ended; whatever changes them later is a version that says what changed."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from aggregator.conversions import change, settle
from aggregator.db.connect import Connection, connect
from aggregator.db.instants import at, to_ms
from aggregator.flush.session import Session
from aggregator.settled import days, quarters
from aggregator.settled.days import FIGURES
from aggregator.settled.run import run
from loadtests.faults.journals import conversion, now_ms, settings
from schemas import limits
from schemas.outcomes import ClickClass
from tests.aggregator.settled.test_quarters import DAY_MS, complete, flush, visit

HOUR_MS = 3_600_000
LATER_MS = int(limits.DAY_CORRECT_S * 1000) + 60_000  # when what is marked now is looked at
NOW_MS = now_ms()  # once for all: midnight may come before the last test
TODAY_MS = NOW_MS // DAY_MS * DAY_MS
BEGINS_MS = TODAY_MS - 3 * DAY_MS  # of a day that may be settled today
DAY = at(BEGINS_MS).date()


@pytest.fixture(autouse=True)
async def offers(db: Connection) -> None:
    """Two offers of an advertiser, 1 pays 1.00 EUR a sale and brings in 1.50 USD, 2 waits for approval."""
    await db.execute(
        """TRUNCATE advertiser, conversion, conversion_intake, conversion_change RESTART IDENTITY CASCADE;
           INSERT INTO advertiser (name, token_sha256) VALUES ('a', 'x');
           INSERT INTO offer (advertiser_id, name, destination_url, currency, default_status)
           VALUES (1, 'sure', 'https://shop.example', 'EUR', 'approved'),
                  (1, 'waits', 'https://shop.example', 'EUR', 'pending');
           INSERT INTO rate (currency, in_currency, day, rate)
           SELECT 'EUR', 'USD', current_date - n, 2 FROM generate_series(0, 400) AS n ON CONFLICT DO NOTHING;
           INSERT INTO offer_terms (offer_id, side, model, amount_minor, currency)
           VALUES (1, 'payout', 'cpa', 100, 'EUR'), (1, 'revenue', 'cpa', 150, 'USD'), (2, 'payout', 'cpa', 7, 'EUR')"""
    )


async def all_settled(db: Connection, wait_ms: int = 0) -> int:
    """All that is due, quarter hours and days; how many versions that adds."""
    await db.execute(quarters.AWAIT_LOCK)  # whoever was cut off may hold it for a moment yet
    before = await versions(db)
    while await quarters.settle_once(db, now_ms()) | await days.settle_once(db, now_ms() + wait_ms):
        pass
    return len(await versions(db)) - len(before)


async def versions(db: Connection) -> list[tuple[date, int]]:
    return [tuple(row) for row in await db.fetch("SELECT day, version FROM settled_version ORDER BY 1, 2")]


async def totals(db: Connection, version: int, day: date = DAY) -> dict[tuple[Any, ...], dict[str, int]]:
    """By partner, offer and currency, those figures that are not zero."""
    rows = await db.fetch("SELECT * FROM settled_total WHERE (day, version) = ($1, $2)", day, version)
    return {
        (row["partner_id"], row["offer_id"], row["currency"]): {name: int(row[name]) for name in FIGURES if row[name]}
        for row in rows
    }


async def sell(db: Connection, at_ms: int, **fields: Any) -> UUID:
    """A sale with its own order, settled at once."""
    event = conversion(at_ms, order_id=uuid4().hex, **fields)
    async with db.transaction():
        await settle.settle(db, [event], 0)
    return event.conversion_id


async def test_a_day_is_settled_a_day_after_it_ended(db: Connection, session: Session) -> None:
    await flush(session, visit(BEGINS_MS), visit(BEGINS_MS + DAY_MS - 1, 1), visit(BEGINS_MS + DAY_MS, 2))
    found = []
    for through_ms in (BEGINS_MS + 2 * DAY_MS - 1, BEGINS_MS + 2 * DAY_MS):
        await complete(db, through_ms)
        found.append((await all_settled(db), await db.fetchval("SELECT days_through > '1970-01-01' FROM settling")))
    assert found == [(0, False), (1, True)]
    assert await totals(db, 1) == {(1, 1, ""): {"clicks": 2, "unique_clicks": 2}}


async def settled_day(db: Connection) -> None:
    """All is here, and one day is settled by it."""
    await complete(db, NOW_MS)
    assert await all_settled(db) == 1


async def test_money_stands_in_its_currencies_and_clicks_in_none(db: Connection, session: Session) -> None:
    await flush(session, visit(BEGINS_MS), visit(BEGINS_MS + 1), visit(BEGINS_MS, 1, click_class=ClickClass.FLAGGED))
    await sell(db, BEGINS_MS + DAY_MS - 1)
    await sell(db, BEGINS_MS, offer_id=2, partner_id=2)
    await settled_day(db)
    assert await totals(db, 1) == {
        (1, 1, ""): {"clicks": 3, "invalid_clicks": 1, "unique_clicks": 1},
        (1, 1, "EUR"): {"conversions": 1, "sale_amount_minor": 4990, "payout_minor": 100},
        (1, 1, "USD"): {"revenue_minor": 150},
        (2, 2, "EUR"): {"pending": 1, "payout_pending_minor": 7},
    }


async def test_what_comes_later_is_a_version_of_what_it_changed_alone(db: Connection, session: Session) -> None:
    await flush(session, visit(BEGINS_MS), visit(BEGINS_MS, partner_id=2))
    kept, waits = await sell(db, BEGINS_MS), await sell(db, BEGINS_MS, offer_id=2)
    await settled_day(db)
    first = await totals(db, 1)
    assert await all_settled(db, LATER_MS) == 0  # compared once more, and the same
    async with db.transaction():
        await change.approve(db, [waits], "admin:1", None)
    await flush(session, visit(BEGINS_MS + 1, 5))
    assert await all_settled(db) == 0  # the changes of some time are one version
    assert await all_settled(db, LATER_MS) == 1
    assert await totals(db, 2) == {
        (1, 1, ""): {"clicks": 2, "unique_clicks": 2},
        (1, 2, "EUR"): {"conversions": 1, "sale_amount_minor": 4990, "payout_minor": 7},
    }
    async with db.transaction():
        await change.reverse(db, [kept], "admin:1", None)
    assert await all_settled(db, LATER_MS) == 1
    assert await totals(db, 3) == {(1, 1, "EUR"): {"reversed": 1, "payout_reversed_minor": 100}, (1, 1, "USD"): {}}
    assert await totals(db, 1) == first
    assert await all_settled(db, LATER_MS) == 0
    assert await db.fetchval("SELECT count(*) FROM stale_day") == 0


async def test_versions_come_to_what_the_rollups_say_whatever_happened(db: Connection, session: Session) -> None:
    chance = random.Random(8)
    ids: list[UUID] = []
    await complete(db, NOW_MS)
    for _ in range(12):
        for _ in range(chance.randrange(8)):
            at_ms = TODAY_MS - chance.randrange(2 * DAY_MS, 5 * DAY_MS)
            fields = {"partner_id": chance.randrange(1, 4), "offer_id": chance.randrange(1, 3)}
            if chance.random() < 0.5:
                await flush(session, visit(at_ms, chance.randrange(5), **fields), shard=chance.randrange(2))
            else:
                ids.append(await sell(db, at_ms, **fields))
        async with db.transaction():
            some = chance.sample(ids, len(ids) // 2)
            await (change.approve, change.reject)[chance.randrange(2)](db, some, "admin:1", None)
        await all_settled(db, LATER_MS)
    assert await newest(db) == await rolled_up(db)
    assert max(version for _, version in await versions(db)) > 3


async def newest(db: Connection) -> dict[tuple[Any, ...], list[int]]:
    rows = await db.fetch(
        """SELECT DISTINCT ON (day, partner_id, offer_id, currency) * FROM settled_total
           ORDER BY day, partner_id, offer_id, currency, version DESC"""
    )
    key = ("day", "partner_id", "offer_id", "currency")
    found = {tuple(row[name] for name in key): [int(row[name]) for name in FIGURES] for row in rows}
    return {name: figures for name, figures in found.items() if any(figures)}


async def rolled_up(db: Connection) -> dict[tuple[Any, ...], list[int]]:
    """The same in plain Python from the rollups as they are now."""
    found: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * len(FIGURES))
    for table in ("click_rollup", "conversion_rollup"):
        for row in await db.fetch(f"SELECT * FROM {table}"):
            key = (row["quarter"].date(), row["partner_id"], row["offer_id"], row.get("currency", ""))
            for place, name in enumerate(FIGURES):
                found[key][place] += int(row.get(name, 0))
    return {name: figures for name, figures in found.items() if any(figures)}


async def test_days_with_nothing_in_them_have_no_version_until_something_comes(
    db: Connection, session: Session
) -> None:
    await flush(session, visit(BEGINS_MS - 5 * DAY_MS), visit(BEGINS_MS))
    await complete(db, NOW_MS)
    assert await all_settled(db) == 2
    assert await db.fetchval("SELECT days_through FROM settling") >= at(BEGINS_MS + DAY_MS)
    early = BEGINS_MS - 300 * DAY_MS
    await sell(db, early)
    await flush(session, visit(BEGINS_MS - 2 * DAY_MS))
    assert await all_settled(db, LATER_MS) == 2
    assert await versions(db) == [(at(BEGINS_MS + n * DAY_MS).date(), 1) for n in (-300, -5, -2, 0)]
    assert set(await totals(db, 1, at(early).date())) == {(1, 1, "EUR"), (1, 1, "USD")}


@pytest.mark.parametrize("zone", ["America/Los_Angeles", "Asia/Kathmandu", "Pacific/Kiritimati"])
async def test_a_change_of_the_time_zone_leaves_no_gap_and_counts_nothing_twice(
    db: Connection, session: Session, zone: str
) -> None:
    first = [visit(BEGINS_MS - 3 * DAY_MS + n * HOUR_MS, n % 9) for n in range(24)]
    await flush(session, *first)
    await complete(db, BEGINS_MS - DAY_MS)
    assert await all_settled(db) == 1
    await db.execute("UPDATE programme SET timezone = $1", zone)
    await flush(session, *(visit(BEGINS_MS - 2 * DAY_MS + n * HOUR_MS, n % 9) for n in range(72)))
    await complete(db, now_ms() + DAY_MS)
    await all_settled(db, LATER_MS)
    spans = await db.fetch("SELECT starts_at, ends_at FROM settled_day ORDER BY day")
    assert [row["starts_at"] for row in spans[1:]] == [row["ends_at"] for row in spans[:-1]]
    through = to_ms(spans[-1]["ends_at"])
    told = sum(figures[0] for figures in (await newest(db)).values())
    assert told == 24 + min(72, (through - (BEGINS_MS - 2 * DAY_MS)) // HOUR_MS)
    assert await all_settled(db, LATER_MS) == 0


async def test_a_day_of_25_hours_is_one_day(db: Connection, session: Session) -> None:
    await db.execute("UPDATE programme SET timezone = 'Europe/Berlin'")
    begins_ms = to_ms(datetime(2026, 10, 24, 22, tzinfo=UTC))
    await flush(
        session, *(visit(begins_ms + n * HOUR_MS, n) for n in (-1, 0, 8)), visit(begins_ms + 25 * HOUR_MS - 1, 5)
    )
    await flush(session, visit(begins_ms + 25 * HOUR_MS, 6))
    await complete(db, begins_ms + 50 * HOUR_MS)
    assert await all_settled(db) == 2
    row = await db.fetchrow("SELECT * FROM settled_day WHERE day = '2026-10-25'")
    assert row is not None
    assert row["ends_at"] - row["starts_at"] == timedelta(hours=25)
    assert await totals(db, 1, date(2026, 10, 25)) == {(1, 1, ""): {"clicks": 3, "unique_clicks": 3}}


async def test_what_was_under_way_when_its_day_was_settled_is_found(
    db: Connection, session: Session, shared_database_url: str
) -> None:
    """A transaction that began before knows nothing of it, so it marks nothing."""
    await flush(session, visit(BEGINS_MS))
    await complete(db, NOW_MS)
    other = await connect(shared_database_url, command_timeout_s=20)
    async with other.transaction():
        await sell(other, BEGINS_MS)
        assert await all_settled(db) == 1
    await other.close()
    assert await all_settled(db) == 0
    assert await all_settled(db, LATER_MS) == 1
    assert set(await totals(db, 2)) == {(1, 1, "EUR"), (1, 1, "USD")}


async def test_what_was_under_way_to_days_with_nothing_in_them_when_they_were_passed_over_is_found(
    db: Connection, session: Session, shared_database_url: str
) -> None:
    """Before the first settled day, between two, and after the last."""
    await flush(session, visit(BEGINS_MS - 9 * DAY_MS), visit(BEGINS_MS - 2 * DAY_MS))
    await complete(db, NOW_MS)
    other = await connect(shared_database_url, command_timeout_s=20)
    passed_over = (-20, -15, -7, -4, -3, 0)
    async with other.transaction():
        for days_after in passed_over:
            await sell(other, BEGINS_MS + days_after * DAY_MS + HOUR_MS)
        assert await all_settled(db) == 2
        assert await db.fetchval("SELECT days_through FROM settling") >= at(BEGINS_MS + DAY_MS)
    await other.close()
    while await all_settled(db, LATER_MS):
        pass
    assert await versions(db) == [
        (at(BEGINS_MS + days_after * DAY_MS).date(), 1) for days_after in sorted((-9, -2, *passed_over))
    ]
    assert await newest(db) == await rolled_up(db)
    assert await db.fetchval("SELECT count(*) FROM stale_day") == 0


async def test_aggregators_that_settle_at_once_and_die_in_between_write_each_version_once(
    db: Connection, session: Session, shared_database_url: str
) -> None:
    for n in range(6):
        await flush(session, visit(BEGINS_MS - n * DAY_MS, n))
        await sell(db, BEGINS_MS - n * DAY_MS)
    await complete(db, NOW_MS)
    while await quarters.settle_once(db, now_ms()):
        pass
    others = [await connect(shared_database_url, command_timeout_s=20) for _ in range(3)]

    async def work(connection: Connection) -> None:
        for _ in range(20):
            await days.settle_once(connection, now_ms() + LATER_MS)

    dying = asyncio.create_task(work(others[0]))
    working = [asyncio.create_task(work(one)) for one in others[1:]]
    await asyncio.sleep(0.05)
    others[0].terminate()
    await asyncio.gather(dying, *working, return_exceptions=True)
    await all_settled(db, LATER_MS)
    for one in others[1:]:
        await one.close()
    assert [version for _, version in await versions(db)] == [1] * 6
    assert await newest(db) == await rolled_up(db)


async def test_with_nothing_to_do_it_asks_three_questions(db: Connection, session: Session) -> None:
    await flush(session, visit(BEGINS_MS))
    await settled_day(db)
    asked: list[str] = []
    with db.query_logger(lambda record: asked.append(record.query)):
        assert not await days.settle_once(db, now_ms())
    assert len([one for one in asked if one.lstrip().startswith("SELECT")]) == 3


async def test_an_aggregator_settles_days_by_itself(
    db: Connection, session: Session, shared_database_url: str, tmp_path: Path
) -> None:
    await flush(session, visit(BEGINS_MS), visit(BEGINS_MS - 2 * DAY_MS))
    await complete(db, NOW_MS)
    running = asyncio.create_task(run(settings(shared_database_url, tmp_path)))
    async with asyncio.timeout(60):
        while len(await versions(db)) < 2:
            assert not running.done()
            await asyncio.sleep(0.05)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await newest(db) == await rolled_up(db)
