"""The rung under Kafka: what it could not take in time, on this machine's disk until a drainer has sent it.

The journal's files in a folder of their own. One segment is always there and unsealed: prepared, because making one
takes longer than a visitor waits, and the mark of its incarnation: a segment of another incarnation says that that one
did not end in order.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import msgspec
import structlog

from schemas import events, journal, limits
from schemas.events import Beat
from schemas.journal import Row, Segment, SegmentMeta
from schemas.outcomes import Outcome
from tracker.log.journal_out import JournalLog
from tracker.log.recorder import Batch, LogFailed

log = structlog.get_logger()


class Spool(JournalLog):
    """The spool of one worker slot. `unsent` is set while it holds anything but its empty, prepared segment."""

    def __init__(self, folder: Path, slot: int, edge: str = "", incarnation: str = "", bytes_max: int = 0) -> None:
        super().__init__(folder, slot, edge, lambda: self.incarnation)
        self.incarnation = incarnation
        self.bytes_max = bytes_max
        self.size_bytes = 0  # of its files
        self.drained_events = 0
        self.refused_events = 0  # by Kafka, for their size: each time it was tried
        self.unsent = asyncio.Event()
        self._others_bytes = 0
        self._oldest_ms: int | None = None  # nothing of this incarnation that is older is unsent
        self._left_ms: int | None = None  # the same for other incarnations

    def lock(self) -> int:
        """Take the slot and say the latest time written in it (ms). Raises journal.SlotTaken."""
        try:
            latest_ms = super().lock()
        except journal.Unreadable as error:
            log.error("spool_segment_unreadable", error=str(error))
            latest_ms = 0
        if self.segments():
            self.unsent.set()
            first = _first_row(self.segments())
            self._left_ms = first.latest_ms if first else None
        self._count_others()
        return latest_ms

    async def prepare(self) -> None:
        """Have a segment of this incarnation on the disk. Raises LogFailed."""
        await self._in_thread(self._prepare)

    async def begin(self, incarnation: str) -> None:
        """What is written from now on belongs to another incarnation. Raises LogFailed, and is so all the same."""
        try:
            await self._in_thread(self._begin, incarnation)
        finally:
            self._left_ms, self._oldest_ms = self.oldest_of_all_ms(), None
            self.unsent.set()

    async def write(self, batch: Batch) -> Outcome:
        """Raises LogFailed, also when it is full."""
        await self.append(b"\n".join(batch.events), batch.latest_ms)
        self._oldest_ms = batch.first_ms if self._oldest_ms is None else self._oldest_ms
        self.unsent.set()
        return Outcome.SPOOLED

    def oldest_ms(self) -> int | None:
        """No event of this incarnation that is unsent is older; None where none is unsent."""
        return self._oldest_ms

    def oldest_of_all_ms(self) -> int | None:
        """The same for everything in the folder."""
        return min(filter(None, (self._left_ms, self._oldest_ms)), default=None)

    def segments(self) -> list[Path]:
        return journal.segments(self._folder)

    @property
    def current(self) -> Path | None:
        """The segment that is being written."""
        return self._segment.path if self._segment else None

    async def meta(self, path: Path) -> SegmentMeta | None:
        """Whose a segment is; None for a file that was never finished. Raises journal.Unreadable."""
        return await asyncio.to_thread(_meta, path)

    async def read(self, path: Path, first: int) -> list[Row]:
        """A segment's rows from an offset on, up to what is sent at once. Raises journal.Unreadable."""
        return await asyncio.to_thread(_rows, path, first)

    def sent(self, incarnation: str, latest_ms: int) -> None:
        """Everything up to a row of this latest time is in the log."""
        if incarnation != self.incarnation:
            self._left_ms = latest_ms
        elif self._oldest_ms is not None:
            self._oldest_ms = max(self._oldest_ms, latest_ms)

    async def remove(self, path: Path) -> None:
        """Give a segment back to the disk."""
        await self._in_thread(self._remove, path)
        if self.segments() == [self.current]:
            self._left_ms = None

    async def renew(self, path: Path, last_offset: int) -> bool:
        """Everything up to this row of the current segment, and before it, is in the log: begin an empty one in its
        place, unless more has been written or another incarnation has begun. Answers whether nothing is unsent now.
        Raises LogFailed."""
        if not await self._in_thread(self._renew, path, last_offset):
            return False
        self._oldest_ms = self._left_ms = None
        self.unsent.clear()
        return True

    async def discard(self, incarnation: str) -> None:
        """Remove the mark of an incarnation that has closed: nothing of it is left. Another's mark stays."""
        await self._in_thread(self._discard, incarnation)

    def _prepare(self) -> None:
        try:
            self._current()
        except (journal.Unwritable, OSError) as error:
            raise LogFailed(str(error)) from error
        self._count_others()

    def _begin(self, incarnation: str) -> None:
        self.incarnation = incarnation  # in this thread, so that no segment is renewed for another than it was written
        self._prepare()

    def _append(self, body: bytes, latest_ms: int) -> None:
        if self.size_bytes + len(body) > self.bytes_max:
            raise LogFailed("the spool is full")
        before = self._segment
        super()._append(body, latest_ms)
        self._measure() if self._segment is before else self._count_others()

    def _is_over(self, segment: Segment, now: float) -> bool:
        return (
            segment.size_bytes >= limits.SPOOL_SEGMENT_BYTES_MAX
            or segment.meta.incarnation != self.incarnation
            or not segment.path.exists()
        )

    def _remove(self, path: Path) -> None:
        journal.remove(path)
        self._count_others()

    def _renew(self, path: Path, last_offset: int) -> bool:
        try:
            segment = self._current()
            if (path, last_offset) != (segment.path, self._last_offset(segment)):
                return False
            if last_offset:
                self._segment = self._after(segment)
        except (journal.Unwritable, OSError) as error:
            raise LogFailed(str(error)) from error
        if last_offset:
            self._remove(path)
        return True

    def _last_offset(self, segment: Segment) -> int:
        return next((offset for source, _, offset in self._acked if source == segment.meta.source), 0)

    def _discard(self, incarnation: str) -> None:
        if self._segment and self._segment.meta.incarnation == incarnation:
            self._segment.discard()
            self._segment = None

    def _count_others(self) -> None:
        self._others_bytes = sum(journal.size_bytes(path) for path in self.segments() if path != self.current)
        self._measure()

    def _measure(self) -> None:
        self.size_bytes = self._others_bytes + (journal.size_bytes(self.current) if self.current else 0)


def is_journal(folder: Path) -> bool:
    """Whether a folder holds a log of its own. The files are the same, but a journal has beats among its events."""
    firsts = [_first_row(journal.segments(journal.slot_folder(folder, slot))) for slot in journal.slots(folder)]
    return any(row is not None and _is_beat(row.body.partition(b"\n")[0]) for row in firsts)


def _is_beat(event: bytes) -> bool:
    try:
        return isinstance(events.decode(event), Beat)
    except msgspec.DecodeError:
        return False


def _first_row(segments: list[Path]) -> Row | None:
    """The first row that can be read."""
    for path in segments:
        with contextlib.suppress(journal.Unreadable), journal.reading(path) as segment:
            if segment.meta() and (rows := segment.rows(journal.FIRST_OFFSET, 1)):
                return rows[0]
    return None


def _meta(path: Path) -> SegmentMeta | None:
    with journal.reading(path) as segment:
        return segment.meta()


def _rows(path: Path, first: int) -> list[Row]:
    with journal.reading(path) as segment:
        return segment.rows(first, limits.DRAIN_BYTES_AT_ONCE)
