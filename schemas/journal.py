"""The journal's file format: the log of one machine, and the spool in front of Kafka.

    <folder>/edge-<slot>/lock               held by the one process that writes this slot
    <folder>/edge-<slot>/00000001.journal   segments: SQLite, WAL, synchronous=FULL

A segment is written by one process life and named by a random id inside it (`source`), so a recreated file is another
source. One row is one group commit: its id is the offset (AUTOINCREMENT: ids never come again, even after all rows
are gone), its body the events as JSON lines. A sealed segment gets no more rows.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

FORMAT = 1
FIRST_OFFSET = 1
_TABLES = """
CREATE TABLE meta (
    format INTEGER NOT NULL, source TEXT NOT NULL, edge TEXT NOT NULL, incarnation TEXT NOT NULL,
    sealed INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE batch (id INTEGER PRIMARY KEY AUTOINCREMENT, latest_ms INTEGER NOT NULL, body BLOB NOT NULL);
"""


class SlotTaken(RuntimeError):
    """Another process writes this slot."""


@dataclass(frozen=True, slots=True)
class SegmentMeta:
    source: str
    edge: str
    incarnation: str
    sealed: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One group commit: events as JSON lines, and the time of the latest of them."""

    offset: int
    latest_ms: int
    body: bytes


def slot_folder(folder: Path, slot: int) -> Path:
    return folder / f"edge-{slot}"


def slots(folder: Path) -> list[int]:
    """The slots that exist in a journal's folder."""
    names = (path.name.removeprefix("edge-") for path in folder.glob("edge-*") if path.is_dir())
    return sorted(int(name) for name in names if name.isdigit())


def segments(slot: Path) -> list[Path]:
    """The segments of a slot in the order they were written."""
    return sorted(slot.glob("*.journal"))


def lock_slot(slot: Path) -> FileLock:
    """Take the slot for this process. Raises SlotTaken."""
    slot.mkdir(parents=True, exist_ok=True)
    lock = FileLock(slot / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise SlotTaken(f"another process writes {slot}") from None
    return lock


@dataclass(slots=True)
class Segment:
    """A segment open for writing. Not safe for two threads at once."""

    path: Path
    meta: SegmentMeta
    size_bytes: int = 0
    _db: sqlite3.Connection = field(repr=False, kw_only=True)

    @classmethod
    def create(cls, slot: Path, edge: str, incarnation: str) -> Segment:
        """The next segment of a slot whose lock the caller holds."""
        earlier = segments(slot)
        number = int(earlier[-1].stem) + 1 if earlier else 1
        path = slot / f"{number:08}.journal"
        meta = SegmentMeta(secrets.token_hex(16), edge, incarnation, sealed=False)
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.executescript(f"BEGIN; {_TABLES} COMMIT;")
        db.execute(
            "INSERT INTO meta (format, source, edge, incarnation) VALUES (?, ?, ?, ?)",
            (FORMAT, meta.source, edge, incarnation),
        )
        return cls(path, meta, _db=db)

    def append(self, body: bytes, latest_ms: int) -> int:
        """Write one row; when this returns its offset, the row is on the disk."""
        cursor = self._db.execute("INSERT INTO batch (latest_ms, body) VALUES (?, ?)", (latest_ms, body))
        self.size_bytes += len(body)
        offset = cursor.lastrowid
        if offset is None:
            raise sqlite3.DatabaseError("no row id")
        return offset

    def seal(self) -> None:
        """No more rows will come; the reader may remove the file once it is applied."""
        self._db.execute("UPDATE meta SET sealed = 1")
        self._db.close()


def seal_left_behind(path: Path) -> tuple[SegmentMeta, Row | None] | None:
    """Seal a segment whose writer is gone and say whose it was and its last row. None if it was sealed already, or
    never came to hold anything (a writer killed while creating it)."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        meta = _meta(db)
        if meta is None or meta.sealed:
            return None
        last = db.execute("SELECT id, latest_ms, body FROM batch ORDER BY id DESC LIMIT 1").fetchone()
        db.execute("UPDATE meta SET sealed = 1")
        return meta, Row(*last) if last else None


def latest_ms(slot: Path) -> int:
    """The latest time written in a slot, 0 if there is none."""
    return max((_latest_ms(path) for path in segments(slot)), default=0)


def _latest_ms(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        if _meta(db) is None:
            return 0
        (found,) = db.execute("SELECT latest_ms FROM batch ORDER BY id DESC LIMIT 1").fetchone() or (0,)
        return int(found)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[SegmentReader]:
    """A segment open for reading, by another process than its writer."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
    try:
        yield SegmentReader(db)
    finally:
        db.close()


@dataclass(frozen=True, slots=True)
class SegmentReader:
    _db: sqlite3.Connection

    def meta(self) -> SegmentMeta | None:
        """None while the writer is still creating the file."""
        return _meta(self._db)

    def rows(self, first: int, bytes_max: int) -> list[Row]:
        """Rows from offset `first` on, at least one if there is one, up to about `bytes_max`. One short read
        transaction: a reader that keeps one open lets the WAL grow."""
        found: list[Row] = []
        size = 0
        cursor = self._db.execute("SELECT id, latest_ms, body FROM batch WHERE id >= ? ORDER BY id", (first,))
        with contextlib.closing(cursor):
            for offset, latest, body in cursor:
                if found and size + len(body) > bytes_max:
                    break
                found.append(Row(offset, latest, body))
                size += len(body)
        return found

    def last_offset(self) -> int:
        """The offset of the last row, 0 if there is none."""
        (found,) = self._db.execute("SELECT max(id) FROM batch").fetchone()
        return int(found or 0)


def _meta(db: sqlite3.Connection) -> SegmentMeta | None:
    try:
        found = db.execute("SELECT format, source, edge, incarnation, sealed FROM meta").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise
    if found is None:
        return None
    file_format, source, edge, incarnation, sealed = found
    if file_format != FORMAT:
        raise ValueError(f"journal format {file_format}, this version reads {FORMAT}")
    return SegmentMeta(source, edge, incarnation, bool(sealed))
