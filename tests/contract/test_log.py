"""What every log has to keep, between the side that writes it and the side that reads it. One suite for all logs."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from aggregator.flush.batch import Batch, Position
from aggregator.flush.journal_in import JournalReader
from schemas.outcomes import Outcome
from tracker.log import recorder
from tracker.log.journal_out import JournalLog
from tracker.log.recorder import Log, recording
from tracker.tally import Tally


@dataclass
class Ends:
    """Both ends of one log."""

    writer: Log
    reader: JournalReader

    async def write(self, body: bytes, at_ms: int) -> None:
        batch = recorder.Batch(at_ms, time.monotonic())
        for event in body.split(b"\n"):
            batch.add(event, at_ms)
        assert await self.writer.write(batch) is Outcome.RECORDED

    async def read_all(self) -> list[Batch]:
        """Everything that is there now and was not read before."""
        found: list[Batch] = []
        while batch := await self.reader.read() or await self.reader.read():
            found.append(batch)
        return found


@pytest.fixture(params=["journal"])
async def ends(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ends]:
    writer = JournalLog(tmp_path, 0, "edge", lambda: "incarnation")
    writer.lock()
    yield Ends(writer, JournalReader(tmp_path))
    await writer.close()


def lines(batches: list[Batch]) -> list[bytes]:
    return [record.body for batch in batches for record in batch.records]


async def test_what_was_written_is_read_in_order_line_by_line(ends: Ends) -> None:
    await ends.write(b"a\nb", 1)
    await ends.write(b"c", 2)
    assert lines(await ends.read_all()) == [b"a", b"b", b"c"]


async def test_nothing_is_read_twice_and_what_comes_later_is_read_later(ends: Ends) -> None:
    await ends.write(b"a", 1)
    assert lines(await ends.read_all()) == [b"a"]
    assert await ends.read_all() == []
    await ends.write(b"b", 2)
    assert lines(await ends.read_all()) == [b"b"]


async def test_a_reader_that_goes_back_reads_the_same_again(ends: Ends) -> None:
    await ends.write(b"a", 1)
    await ends.write(b"b", 2)
    first = await ends.read_all()
    await ends.reader.seek({})
    assert await ends.read_all() == first
    await ends.reader.seek({(first[0].source, first[0].partition): Position(first[0].first + 1)})
    assert lines(await ends.read_all()) == [b"b"]


async def test_what_the_writer_names_as_durable_is_what_the_reader_has_passed(ends: Ends) -> None:
    """The watermarks rest on this: offsets mean the same on both sides."""
    assert list(ends.writer.acked()) == []
    for n in range(3):
        await ends.write(b"%d" % n, n)
    ((source, partition, offset),) = ends.writer.acked()
    *_, last = await ends.read_all()
    assert (last.source, last.partition, last.next) == (source, partition, offset + 1)


async def test_batches_join_without_a_gap(ends: Ends) -> None:
    for n in range(200):
        await ends.write(b"\n".join([b"x" * 100] * 100), n)
    found = await ends.read_all()
    assert len(found) > 1
    for before, after in pairwise(found):
        assert (after.source, after.first) == (before.source, before.next)
    assert len(lines(found)) == 20_000


async def test_through_the_recorder_every_answered_event_is_read_once(ends: Ends) -> None:
    async with recording(ends.writer, Tally()) as recorder:
        for first in range(0, 1_000, 100):
            await asyncio.gather(*(recorder.durable(b"%d" % n, 1_000 + n) for n in range(first, first + 100)))
    assert lines(await ends.read_all()) == [b"%d" % n for n in range(1_000)]
