"""The fence: where the consumers are, kept in Postgres, and moved in the same transaction as what it stands for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import structlog

from aggregator.db.connect import Database, DatabaseAway, connected
from aggregator.flush.batch import Batch, Positions
from aggregator.flush.session import Fenced, Session
from schemas import limits
from schemas.journal import FIRST_OFFSET

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


async def positions(db: Database) -> Positions:
    """The first offset not yet applied, of every partition that anybody has ever consumed."""
    rows = await db.fetch("SELECT source, partition, next FROM log_position")
    return {(row["source"], row["partition"]): row["next"] for row in rows}


async def begin_partition(db: Database, batch: Batch) -> None:
    """Make the fence's row before the first batch of a partition, outside its transaction."""
    if batch.first == FIRST_OFFSET:
        await db.execute(_BEGIN, batch.source, batch.partition, FIRST_OFFSET)


async def fence(session: Session, batch: Batch) -> None:
    """Move the position from `batch.first` to `batch.next`, or raise Fenced when it is not there.

    A zombie frozen inside COPY holds the row's lock, and no timeout of the server ends it. So while this statement
    waits longer than FENCE_WAIT_S, a second connection ends the frozen holders, and the same statement goes on: under
    READ COMMITTED it checks `next` again on the row as it then is, so whether the holder's transaction was rolled
    back (we apply the batch) or had just committed (we are Fenced), the answer is exact. The lock_timeout is for the
    case that no second connection can be opened; it holds for this statement alone, because a COPY may rightly wait
    for the ids of another partition.
    """
    db = session.db
    await db.execute(f"SET LOCAL lock_timeout = '{limits.FENCE_GIVE_UP_S}s'")
    async with _frozen_holders_ended(session):
        moved = await db.execute(
            "UPDATE log_position SET next = $4 WHERE source = $1 AND partition = $2 AND next = $3",
            batch.source, batch.partition, batch.first, batch.next,
        )  # fmt: skip
    if moved != "UPDATE 1":
        raise Fenced(f"{batch.source}/{batch.partition} is not at {batch.first}")
    await db.execute("SET LOCAL lock_timeout = 0")


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
