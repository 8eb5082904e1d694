"""The consumer's loop: read a batch, apply it; after any error forget it and ask Postgres where to go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import structlog

from aggregator.db.connect import DatabaseAway
from aggregator.flush import metrics
from aggregator.flush.batch import Applied, Batch, Moved, Reader
from aggregator.flush.commit import commit
from aggregator.flush.decode import Decoded, Part, Window, decode_part, joined, parts
from aggregator.flush.fence import change_positions, positions
from aggregator.flush.journal_in import JournalReader
from aggregator.flush.kafka_in import KafkaReader
from aggregator.flush.session import Fenced, Poison, Session, Unknown, open_session
from schemas import limits
from schemas.settings import AggregatorSettings

log = structlog.get_logger()

_RETRY_FIRST_S = 0.05


async def consume(settings: AggregatorSettings, ready: asyncio.Event) -> None:
    """Apply the log to Postgres until cancelled. Sets `ready` once it knows where to go on.

    Postgres may be away for any time: the log keeps everything.
    """
    async with _open_reader(settings) as reader:
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
        window = await session.window()
        await _seek(session, reader)
        ready.set()
        try:
            await _apply_for_a_while(session, reader, window)
        except Fenced as error:
            metrics.FENCED.inc()
            log.info("fenced", detail=str(error))
        except Moved:
            continue  # the reader has said what moved


async def _seek(session: Session, reader: Reader) -> None:
    """Go on where Postgres says, when what the log has become is put down there."""
    while changes := await reader.seek(await positions(session.db)):
        await change_positions(session.db, changes)


async def _apply_for_a_while(session: Session, reader: Reader, window: Window) -> None:
    """Apply one batch while the next one is read and decoded. Returns when the positions are to be asked for again,
    with nothing in hand: Postgres may have been restored to earlier ones, or an operator have changed them."""
    until = time.monotonic() + limits.REREAD_POSITIONS_S
    ahead = asyncio.create_task(_read(reader, window, until))
    try:
        while found := await ahead:
            ahead = asyncio.create_task(_read(reader, window, until))
            with metrics.BATCH_SECONDS.time():
                applied = await apply(session, *found)
            session.applied += 1
            _count(applied)
    finally:
        ahead.cancel()
        await asyncio.gather(ahead, return_exceptions=True)


async def _read(reader: Reader, window: Window, until: float) -> tuple[Batch, Decoded] | None:
    """The next batch; None when there is none before `until`."""
    while time.monotonic() < until:
        with metrics.STAGE_SECONDS.labels("read").time():
            batch = await reader.read()
        if batch:
            return batch, await _decode(batch, window)
    return None


async def _decode(batch: Batch, window: Window) -> Decoded:
    """Part by part, so that Postgres, which works on another batch meanwhile, never waits long for us."""
    found: list[Part] = []
    for some in parts(batch.entries):
        with metrics.STAGE_SECONDS.labels("decode").time():
            found.append(decode_part(some, window))
        await asyncio.sleep(0)
    with metrics.STAGE_SECONDS.labels("decode").time():
        return joined(found, window)


async def apply(session: Session, batch: Batch, decoded: Decoded) -> Applied:
    """Commit a batch within TRANSACTION_S; one that holds a record which Postgres refuses is sifted."""
    try:
        async with asyncio.timeout(limits.TRANSACTION_S):
            return await commit(batch, session, decoded)
    except Poison as error:
        log.warning("batch_sifted", source=batch.source, first=batch.first, error=type(error).__name__)
        async with asyncio.timeout(limits.SIFT_S):
            return await commit(batch, session, decoded, sifting=True)


def _count(applied: Applied) -> None:
    metrics.APPLIED.labels("click").inc(applied.clicks)
    metrics.APPLIED.labels("conversion").inc(applied.conversions)
    metrics.APPLIED.labels("beat").inc(applied.beats)
    metrics.DEAD.inc(applied.dead)


@asynccontextmanager
async def _open_reader(settings: AggregatorSettings) -> AsyncIterator[Reader]:
    """The end of the log that is set. This is the only place that asks which one it is."""
    reader: Reader = KafkaReader(settings) if settings.is_kafka else JournalReader(settings.journal_folder)
    try:
        yield reader
    finally:
        await reader.close()
