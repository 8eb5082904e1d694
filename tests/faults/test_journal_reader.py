"""The journal is read whole and once, whatever happens to its files."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from aggregator.flush.batch import Batch, Position, records
from aggregator.flush.journal_in import JournalReader
from aggregator.flush.prune import prune_once
from loadtests.faults.drift import drift, fetch, value
from loadtests.faults.journals import (
    append,
    clicks,
    consume_all,
    consumed,
    consuming,
    new_segment,
    settings,
)
from schemas import journal, limits


async def read_until_quiet(reader: JournalReader) -> list[Batch]:
    """All batches there are, as a consumer would apply them one after the other."""
    found = []
    quiet = 0
    while quiet < 3:
        batch = await reader.read()
        quiet = 0 if batch else quiet + 1
        found += [batch] if batch else []
    return found


def places(batches: list[Batch]) -> list[tuple[str, int, int]]:
    return [(batch.source, batch.first, batch.next) for batch in batches]


async def test_nothing_is_skipped_when_all_rows_were_removed(database_url: str, tmp_path: Path) -> None:
    segment = new_segment(tmp_path)
    of = settings(database_url, tmp_path)
    seen: set[str] = set()
    async with consuming(of):
        for _ in range(3):
            more = clicks(500)
            seen |= {str(one.id) for one in more}
            append(segment, more)
            await consumed(database_url, tmp_path)
            with sqlite3.connect(segment.path) as db:
                db.execute("DELETE FROM batch")
            db.close()
    rows = await fetch(database_url, "SELECT id::text FROM click")
    assert {row["id"] for row in rows} == seen
    assert await value(database_url, "SELECT sum(clicks) FROM click_rollup") == 1_500


async def test_a_segment_recreated_under_the_same_name_is_read_from_its_start(
    database_url: str, tmp_path: Path
) -> None:
    of = settings(database_url, tmp_path)
    async with consuming(of):
        for _ in range(3):
            segment = new_segment(tmp_path)
            assert segment.path.name == "00000001.journal"
            append(segment, clicks(300))
            segment.seal()
            await consumed(database_url, tmp_path)
            journal.remove(segment.path)
    assert await value(database_url, "SELECT count(*) FROM click") == 900
    assert await value(database_url, "SELECT sum(clicks) FROM click_rollup") == 900


async def test_a_folder_deleted_and_recreated_is_read_from_its_start(database_url: str, tmp_path: Path) -> None:
    of = settings(database_url, tmp_path / "journal")
    async with consuming(of):
        for _ in range(2):
            segment = new_segment(tmp_path / "journal")
            append(segment, clicks(300))
            segment.seal()
            await consumed(database_url, tmp_path / "journal")
            journal.remove(segment.path)
            segment.path.parent.rmdir()
            (tmp_path / "journal").rmdir()
            await asyncio.sleep(2 * limits.JOURNAL_POLL_S)
    assert await value(database_url, "SELECT count(*) FROM click") == 600


async def test_a_new_slot_and_a_new_segment_are_found(database_url: str, tmp_path: Path) -> None:
    of = settings(database_url, tmp_path)
    async with consuming(of):
        first = new_segment(tmp_path)
        append(first, clicks(100))
        await consumed(database_url, tmp_path)
        append(new_segment(tmp_path, slot=7), clicks(100))
        first.seal()
        append(new_segment(tmp_path), clicks(100))
        await consumed(database_url, tmp_path)
    assert (await drift(database_url, tmp_path)).drift == 0


async def test_a_later_segment_waits_until_the_one_before_is_sealed_and_read(tmp_path: Path) -> None:
    first = new_segment(tmp_path)
    append(first, clicks(10))
    second = new_segment(tmp_path)
    append(second, clicks(10))
    reader = JournalReader(tmp_path)
    assert [batch.source for batch in await read_until_quiet(reader)] == [first.meta.source]
    append(first, clicks(5))
    first.seal()
    assert places(await read_until_quiet(reader)) == [(first.meta.source, 2, 3), (second.meta.source, 1, 2)]


async def test_a_segment_whose_writer_was_killed_while_creating_it_is_passed_over(tmp_path: Path) -> None:
    slot = journal.slot_folder(tmp_path, 0)
    slot.mkdir()
    (slot / "00000001.journal").touch()
    reader = JournalReader(tmp_path)
    assert await read_until_quiet(reader) == []
    segment = new_segment(tmp_path)
    append(segment, clicks(1))
    assert places(await read_until_quiet(reader)) == [(segment.meta.source, 1, 2)]


async def test_a_batch_has_whole_rows_and_a_bounded_number_of_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BATCH_EVENTS_MAX", 5_000)
    segment = new_segment(tmp_path)
    append(segment, clicks(limits.BATCH_EVENTS_MAX + 900), row_events=300)
    first, second = await read_until_quiet(JournalReader(tmp_path))
    assert len(records(first.entries)) <= limits.BATCH_EVENTS_MAX
    assert (first.first, first.next, second.next) == (1, second.first, segment.meta and 21)
    assert len(records(first.entries)) + len(records(second.entries)) == limits.BATCH_EVENTS_MAX + 900


async def test_a_busy_slot_does_not_starve_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BATCH_EVENTS_MAX", 5_000)
    append(new_segment(tmp_path, slot=0), clicks(4 * limits.BATCH_EVENTS_MAX), row_events=500)
    append(new_segment(tmp_path, slot=1), clicks(10))
    order = [batch.partition for batch in await read_until_quiet(JournalReader(tmp_path))]
    assert 1 in order[:2]
    assert order.count(0) >= 4


async def test_seeking_back_reads_again_from_there(tmp_path: Path) -> None:
    segment = new_segment(tmp_path)
    append(segment, clicks(500))
    segment.seal()
    reader = JournalReader(tmp_path)
    await read_until_quiet(reader)
    await reader.seek({(segment.meta.source, 0): Position(3)})
    assert places(await read_until_quiet(reader)) == [(segment.meta.source, 3, 6)]
    await reader.seek({})
    assert places(await read_until_quiet(reader)) == [(segment.meta.source, 1, 6)]


@pytest.mark.parametrize("content", [b"no database " * 1000, b"SQLite format 3\0" + b"\xff" * 8000])
async def test_a_segment_that_cannot_be_read_is_named_and_stops_no_other_slot(content: bytes, tmp_path: Path) -> None:
    slot = journal.slot_folder(tmp_path, 0)
    slot.mkdir()
    (slot / "00000001.journal").write_bytes(content)
    append(new_segment(tmp_path, slot=1), clicks(10))
    reader = JournalReader(tmp_path)
    with capture_logs() as logs:
        batches = await read_until_quiet(reader)
    assert [batch.partition for batch in batches] == [1]
    named = [line for line in logs if line["event"] == "segment_unreadable"]
    assert [(line["slot"], line["segment"]) for line in named] == [(0, "00000001.journal")]


async def test_a_torn_segment_holds_back_only_its_own_slot_until_it_is_mended(
    database_url: str, tmp_path: Path
) -> None:
    torn, healthy = new_segment(tmp_path, slot=0), new_segment(tmp_path, slot=1)
    append(torn, clicks(2_000))
    torn.seal()
    whole = torn.path.read_bytes()
    torn.path.write_bytes(whole[:8192] + os.urandom(len(whole) - 8192))
    append(healthy, clicks(500))
    async with consuming(settings(database_url, tmp_path)) as consumer:
        async with asyncio.timeout(10):
            while await value(database_url, "SELECT count(*) FROM click") != 500:
                await asyncio.sleep(0.05)
        assert not consumer.done()
        torn.path.write_bytes(whole)
        await consumed(database_url, tmp_path)
    assert (await drift(database_url, tmp_path)).drift == 0


async def test_the_writer_is_never_held_up_and_its_wal_stays_small(database_url: str, tmp_path: Path) -> None:
    segment = new_segment(tmp_path)
    line = clicks(50)
    async with consuming(settings(database_url, tmp_path)):
        began = time.monotonic()
        while time.monotonic() - began < 3:
            await asyncio.to_thread(append, segment, line, row_events=10)
        await consumed(database_url, tmp_path)
    wal = segment.path.with_name(segment.path.name + "-wal")
    assert wal.stat().st_size < 8 * 1024 * 1024
    assert await value(database_url, "SELECT count(*) FROM click") == 50


async def test_only_sealed_applied_and_old_segments_are_removed(database_url: str, tmp_path: Path) -> None:
    applied, unread, current = (new_segment(tmp_path, slot) for slot in (0, 1, 2))
    append(applied, clicks(300))
    append(current, clicks(300))
    applied.seal()
    await consume_all(settings(database_url, tmp_path))
    append(unread, clicks(10))
    unread.seal()
    assert await prune_once(settings(database_url, tmp_path)) == []
    assert await prune_once(settings(database_url, tmp_path, journal_retention_h=0)) == [applied.path]
    assert not list(applied.path.parent.glob("*.journal*"))
    assert unread.path.exists()
    assert current.path.exists()


async def test_a_segment_past_the_retention_by_its_last_write_is_removed(database_url: str, tmp_path: Path) -> None:
    segment = new_segment(tmp_path)
    append(segment, clicks(10))
    segment.seal()
    of = settings(database_url, tmp_path)
    await consume_all(of)
    old = time.time() - of.journal_retention_h * 3600 - 1
    os.utime(segment.path, (old, old))
    assert await prune_once(of) == [segment.path]
    await consume_all(of)
    assert await value(database_url, "SELECT count(*) FROM click") == 10
