"""Kafka in time, else this machine's disk, else counted: the rungs, and how the circuit finds its way back."""

import asyncio
import time

import pytest
from aiokafka.errors import OutOfOrderSequenceNumber

from loadtests.faults import topics
from loadtests.faults.proxy import FaultProxy, Mode
from schemas import limits
from schemas.outcomes import Outcome
from schemas.settings import EdgeSettings
from tests.tracker.log.conftest import Process

RECORDED, SPOOLED, LATE, LOST = Outcome.RECORDED, Outcome.SPOOLED, Outcome.LATE, Outcome.LOST
BACK_S = 10.0


async def everything_is_there(process: Process, settings: EdgeSettings) -> None:
    found = await topics.values(settings)
    assert process.durable() <= set(found) <= process.told.keys()


async def test_what_kafka_acknowledges_in_time_is_recorded(settings: EdgeSettings) -> None:
    async with Process(settings).running() as process:
        await process.whole()
        assert await process.clicks(500) == [RECORDED] * 500
        assert sum(offset + 1 for _, _, offset in process.ladder.acked()) >= 500
        assert {source for source, _, _ in process.ladder.acked()} == {process.ladder._out.source}  # type: ignore[union-attr]
    assert sorted(await topics.values(settings)) == sorted(process.told)


@pytest.mark.parametrize("mode", ["blackhole", "refuse", "reset"])
async def test_while_kafka_is_away_everything_is_spooled_and_it_comes_back_by_itself(
    settings: EdgeSettings, proxy: FaultProxy, mode: Mode
) -> None:
    async with Process(settings).running() as process:
        await process.whole()
        await process.clicks(50, "before")
        proxy.mode = mode
        assert set(await process.clicks(200, "first")) == {SPOOLED}
        began = time.monotonic()
        assert set(await process.clicks(200, "then")) == {SPOOLED}
        assert time.monotonic() - began < limits.ACK_DEADLINE_S, "the circuit is open: nobody waits for Kafka"
        await asyncio.sleep(limits.PROBE_S + 2)
        assert not process.ladder.is_closed
        assert set(await process.clicks(200, "later")) == {SPOOLED}
        assert process.ladder.spool.oldest_ms() is not None
        proxy.mode = "pass"
        returned = time.monotonic()
        await process.whole()
        assert time.monotonic() - returned < BACK_S
        assert await process.clicks(200, "after") == [RECORDED] * 200
        assert process.ladder.spool.oldest_ms() is None
        assert process.ladder.spool.segments() == [process.ladder.spool.current], "its disk was given back"
    await everything_is_there(process, settings)


async def test_acknowledgements_that_take_long_keep_the_circuit_open_and_the_drainer_at_work(
    settings: EdgeSettings, proxy: FaultProxy
) -> None:
    async with Process(settings).running() as process:
        await process.whole()
        proxy.latency_ms, proxy.mode = 300.0, "latency"
        assert set(await process.clicks(100)) == {SPOOLED}
        async with asyncio.timeout(30):
            while process.ladder.spool.drained_events < 100:
                await asyncio.sleep(0.05)
        assert not process.ladder.is_closed
        assert process.ladder.alive.is_set()
        assert process.ladder.builds == 1, "a slow Kafka is no reason for another producer"
        proxy.mode = "pass"
        await process.whole()
    await everything_is_there(process, settings)


async def test_when_the_spool_is_full_an_event_is_lost_and_counted(settings: EdgeSettings, proxy: FaultProxy) -> None:
    small = settings.model_copy(update={"spool_bytes_max": 150_000})
    async with Process(small).running() as process:
        await process.whole()
        proxy.mode = "blackhole"
        await process.clicks(10)
        told = [outcome for n in range(20) for outcome in await process.clicks(50, f"more-{n}")]
        assert told[0] is SPOOLED
        assert told[-1] is LOST
        assert process.ladder.spool.size_bytes <= 150_000 + 40_000, "a file grows by a page or a few at once"
        assert process.tally.totals["lost"] == told.count(LOST)
        proxy.mode = "pass"
        await process.whole()
        assert await process.click("again") is RECORDED
    await everything_is_there(process, settings)


async def test_when_the_disk_hangs_too_everybody_is_answered_and_the_queue_is_bounded(
    settings: EdgeSettings, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "QUEUE_EVENTS_MAX", 300)
    async with Process(settings).running() as process:
        await process.whole()
        proxy.mode = "blackhole"
        hanging = asyncio.create_task(process.ladder.spool._in_thread(time.sleep, 5.0))
        await asyncio.sleep(0)
        began = time.monotonic()
        told = [outcome for n in range(5) for outcome in await process.clicks(100, f"{n}")]
        assert time.monotonic() - began < 5 * (process.ladder.deadline_s + 0.5)
        assert set(told) == {LATE, LOST}
        assert process.recorder.queued_events <= 300
        await hanging
        proxy.mode = "pass"
        await process.whole()
    found = set(await topics.values(settings))
    assert {event for event, outcome in process.told.items() if outcome is LATE} <= found, "late, and written"


async def test_a_batch_refused_as_too_large_is_spooled_and_later_ones_are_smaller(settings: EdgeSettings) -> None:
    async with Process(settings).running() as process:
        await process.whole()
        await process.clicks(4, "first")
        await topics.allow(settings, 8_000)
        assert set(await process.clicks(300)) == {SPOOLED}
        await process.whole()
        for n in range(20):
            await process.clicks(100, f"again-{n}")
            await process.whole()
        assert set(await process.clicks(100, "pieces")) == {RECORDED}
        assert process.ladder._portion.bytes_max < 2 * limits.BATCH_BYTES_MAX
    await everything_is_there(process, settings)


async def test_an_event_too_large_for_kafka_waits_in_the_spool_until_it_is_not(
    settings: EdgeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REFUSED_RETRY_S", 0.2)
    async with Process(settings).running() as process:
        await process.whole()
        await process.clicks(4, "first")
        await topics.allow(settings, 150)
        assert set(await process.clicks(5, "large")) == {SPOOLED}
        async with asyncio.timeout(30):
            while not process.ladder.spool.refused_events:
                await asyncio.sleep(0.05)
        oldest = process.ladder.spool.oldest_ms()
        assert oldest is not None
        await asyncio.sleep(1)
        assert process.ladder.spool.oldest_ms() == oldest, "nothing is complete beyond it"
        await topics.allow(settings, 1_000_000)
        await process.whole()
        assert await process.click("normal") is RECORDED
    await everything_is_there(process, settings)


async def test_a_topic_made_again_is_another_source_in_what_is_acknowledged(settings: EdgeSettings) -> None:
    async with Process(settings).running() as process:
        await process.whole()
        await process.clicks(100, "old")
        ((old, *_), *_) = process.ladder.acked()
        await topics.delete(settings)
        await topics.make_again(settings)
        async with asyncio.timeout(30):
            while process.ladder.builds == 1 or not process.ladder.is_closed:
                await process.clicks(5, "meanwhile")
        await process.whole()
        await process.clicks(100, "new")
        acked = process.ladder.acked()
    assert old not in {source for source, _, _ in acked}
    assert {partition for _, partition, _ in acked} == set(range(topics.PARTITIONS))
    found = await topics.read(settings, settings.kafka_events_topic)
    last = {partition: offset for partition, offset, value in found if value in process.told}
    assert all(offset >= last[partition] for _, partition, offset in acked if partition in last)


async def test_a_producer_that_has_failed_for_good_is_replaced(settings: EdgeSettings) -> None:
    async with Process(settings).running() as process:
        await process.whole()
        producer = process.ladder._out._producer  # type: ignore[union-attr]
        producer._message_accumulator.fail_all(OutOfOrderSequenceNumber())  # aiokafka does not forget this one
        assert set(await process.clicks(20)) == {SPOOLED}
        began = time.monotonic()
        await process.whole()
        assert time.monotonic() - began < BACK_S
        assert await process.clicks(20, "after") == [RECORDED] * 20
        assert process.ladder.builds == 2
    await everything_is_there(process, settings)
