"""Changes on their way from Postgres to Redis: a queue of deletions, filled by the transaction that changes a row."""

from __future__ import annotations

import asyncio

import asyncpg
import structlog

from aggregator.db.connect import Database, DatabaseAway, Pool
from aggregator.publish.denormalise import SELECT, Kind, current
from aggregator.publish.write import EpochBehind, write
from schemas import limits, links
from schemas.redis import Redis, RedisError

log = structlog.get_logger()


async def enqueue(db: Database, kind: Kind, row_id: int) -> None:
    """Say that a row has changed. Belongs into the transaction of the change."""
    await db.execute("INSERT INTO outbox (kind, row_id) VALUES ($1, $2)", kind, row_id)


async def drain(db: Database, redis: Redis) -> int:
    """Write one batch of changed rows to Redis and answer how many entries left the queue.

    Several publishers may drain at once. An entry stays when anything fails: EpochBehind, DatabaseAway, RedisError.
    """
    async with db.transaction():
        taken = await db.fetch(
            "SELECT id, kind, row_id FROM outbox ORDER BY id FOR UPDATE SKIP LOCKED LIMIT $1", limits.REFILL_BATCH
        )
        if not taken:
            return 0
        epoch = await db.fetchval("SELECT epoch FROM publishing")
        configs: dict[str, links.Config] = {}
        for kind in SELECT:
            configs |= await current(db, kind, {row["row_id"] for row in taken if row["kind"] == kind}, epoch)
        await write(redis, configs)
        await db.execute("DELETE FROM outbox WHERE id = ANY($1::bigint[])", [row["id"] for row in taken])
    return len(taken)


async def publish_now(pool: Pool, redis: Redis, kind: Kind, row_id: int) -> bool:
    """Write a row that was just committed, so that it is live when the API answers; a link with its offer and partner.

    False when it is not live within `limits.PUBLISH_TIMEOUT_S`; the publisher then gets to it by its outbox entry,
    which stays in any case: writing a value again that is there already changes nothing.
    """
    try:
        async with asyncio.timeout(limits.PUBLISH_TIMEOUT_S), pool.acquire() as db:
            configs = await _with_what_it_needs(db, kind, row_id)
            await write(redis, configs)
    except (*RedisError, *DatabaseAway, asyncpg.PostgresError, EpochBehind) as error:
        log.warning("not_live_yet", kind=kind, row_id=row_id, error=type(error).__name__)
        return False
    return True


async def _with_what_it_needs(db: Database, kind: Kind, row_id: int) -> dict[str, links.Config]:
    epoch = await db.fetchval("SELECT epoch FROM publishing")
    configs = await current(db, kind, [row_id], epoch)
    for config in list(configs.values()):
        if isinstance(config, links.Link):
            configs |= await current(db, "offer", [config.offer_id], epoch)
            configs |= await current(db, "partner", [config.partner_id], epoch)
    return configs
