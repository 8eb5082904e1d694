"""The rollup of conversions is put right by what is wrong with it, whatever is added to it at the same time."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest
from rich.console import Console

from aggregator.conversions import change
from aggregator.conversions.settle import settle
from aggregator.db.connect import Connection, connect
from aggregator.db.instants import QUARTER_MS, at, rfc3339
from aggregator.reports.state import Rows, read_version
from aggregator.settled.recompute_sales import recompute, sold
from deploy.run.recomputing import run
from loadtests.faults.drift import order_rollup_rows_wrong
from loadtests.faults.journals import conversion
from schemas.events import Conversion
from tests.aggregator.settled.test_quarters import an_hour

_PROGRAMME = """
INSERT INTO advertiser (name, token_sha256) VALUES ('a', '1');
INSERT INTO partner (name) VALUES ('p'), ('q');
INSERT INTO offer (advertiser_id, name, destination_url, currency) VALUES (1, 'o', 'https://shop.example', 'EUR');
INSERT INTO offer_terms (offer_id, side, model, percent, currency)
VALUES (1, 'payout', 'cps', 10, 'EUR'), (1, 'revenue', 'cps', 15, 'EUR')
"""


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Connection]:
    """Forty orders of one hour, of two links and partners, in every state."""
    connection = await connect(database_url, command_timeout_s=20)
    await connection.execute(_PROGRAMME)
    made = [sale(n) for n in range(40)]
    async with connection.transaction():
        await settle(connection, made, shard=0)
        await change.reverse(connection, [one.conversion_id for one in made[::4]], "admin:1", "returned")
    yield connection
    await connection.close()


def sale(n: int) -> Conversion:
    said: dict[str, Any] = {"status": "pending"} if n % 5 == 3 else {"status": "rejected"} if n % 5 == 4 else {}
    return conversion(
        an_hour() + n * 90_000, amount_minor=1000 + n, order_id=str(n), link_id=n % 2, partner_id=1 + n % 2, **said
    )


async def quarters(db: Connection) -> list[datetime]:
    return await sold(db, at(an_hour()), at(an_hour() + 4 * QUARTER_MS))


async def rollup(db: Connection) -> list[Any]:
    """What reports see of it: shards together, and nothing that comes to nothing."""
    rows = await db.fetch(
        """SELECT quarter, link_id, offer_id, partner_id, currency, sum(conversions), sum(pending), sum(rejected),
                  sum(reversed), sum(sale_amount_minor), sum(payout_minor), sum(payout_pending_minor),
                  sum(payout_reversed_minor), sum(revenue_minor)
           FROM conversion_rollup GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5"""
    )
    return [tuple(row) for row in rows if any([*row][5:])]


DAMAGE = {
    "counted too many": "UPDATE conversion_rollup SET conversions = conversions + 3, payout_minor = payout_minor + 300",
    "a state counted too few": "UPDATE conversion_rollup SET pending = 0, reversed = reversed - 1",
    "rows gone": "DELETE FROM conversion_rollup WHERE link_id = 1",
    "all gone": "TRUNCATE conversion_rollup",
    "money wrong": "UPDATE conversion_rollup SET revenue_minor = 0, sale_amount_minor = 5, payout_reversed_minor = 7",
    "a row too many": """INSERT INTO conversion_rollup (quarter, link_id, offer_id, partner_id, currency, shard,
        conversions, sale_amount_minor, payout_minor) SELECT quarter, 9, 9, 9, 'USD', 4, 1, 2, 3
        FROM conversion_rollup LIMIT 1""",
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_what_is_wrong_is_told_left_and_then_put_right(damage: str, db: Connection, database_url: str) -> None:
    right = await rollup(db)
    assert (len(await quarters(db)), await order_rollup_rows_wrong(database_url)) == (4, 0)
    assert not any([await recompute(db, one, apply=False) for one in await quarters(db)])
    await db.execute(DAMAGE[damage])
    wrong, all_quarters = await rollup(db), await quarters(db)
    assert wrong != right
    told = [await recompute(db, one, apply=False) for one in all_quarters]
    assert any(told)
    assert await rollup(db) == wrong
    assert [await recompute(db, one, apply=True) for one in all_quarters] == told
    assert await rollup(db) == right
    assert await order_rollup_rows_wrong(database_url) == 0
    assert not any([await recompute(db, one, apply=True) for one in all_quarters])


async def test_what_is_under_way_is_neither_waited_for_nor_lost(db: Connection, database_url: str) -> None:
    """A new order and a reversal, written and not yet committed while the same rows are put right."""
    await db.execute(DAMAGE["counted too many"])
    writer = await connect(database_url, command_timeout_s=20)
    known = await db.fetchval("SELECT conversion_id FROM conversion WHERE status = 'approved' LIMIT 1")
    writing = writer.transaction()
    await writing.start()
    await settle(writer, [sale(40 + n) for n in range(10)], shard=0)
    await change.reverse(writer, [known], "admin:1", "returned")
    async with asyncio.timeout(10):
        for one in await quarters(db):
            assert await recompute(db, one, apply=True)
    await writing.commit()
    await writer.close()
    assert await order_rollup_rows_wrong(database_url) == 0


async def keep_selling(database_url: str, shard: int, stop: asyncio.Event) -> int:
    """An aggregator that settles orders of the same hour, and a person who looks at them; how many orders."""
    chosen, n = random.Random(shard), 0
    db = await connect(database_url, command_timeout_s=30)
    while not stop.is_set():
        batch = [
            conversion(an_hour() + chosen.randrange(4 * QUARTER_MS), order_id=f"{shard}-{n + i}", link_id=i % 2)
            for i in range(5)
        ]
        async with db.transaction():
            await settle(db, batch, shard)
            await change.reverse(db, [batch[0].conversion_id], "admin:1", "returned")
        n += len(batch)
    await db.close()
    return n


async def test_writers_that_go_on_lose_nothing_and_two_that_recompute_correct_once(
    db: Connection, database_url: str
) -> None:
    stop = asyncio.Event()
    other = await connect(database_url, command_timeout_s=30)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        writers = [group.create_task(keep_selling(database_url, shard, stop)) for shard in (1, 2)]
        for _ in range(5):
            async with db.transaction():  # whole, or it would take rows in another order than the writers do
                await db.execute("LOCK TABLE conversion_rollup IN SHARE ROW EXCLUSIVE MODE")
                await db.execute(DAMAGE["counted too many"])
            for one in await quarters(db):
                both = await asyncio.gather(*(recompute(who, one, apply=True) for who in (db, other)))
                assert sorted(map(bool, both)) == [False, True]
        stop.set()
    await other.close()
    assert min(one.result() for one in writers) > 0
    assert await order_rollup_rows_wrong(database_url) == 0


async def test_whoever_remembers_a_report_of_it_is_told(db: Connection) -> None:
    through = at(an_hour() + 4 * QUARTER_MS)
    await db.execute("UPDATE settling SET through = $1", through)
    span = Rows(None, at(an_hour()), through)
    await db.execute("UPDATE conversion SET changed_at = now() - interval '1 hour'")
    version = await read_version(db, span)
    for one in await quarters(db):
        assert not await recompute(db, one, apply=True)
    assert await read_version(db, span) == version != ""
    await db.execute(DAMAGE["all gone"])
    await recompute(db, at(an_hour()), apply=True)
    assert await read_version(db, span) == ""  # not to be remembered for long yet
    await db.execute("UPDATE settled_quarter SET settled_at = settled_at - interval '1 minute'")
    assert await read_version(db, span) not in (version, "")


async def test_the_command_tells_of_conversions_too(db: Connection, database_url: str) -> None:
    times = rfc3339(at(an_hour())), rfc3339(at(an_hour() + 4 * QUARTER_MS))
    await db.execute("UPDATE conversion_rollup SET payout_minor = payout_minor + 7000 WHERE link_id = 1")
    said = io.StringIO()
    count = await run(database_url, *times, Console(file=said, width=200), apply=False)
    assert f"0 settled quarter hours and 4 with conversions looked at: {count} rows differ" in said.getvalue()
    assert (count, "conversion_rollup" in said.getvalue(), "payout_minor 7" in said.getvalue()) == (4, True, True)
    assert await run(database_url, *times, Console(file=io.StringIO()), apply=True) == 4
    assert await run(database_url, *times, Console(file=io.StringIO()), apply=False) == 0
