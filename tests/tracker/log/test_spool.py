"""The spool: on the disk when it says so, bounded, its mark always there, and nothing thrown away that was not sent."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from schemas import journal, limits
from schemas.outcomes import Outcome
from tracker.log.recorder import Batch, LogFailed
from tracker.log.spool import Spool

BYTES_MAX = 10**7


def batch(first_ms: int, *events: bytes) -> Batch:
    made = Batch(first_ms, time.monotonic())
    for event in events:
        made.add(event, first_ms)
    return made


def incarnations(spool: Spool) -> list[str]:
    found = []
    for path in spool.segments():
        with journal.reading(path) as segment:
            meta = segment.meta()
        assert meta
        found.append(meta.incarnation)
    return found


async def rows(spool: Spool, path: Path) -> list[bytes]:
    found = await spool.read(path, journal.FIRST_OFFSET)
    return [row.body for row in found]


@asynccontextmanager
async def opened(folder: Path, incarnation: str = "first", bytes_max: int = BYTES_MAX) -> AsyncIterator[Spool]:
    spool = Spool(folder, 0, "edge/0", incarnation, bytes_max)
    spool.lock()
    await spool.prepare()
    yield spool
    await spool.close()


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    async with opened(tmp_path) as spool:
        yield spool


async def test_its_mark_is_on_the_disk_before_anything_is_spooled(spool: Spool, tmp_path: Path) -> None:
    assert incarnations(spool) == ["first"]
    assert not spool.unsent.is_set()
    assert [left.meta.incarnation for left in journal.left_behind(tmp_path / "edge-0")] == ["first"]


async def test_what_is_written_is_on_the_disk_and_its_time_is_remembered(spool: Spool) -> None:
    assert await spool.write(batch(100, b"a", b"b")) is Outcome.SPOOLED
    await spool.write(batch(200, b"c"))
    assert spool.current
    assert await rows(spool, spool.current) == [b"a\nb", b"c"]
    assert spool.unsent.is_set()
    assert (spool.oldest_ms(), spool.oldest_of_all_ms()) == (100, 100)
    spool.sent("first", 150)
    assert spool.oldest_ms() == 150


async def test_it_is_bounded_by_the_bytes_of_its_files(tmp_path: Path) -> None:
    async with opened(tmp_path, bytes_max=400_000) as spool:
        with pytest.raises(LogFailed, match="full"):
            await fill(spool)
        assert 300_000 < spool.size_bytes < 420_000
        path = spool.current
        assert path
        assert await spool.renew(path, len(await rows(spool, path)))
        assert spool.size_bytes < 100_000
        await spool.write(batch(1, b"x" * 10_000))


async def fill(spool: Spool) -> None:
    for n in range(1_000):
        await spool.write(batch(n, b"x" * 10_000))


async def test_segments_are_small_and_all_are_counted(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SPOOL_SEGMENT_BYTES_MAX", 1_000)
    for n in range(10):
        await spool.write(batch(n, b"x" * 500))
    assert len(spool.segments()) == 5
    assert spool.size_bytes == sum(journal.size_bytes(path) for path in spool.segments())
    first = spool.segments()[0]
    await spool.remove(first)
    assert first not in spool.segments()
    assert spool.size_bytes == sum(journal.size_bytes(path) for path in spool.segments())


async def test_the_current_segment_is_renewed_when_all_of_it_is_sent(spool: Spool) -> None:
    await spool.write(batch(100, b"a"))
    path = spool.current
    assert path
    assert await spool.renew(path, 1)
    assert spool.current
    assert spool.segments() == [spool.current]
    assert spool.current != path
    assert incarnations(spool) == ["first"]
    assert spool.oldest_ms() is None
    assert not spool.unsent.is_set()


async def test_it_is_not_renewed_over_a_row_that_was_written_meanwhile(spool: Spool) -> None:
    await spool.write(batch(100, b"a"))
    path = spool.current
    assert path
    await spool.write(batch(200, b"b"))
    assert not await spool.renew(path, 1)
    assert await rows(spool, path) == [b"a", b"b"]
    assert spool.unsent.is_set()
    assert spool.oldest_ms() == 100


async def test_writing_and_renewing_at_once_loses_nothing(spool: Spool) -> None:
    """Each row is either still there, or was there when somebody said it was sent."""
    seen: set[bytes] = set()

    async def renew_for_ever() -> None:
        while True:
            path = spool.current
            assert path
            found = await spool.read(path, journal.FIRST_OFFSET)
            seen.update(row.body for row in found)
            await spool.renew(path, found[-1].offset if found else 0)

    renewing = asyncio.create_task(renew_for_ever())
    for n in range(300):
        await spool.write(batch(n, b"%d" % n))
        assert spool.unsent.is_set()
        assert spool.oldest_ms() is not None
    await asyncio.sleep(0.1)
    renewing.cancel()
    await asyncio.gather(renewing, return_exceptions=True)
    left = {body for path in spool.segments() for body in await rows(spool, path)}
    assert seen | left == {b"%d" % n for n in range(300)}


async def test_another_incarnation_has_segments_of_its_own(spool: Spool) -> None:
    await spool.write(batch(900, b"a"))
    await spool.begin("second")
    assert incarnations(spool) == ["first", "second"]
    assert (spool.oldest_ms(), spool.oldest_of_all_ms()) == (None, 900)
    await spool.write(batch(100, b"b"))
    assert (spool.oldest_ms(), spool.oldest_of_all_ms()) == (100, 100)
    assert await rows(spool, spool.segments()[0]) == [b"a"]
    spool.sent("first", 950)
    assert spool.oldest_ms() == 100


async def test_an_incarnation_that_begins_while_the_old_ones_segment_is_renewed_keeps_the_old_mark(
    spool: Spool,
) -> None:
    await spool.write(batch(900, b"sent"))
    path, going_on = spool.current, threading.Event()
    assert path
    hanging = asyncio.create_task(spool._in_thread(going_on.wait))
    await asyncio.sleep(0)
    both = asyncio.gather(spool.renew(path, 1), spool.begin("second"))
    await asyncio.sleep(0.05)
    going_on.set()
    await hanging
    await both
    assert incarnations(spool) == ["first", "second"]
    assert spool.unsent.is_set(), "the old one is still to be closed"


async def test_an_incarnation_whose_mark_could_not_be_made_gets_it_before_all_counts_as_sent(
    spool: Spool, tmp_path: Path
) -> None:
    old = spool.current
    assert old
    (tmp_path / "edge-0").rename(tmp_path / "away")
    (tmp_path / "edge-0").touch()
    with pytest.raises(LogFailed):
        await spool.begin("second")
    (tmp_path / "edge-0").unlink()
    (tmp_path / "away").rename(tmp_path / "edge-0")
    assert not await spool.renew(old, 0)
    assert incarnations(spool) == ["first", "second"]
    assert spool.unsent.is_set()


async def test_what_is_found_at_the_start_is_unsent(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        await spool.write(batch(100, b"a"))
        await spool.write(batch(200, b"b"))
    async with opened(tmp_path, "second") as spool:
        assert spool.unsent.is_set()
        assert (spool.oldest_ms(), spool.oldest_of_all_ms()) == (None, 100)
        assert incarnations(spool) == ["first", "second"]


async def test_a_damaged_segment_does_not_keep_an_edge_from_starting(tmp_path: Path) -> None:
    async with opened(tmp_path) as spool:
        (path,) = spool.segments()
    path.write_bytes(b"no journal of ours" * 1_000)
    async with opened(tmp_path, "second") as spool:
        await spool.write(batch(100, b"a"))
        assert spool.current
        assert await rows(spool, spool.current) == [b"a"]
        assert path.exists()


async def test_a_folder_that_cannot_be_written_fails_each_write_until_it_can(spool: Spool, tmp_path: Path) -> None:
    slot = tmp_path / "edge-0"
    slot.rename(tmp_path / "away")
    slot.touch()
    with pytest.raises(LogFailed):
        await spool.write(batch(1, b"lost"))
    slot.unlink()
    (tmp_path / "away").rename(slot)
    await spool.write(batch(1, b"kept"))
    assert spool.current
    assert await rows(spool, spool.current) == [b"kept"]


async def test_the_mark_goes_with_the_incarnation(spool: Spool, tmp_path: Path) -> None:
    await spool.discard("one whose mark could not be made")
    assert incarnations(spool) == ["first"]
    await spool.discard("first")
    assert spool.segments() == []
    assert journal.slots(tmp_path) == [0]
