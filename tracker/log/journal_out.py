"""The journal as the edge's log: one slot's segments, written by one thread, rotated by size and age."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from schemas import journal, limits
from schemas.outcomes import Outcome
from tracker.log.one_thread import OneThread
from tracker.log.recorder import Batch, LogFailed

T = TypeVar("T")


class JournalLog:
    """The log of one worker slot. `incarnation()` is asked before each write: a new one begins a new segment."""

    def __init__(self, folder: Path, slot: int, edge: str, incarnation: Callable[[], str]) -> None:
        self._folder = journal.slot_folder(folder, slot)
        self.slot = slot
        self._edge = edge
        self._incarnation = incarnation
        self._thread: OneThread | None = None
        self._lock: FileLock | None = None
        self._segment: journal.Segment | None = None
        self._opened = 0.0
        self._acked: list[tuple[str, int, int]] = []

    def lock(self) -> int:
        """Take the slot and say the latest time written in it (ms). Raises journal.SlotTaken."""
        self._lock = journal.lock_slot(self._folder)
        return journal.latest_ms(self._folder)

    def left_behind(self) -> list[journal.LeftBehind]:
        """Segments of writers of this slot that did not end in order."""
        return journal.left_behind(self._folder)

    @property
    def deadline_s(self) -> float:
        return limits.ACK_DEADLINE_S

    async def write(self, batch: Batch) -> Outcome:
        await self.append(b"\n".join(batch.events), batch.latest_ms)
        return Outcome.RECORDED

    async def append(self, body: bytes, latest_ms: int) -> None:
        """Append one row of JSON lines, on the disk when this returns. Raises LogFailed."""
        await self._in_thread(self._append, body, latest_ms)

    def acked(self) -> list[tuple[str, int, int]]:
        return self._acked

    def oldest_ms(self) -> int | None:
        return None

    async def seal(self) -> None:
        """Say that the segment is complete; call when the closing beat is in it. Raises LogFailed."""
        await self._in_thread(self._seal)

    async def close(self) -> None:
        """Let the slot go. A segment that was not sealed is closed by whoever takes the slot next."""
        await self._in_thread(self._close)
        if self._thread:
            self._thread.close()
            self._thread = None
        if self._lock:
            self._lock.release()

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        if self._thread is None:
            self._thread = OneThread("journal")
        found: T = await self._thread.do(work, *args)
        return found

    def _append(self, body: bytes, latest_ms: int) -> None:
        try:
            segment = self._current()
            offset = segment.append(body, latest_ms)
        except (journal.Unwritable, OSError) as error:
            raise LogFailed(str(error)) from error
        self._acked = [(segment.meta.source, self.slot, offset)]

    def _current(self) -> journal.Segment:
        now = time.monotonic()
        if self._segment is None or self._is_over(self._segment, now):
            self._segment = self._after(self._segment)
            self._opened = now
        return self._segment

    def _after(self, segment: journal.Segment | None) -> journal.Segment:
        """The next segment, and `segment` sealed; or neither: a reader waits for ever behind one left unsealed, and a
        killed writer with no unsealed one would never be closed."""
        following = journal.Segment.create(self._folder, self._edge, self._incarnation())
        try:
            if segment:
                segment.seal()
        except journal.Unwritable:
            following.discard()
            raise
        return following

    def _is_over(self, segment: journal.Segment, now: float) -> bool:
        return (
            segment.size_bytes >= limits.SEGMENT_BYTES_MAX
            or now - self._opened >= limits.SEGMENT_AGE_MAX_S
            or segment.meta.incarnation != self._incarnation()
            or not segment.path.exists()  # somebody removed the folder: rows would go where nobody reads them
        )

    def _seal(self) -> None:
        try:
            if self._segment:
                self._segment.seal()
        except journal.Unwritable as error:
            raise LogFailed(str(error)) from error
        self._segment = None

    def _close(self) -> None:
        if self._segment:
            self._segment.close()
