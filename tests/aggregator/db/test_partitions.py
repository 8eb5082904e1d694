import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import pytest

from aggregator.db import partitions
from aggregator.db.connect import Connection, connect
from loadtests.faults.proxy import FaultProxy
from schemas.click_id import uuid7_bytes
from schemas.settings import AggregatorSettings

DAY = date(2026, 11, 27)
INSERT = "INSERT INTO click (id, link_id, offer_id, partner_id, click_class) VALUES ($1, 1, 1, 1, 0)"


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Connection]:
    connection = await connect(database_url, command_timeout_s=5)
    yield connection
    await connection.close()


def click_id(at: datetime, filler: bytes = b"\xff") -> UUID:
    return UUID(bytes=uuid7_bytes(int(at.timestamp() * 1000), filler * 10))


async def test_a_day_holds_its_first_and_its_last_millisecond(db: Connection) -> None:
    await partitions.ensure(db, [DAY])
    midnight = datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC)
    await db.execute(INSERT, click_id(midnight, b"\0"))
    await db.execute(INSERT, click_id(midnight + timedelta(days=1, milliseconds=-1)))
    for outside in (midnight + timedelta(days=1), midnight - timedelta(milliseconds=1)):
        with pytest.raises(asyncpg.CheckViolationError):
            await db.execute(INSERT, click_id(outside))


async def test_partitions_made_by_two_at_once_exist_once(database_url: str, db: Connection) -> None:
    other = await connect(database_url, command_timeout_s=5)
    days = [DAY + timedelta(days=n) for n in range(5)]
    made = await asyncio.gather(partitions.ensure(db, days), partitions.ensure(other, days))
    assert sorted(day for made_days in made for day in made_days) == days
    assert await partitions.existing(db) == set(days)
    await other.close()


async def test_a_partition_is_made_while_another_writes(database_url: str, db: Connection) -> None:
    await partitions.ensure(db, [DAY])
    writer = await connect(database_url, command_timeout_s=5)
    async with writer.transaction():
        await writer.execute(INSERT, click_id(datetime(2026, 11, 27, 12, tzinfo=UTC)))
        async with asyncio.timeout(2):
            await partitions.ensure(db, [DAY + timedelta(days=1)])
    async with writer.transaction():
        await writer.execute(INSERT, click_id(datetime(2026, 11, 28, 12, tzinfo=UTC)))
    await writer.close()


async def test_a_round_makes_days_ahead_and_drops_those_past_the_retention(database_url: str, db: Connection) -> None:
    today = await partitions.today(db)
    await partitions.ensure(db, [today - timedelta(days=n) for n in (39, 40, 41, 400)])
    await partitions.keep_once(database_url, 40)
    ahead = {today + timedelta(days=n) for n in range(-1, 4)}
    assert await partitions.existing(db) == ahead | {today - timedelta(days=39), today - timedelta(days=40)}


async def test_a_drop_that_was_cut_off_after_the_detach_is_finished(db: Connection) -> None:
    await partitions.ensure(db, [date(2020, 1, 1)])
    await db.execute("ALTER TABLE click DETACH PARTITION click_2020_01_01")
    assert await partitions.existing(db) == set()
    assert await partitions.drop_older(db, 30) == [date(2020, 1, 1)]
    assert await db.fetchval("SELECT to_regclass('click_2020_01_01')") is None


async def test_the_keeper_waits_for_a_postgres_that_is_away(database_url: str, db: Connection) -> None:
    parts = urlsplit(database_url)
    assert parts.hostname
    assert parts.port
    async with FaultProxy(parts.hostname, parts.port) as proxy:
        proxy.mode = "refuse"
        settings = AggregatorSettings(
            database_url=database_url.replace(f":{parts.port}/", f":{proxy.port}/"),
            redis_url="redis://127.0.0.1:1/0",
            log_url="journal:///nowhere",
        )
        keeper = asyncio.create_task(partitions.keep(settings))
        await asyncio.sleep(0.3)
        assert await partitions.existing(db) == set()
        proxy.mode = "pass"
        async with asyncio.timeout(5):
            while len(await partitions.existing(db)) < 5:
                await asyncio.sleep(0.05)
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
