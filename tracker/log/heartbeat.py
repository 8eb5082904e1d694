"""The edge's watermarks in the log: it registers before it is ready, beats once a second and closes when it ends.

An edge that was killed leaves an open incarnation behind; whoever opens its slot next closes it, because all that it
ever acknowledged lies in that slot.
"""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import groupby
from pathlib import Path

import structlog

from schemas import events, journal, limits
from schemas.events import Beat
from tracker.clock import EdgeClock
from tracker.log.journal_out import JournalLog
from tracker.log.recorder import LogFailed, Recorder
from tracker.tally import Tally

log = structlog.get_logger()


class Heartbeat:
    """Watermarks of one process."""

    def __init__(self, edge: str, clock: EdgeClock, tally: Tally, target: JournalLog) -> None:
        self._edge = edge
        self._clock = clock
        self._tally = tally
        self._log = target
        self._incarnation = clock.incarnation

    async def register(self) -> None:
        """Close what earlier processes of this slot left open, and open our own incarnation, in one durable write."""
        await self._begin("open")

    async def close_left_behind(self) -> None:
        """Close what earlier processes of this slot left open, where no worker will follow."""
        if self._log.left_behind():
            await self._begin("closed")
            await self._log.seal()

    async def _begin(self, state: str) -> None:
        left_behind = self._log.left_behind()
        now = self._clock.now_ms()
        beats = [self._closing(of, now) for of in _by_incarnation(left_behind)]
        beats.append(self._beat(state, now, now))
        await self._log.append(b"\n".join(events.encode(beat) for beat in beats), now)
        for segment in left_behind:
            log.warning("closed_for_a_killed_edge", incarnation=segment.meta.incarnation, segment=segment.path.name)
            journal.seal(segment.path)

    async def beat(self, recorder: Recorder) -> None:
        """Beat until cancelled."""
        self._clock.on_jump = partial(self._begin_incarnation, recorder)
        while True:
            await asyncio.sleep(limits.BEAT_S)
            now = self._clock.now_ms()
            complete_to = recorder.oldest_ms()
            beat = self._beat("beat", now, now if complete_to is None else min(complete_to, now))
            recorder.put_watermark(events.encode(beat), now)

    async def close(self) -> None:
        """Say that no more will come from this incarnation. Call when the recorder is drained. Raises LogFailed; the
        next in this slot closes it then."""
        now = self._clock.now_ms()
        await self._log.append(events.encode(self._beat("closed", now, now)), now)
        await self._log.seal()

    def _begin_incarnation(self, recorder: Recorder, now: int) -> None:
        """In the log before any event of the new incarnation: what its `open` does not yet announce could break a
        completeness that the old one has promised."""
        log.error("clock_jumped_back", incarnation=self._clock.incarnation)
        recorder.put_watermark(events.encode(self._beat("closed", now, now)), now)
        self._incarnation = self._clock.incarnation
        self._tally.begin_incarnation()
        recorder.put_watermark(events.encode(self._beat("open", now, now)), now)

    def _beat(self, state: str, at_ms: int, complete_to_ms: int) -> Beat:
        assert state in ("open", "beat", "closed")
        return Beat(
            v=1,
            edge=self._edge,
            incarnation=self._incarnation,
            state=state,  # type: ignore[arg-type]
            at_ms=at_ms,
            complete_to_ms=complete_to_ms,
            acked=self._log.acked(),
            counters=self._tally.by_hour(),
        )

    def _closing(self, segments: list[journal.LeftBehind], now: int) -> Beat:
        meta = segments[0].meta
        acked = [(segment.meta.source, self._log.slot, segment.last_offset) for segment in segments]
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
        await Heartbeat(f"{edge}/{slot}", clock, Tally(), target).close_left_behind()
    finally:
        await target.close()
