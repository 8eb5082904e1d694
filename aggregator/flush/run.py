"""The consumer's loop: read a batch, apply it; after any error forget it and ask Postgres where to go on."""

from __future__ import annotations

import asyncio
import time

import asyncpg
import structlog

from aggregator.db.connect import DatabaseAway
from aggregator.flush import metrics
from aggregator.flush.batch import Applied, Batch, Reader
from aggregator.flush.commit import commit
from aggregator.flush.fence import positions
from aggregator.flush.journal_in import JournalReader
from aggregator.flush.session import Fenced, Poison, Session, Unknown, open_session
from schemas import limits
from schemas.settings import AggregatorSettings

log = structlog.get_logger()

_RETRY_FIRST_S = 0.05


async def consume(settings: AggregatorSettings, ready: asyncio.Event) -> None:
    """Apply the log to Postgres until cancelled. Sets `ready` once it knows where to go on.

    Postgres may be away for any time: the log keeps everything.
    """
    reader = JournalReader(settings.journal_folder)
    pause_s = _RETRY_FIRST_S
    while True:
        applied = await _one_session(settings, reader, ready)
        pause_s = _RETRY_FIRST_S if applied else min(pause_s * 2, limits.DATABASE_RETRY_MAX_S)
        await asyncio.sleep(pause_s)


async def _one_session(settings: AggregatorSettings, reader: Reader, ready: asyncio.Event) -> int:
    """Follow the log until an error ends the connection. Answers how many batches were applied."""
    session = None
    try:
        async with open_session(settings) as session:
            await follow(session, reader, ready)
    except (Unknown, asyncpg.PostgresError, *Poison, *DatabaseAway) as error:
        metrics.DROPPED.labels(type(error).__name__).inc()
        log.warning("batch_dropped", error=type(error).__name__, detail=str(error)[:200])
    return session.applied if session else 0


async def follow(session: Session, reader: Reader, ready: asyncio.Event) -> None:
    """Read and apply as long as this session lasts. Raises what ended it."""
    while True:
        reader.seek(await positions(session.db))
        ready.set()
        try:
            await _apply_until_quiet(session, reader)
        except Fenced as error:
            metrics.FENCED.inc()
            log.info("fenced", detail=str(error))


async def _apply_until_quiet(session: Session, reader: Reader) -> None:
    """Returns when there was nothing to do for a while: the positions may have been restored to earlier ones."""
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < limits.REREAD_POSITIONS_S:
        batch = await reader.read()
        if batch:
            with metrics.BATCH_SECONDS.time():
                applied = await apply(session, batch)
            session.applied += 1
            _count(applied)
            quiet_since = time.monotonic()


async def apply(session: Session, batch: Batch) -> Applied:
    """Commit a batch within TRANSACTION_S; one that holds a record which Postgres refuses is sifted."""
    try:
        async with asyncio.timeout(limits.TRANSACTION_S):
            return await commit(batch, session)
    except Poison as error:
        log.warning("batch_sifted", source=batch.source, first=batch.first, error=type(error).__name__)
        async with asyncio.timeout(limits.SIFT_S):
            return await commit(batch, session, sifting=True)


def _count(applied: Applied) -> None:
    metrics.APPLIED.labels("click").inc(applied.clicks)
    metrics.APPLIED.labels("conversion").inc(applied.conversions)
    metrics.APPLIED.labels("beat").inc(applied.beats)
    metrics.DEAD.inc(applied.dead)
