"""Changes on their way from Postgres to Redis: a queue of deletions, filled by the transaction that changes a row."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import asyncpg
import structlog

from aggregator.db.connect import Database, DatabaseAway, Pool
from aggregator.publish import metrics
from aggregator.publish.agreement import note
from aggregator.publish.denormalise import SELECT, Kind, current
from aggregator.publish.write import EpochBehind, write
from schemas import limits, links
from schemas.redis import Redis, RedisError

log = structlog.get_logger()

_WAITING = """
SELECT count(*) AS entries, coalesce(extract(epoch FROM clock_timestamp() - min(queued_at)), 0)::float AS age_s
FROM (SELECT queued_at FROM outbox ORDER BY id LIMIT $1) AS waiting
"""


async def enqueue(db: Database, kind: Kind, row_id: int) -> None:
    """Say that a row has changed. Belongs into the transaction of the change."""
    await db.execute("INSERT INTO outbox (kind, row_id) VALUES ($1, $2)", kind, row_id)


async def enqueue_all(db: Database, kind: Kind, row_ids: Sequence[int]) -> None:
    """The same for many rows, in their order."""
    await db.execute("INSERT INTO outbox (kind, row_id) SELECT $1, unnest($2::int[])", kind, row_ids)


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
        await note(redis, epoch, taken[-1]["id"])
        await db.execute("DELETE FROM outbox WHERE id = ANY($1::bigint[])", [row["id"] for row in taken])
    return len(taken)


async def measure(db: Database) -> None:
    """Tell how much lies in the queue, and since when."""
    waiting = await db.fetchrow(_WAITING, limits.OUTBOX_COUNTED_MAX)
    assert waiting is not None
    metrics.OUTBOX_ENTRIES.set(waiting["entries"])
    metrics.OUTBOX_AGE.set(max(0.0, waiting["age_s"]))


async def publish_now(pool: Pool, redis: Redis, changed: Sequence[tuple[Kind, int]]) -> bool:
    """Write rows that were just committed, so that they are live when the API answers; links with their offers and
    partners.

    False when it is not live within `limits.PUBLISH_TIMEOUT_S`; the publisher then gets to it by its outbox entry,
    which stays in any case: writing a value again that is there already changes nothing.
    """
    try:
        async with asyncio.timeout(limits.PUBLISH_TIMEOUT_S), pool.acquire() as db:
            await write(redis, await _with_what_they_need(db, changed))
    except (*RedisError, *DatabaseAway, asyncpg.PostgresError, EpochBehind) as error:
        log.warning("not_live_yet", rows=len(changed), error=type(error).__name__)
        return False
    return True


async def _with_what_they_need(db: Database, changed: Sequence[tuple[Kind, int]]) -> dict[str, links.Config]:
    epoch = await db.fetchval("SELECT epoch FROM publishing")
    configs: dict[str, links.Config] = {}
    for kind in SELECT:
        ids = {row_id for of, row_id in changed if of == kind}
        configs |= await current(db, kind, ids, epoch) if ids else {}
    made = [config for config in configs.values() if isinstance(config, links.Link)]
    if made:
        configs |= await current(db, "offer", {link.offer_id for link in made}, epoch)
        configs |= await current(db, "partner", {link.partner_id for link in made}, epoch)
    return configs
