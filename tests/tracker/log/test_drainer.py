"""From the spool to Kafka: in order, each row where it would have gone at once, nothing removed that was not sent."""

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from loadtests.faults import topics
from schemas import journal, limits
from schemas.settings import LogSettings
from tracker.log.drainer import Drainer, drain_for_ever
from tracker.log.kafka_out import KafkaOut, partition_of
from tracker.log.recorder import Batch, LogFailed
from tracker.log.spool import Spool


def batch(at_ms: int, *events: bytes) -> Batch:
    made = Batch(at_ms, time.monotonic())
    for event in events:
        made.add(event, at_ms)
    return made


class Sent:
    """A spool and its drainer, and what was heard of it."""

    def __init__(self, folder: Path, settings: LogSettings, incarnation: str) -> None:
        self.acked: dict[int, int] = {}
        self.closed: list[str] = []
        self.spool = Spool(folder, 0, "edge/0", incarnation, 10**9)
        self.spool.lock()
        connect = partial(KafkaOut, settings)
        self.drainer = Drainer(self.spool, connect, lambda source, of: self.acked.update(of), self.closed.append)

    async def __aenter__(self) -> "Sent":
        if self.spool.incarnation:
            await self.spool.prepare()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drainer.disconnect()
        await self.spool.close()


@pytest.fixture
async def of(tmp_path: Path, kafka_log: LogSettings) -> AsyncIterator[Sent]:
    async with Sent(tmp_path, kafka_log, "first") as found:
        yield found


async def test_rows_are_sent_in_order_to_their_partitions_and_their_disk_is_given_back(
    of: Sent, kafka_log: LogSettings
) -> None:
    rows = [[b"%d-%d" % (n, m) for m in range(3)] for n in range(200)]
    for n, row in enumerate(rows):
        await of.spool.write(batch(n, *row))
    assert await of.drainer.drain()
    found = await topics.read(kafka_log, kafka_log.kafka_events_topic)
    for partition in range(topics.PARTITIONS):
        wanted = [event for row in rows if partition_of(row[0], topics.PARTITIONS) == partition for event in row]
        assert [value for one, _, value in found if one == partition] == wanted
        assert of.acked[partition] == len(wanted) - 1
    assert of.spool.drained_events == 600
    assert of.spool.oldest_ms() is None
    assert not of.spool.unsent.is_set()
    assert of.spool.segments() == [of.spool.current]
    assert of.closed == [], "it lives"


async def test_what_is_written_while_it_drains_is_sent_too(
    of: Sent, kafka_log: LogSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SPOOL_SEGMENT_BYTES_MAX", 2_000)
    monkeypatch.setattr(limits, "DRAIN_BYTES_AT_ONCE", 1_000)
    monkeypatch.setattr(limits, "DRAIN_BYTES_PER_S", 10**9)
    alive = asyncio.Event()
    alive.set()
    draining = asyncio.create_task(drain_for_ever(of.drainer, of.spool, alive))
    written = [b"%d-" % n + os.urandom(100).hex().encode() for n in range(600)]
    for n, event in enumerate(written):
        await of.spool.write(batch(n, event))
        assert of.spool.oldest_ms() is not None
    async with asyncio.timeout(60):
        while of.spool.unsent.is_set():
            await asyncio.sleep(0.02)
    draining.cancel()
    await asyncio.gather(draining, return_exceptions=True)
    assert set(await topics.values(kafka_log)) == set(written)
    assert of.spool.segments() == [of.spool.current]


async def test_the_time_of_the_oldest_follows_what_is_sent(of: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DRAIN_BYTES_AT_ONCE", 1_000)
    monkeypatch.setattr(limits, "DRAIN_BYTES_PER_S", 20_000)
    for n in range(1, 21):
        await of.spool.write(batch(n, b"x" * 1_000))
    draining = asyncio.create_task(of.drainer.drain())
    seen = [of.spool.oldest_ms()]
    while not draining.done():
        await asyncio.sleep(0.01)
        if of.spool.oldest_ms() != seen[-1]:
            seen.append(of.spool.oldest_ms())
    assert await draining
    assert seen[0] == 1
    assert seen[-1] is None
    times = [one for one in seen if one]
    assert times == sorted(times)
    assert len(times) > 10


async def test_it_does_not_send_faster_than_it_may(of: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DRAIN_BYTES_PER_S", 500_000)
    for n in range(10):
        await of.spool.write(batch(n, b"x" * 100_000))
    began = time.monotonic()
    assert await of.drainer.drain()
    assert time.monotonic() - began > 1.9


async def test_an_event_refused_alone_stays_and_the_rest_goes_on(of: Sent, kafka_log: LogSettings) -> None:
    large = os.urandom(2_000).hex().encode()
    await of.spool.write(batch(1, b"a", b"b"))
    await of.spool.write(batch(2, b"c", large, b"d"))
    await of.spool.write(batch(3, b"e"))
    await topics.allow(kafka_log, 1_000)
    assert not await of.drainer.drain()
    assert set(await topics.values(kafka_log)) == {b"a", b"b", b"c", b"d", b"e"}
    assert of.spool.unsent.is_set()
    assert of.spool.refused_events == 1
    oldest = of.spool.oldest_ms()
    assert oldest is not None
    assert oldest <= 2, "nothing is complete beyond what is not sent"
    assert not await of.drainer.drain()
    await of.spool.write(batch(4, b"f"))
    await topics.allow(kafka_log, 1_000_000)
    assert await of.drainer.drain()
    assert set(await topics.values(kafka_log)) == {b"a", b"b", b"c", b"d", b"e", b"f", large}
    assert of.spool.oldest_ms() is None


async def test_an_incarnation_that_did_not_end_in_order_is_closed_when_all_of_it_is_sent(
    tmp_path: Path, kafka_log: LogSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SPOOL_SEGMENT_BYTES_MAX", 100)
    async with Sent(tmp_path, kafka_log, "first") as killed:
        for n in range(5):
            await killed.spool.write(batch(n, b"%d" % n * 80))
        assert len(killed.spool.segments()) > 2
    async with Sent(tmp_path, kafka_log, "second") as killed:
        pass
    async with Sent(tmp_path, kafka_log, "third") as of:
        await of.spool.write(batch(9, b"own"))
        assert await of.drainer.drain()
        assert of.closed == ["first", "second"]
        assert of.spool.segments() == [of.spool.current]
    found = await topics.read(kafka_log, kafka_log.kafka_events_topic)
    last = {partition: offset for partition, offset, value in found if b'"probe"' not in value and value != b"own"}
    closings = await topics.beats(kafka_log)
    assert [(beat.edge, beat.incarnation, beat.state) for beat in closings] == [
        ("edge/0", "first", "closed"), ("edge/0", "second", "closed")
    ]  # fmt: skip
    for beat in closings:
        acked = {partition: offset for _, partition, offset in beat.acked}
        assert all(acked[partition] >= offset for partition, offset in last.items())


async def test_one_of_which_something_was_refused_is_not_closed(tmp_path: Path, kafka_log: LogSettings) -> None:
    large = os.urandom(2_000).hex().encode()
    async with Sent(tmp_path, kafka_log, "first") as killed:
        await killed.spool.write(batch(1, b"a", large))
    await topics.allow(kafka_log, 1_000)
    async with Sent(tmp_path, kafka_log, "second") as of:
        await of.spool.write(batch(2, b"b"))
        assert not await of.drainer.drain()
        assert of.closed == []
        await topics.allow(kafka_log, 1_000_000)
        assert await of.drainer.drain()
        assert of.closed == ["first"]
    assert set(await topics.values(kafka_log)) == {b"a", b"b", large}


async def test_a_damaged_segment_stays_and_keeps_its_incarnation_from_being_closed(
    tmp_path: Path, kafka_log: LogSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SPOOL_SEGMENT_BYTES_MAX", 100)
    async with Sent(tmp_path, kafka_log, "first") as killed:
        for n in range(3):
            await killed.spool.write(batch(n, b"%d" % n * 120))
        damaged = killed.spool.segments()[1]
    damaged.write_bytes(b"no journal of ours" * 1_000)
    async with Sent(tmp_path, kafka_log, "") as of:
        assert not await of.drainer.drain()
        assert of.closed == []
        assert damaged in of.spool.segments()
        journal.remove(damaged)  # an operator has moved it away
        assert await of.drainer.drain()
        assert of.closed == ["first"]
        assert of.spool.segments() == []
    assert set(await topics.values(kafka_log)) == {b"0" * 120, b"2" * 120}


async def test_a_file_that_was_never_finished_is_removed(tmp_path: Path, kafka_log: LogSettings) -> None:
    (tmp_path / "edge-0").mkdir()
    (tmp_path / "edge-0" / "00000001.journal").touch()
    async with Sent(tmp_path, kafka_log, "") as of:
        assert await of.drainer.drain()
        assert of.spool.segments() == []


async def test_a_folder_made_again_is_sent_from_its_first_row(of: Sent, kafka_log: LogSettings, tmp_path: Path) -> None:
    for n in range(9):
        await of.spool.write(batch(n, b"of the first folder %d" % n))
    assert await of.drainer.drain()
    shutil.rmtree(tmp_path / "edge-0")
    kept = [b"of the second %d" % n for n in range(20)]
    for n, event in enumerate(kept):
        await of.spool.write(batch(n, event))
    async with asyncio.timeout(30):
        assert await of.drainer.drain()
    assert set(kept) <= set(await topics.values(kafka_log))


async def test_after_its_folder_was_removed_there_is_a_mark_again_and_nothing_counts_as_unsent(
    of: Sent, tmp_path: Path
) -> None:
    await of.spool.write(batch(1, b"gone"))
    shutil.rmtree(tmp_path / "edge-0")
    assert not await of.drainer.drain()
    assert await of.drainer.drain()
    assert of.spool.segments() == [of.spool.current]
    assert of.spool.oldest_ms() is None
    assert not of.spool.unsent.is_set()


async def test_nothing_is_removed_that_kafka_has_not_acknowledged(tmp_path: Path, kafka_log: LogSettings) -> None:
    async with Sent(tmp_path, kafka_log, "first") as killed:
        await killed.spool.write(batch(1, b"kept"))
    nowhere = kafka_log.model_copy(update={"log_url": "kafka://127.0.0.1:1"})
    async with Sent(tmp_path, nowhere, "") as of:
        with pytest.raises(LogFailed):
            await of.drainer.drain()
        assert len(of.spool.segments()) == 1
    async with Sent(tmp_path, kafka_log, "") as of:
        assert await of.drainer.drain()
    assert await topics.values(kafka_log) == [b"kept"]
