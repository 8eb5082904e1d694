"""What every log has to keep, between the side that writes it and the side that reads it. One suite for all logs."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from aggregator.flush.batch import Batch, Moved, Position, Reader, records
from aggregator.flush.journal_in import JournalReader
from aggregator.flush.kafka_in import KafkaReader
from loadtests.faults import edges, topics
from schemas import events, limits
from schemas.events import Beat
from schemas.outcomes import Outcome
from schemas.settings import AggregatorSettings
from tests.conftest import KafkaTopics
from tracker.clock import EdgeClock
from tracker.log import recorder
from tracker.log.journal_out import JournalLog
from tracker.log.ladder import Ladder
from tracker.log.on_journal import journal_log
from tracker.log.on_kafka import kafka_log
from tracker.log.recorder import Log, recording
from tracker.tally import Tally

NOT_EVENTS = (b'"kind":"probe"', b'"kind":"beat"')
WITHIN_S = 60.0


@dataclass
class Ends:
    """Both ends of one log of one partition, and what the reading side has applied."""

    writer: Log
    reader: Reader
    positions: dict[tuple[str, int], Position] = field(default_factory=dict)
    beats: list[Beat] = field(default_factory=list)

    async def write(self, body: bytes, at_ms: int) -> None:
        batch = recorder.Batch(at_ms, time.monotonic())
        for event in body.split(b"\n"):
            batch.add(event, at_ms)
        assert await self.writer.write(batch) is Outcome.RECORDED

    async def go_back(self, positions: dict[tuple[str, int], Position]) -> None:
        self.positions = positions
        while changes := await self.reader.seek(self.positions):
            for change in changes:
                self.positions[change.source, change.partition] = Position(change.next, change.stopped)

    async def read_all(self) -> list[Batch]:
        """Everything that was written and was not read before."""
        found: list[Batch] = []
        async with asyncio.timeout(WITHIN_S):
            while not self.has_passed(self.writer.acked()):
                found += await self.read()
        return found

    def has_passed(self, acked: list[tuple[str, int, int]]) -> bool:
        """Whether everything up to these offsets was read."""
        return all(self.positions.get((of, number), Position(0)).next > offset for of, number, offset in acked)

    async def read(self) -> list[Batch]:
        """At most one batch, of events."""
        try:
            batch = await self.reader.read()
        except Moved:
            await self.go_back(self.positions)
            return []
        if batch is None:
            return []
        self.positions[batch.source, batch.partition] = Position(batch.next, last_digest=batch.last_digest)
        decoded = [events.decode(one.body) for one in records(batch.entries) if b'"kind":"beat"' in one.body]
        self.beats += [beat for beat in decoded if isinstance(beat, Beat)]
        return [batch] if {source for source, _, _ in self.writer.acked()} <= {batch.source} else []


@asynccontextmanager
async def journal_ends(folder: Path) -> AsyncIterator[Ends]:
    async with journal_log(edges.settings(folder, "redis://127.0.0.1:1/0"), 0, EdgeClock(), Tally()) as heartbeat:
        assert isinstance(heartbeat.log, JournalLog)
        yield Ends(heartbeat.log, JournalReader(folder))


@asynccontextmanager
async def kafka_ends(folder: Path, kafka_url: str, redis_url: str, names: KafkaTopics) -> AsyncIterator[Ends]:
    where = {"log_url": kafka_url, "kafka_events_topic": names.events, "kafka_beats_topic": names.beats}
    settings = edges.settings(folder, redis_url, spool_folder=folder / "spool", **where)
    await topics.make(settings, partitions=1)
    reader = KafkaReader(
        AggregatorSettings(
            database_url="postgresql://nobody@127.0.0.1:1/none", redis_url=redis_url, kafka_group=names.events, **where
        )
    )
    async with kafka_log(settings, 0, EdgeClock(), Tally()) as heartbeat:
        assert isinstance(heartbeat.log, Ladder)
        while not heartbeat.log.is_closed:
            await heartbeat.log.heartbeat(None)
        yield Ends(heartbeat.log, reader)
    await reader.close()


@pytest.fixture(params=["journal", "kafka"])
async def ends(
    request: pytest.FixtureRequest, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Ends]:
    monkeypatch.setattr(limits, "ACK_DEADLINE_S", 30.0)  # a busy machine must not send us to the spool
    made = journal_ends(tmp_path)
    if request.param == "kafka":
        kafka_url, names = request.getfixturevalue("kafka_url"), request.getfixturevalue("kafka_topics")
        made = kafka_ends(tmp_path, kafka_url, redis_url, names)
    async with made as found:
        yield found


def lines(batches: list[Batch]) -> list[bytes]:
    found = [record.body for batch in batches for record in records(batch.entries)]
    return [body for body in found if not any(kind in body for kind in NOT_EVENTS)]


async def test_what_was_written_is_read_in_order_line_by_line(ends: Ends) -> None:
    await ends.write(b"a\nb", 1)
    await ends.write(b"c", 2)
    assert lines(await ends.read_all()) == [b"a", b"b", b"c"]


async def test_nothing_is_read_twice_and_what_comes_later_is_read_later(ends: Ends) -> None:
    await ends.write(b"a", 1)
    assert lines(await ends.read_all()) == [b"a"]
    for _ in range(5):
        assert lines(await ends.read()) == []
    await ends.write(b"b", 2)
    assert lines(await ends.read_all()) == [b"b"]


async def test_a_reader_that_goes_back_reads_the_same_again(ends: Ends) -> None:
    await ends.write(b"a", 1)
    await ends.write(b"b", 2)
    first = [entry for batch in await ends.read_all() for entry in batch.entries]
    source, partition, last = ends.writer.acked()[0]
    await ends.go_back({})
    assert [entry for batch in await ends.read_all() for entry in batch.entries] == first
    await ends.go_back({(source, partition): Position(last)})
    assert lines(await ends.read_all()) == [b"b"]


async def test_what_the_writer_names_as_durable_is_what_the_reader_has_passed(ends: Ends) -> None:
    """The watermarks rest on this: offsets mean the same on both sides."""
    for n in range(3):
        await ends.write(b"%d" % n, n)
    ((source, partition, offset),) = ends.writer.acked()
    *_, last = await ends.read_all()
    assert (last.source, last.partition, last.next) == (source, partition, offset + 1)


async def test_batches_join_without_a_gap(ends: Ends) -> None:
    for n in range(300):
        await ends.write(b"\n".join([b"x" * 100] * 100), n)
    found = await ends.read_all()
    assert len(found) > 1
    for before, after in pairwise(found):
        assert (after.source, after.first) == (before.source, before.next)
    assert len(lines(found)) == 30_000


async def test_through_the_recorder_every_answered_event_is_read_once(ends: Ends) -> None:
    async with recording(ends.writer, Tally()) as recorder:
        for first in range(0, 1_000, 100):
            await asyncio.gather(*(recorder.durable(b"%d" % n, 1_000 + n) for n in range(first, first + 100)))
    assert lines(await ends.read_all()) == [b"%d" % n for n in range(1_000)]


async def test_an_edge_has_said_that_it_is_there_before_it_writes(ends: Ends) -> None:
    await ends.write(b"a", 1)
    async with asyncio.timeout(WITHIN_S):
        while not ends.beats or not ends.has_passed(ends.writer.acked()):
            await ends.read()
    assert [beat.state for beat in ends.beats] == ["open"]
