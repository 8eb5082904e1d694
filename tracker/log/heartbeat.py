"""The edge's watermarks: it registers before it is ready, beats once a second and closes when it ends.

What a beat says is made here. How beats travel, and who closes an edge that was killed, is the log's affair:
`on_journal.py` and `on_kafka.py`.
"""

from __future__ import annotations

import abc
import asyncio
from functools import partial
from typing import Literal

import structlog

from schemas import limits
from schemas.events import Beat
from tracker.clock import EdgeClock
from tracker.log.recorder import Log, Recorder
from tracker.tally import Tally, hour_name

log = structlog.get_logger()
State = Literal["open", "beat", "closed"]


class Heartbeat(abc.ABC):
    """Watermarks of one process."""

    def __init__(self, edge: str, clock: EdgeClock, tally: Tally, target: Log) -> None:
        self._edge = edge
        self._clock = clock
        self._tally = tally
        self.log = target
        self._incarnation = clock.incarnation

    async def beat(self, recorder: Recorder) -> None:
        """Beat until cancelled."""
        self._clock.on_jump = partial(self._begin_incarnation, recorder)
        while True:
            await asyncio.sleep(limits.BEAT_S)
            await self._beat_once(recorder)

    @abc.abstractmethod
    async def _beat_once(self, recorder: Recorder) -> None: ...

    @abc.abstractmethod
    def _begin_incarnation(self, recorder: Recorder, now: int) -> None:
        """Put into the queue, before any event of the new incarnation, what announces it: what is not yet announced
        could break a completeness that the old one has promised."""

    def _of_now(self, recorder: Recorder) -> Beat:
        """What is complete now."""
        now = self._clock.now_ms()
        oldest = recorder.oldest_ms()
        return self._made("beat", now, now if oldest is None else min(oldest, now))

    def _made(self, state: State, at_ms: int, complete_to_ms: int) -> Beat:
        counters = self._tally.by_hour()
        counters.setdefault(hour_name(at_ms), {})[state] = 1  # so it is known until when an edge was heard of itself
        return Beat(
            v=1,
            edge=self._edge,
            incarnation=self._incarnation,
            state=state,
            at_ms=at_ms,
            complete_to_ms=complete_to_ms,
            acked=self.log.acked(),
            counters=counters,
        )

    def _take_incarnation(self) -> None:
        log.error("clock_jumped_back", incarnation=self._clock.incarnation)
        self._incarnation = self._clock.incarnation
        self._tally.begin_incarnation()
