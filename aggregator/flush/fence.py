"""The fence: where the consumers are, kept in Postgres, and moved in the same transaction as what it stands for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import asyncpg
import structlog

from aggregator.db.connect import Connection, Database, DatabaseAway, connected
from aggregator.flush.batch import EARLIEST, Batch, Change, Position, Positions
from aggregator.flush.session import Fenced, Session
from schemas import limits

log = structlog.get_logger()

# A holder that works is left alone; one whose server process has waited for its client all that time is frozen or gone.
# MATERIALIZED: as one condition among others, pg_terminate_backend could be called for rows that the others exclude.
_END_FROZEN = """
WITH frozen AS MATERIALIZED (
    SELECT pid FROM pg_stat_activity
    WHERE pid = ANY (pg_blocking_pids($1)) AND wait_event_type = 'Client'
      AND state_change < clock_timestamp() - make_interval(secs => $2))
SELECT pid, pg_terminate_backend(pid) FROM frozen
"""

# Asked first, because ON CONFLICT DO NOTHING waits for whoever is just moving the row, a zombie too.
_BEGIN = """
INSERT INTO log_position (source, partition, next) SELECT $1, $2, $3
WHERE NOT EXISTS (SELECT FROM log_position WHERE source = $1 AND partition = $2)
ON CONFLICT DO NOTHING
"""


# `stopped` again, because what another consumer has stopped stands still for a zombie too.
_MOVE = """
UPDATE log_position SET next = $4, last_digest = $5
WHERE source = $1 AND partition = $2 AND next = $3 AND stopped IS NULL
RETURNING set_config('lock_timeout', '0', true)
"""
_MAKE = """
INSERT INTO log_position (source, partition, next, stopped, stopped_at)
VALUES ($1, $2, $3, $4::text, CASE WHEN $4::text IS NOT NULL THEN clock_timestamp() END) ON CONFLICT DO NOTHING
"""
# A position that is moved by hand has no record of ours before it.
_CHANGE = """
UPDATE log_position
SET next = $4, stopped = $5::text, stopped_at = CASE WHEN $5::text IS NOT NULL THEN clock_timestamp() END,
    last_digest = CASE WHEN next = $4 THEN last_digest END
WHERE source = $1 AND partition = $2 AND next = $3 AND stopped IS NULL
"""


async def positions(db: Database) -> Positions:
    """Of every partition that anybody has ever consumed."""
    rows = await db.fetch("SELECT source, partition, next, stopped, last_digest FROM log_position")
    return {(source, partition): Position(*rest) for source, partition, *rest in rows}


async def change_positions(db: Connection, changes: Iterable[Change]) -> None:
    """All of them at once, each only where nobody else was faster."""
    async with db.transaction():
        done = [one for one in sorted(changes) if await _changed(db, one)]
    for one in done:
        if one.stopped:
            log.error(
                "partition_stopped", source=one.source, partition=one.partition, next=one.next, reason=one.stopped
            )
        elif one.next != EARLIEST:
            log.info("partition_begins", source=one.source, partition=one.partition, next=one.next)


async def _changed(db: Connection, one: Change) -> bool:
    if one.expected is None:
        done = await db.execute(_MAKE, one.source, one.partition, one.next, one.stopped)
    else:
        done = await db.execute(_CHANGE, *one)
    return not done.endswith(" 0")


async def begin_partition(db: Database, batch: Batch) -> None:
    """Make the fence's row before the first batch of a partition, outside its transaction."""
    if batch.begins:
        await db.execute(_BEGIN, batch.source, batch.partition, batch.first)


async def fence(session: Session, batch: Batch) -> None:
    """Move the position from `batch.first` to `batch.next`, or raise Fenced when it is not there.

    A zombie frozen inside COPY holds the row's lock, and no timeout of the server ends it. So while this statement
    waits longer than FENCE_WAIT_S, a second connection ends the frozen holders, and the same statement goes on: under
    READ COMMITTED it checks `next` again on the row as it then is, so whether the holder's transaction was rolled
    back (we apply the batch) or had just committed (we are Fenced), the answer is exact. The lock_timeout is for the
    case that no second connection can be opened; this statement lifts it once it has the row, because a COPY may
    rightly wait for the ids of another partition.
    """
    async with _frozen_holders_ended(session):
        moved = await session.db.fetch(_MOVE, batch.source, batch.partition, batch.first, batch.next, batch.last_digest)
    if not moved:
        raise Fenced(f"{batch.source}/{batch.partition} is not at {batch.first}")


@asynccontextmanager
async def _frozen_holders_ended(session: Session) -> AsyncIterator[None]:
    watch = asyncio.create_task(_end_frozen_holders(session.database_url, session.db.get_server_pid()))
    try:
        yield
    finally:
        watch.cancel()


async def _end_frozen_holders(database_url: str, waiting_pid: int) -> None:
    while True:
        await asyncio.sleep(limits.FENCE_WAIT_S)
        try:
            ended = await _end_once(database_url, waiting_pid)
        except (asyncpg.PostgresError, *DatabaseAway) as error:
            log.warning("frozen_holder_not_ended", error=type(error).__name__)
        else:
            log.warning("fence_waits", ended_backends=ended)


async def _end_once(database_url: str, waiting_pid: int) -> list[int]:
    opening = connected(database_url, command_timeout_s=limits.CONNECT_S, application_name="clickdam-fence")
    async with opening as db:
        return [row["pid"] for row in await db.fetch(_END_FROZEN, waiting_pid, limits.FENCE_WAIT_S)]
