"""The journal as the edge's log: rows on the disk, segments rotated wholly or not at all."""

import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from loadtests.faults.edges import bodies
from schemas import journal, limits
from schemas.journal import SlotTaken
from tracker.log.journal_out import JournalLog
from tracker.log.recorder import LogFailed


class Incarnation:
    name = "first"

    def __call__(self) -> str:
        return self.name


@pytest.fixture
def incarnation() -> Incarnation:
    return Incarnation()


@pytest.fixture
async def log(tmp_path: Path, incarnation: Incarnation) -> AsyncIterator[JournalLog]:
    log = JournalLog(tmp_path, 0, "edge", incarnation)
    log.lock()
    yield log
    await log.close()


def metas(folder: Path) -> list[journal.SegmentMeta]:
    found = []
    for path in journal.segments(folder / "edge-0"):
        with journal.reading(path) as segment:
            meta = segment.meta()
        assert meta
        found.append(meta)
    return found


async def test_a_row_is_on_the_disk_and_named_when_write_returns(log: JournalLog, tmp_path: Path) -> None:
    assert log.acked() == []
    await log.append(b"a\nb", 1)
    await log.append(b"c", 2)
    assert bodies(tmp_path) == [b"a\nb", b"c"]
    (meta,) = metas(tmp_path)
    assert log.acked() == [(meta.source, 0, 2)]


async def test_a_segment_is_rotated_by_size_and_the_full_one_sealed(
    log: JournalLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SEGMENT_BYTES_MAX", 100)
    for n in range(6):
        await log.append(b"%d" % n * 60, n)
    found = metas(tmp_path)
    assert [meta.sealed for meta in found] == [True, True, False]
    assert bodies(tmp_path) == [b"%d" % n * 60 for n in range(6)]
    assert log.acked() == [(found[-1].source, 0, 2)]


async def test_a_quiet_segment_is_rotated_by_age(
    log: JournalLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log.append(b"a", 1)
    monkeypatch.setattr(limits, "SEGMENT_AGE_MAX_S", 0.0)
    await log.append(b"b", 2)
    assert [meta.sealed for meta in metas(tmp_path)] == [True, False]


async def test_an_incarnation_begins_its_own_segment(log: JournalLog, tmp_path: Path, incarnation: Incarnation) -> None:
    await log.append(b"a", 1)
    incarnation.name = "second"
    await log.append(b"b", 2)
    assert [(meta.incarnation, meta.sealed) for meta in metas(tmp_path)] == [("first", True), ("second", False)]


async def test_a_rotation_that_fails_leaves_the_old_segment_in_use_and_no_other_file(
    log: JournalLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the reader would wait for ever behind a segment that nobody seals."""
    await log.append(b"a", 1)
    (path,) = journal.segments(tmp_path / "edge-0")
    monkeypatch.setattr(limits, "SEGMENT_AGE_MAX_S", 0.0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        log._segment._db.execute("PRAGMA busy_timeout=0")  # type: ignore[union-attr]
        other.execute("BEGIN IMMEDIATE")  # the seal fails as it does on a full disk
        for _ in range(3):
            with pytest.raises(LogFailed):
                await log.append(b"lost", 2)
            assert journal.segments(tmp_path / "edge-0") == [path]
        other.execute("ROLLBACK")
    await log.append(b"b", 3)
    assert bodies(tmp_path) == [b"a", b"b"]
    assert [meta.sealed for meta in metas(tmp_path)] == [True, False]


async def test_a_folder_that_cannot_be_written_fails_each_write_until_it_can(tmp_path: Path, log: JournalLog) -> None:
    slot = tmp_path / "edge-0"
    slot.rename(tmp_path / "away")
    slot.touch()
    for _ in range(2):
        with pytest.raises(LogFailed):
            await log.append(b"lost", 1)
    slot.unlink()
    (tmp_path / "away").rename(slot)
    await log.append(b"kept", 2)
    assert bodies(tmp_path) == [b"kept"]


async def test_a_segment_that_was_not_sealed_stays_for_the_next_in_the_slot(tmp_path: Path) -> None:
    first = JournalLog(tmp_path, 0, "edge", lambda: "first")
    first.lock()
    await first.append(b"a", 7)
    await first.close()
    second = JournalLog(tmp_path, 0, "edge", lambda: "second")
    assert second.lock() == 7
    assert [one.meta.incarnation for one in second.left_behind()] == ["first"]
    await second.close()


async def test_a_sealed_segment_is_left_to_nobody(log: JournalLog) -> None:
    await log.append(b"a", 7)
    await log.seal()
    assert log.left_behind() == []


async def test_a_slot_has_one_writer(tmp_path: Path, log: JournalLog) -> None:
    other = JournalLog(tmp_path, 0, "edge", lambda: "other")
    with pytest.raises(SlotTaken):
        other.lock()
    await other.close()
    elsewhere = JournalLog(tmp_path, 1, "edge", lambda: "other")
    elsewhere.lock()
    await elsewhere.close()


async def test_a_folder_removed_under_a_running_edge_is_made_again(log: JournalLog, tmp_path: Path) -> None:
    await log.append(b"before", 1)
    shutil.rmtree(tmp_path / "edge-0")
    await log.append(b"after", 2)
    assert bodies(tmp_path) == [b"after"]
