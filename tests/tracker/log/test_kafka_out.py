"""One life of a producer against a real broker: what it says is in the topics, and its failures are ours."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from deploy.run.servers import Server
from loadtests.faults import topics
from schemas import kafka, limits
from schemas.settings import LogSettings
from tracker.log.kafka_out import KafkaOut, Portion, TooLarge, partition_of, pieces
from tracker.log.recorder import LogFailed

ALL = 10**6


@asynccontextmanager
async def producer(settings: LogSettings) -> AsyncIterator[KafkaOut]:
    """Started, and stopped in bounded time leaving nothing behind."""
    before = asyncio.all_tasks()
    out = KafkaOut(settings)
    try:
        await out.start()
        yield out
    finally:
        began = time.monotonic()
        await out.stop()
        assert time.monotonic() - began < limits.PRODUCER_STOP_S + 1
        assert asyncio.all_tasks() - before == set()


async def test_what_is_acknowledged_is_there_one_record_an_event(kafka_log: LogSettings) -> None:
    async with producer(kafka_log) as out:
        assert await out.send({0: [b"a", b"b"], 3: [b"c"]}, ALL) == {0: 1, 3: 0}
        assert await out.send({0: [b"d"]}, ALL) == {0: 2}
        await out.send_beats([b"beat"])
    found = await topics.read(kafka_log, kafka_log.kafka_events_topic)
    assert found == [(0, 0, b"a"), (0, 1, b"b"), (0, 2, b"d"), (3, 0, b"c")]
    assert await topics.read(kafka_log, kafka_log.kafka_beats_topic) == [(0, 0, b"beat")]


async def test_a_source_is_the_topic_with_the_id_that_the_broker_gave_it(kafka_log: LogSettings) -> None:
    async with producer(kafka_log) as out, topics.administering(kafka_log) as admin:
        ids = await kafka.topic_ids(admin._client, [kafka_log.kafka_events_topic])
        assert out.source == f"{kafka_log.kafka_events_topic}@{ids[kafka_log.kafka_events_topic]}"
        assert out.partitions == topics.PARTITIONS
        await out.verify()


async def test_more_than_one_batch_is_delivered_in_order(kafka_log: LogSettings) -> None:
    events = [b"%04d" % n * 25 for n in range(1_000)]
    async with producer(kafka_log) as out:
        assert await out.send({1: events}, 20_000) == {1: 999}
    assert [value for _, _, value in await topics.read(kafka_log, kafka_log.kafka_events_topic)] == events


def test_pieces_are_bounded_and_lose_nothing() -> None:
    events = [b"x" * size for size in (10, 10, 50, 10, 5)]
    assert list(pieces(events, 1_000)) == [events]
    assert list(pieces(events, 20)) == [events[:2], events[2:3], events[3:]]


def test_partitions_are_chosen_evenly_and_for_good() -> None:
    chosen = [partition_of(b'{"id":"%d"}' % n, 4) for n in range(4_000)]
    assert all(800 < chosen.count(partition) < 1_200 for partition in range(4))
    assert partition_of(b"a", 4) == partition_of(b"a", 4) == 3


async def test_a_batch_refused_for_its_size_is_named_and_ends_the_producer(kafka_log: LogSettings) -> None:
    large = [os.urandom(200).hex().encode() for _ in range(100)]
    await topics.allow(kafka_log, 5_000)
    async with producer(kafka_log) as out:
        await out.send({0: [b"first"]}, ALL)
        with pytest.raises(TooLarge) as refusal:
            await out.send({0: large, 1: [b"small"]}, ALL)
        assert refusal.value.events == large
        assert out.spent
        with pytest.raises(LogFailed):  # its numbering has a gap that the broker does not forgive
            await out.send({0: [b"next"]}, ALL)
    async with producer(kafka_log) as out:
        await out.send({0: large}, 4_000)
    assert await topics.values(kafka_log) == [b"first", *large, b"small"]


async def test_topics_that_are_missing_are_named(kafka_log: LogSettings) -> None:
    settings = kafka_log.model_copy(update={"kafka_events_topic": "nobody.made.this"})
    out = KafkaOut(settings)
    with pytest.raises(LogFailed, match=r"no such topic: nobody\.made\.this"):
        await out.start()
    await out.stop()


async def test_new_partitions_are_noticed(kafka_log: LogSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KAFKA_METADATA_S", 0.1)
    async with producer(kafka_log) as out:
        await topics.grow(kafka_log, 7)
        async with asyncio.timeout(20):
            while out.partitions != 7:
                await asyncio.sleep(0.05)
        async with asyncio.timeout(20):
            await out.send({6: [b"new"]}, ALL)


async def test_a_topic_deleted_and_made_again_is_another_one(kafka_log: LogSettings) -> None:
    async with producer(kafka_log) as out:
        await out.send({0: [b"old"] * 5}, ALL)
        await topics.delete(kafka_log)
        await topics.make_again(kafka_log)
        with pytest.raises(LogFailed):
            await out.verify()
        assert out.spent
    async with producer(kafka_log) as again:
        assert again.source != out.source
        assert await again.send({0: [b"new"]}, ALL) == {0: 0}


async def test_an_acknowledgement_from_another_topic_of_that_name_is_a_failure(kafka_log: LogSettings) -> None:
    async with producer(kafka_log) as out:
        await out.send({0: [b"old"] * 5}, ALL)
        await topics.delete(kafka_log)
        await topics.make_again(kafka_log)
        with pytest.raises(LogFailed):
            await asyncio.wait_for(send_for_ever(out), 20)
        assert out.spent


async def send_for_ever(out: KafkaOut) -> None:
    while True:
        await out.send({0: [b"new"]}, ALL)


async def test_a_broker_that_is_not_there_is_said_in_bounded_time(kafka_log: LogSettings) -> None:
    out = KafkaOut(kafka_log.model_copy(update={"log_url": "kafka://127.0.0.1:1"}))
    with pytest.raises(LogFailed):
        await out.start()
    await out.stop()


async def test_nothing_is_left_of_a_producer_whose_broker_froze(kafka_broker: list[Server]) -> None:
    settings = LogSettings(log_url=kafka_broker[0].url)
    await topics.make(settings)
    loop, said = asyncio.get_running_loop(), list[object]()
    loop.set_exception_handler(lambda _, context: said.append(context))
    try:
        async with producer(settings) as out:
            await out.send({0: [b"before"]}, ALL)
            os.kill(kafka_broker[0].pid, signal.SIGSTOP)
            for partition in (0, 0, 1):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await out.send({partition: [b"abandoned"]}, ALL)
            with pytest.raises(LogFailed):
                await out.verify()
        began = time.monotonic()
        out = KafkaOut(settings)
        with pytest.raises(LogFailed):
            await out.start()
        await out.stop()
        assert time.monotonic() - began < limits.PRODUCER_START_S + limits.PRODUCER_STOP_S + 1
    finally:
        os.kill(kafka_broker[0].pid, signal.SIGCONT)
        loop.set_exception_handler(None)
    assert said == []
    async with producer(settings) as out:
        await out.send({0: [b"after"]}, ALL)


def test_after_a_refusal_smaller_batches_are_sent_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    portion = Portion()
    usual = portion.bytes_max
    assert usual > limits.BATCH_BYTES_MAX
    portion.refused([b"x" * 10**6])
    assert portion.bytes_max == usual, "others may still go together"
    portion.refused([b"x" * 1_000, b"y" * 3_000])
    assert portion.bytes_max == 2_000
    monkeypatch.setattr(limits, "PORTION_DOUBLED_S", 0.0)
    seen = []
    for _ in range(40):
        time.sleep(0.001)
        seen.append(portion.bytes_max)
    assert seen == sorted(seen)
    assert seen[-1] == usual
