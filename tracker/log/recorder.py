"""Group commit: events wait together for one durable write, and each waiter learns what became of its event.

Nothing in flight: a batch leaves when nothing more comes, at the linger at the latest. While one is in flight the next
one fills. A waiter past the deadline is answered `late`; its batch stays in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import structlog

from schemas import limits
from schemas.outcomes import Outcome, late
from tracker.background import running
from tracker.tally import HOUR_MS, Tally

log = structlog.get_logger()


class LogFailed(Exception):
    """The log could not take a batch; it is not durable."""


class Answering(Protocol):
    """A connection that holds a visitor's answer back."""

    def answer(self, answer: bytes) -> None: ...

    def force_close(self) -> None: ...


Answered = tuple[bytes, Answering, bytes]  # an event, and who is to give which answer when it is durable


@dataclass(slots=True)
class Batch:
    """One group commit. `opened` is when its oldest event came, on the monotonic clock (s). A batch of watermarks holds
    nothing else, because a broker keeps them in another topic."""

    first_ms: int
    opened: float
    is_watermark: bool = False
    latest_ms: int = 0
    size_bytes: int = 0
    events: list[bytes] = field(default_factory=list)
    waiters: list[tuple[asyncio.Future[Outcome], str]] = field(default_factory=list)
    answers: list[Answered] = field(default_factory=list)
    deadline: asyncio.TimerHandle | None = None
    late: Counter[str] = field(default_factory=Counter)  # answered before it was known what became of them
    hour_ends_ms: int = 0

    def __post_init__(self) -> None:
        self.hour_ends_ms = (self.first_ms // HOUR_MS + 1) * HOUR_MS

    def takes(self, at_ms: int, *, is_watermark: bool) -> bool:
        """Whether another event of this time goes in. An hour's end closes a batch, because outcomes are kept by the
        event's hour; so does a clock that jumped back, because a batch's first event is its oldest."""
        is_next = self.latest_ms <= at_ms < self.hour_ends_ms
        return is_next and is_watermark is self.is_watermark and self.size_bytes < limits.BATCH_BYTES_MAX

    def add(self, event: bytes, at_ms: int) -> None:
        self.add_all((event,), len(event) + 1, at_ms)

    def add_all(self, events: Iterable[bytes], size_bytes: int, at_ms: int) -> None:
        self.events += events
        self.size_bytes += size_bytes
        self.latest_ms = at_ms


class Log(Protocol):
    """Where events become durable. The journal is one; a broker with a spool beneath it is another."""

    @property
    def deadline_s(self) -> float:
        """How long after its event came a waiter may be kept waiting for `write`."""

    async def write(self, batch: Batch) -> Outcome:
        """Return when the batch is durable: RECORDED, or SPOOLED when the log will have it later. Raises LogFailed."""

    def acked(self) -> list[tuple[str, int, int]]:
        """[source, partition, offset] up to which everything written is durable."""

    def oldest_ms(self) -> int | None:
        """The time of the oldest event that is SPOOLED still; None where there is none."""


class Recorder:
    """The one queue and the one pump of a process."""

    def __init__(self, target: Log, tally: Tally) -> None:
        self._log = target
        self._tally = tally
        self._filling: deque[Batch] = deque()
        self._in_flight: Batch | None = None
        self._wake = asyncio.Event()
        self.queued_events = 0
        self.batches = 0
        self.write_seconds = 0.0

    async def durable(self, event: bytes, at_ms: int, counted_as: str = "") -> Outcome:
        """Record an event and wait, at most the deadline, until it is durable. `counted_as` prefixes the outcome's
        counter. The event is queued before the first wait, so a caller that goes away loses nothing."""
        waiter = self.put(event, at_ms, counted_as)
        return await waiter if waiter else Outcome.LOST

    def put(self, event: bytes, at_ms: int, counted_as: str = "") -> asyncio.Future[Outcome] | None:
        """Queue an event; the future says what became of it. None, and counted lost, when the queue is full."""
        if self.queued_events >= limits.QUEUE_EVENTS_MAX:
            self._tally.count(counted_as + Outcome.LOST, at_ms)
            return None
        batch = self._awaited(at_ms)
        batch.add(event, at_ms)
        self.queued_events += 1
        waiter: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        batch.waiters.append((waiter, counted_as))
        return waiter

    def answer_when_durable(self, clicks: Sequence[Answered], at_ms: int) -> None:
        """Queue the events of one moment; each connection is told to give its answer when it is known what became of
        its event: at once, and it is counted lost, when the queue is full."""
        room = max(0, limits.QUEUE_EVENTS_MAX - self.queued_events)
        taken, lost = clicks[:room], clicks[room:]
        if lost:
            self._tally.count(Outcome.LOST, at_ms, len(lost))
        ends = list(accumulate([len(event) + 1 for event, _, _ in taken]))
        first = 0
        while first < len(taken):
            batch = self._awaited(at_ms)
            passed_bytes = ends[first - 1] if first else 0
            full_at = passed_bytes + limits.BATCH_BYTES_MAX - batch.size_bytes
            end = min(bisect_left(ends, full_at, first) + 1, len(taken))
            batch.answers += taken[first:end]
            batch.add_all([event for event, _, _ in taken[first:end]], ends[end - 1] - passed_bytes, at_ms)
            self.queued_events += end - first
            first = end
        _give(lost)

    def put_watermark(self, event: bytes, at_ms: int) -> None:
        """Queue a watermark, which nobody waits for, between the events around it."""
        self._open(at_ms, is_watermark=True).add(event, at_ms)
        self.queued_events += 1

    def oldest_ms(self) -> int | None:
        """The time of the oldest event that is not yet in the log."""
        waiting = [batch.first_ms for batch in (self._in_flight, *self._filling) if batch]
        spooled = self._log.oldest_ms()
        return min(waiting if spooled is None else [spooled, *waiting], default=None)

    async def pump(self) -> None:
        """Write batches until cancelled. Call once."""
        while True:
            await self._wake.wait()
            await self._linger(self._filling[0])
            self._in_flight = batch = self._filling.popleft()
            if not self._filling:
                self._wake.clear()
            try:
                outcome = await self._write(batch)
            finally:
                self._in_flight = None
            self.queued_events -= len(batch.events)
            self._settle(batch, outcome)
            for counted_as, n in (+batch.late).items():
                self._tally.note(counted_as + late(outcome), batch.first_ms, n)

    async def drained(self) -> None:
        """Return when nothing is queued or in flight."""
        while self._filling or self._in_flight:
            await asyncio.sleep(limits.LINGER_S)

    def _open(self, at_ms: int, *, is_watermark: bool = False) -> Batch:
        """The batch that takes an event of this time."""
        if not self._filling or not self._filling[-1].takes(at_ms, is_watermark=is_watermark):
            self._filling.append(Batch(at_ms, time.monotonic(), is_watermark))
            self._wake.set()
        return self._filling[-1]

    def _awaited(self, at_ms: int) -> Batch:
        """The same, of an event that somebody waits for."""
        batch = self._open(at_ms)
        if batch.deadline is None:
            loop = asyncio.get_running_loop()
            batch.deadline = loop.call_later(self._log.deadline_s, self._settle, batch, Outcome.LATE)
        return batch

    async def _linger(self, batch: Batch) -> None:
        """Return when nothing more has come in two turns of the loop, which is idle then; when it is not, company is
        worth a wait, to the linger at most."""
        events = 0
        while events < len(batch.events) and time.monotonic() < batch.opened + limits.LINGER_S:
            if batch.size_bytes >= limits.BATCH_BYTES_MAX:
                return
            events = len(batch.events)
            await asyncio.sleep(0)  # what came is taken
            await asyncio.sleep(0)  # and looked at

    async def _write(self, batch: Batch) -> Outcome:
        started = time.monotonic()
        try:
            return await self._log.write(batch)
        except LogFailed as error:
            log.error("log_write_failed", events=len(batch.events), error=str(error))
            return Outcome.LOST
        except Exception:
            log.exception("log_write_crashed", events=len(batch.events))  # the pump goes on, whatever a log does
            return Outcome.LOST
        finally:
            self.batches += 1
            self.write_seconds += time.monotonic() - started

    def _settle(self, batch: Batch, outcome: Outcome) -> None:
        """Tell all who still wait. Each waiter is told, and counted, once."""
        if outcome is Outcome.LATE:
            batch.late.update(counted_as for _, counted_as in batch.waiters)  # those that came since go in as well
            batch.late[""] += len(batch.answers)
        if batch.deadline is not None:
            batch.deadline.cancel()
            batch.deadline = None
        waiters, batch.waiters = batch.waiters, []
        for waiter, counted_as in waiters:
            self._tally.count(counted_as + outcome, batch.first_ms)
            if not waiter.done():
                waiter.set_result(outcome)
        answers, batch.answers = batch.answers, []
        if answers:
            self._tally.count(outcome, batch.first_ms, len(answers))
        _give(answers)


def _give(answers: Iterable[Answered]) -> None:
    for _, connection, answer in answers:
        try:
            connection.answer(answer)
        except Exception:
            log.exception("answer_failed")  # one connection's fault is not that of the others in its batch
            connection.force_close()


@contextlib.asynccontextmanager
async def recording(target: Log, tally: Tally) -> AsyncIterator[Recorder]:
    """A recorder with its pump running; on leaving, what is queued is written first."""
    recorder = Recorder(target, tally)
    async with running("recorder", recorder.pump()):
        yield recorder
        async with asyncio.timeout(limits.SHUTDOWN_S):
            await recorder.drained()
