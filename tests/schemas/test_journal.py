"""The journal's file format: what was appended is there, ids never come again, nothing half made blocks anybody."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest

from schemas import journal
from schemas.journal import Segment, SlotTaken, Unreadable, Unwritable


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    slot = journal.slot_folder(tmp_path, 0)
    slot.mkdir()
    return slot


def new(slot: Path, rows: int = 0) -> Segment:
    segment = Segment.create(slot, "edge/0", "incarnation")
    for n in range(1, rows + 1):
        segment.append(b"row %d" % n, n * 1000)
    return segment


def test_rows_come_back_in_order_from_where_one_asks(slot: Path) -> None:
    segment = new(slot, rows=5)
    with journal.reading(segment.path) as reader:
        assert reader.meta() == segment.meta
        assert [(row.offset, row.latest_ms, row.body) for row in reader.rows(4, 1_000)] == [
            (4, 4000, b"row 4"),
            (5, 5000, b"row 5"),
        ]
        assert (reader.last_offset(), reader.latest_ms()) == (5, 5000)
        assert reader.rows(6, 1_000) == []


def test_a_read_is_bounded_but_never_empty_where_there_is_a_row(slot: Path) -> None:
    segment = new(slot, rows=5)
    with journal.reading(segment.path) as reader:
        assert [row.offset for row in reader.rows(1, 12)] == [1, 2]
        assert [row.offset for row in reader.rows(1, 0)] == [1]


def test_a_row_is_seen_by_a_reader_that_was_there_before_it(slot: Path) -> None:
    segment = new(slot)
    with journal.reading(segment.path) as reader:
        assert reader.rows(1, 1_000) == []
        segment.append(b"later", 1)
        assert [row.body for row in reader.rows(1, 1_000)] == [b"later"]


def test_offsets_never_come_again_even_after_all_rows_are_gone(slot: Path) -> None:
    segment = new(slot, rows=3)
    segment.close()
    with closing(sqlite3.connect(segment.path, isolation_level=None)) as db:
        db.execute("DELETE FROM batch")
        db.execute("VACUUM")
        db.execute("INSERT INTO batch (latest_ms, body) VALUES (1, 'x')")
    with journal.reading(segment.path) as reader:
        assert [row.offset for row in reader.rows(1, 1_000)] == [4]


def test_rows_are_written_through_to_the_disk(slot: Path) -> None:
    segment = new(slot)
    assert segment._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert segment._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_recreated_segment_is_another_source(slot: Path) -> None:
    first = new(slot, rows=1)
    first.seal()
    journal.remove(first.path)
    assert list(slot.iterdir()) == []
    second = new(slot)
    assert second.path == first.path
    assert second.meta.source != first.meta.source


def test_segments_are_numbered_in_the_order_they_were_written(slot: Path) -> None:
    paths = [new(slot).path for _ in range(12)]
    assert journal.segments(slot) == paths


def test_a_sealed_segment_says_so_and_takes_nothing_more(slot: Path) -> None:
    segment = new(slot, rows=1)
    segment.seal()
    with journal.reading(segment.path) as reader:
        meta = reader.meta()
    assert meta is not None
    assert meta.sealed
    assert journal.left_behind(slot) == []
    with pytest.raises(Unwritable):
        segment.append(b"more", 1)


def test_segments_left_behind_are_found_oldest_first_with_what_they_hold(slot: Path) -> None:
    new(slot, rows=1).seal()
    second, third = new(slot, rows=2), new(slot)
    found = journal.left_behind(slot)
    assert [(one.path, one.last_offset) for one in found] == [(second.path, 2), (third.path, 0)]
    for one in found:
        journal.seal(one.path)
    assert journal.left_behind(slot) == []


def test_the_latest_time_of_a_slot_is_that_of_its_last_row(slot: Path) -> None:
    assert journal.latest_ms(slot) == 0
    new(slot, rows=3)
    new(slot)
    assert journal.latest_ms(slot) == 3000


@pytest.mark.parametrize("statements", ["", "PRAGMA journal_mode=WAL", f"PRAGMA journal_mode=WAL;{journal._TABLES}"])
def test_a_file_whose_writer_was_killed_while_creating_it_blocks_nobody(slot: Path, statements: str) -> None:
    path = slot / "00000001.journal"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(statements)
    with journal.reading(path) as reader:
        assert (reader.meta(), reader.latest_ms(), reader.last_offset()) == (None, 0, 0)
    assert journal.left_behind(slot) == []
    assert list(slot.iterdir()) == []
    assert new(slot).path == path


def test_a_writer_killed_at_any_moment_of_creating_leaves_nothing_that_blocks(slot: Path) -> None:
    writer = textwrap.dedent("""
        import sys; from pathlib import Path; from schemas.journal import Segment
        print("ready", flush=True)
        while True: Segment.create(Path(sys.argv[1]), "edge", "i").seal()
    """)
    for milliseconds in (1, 3, 7, 13):
        process = subprocess.Popen([sys.executable, "-c", writer, str(slot)], stdout=subprocess.PIPE)
        with process, process.stdout or open(os.devnull) as stdout:
            stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(milliseconds / 1000)
            process.send_signal(signal.SIGKILL)
        for one in journal.left_behind(slot):
            journal.seal(one.path)
        assert journal.left_behind(slot) == []
        new(slot, rows=1).seal()


def test_a_segment_that_cannot_be_made_leaves_no_file(slot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_TABLES", "CREATE TABLE meta (nothing INTEGER);")
    with pytest.raises(Unwritable):
        new(slot)
    assert list(slot.iterdir()) == []


def test_a_full_disk_is_said_and_ridden_out(slot: Path) -> None:
    segment = new(slot, rows=1)
    (pages,) = segment._db.execute("PRAGMA page_count").fetchone()
    segment._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(Unwritable, match="full"):
        segment.append(b"x" * 100_000, 2)
    segment._db.execute("PRAGMA max_page_count=1000000")
    assert segment.append(b"x" * 100_000, 2) == 2


def test_a_closed_segment_is_read_where_the_disk_has_no_room_for_a_companion_file(slot: Path) -> None:
    segment = new(slot, rows=3)
    segment.seal()
    segment.path.with_name(segment.path.name + "-shm").symlink_to("nowhere")  # as little to be made as on a full disk
    with journal.reading(segment.path) as reader:
        assert reader.meta() is not None
        assert [row.offset for row in reader.rows(1, 1_000)] == [1, 2, 3]


@pytest.mark.parametrize("content", [None, b"not a database, but long enough to be taken for one" * 20])
def test_a_file_that_is_gone_or_is_no_journal_is_unreadable(slot: Path, content: bytes | None) -> None:
    path = slot / "00000001.journal"
    if content:
        path.write_bytes(content)
    with pytest.raises(Unreadable, match=r"edge-0/00000001\.journal"), journal.reading(path) as reader:
        reader.meta()
    assert path.exists() == bool(content)


def test_a_journal_of_a_later_format_is_unreadable(slot: Path) -> None:
    segment = new(slot)
    segment._db.execute("UPDATE meta SET format = 2")
    with pytest.raises(Unreadable, match="format 2"), journal.reading(segment.path) as reader:
        reader.meta()


def test_a_folder_with_signs_of_a_url_in_its_name_works(tmp_path: Path) -> None:
    slot = tmp_path / "a?b#c%20d" / "edge-0"
    slot.mkdir(parents=True)
    segment = new(slot, rows=1)
    with journal.reading(segment.path) as reader:
        assert reader.last_offset() == 1


def test_a_slot_is_one_process_alone(tmp_path: Path) -> None:
    slot = journal.slot_folder(tmp_path, 3)
    lock = journal.lock_slot(slot)
    taking = "import sys; from pathlib import Path; from schemas import journal; journal.lock_slot(Path(sys.argv[1]))"
    taken = subprocess.run([sys.executable, "-c", taking, str(slot)], capture_output=True, text=True, check=False)
    assert SlotTaken.__name__ in taken.stderr
    lock.release()
    subprocess.run([sys.executable, "-c", taking, str(slot)], check=True)
    assert journal.slots(tmp_path) == [3]


def test_the_slots_of_a_folder_are_its_edges_and_nothing_else(tmp_path: Path) -> None:
    for name in ("edge-10", "edge-2", "edge-x", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "edge-5").touch()
    assert journal.slots(tmp_path) == [2, 10]
    assert journal.slots(tmp_path / "missing") == []
