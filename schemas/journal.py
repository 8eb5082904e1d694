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


class Unreadable(RuntimeError):
    """A segment's file cannot be read: gone, cut off, or no journal of ours."""


class Unwritable(RuntimeError):
    """A row could not be made durable: the disk is full or broken."""


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
        """The next segment of a slot whose lock the caller holds. Raises Unwritable, and leaves no file then."""
        slot.mkdir(parents=True, exist_ok=True)
        earlier = segments(slot)
        number = int(earlier[-1].stem) + 1 if earlier else 1
        path = slot / f"{number:08}.journal"
        meta = SegmentMeta(secrets.token_hex(16), edge, incarnation, sealed=False)
        try:
            return cls(path, meta, _db=_create(path, meta))
        except sqlite3.Error as error:
            remove(path)
            raise Unwritable(f"{path.name}: {error}") from error

    def append(self, body: bytes, latest_ms: int) -> int:
        """Write one row; when this returns its offset, the row is on the disk. Raises Unwritable."""
        try:
            cursor = self._db.execute("INSERT INTO batch (latest_ms, body) VALUES (?, ?)", (latest_ms, body))
        except sqlite3.Error as error:
            raise Unwritable(f"{self.path.name}: {error}") from error
        self.size_bytes += len(body)
        return int(cursor.lastrowid or 0)

    def seal(self) -> None:
        """No more rows will come; the reader may remove the file once it is applied. Raises Unwritable."""
        try:
            self._db.execute("UPDATE meta SET sealed = 1")
        except sqlite3.Error as error:
            raise Unwritable(f"{self.path.name}: {error}") from error
        self._db.close()

    def close(self) -> None:
        """Leave it unsealed: whoever opens the slot next closes it."""
        self._db.close()

    def discard(self) -> None:
        """Remove it; it holds no row yet."""
        self._db.close()
        remove(self.path)


def _create(path: Path, meta: SegmentMeta) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.executescript(f"BEGIN; {_TABLES} COMMIT;")
        db.execute(
            "INSERT INTO meta (format, source, edge, incarnation) VALUES (?, ?, ?, ?)",
            (FORMAT, meta.source, meta.edge, meta.incarnation),
        )
    except sqlite3.Error:
        db.close()
        raise
    return db


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """A segment that a writer left unsealed, and its last offset (0 if it wrote none)."""

    path: Path
    meta: SegmentMeta
    last_offset: int


def left_behind(slot: Path) -> list[LeftBehind]:
    """The unsealed segments of a slot whose lock the caller holds, oldest first. Files that a writer was killed
    while creating hold nothing and are removed."""
    found: list[LeftBehind] = []
    for path in reversed(segments(slot)):
        with reading(path) as segment:
            meta, last_offset = segment.meta(), segment.last_offset()
        if meta is None:
            remove(path)
        elif meta.sealed:
            break  # segments are sealed in order
        else:
            found.append(LeftBehind(path, meta, last_offset))
    return found[::-1]


def seal(path: Path) -> None:
    """Seal a segment that was left behind."""
    with contextlib.closing(_connect(path)) as db:
        db.execute("UPDATE meta SET sealed = 1")


def remove(path: Path) -> None:
    """Remove a segment and SQLite's companions of it."""
    for file in _files(path):
        file.unlink(missing_ok=True)


def size_bytes(path: Path) -> int:
    """What a segment takes on the disk, SQLite's companions included; 0 where there is none."""
    return sum(_size_bytes(file) for file in _files(path))


def _files(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]


def _size_bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def latest_ms(slot: Path) -> int:
    """The latest time written in a slot, 0 if there is none."""
    for path in reversed(segments(slot)):
        with reading(path) as segment:
            if found := segment.latest_ms():
                return found
    return 0


@contextlib.contextmanager
def reading(path: Path) -> Iterator[SegmentReader]:
    """A segment open for reading, by another process than its writer. Raises Unreadable, here and while it is read."""
    try:
        with contextlib.closing(_readable(path)) as db:
            yield SegmentReader(db)
    except sqlite3.Error as error:
        raise Unreadable(f"{path.parent.name}/{path.name}: {error}") from error


def _readable(path: Path) -> sqlite3.Connection:
    """On a full disk SQLite cannot make the companions by which it would share a file: one that its writer has closed
    needs none, else what fills the disk could never be read and removed."""
    db = _connect(path)
    try:
        db.execute("PRAGMA schema_version")
    except sqlite3.OperationalError:
        db.close()
        if _size_bytes(path.with_name(path.name + "-wal")):
            raise
        return _connect(path, "&immutable=1")
    return db


def _connect(path: Path, how: str = "") -> sqlite3.Connection:
    """Open a file that exists: a plain connect would make an empty one."""
    uri = f"{path.absolute().as_uri()}?mode=rw{how}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=1.0)


@dataclass(frozen=True, slots=True)
class SegmentReader:
    _db: sqlite3.Connection

    def meta(self) -> SegmentMeta | None:
        """None while the writer is still creating the file."""
        return _meta(self._db)

    def latest_ms(self) -> int:
        """The time of the last row, 0 if there is none."""
        if _meta(self._db) is None:
            return 0
        (found,) = self._db.execute("SELECT latest_ms FROM batch ORDER BY id DESC LIMIT 1").fetchone() or (0,)
        return int(found)

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
        if _meta(self._db) is None:
            return 0
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
        raise Unreadable(f"journal format {file_format}, this version reads {FORMAT}")
    return SegmentMeta(source, edge, incarnation, bool(sealed))
