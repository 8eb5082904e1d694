"""The journal as the consumer's log: the slots are partitions, their segments sources, read in the order written."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, TypeVar

import structlog

from aggregator.flush import metrics
from aggregator.flush.batch import Batch, Begun, Change, Entry, Positions
from schemas import journal, limits

log = structlog.get_logger()

T = TypeVar("T")
_thread = ThreadPoolExecutor(1, thread_name_prefix="journal-in")  # SQLite blocks; one file at a time is enough


class _Stamp(NamedTuple):
    """Tells a file from another that took its name."""

    inode: int
    modified_ns: int
    size_bytes: int


class _Sealed(NamedTuple):
    """What never changes again about a sealed segment, so that it need not be opened at every look."""

    stamp: _Stamp
    source: str
    last_offset: int


class _Look(NamedTuple):
    """What was found in one segment: a batch, the rows behind it, and whether nothing more will ever come."""

    batch: Batch | None = None
    unread: int = 0
    over: bool = False


class JournalReader:
    """Reads the segments of all slots, taking turns; a segment only when the one before it is sealed and applied, so
    that a beat comes after everything of its slot that it speaks of."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._next: dict[tuple[str, int], int] = {}
        self._due: dict[int, float] = {}
        self._sealed: dict[Path, _Sealed] = {}
        self._unreadable: dict[Path, int] = {}
        self._beginnings: dict[Path, Begun] = {}

    async def seek(self, positions: Positions) -> list[Change]:
        await in_thread(lambda: self._seek(positions))  # a read that was cancelled may still be under way there
        return []

    async def read(self) -> Batch | None:
        batch, wait_s = await in_thread(self._read)
        if batch is None:
            await asyncio.sleep(wait_s)
        return batch

    async def close(self) -> None:
        """Nothing is held open between two reads."""

    def _seek(self, positions: Positions) -> None:
        self._next = {of: position.next for of, position in positions.items()}
        self._due.clear()

    def _read(self) -> tuple[Batch | None, float]:
        """The first batch found in the slots that are due, and how long to wait where there is none. A slot that had
        no more is left alone for a while: that is Postgres' group commit."""
        for slot in sorted(journal.slots(self._folder), key=self._due_at):
            now = time.monotonic()
            if self._due_at(slot) > now:
                return None, self._due_at(slot) - now
            batch, more = self._read_slot(slot)
            self._due[slot] = now if more else now + (limits.JOURNAL_POLL_S if batch else limits.JOURNAL_IDLE_S)
            if batch:
                self._next[batch.source, slot] = batch.next
                return replace(batch, begun=self._begun()), 0.0
        return None, limits.JOURNAL_IDLE_S

    def _begun(self) -> list[Begun]:
        """The edges of all slots that have written. Looked up after a batch was read: what an edge writes that is not
        there by then is later than any beat in the batch."""
        return [begun for slot in journal.slots(self._folder) for begun in self._begun_in(slot)]

    def _begun_in(self, slot: int) -> Iterator[Begun]:
        for path in journal.segments(journal.slot_folder(self._folder, slot)):
            with contextlib.suppress(journal.Unreadable, OSError, ValueError):  # said when its turn comes to be read
                if path not in self._beginnings and (begun := _beginning(path, slot)):
                    self._beginnings[path] = begun
                if path in self._beginnings and not self._known_applied(path, _stamp(path), slot):
                    yield self._beginnings[path]

    def _due_at(self, slot: int) -> float:
        return self._due.get(slot, 0.0)

    def _read_slot(self, slot: int) -> tuple[Batch | None, bool]:
        """The next batch of a slot, and whether more lies behind it already."""
        paths = journal.segments(journal.slot_folder(self._folder, slot))
        self._forget_removed(slot, paths)
        for segments_behind, path in zip(reversed(range(len(paths))), paths, strict=True):
            look = self._look(path, slot)
            if look.batch or not look.over:
                metrics.UNREAD_ROWS.labels(slot).set(look.unread)
                metrics.UNREAD_SEGMENTS.labels(slot).set(segments_behind)
                return look.batch, look.batch is not None and bool(look.unread or segments_behind)
        return None, False

    def _look(self, path: Path, slot: int) -> _Look:
        try:
            stamp = _stamp(path)
            if self._known_applied(path, stamp, slot):
                return _Look(over=True)
            with journal.reading(path) as segment:
                look = self._look_inside(path, slot, stamp, segment)
        except (journal.Unreadable, OSError, ValueError) as error:
            self._say_unreadable(path, slot, error)
            return _Look()
        self._unreadable.pop(path, None)
        return look

    def _look_inside(self, path: Path, slot: int, stamp: _Stamp, segment: journal.SegmentReader) -> _Look:
        meta = segment.meta()  # before the rows: what is sealed now, has them all
        if meta is None:
            return _Look(over=True)  # its writer is still creating it, or was killed there and has made another
        first = self._next.get((meta.source, slot), journal.FIRST_OFFSET)
        rows = segment.rows(first, limits.READ_BYTES_MAX)
        last_offset = segment.last_offset()
        if not rows:
            if meta.sealed:
                self._sealed[path] = _Sealed(stamp, meta.source, last_offset)
            return _Look(over=meta.sealed)
        batch = _batch(meta.source, slot, first, rows)
        return _Look(batch, unread=last_offset + 1 - batch.next)

    def _known_applied(self, path: Path, stamp: _Stamp, slot: int) -> bool:
        sealed = self._sealed.get(path)
        if sealed is None or sealed.stamp != stamp:
            return False
        return self._next.get((sealed.source, slot), journal.FIRST_OFFSET) > sealed.last_offset

    def _say_unreadable(self, path: Path, slot: int, error: Exception) -> None:
        if path.exists() and path not in self._unreadable:
            self._unreadable[path] = slot
            log.error("segment_unreadable", slot=slot, segment=path.name, error=str(error))
        metrics.UNREADABLE.set(len(self._unreadable))

    def _forget_removed(self, slot: int, paths: list[Path]) -> None:
        folder = journal.slot_folder(self._folder, slot)
        for known in (self._sealed, self._unreadable, self._beginnings):
            for path in [path for path in known if path.parent == folder and path not in paths]:
                del known[path]
        metrics.UNREADABLE.set(len(self._unreadable))


async def in_thread(work: Callable[[], T]) -> T:
    """Do what opens segments in the one thread for it."""
    return await asyncio.get_running_loop().run_in_executor(_thread, work)


def _stamp(path: Path) -> _Stamp:
    found = path.stat()
    return _Stamp(found.st_ino, found.st_mtime_ns, found.st_size)


def _beginning(path: Path, slot: int) -> Begun | None:
    """None while nothing is written."""
    with journal.reading(path) as segment:
        meta = segment.meta()
        rows = segment.rows(journal.FIRST_OFFSET, bytes_max=0) if meta else []
        return Begun(meta.incarnation, f"{meta.edge}/{slot}", rows[0].latest_ms) if meta and rows else None


def _batch(source: str, slot: int, first: int, rows: list[journal.Row]) -> Batch:
    """As many whole rows, at least one, as BATCH_EVENTS_MAX allows."""
    entries = [Entry(row.offset, row.body) for row in rows]
    reached = accumulate(entry.events for entry in entries)
    taken = entries[: max(1, sum(events <= limits.BATCH_EVENTS_MAX for events in reached))]
    return Batch(source, slot, first, taken[-1].offset + 1, taken, begins=first == journal.FIRST_OFFSET)
