"""The daily partitions of `click`: a day (UTC) is a range of its UUIDv7 ids."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from uuid import UUID

import structlog

from aggregator.db.connect import Database, DatabaseAway, connected
from aggregator.db.idempotency import forget
from schemas import limits
from schemas.settings import AggregatorSettings

log = structlog.get_logger()

_MAKE_LOCK = 0x636C69636B02
_DROP_LOCK = 0x636C69636B03
_NAME = "click_%Y_%m_%d"
_FOUND = """
SELECT relname AS name, inhrelid IS NOT NULL AS attached, coalesce(inhdetachpending, false) AS detaching
FROM pg_class LEFT JOIN pg_inherits ON inhrelid = pg_class.oid AND inhparent = 'click'::regclass
WHERE relkind = 'r' AND relname ~ '^click_\\d{4}_\\d\\d_\\d\\d$' AND pg_table_is_visible(pg_class.oid)
ORDER BY relname
"""


def day_bounds(day: date) -> tuple[UUID, UUID]:
    """The ids of a day: from the first (included) to the first of the next day (excluded)."""
    return _first_id(day), _first_id(day + timedelta(days=1))


async def existing(db: Database) -> set[date]:
    """The days that rows can be written to."""
    return {_day(row["name"]) for row in await db.fetch(_FOUND) if row["attached"] and not row["detaching"]}


async def ensure(db: Database, days: Iterable[date]) -> list[date]:
    """Make the partitions that are missing, and answer their days. ATTACH lets reads and writes of `click` go on."""
    missing = sorted(set(days) - await existing(db))
    return [day for day in missing if await _make(db, day)]


async def drop_older(db: Database, keep_days: int) -> list[date]:
    """Drop the partitions of days more than `keep_days` before today, and answer them. Not within a transaction.

    Detached first, CONCURRENTLY: dropping at once would stop all writing while it waits for a long report. A detach
    or drop that was cut off is finished here.
    """
    if not await db.fetchval("SELECT pg_try_advisory_lock($1)", _DROP_LOCK):
        return []
    try:
        oldest = await today(db) - timedelta(days=keep_days)
        old = [row for row in await db.fetch(_FOUND) if _day(row["name"]) < oldest]
        for row in old:
            await _drop(db, row["name"], attached=row["attached"], detaching=row["detaching"])
        return [_day(row["name"]) for row in old]
    finally:
        await db.execute("SELECT pg_advisory_unlock($1)", _DROP_LOCK)


async def today(db: Database) -> date:
    """The day it is for Postgres, in UTC."""
    now: datetime = await db.fetchval("SELECT now()")
    return now.astimezone(UTC).date()


async def keep(settings: AggregatorSettings) -> None:
    """Keep partitions ahead of the clicks, and drop those past the retention, until cancelled."""
    while True:
        try:
            await keep_once(settings.database_url, settings.click_retention_days)
        except DatabaseAway as error:
            log.warning("partitions_wait_for_database", error=type(error).__name__)
            await asyncio.sleep(limits.DATABASE_RETRY_MAX_S)
        else:
            await asyncio.sleep(limits.PARTITIONS_EVERY_S)


async def keep_once(database_url: str, keep_days: int) -> None:
    """One round: yesterday to `PARTITIONS_AHEAD_DAYS` ahead exist, what is older than `keep_days` does not.
    Answers to POSTs go when they may not be repeated any more."""
    timeout_s = limits.TRANSACTION_S
    async with connected(database_url, command_timeout_s=timeout_s, application_name="clickdam-partitions") as db:
        first = await today(db) - timedelta(days=1)
        made = await ensure(db, [first + timedelta(days=n) for n in range(limits.PARTITIONS_AHEAD_DAYS + 2)])
        dropped = await drop_older(db, keep_days)
        await forget(db)
    if made or dropped:
        log.info("partitions_kept", made=[str(day) for day in made], dropped=[str(day) for day in dropped])


async def _make(db: Database, day: date) -> bool:
    name, (first, end) = day.strftime(_NAME), day_bounds(day)
    async with db.transaction():
        await db.execute("SELECT pg_advisory_xact_lock($1)", _MAKE_LOCK)
        if day in await existing(db):
            return False
        await db.execute(f"CREATE TABLE {name} (LIKE click INCLUDING ALL)")
        await db.execute(f"ALTER TABLE click ATTACH PARTITION {name} FOR VALUES FROM ('{first}') TO ('{end}')")
    return True


async def _drop(db: Database, name: str, *, attached: bool, detaching: bool) -> None:
    if attached:
        how = "FINALIZE" if detaching else "CONCURRENTLY"
        await db.execute(f"ALTER TABLE click DETACH PARTITION {name} {how}")
    await db.execute(f"DROP TABLE {name}")


def _first_id(day: date) -> UUID:
    at_ms = int(datetime.combine(day, time(), UTC).timestamp()) * 1000
    return UUID(int=at_ms << 80)


def _day(name: str) -> date:
    return datetime.strptime(name, _NAME).replace(tzinfo=UTC).date()
