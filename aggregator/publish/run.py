"""The publisher: keeps Redis saying what Postgres says, for as long as it runs. Several may run at once.

Two loops share what was agreed. One works with Postgres: it drains the outbox and repairs Redis. The other only needs
Redis: once a second it checks that Redis still is what was agreed on, beats on the invalidation stream and renews the
marker. So links stay fresh and whole for the edge while Postgres is away, when nothing can change; and any doubt about
Redis stops the beats until the first loop has looked at both.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import asyncpg
import structlog

from aggregator.db.connect import Connection, DatabaseAway, connected
from aggregator.publish import metrics
from aggregator.publish.agreement import KEEPS_ALL, Source, clock_offset_s, is_filled, settle_source, vouch
from aggregator.publish.outbox import drain, measure
from aggregator.publish.refill import refill
from aggregator.publish.write import EpochBehind
from schemas import limits
from schemas.redis import Redis, RedisError, publishing

log = structlog.get_logger()

_NAME = "clickdam-publisher"
_WAITS = "SELECT EXISTS (SELECT FROM outbox WHERE id <= $1)"
# a frozen publisher must not keep rows of the outbox from the others
_GIVE_UP_ROWS = f"SET idle_in_transaction_session_timeout = '{2 * limits.PUBLISH_TIMEOUT_S:.0f}s'"


@dataclass(slots=True)
class Agreed:
    """What Redis was filled from, the last sequence seen there, how far its clock is ahead of our monotonic one, its
    eviction policy; `source` is None while there is doubt."""

    source: Source | None = None
    sequence: int = 0
    clock_offset_s: float = 0.0
    eviction: str = KEEPS_ALL


async def run(database_url: str, redis_url: str) -> None:
    """Publish until cancelled. Postgres or Redis being away is waited for."""
    agreed = Agreed()
    async with publishing(redis_url) as redis, asyncio.TaskGroup() as tasks:
        tasks.create_task(_beat_forever(redis, agreed), name="publisher-beat")
        tasks.create_task(_publish_forever(database_url, redis, agreed), name="publisher")


async def _beat_forever(redis: Redis, agreed: Agreed) -> None:
    while True:
        await _beat(redis, agreed)
        await asyncio.sleep(limits.STREAM_BEAT_S)


async def _beat(redis: Redis, agreed: Agreed) -> None:
    if agreed.source is None:
        return
    try:
        before = time.monotonic() + agreed.clock_offset_s + limits.PUBLISH_TIMEOUT_S
        vouched = await vouch(redis, agreed.source, agreed.sequence, before)
    except RedisError as error:
        log.warning("redis_away", error=type(error).__name__)
        vouched = None
    if vouched is None:
        agreed.source = None
        return
    agreed.sequence, eviction = vouched
    if eviction != agreed.eviction:
        log.error("eviction_policy", policy=eviction, wanted=KEEPS_ALL, unknown_codes_are_known=eviction == KEEPS_ALL)
        agreed.eviction = eviction
    metrics.REDIS_MAY_EVICT.set(eviction != KEEPS_ALL)
    metrics.VOUCHED.set_to_current_time()


async def _publish_forever(database_url: str, redis: Redis, agreed: Agreed) -> None:
    pause_s = limits.OUTBOX_POLL_S
    while True:
        try:
            async with connected(database_url, command_timeout_s=limits.STATEMENT_S, application_name=_NAME) as db:
                await db.execute(_GIVE_UP_ROWS)
                while True:
                    await _publish(db, redis, agreed)
                    pause_s = limits.OUTBOX_POLL_S
        except (asyncpg.PostgresError, *DatabaseAway, *RedisError) as error:
            log.warning("publisher_waits", error=type(error).__name__, message=str(error))
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, limits.DATABASE_RETRY_MAX_S)


async def _publish(db: Connection, redis: Redis, agreed: Agreed) -> None:
    """About a second of work: look at both sides, then write changes as they come."""
    try:
        if not await _agree(db, redis, agreed):
            await asyncio.sleep(limits.OUTBOX_POLL_S)
            return
        await measure(db)
        polls = round(limits.STREAM_BEAT_S / limits.OUTBOX_POLL_S)
        for _ in range(polls):
            while agreed.source is not None and await drain(db, redis):
                pass  # as long as there is no doubt about Redis: an import may keep this going for minutes
            await asyncio.sleep(limits.OUTBOX_POLL_S)
    except EpochBehind as behind:
        await settle_source(db, redis, behind.epoch)


async def _agree(db: Connection, redis: Redis, agreed: Agreed) -> bool:
    """Make Redis what Postgres says if there is any doubt that it is. False when it has to be tried again."""
    source = await settle_source(db, redis)
    metrics.EPOCH.set(source.epoch)
    if source.is_that_of(agreed.source):
        agreed.source = source
        return True
    agreed.source = None
    newest = await db.fetchval("SELECT coalesce(max(id), 0) FROM outbox")
    if not await is_filled(redis, source, agreed.sequence):
        if not await refill(db, redis, source):
            return False
        agreed.sequence = 0
    while await db.fetchval(_WAITS, newest) and await drain(db, redis):
        pass
    if await db.fetchval(_WAITS, newest):
        return False  # another publisher has them under way: the marker must not vouch for it
    agreed.source, agreed.clock_offset_s = source, await clock_offset_s(redis)
    await _beat(redis, agreed)
    return True
