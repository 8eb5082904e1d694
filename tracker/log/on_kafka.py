"""Kafka as an edge's log: beats have a topic of their own, and what was killed in a slot, where it always has its mark
in the spool, is closed when that is drained.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import structlog

from schemas import events, journal, limits
from schemas.events import Beat
from schemas.redis import counting
from schemas.settings import EdgeSettings, LogSettings
from tracker.background import running
from tracker.clock import EdgeClock
from tracker.log.drainer import Drainer, drain_for_ever
from tracker.log.heartbeat import Heartbeat
from tracker.log.kafka_out import KafkaOut
from tracker.log.ladder import Ladder
from tracker.log.recorder import LogFailed, Recorder
from tracker.log.registry import Registry
from tracker.log.spool import Spool
from tracker.tally import Tally

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def kafka_log(settings: EdgeSettings, slot: int, clock: EdgeClock, tally: Tally) -> AsyncIterator[KafkaHeartbeat]:
    """The ladder, with this edge registered in Kafka or else in Redis; waits while neither is there. Closed in Kafka at
    the end, if it has everything by then. Raises journal.SlotTaken, and LogFailed when the spool cannot be written."""
    edge = f"{settings.edge_name}/{slot}"
    spool = Spool(settings.spool_folder, slot, edge, clock.incarnation, settings.spool_bytes_max)
    clock.continue_from(spool.lock())
    try:
        await spool.prepare()
        async with counting(settings.redis_url) as redis:
            registry, connect = Registry(redis), partial(KafkaOut, settings)
            ladder = Ladder(edge, spool, registry, connect)
            heartbeat = KafkaHeartbeat(edge, clock, tally, ladder)
            drainer = Drainer(spool, connect, ladder.note, registry.over)
            try:
                await heartbeat.register()
                async with running("drainer", drain_for_ever(drainer, spool, ladder.alive)):
                    yield heartbeat
                await heartbeat.close()
            finally:
                await ladder.stop()
    finally:
        await spool.close()


class KafkaHeartbeat(Heartbeat):
    """Watermarks of one process, which are the ladder's probes too."""

    def __init__(self, edge: str, clock: EdgeClock, tally: Tally, ladder: Ladder) -> None:
        super().__init__(edge, clock, tally, ladder)
        self._ladder = ladder

    async def register(self) -> None:
        """Return when the log, or else Redis, knows this incarnation."""
        now = self._clock.now_ms()
        await self._ladder.register(self._made("open", now, now))

    async def close(self) -> None:
        """Say that no more will come from this incarnation, if all of it is in Kafka. Call when the recorder is
        drained."""
        now = self._clock.now_ms()
        await self._ladder.close(partial(self._made, "closed", now, now))

    async def _beat_once(self, recorder: Recorder) -> None:
        await self._ladder.heartbeat(partial(self._of_begun, recorder))

    def _of_begun(self, recorder: Recorder) -> Beat | None:
        """None while the announcement of a new incarnation still waits in the queue."""
        beat = self._of_now(recorder)
        return beat if beat.incarnation == self._ladder.spool.incarnation else None

    def _begin_incarnation(self, recorder: Recorder, now: int) -> None:
        last = self._made("beat", now, min(now, recorder.oldest_ms() or now))
        self._take_incarnation()
        recorder.put_watermark(events.encode(last), now)
        recorder.put_watermark(events.encode(self._made("open", now, now)), now)


async def drain_abandoned(settings: EdgeSettings, workers: int) -> None:
    """Send what was left in slots from `workers` on, which nobody opens any more; return when nothing is."""
    while slots := [slot for slot in left_in(settings.spool_folder) if slot >= workers]:
        for slot in slots:
            try:
                await drain_slot(settings, settings.spool_folder, slot)
            except (journal.SlotTaken, journal.Unreadable, LogFailed, OSError) as error:
                log.warning("slot_not_drained", slot=slot, error=str(error))
            except Exception:
                log.exception("draining_crashed", slot=slot)  # a supervisor lives on, and tries again
        await asyncio.sleep(limits.ABANDONED_RETRY_S)


def left_in(folder: Path) -> list[int]:
    """The slots of a spool's folder that hold anything, were it the mark of an edge that did not end in order."""
    return [slot for slot in journal.slots(folder) if journal.segments(journal.slot_folder(folder, slot))]


async def drain_slot(
    settings: LogSettings, folder: Path, slot: int, removed: Callable[[int], None] = lambda size_bytes: None
) -> bool:
    """Send the spool of an edge that is gone and close it; answers whether nothing is left.

    `removed` hears of the bytes given back to the disk. Raises journal.SlotTaken where the edge lives, LogFailed, and
    journal.Unreadable.
    """
    spool = Spool(folder, slot)
    drainer = Drainer(spool, partial(KafkaOut, settings), removed=removed)
    try:
        spool.lock()
        return await drainer.drain()
    finally:
        await drainer.disconnect()
        await spool.close()
