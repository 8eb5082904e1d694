"""The journal as an edge's log: beats lie between the events, and the next in a slot closes what was killed in it,
because all that it ever acknowledged lies in that slot.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from itertools import groupby
from pathlib import Path

import structlog

from schemas import events, journal
from schemas.events import Beat
from schemas.settings import EdgeSettings
from tracker.clock import EdgeClock
from tracker.log.heartbeat import Heartbeat, State
from tracker.log.journal_out import JournalLog
from tracker.log.recorder import LogFailed, Recorder
from tracker.tally import Tally

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def journal_log(settings: EdgeSettings, slot: int, clock: EdgeClock, tally: Tally) -> AsyncIterator[Heartbeat]:
    """A slot of the journal, with this edge registered in it; closed in it at the end. Raises journal.SlotTaken."""
    target = JournalLog(settings.journal_folder, slot, settings.edge_name, lambda: clock.incarnation)
    clock.continue_from(target.lock())
    try:
        heartbeat = JournalHeartbeat(f"{settings.edge_name}/{slot}", clock, tally, target)
        await heartbeat.register()
        try:
            yield heartbeat
        finally:
            await heartbeat.close()
    finally:
        await target.close()


class JournalHeartbeat(Heartbeat):
    """Watermarks of one slot."""

    def __init__(self, edge: str, clock: EdgeClock, tally: Tally, target: JournalLog) -> None:
        super().__init__(edge, clock, tally, target)
        self._journal = target

    async def register(self) -> None:
        """Close what earlier processes of this slot left open, and open our own incarnation, in one durable write."""
        await self._begin("open")

    async def close_left_behind(self) -> None:
        """Close what earlier processes of this slot left open, where no worker will follow."""
        if self._journal.left_behind():
            await self._begin("closed")
            await self._journal.seal()

    async def close(self) -> None:
        """Say that no more will come from this incarnation. Call when the recorder is drained. Raises LogFailed; the
        next in this slot closes it then."""
        now = self._clock.now_ms()
        await self._journal.append(events.encode(self._made("closed", now, now)), now)
        await self._journal.seal()

    async def _begin(self, state: State) -> None:
        left_behind = self._journal.left_behind()
        now = self._clock.now_ms()
        beats = [self._closing(of, now) for of in _by_incarnation(left_behind)]
        beats.append(self._made(state, now, now))
        await self._journal.append(b"\n".join(events.encode(beat) for beat in beats), now)
        for segment in left_behind:
            log.warning("closed_for_a_killed_edge", incarnation=segment.meta.incarnation, segment=segment.path.name)
            journal.seal(segment.path)

    async def _beat_once(self, recorder: Recorder) -> None:
        beat = self._of_now(recorder)
        recorder.put_watermark(events.encode(beat), beat.at_ms)

    def _begin_incarnation(self, recorder: Recorder, now: int) -> None:
        recorder.put_watermark(events.encode(self._made("closed", now, now)), now)
        self._take_incarnation()
        recorder.put_watermark(events.encode(self._made("open", now, now)), now)

    def _closing(self, segments: list[journal.LeftBehind], now: int) -> Beat:
        meta = segments[0].meta
        acked = [(segment.meta.source, self._journal.slot, segment.last_offset) for segment in segments]
        return Beat(
            v=1, edge=meta.edge, incarnation=meta.incarnation, state="closed",
            at_ms=now, complete_to_ms=now, acked=[entry for entry in acked if entry[2]],
        )  # fmt: skip


def _by_incarnation(segments: list[journal.LeftBehind]) -> list[list[journal.LeftBehind]]:
    return [list(group) for _, group in groupby(segments, lambda segment: segment.meta.incarnation)]


async def close_abandoned(folder: Path, edge: str, workers: int) -> None:
    """Close what was killed in slots from `workers` on, which nobody opens any more: their last beats would hold
    completeness back for ever. A slot that cannot be closed is said and left."""
    for slot in (slot for slot in journal.slots(folder) if slot >= workers):
        try:
            await _close_slot(folder, edge, slot)
        except (journal.SlotTaken, journal.Unreadable, LogFailed, OSError) as error:
            log.error("slot_not_closed", slot=slot, error=str(error))


async def _close_slot(folder: Path, edge: str, slot: int) -> None:
    clock = EdgeClock()
    target = JournalLog(folder, slot, edge, lambda: clock.incarnation)
    try:
        clock.continue_from(target.lock())
        await JournalHeartbeat(f"{edge}/{slot}", clock, Tally(), target).close_left_behind()
    finally:
        await target.close()
