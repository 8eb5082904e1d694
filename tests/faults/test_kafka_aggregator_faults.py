"""P3 on Kafka: aggregators killed and frozen in the middle of a rebalance; a topic made again; retention overtaking."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import NewTopic, RecordsToDelete
from aiokafka.structs import TopicPartition

from loadtests.faults.broken import BEATS, EVENTS, TOPICS, Broken, broken
from loadtests.faults.ridden import holds, note, ride_out
from loadtests.faults.traffic import complete_now, connected, verdict, visited, watched

P99_MAX_S = 1.0
STOPPED_S = 30.0
LENGTHS = [pytest.param(False, id="short"), pytest.param(True, id="long", marks=pytest.mark.long)]
_RESUME = (
    "UPDATE log_position SET next = -1, stopped = NULL, stopped_at = NULL, last_digest = NULL WHERE stopped IS NOT NULL"
)
_STOPPED = "SELECT source, partition, stopped FROM log_position WHERE stopped IS NOT NULL"


@pytest.fixture(scope="module")
async def whole(
    tmp_path_factory: pytest.TempPathFactory, shared_database_url: str, shared_redis_url: str
) -> AsyncIterator[Broken]:
    folder = tmp_path_factory.mktemp("aggregators")
    async with broken(folder, shared_database_url, shared_redis_url, aggregators=2) as found:
        yield found


@pytest.mark.parametrize("long", LENGTHS)
async def test_aggregators_killed_and_frozen_during_a_rebalance_count_everything_once(
    whole: Broken, long: bool
) -> None:
    house = whole.house

    async def freeze_one_and_kill_the_other() -> None:
        for _ in range(4 if long else 1):
            frozen, killed = house.aggregators
            frozen.send_signal(signal.SIGSTOP)
            killed.kill()
            await killed.wait()
            house.aggregators.remove(killed)
            await house.start_aggregator()
            await asyncio.sleep(9)  # longer than a session: its partitions have gone to the new one
            frozen.send_signal(signal.SIGCONT)
            await asyncio.sleep(1)

    async def nothing() -> None:
        pass

    ridden = await ride_out(
        house, "one aggregator killed, one frozen", freeze_one_and_kill_the_other, nothing, 0, pause_s=0.005
    )
    holds(ridden, P99_MAX_S)
    assert ridden.found.exact


@pytest.mark.parametrize("long", LENGTHS)
async def test_offsets_that_retention_took_stop_their_partition_by_name_until_an_operator_acts(
    whole: Broken, long: bool
) -> None:
    house = whole.house
    async with watched(house) as shown, visited(house) as heard:
        await asyncio.sleep(1)
        await end_aggregators(whole)
        await asyncio.sleep(20 if long else 2)
        overtaken = TopicPartition(EVENTS, 0)
        async with whole.admin() as admin:
            end = await end_offset(whole, overtaken)
            await admin.delete_records({overtaken: RecordsToDelete(before_offset=end)})
        await house.start_aggregator()
        await house.start_aggregator()
        (stopped,) = await stopped_partitions(whole, 1)
        assert stopped["partition"] == 0
        assert stopped["source"].startswith(EVENTS)
        assert str(end - 1) in stopped["stopped"]
        print(f"stopped: {stopped['stopped']}")
        await resume(whole)
    await complete_now(house)
    found = await verdict(house, heard, shown, gone=True)
    assert set(heard.statuses) == {302}
    assert found.drift == found.broken_promises == 0
    assert 0 < found.missing <= end
    note("retention overtook a stopped aggregator", heard, found, said="when resumed")


@pytest.mark.parametrize(("topic", "partitions"), [(EVENTS, int(TOPICS["kafka_partitions"])), (BEATS, 1)])
@pytest.mark.parametrize("long", LENGTHS)
async def test_a_topic_made_again_stops_by_name_until_an_operator_acts_and_loses_nothing_after(
    whole: Broken, long: bool, topic: str, partitions: int
) -> None:
    house = whole.house
    await complete_now(house)
    async with whole.admin() as admin:
        await admin.delete_topics([topic])
        async with visited(house) as heard:
            await asyncio.sleep(10 if long else 1)
            await made_again(whole, NewTopic(topic, partitions, 1))
            stopped = await stopped_partitions(whole, partitions)
            print(f"stopped: {stopped[0]['stopped']}")
            assert all(row["source"].startswith(f"{topic}@") for row in stopped)
            promised = await complete_through(whole)
            await asyncio.sleep(2)
            assert await complete_through(whole) == promised
            await resume(whole)
    await complete_now(house)
    found = await verdict(house, heard, gone=True)
    assert set(heard.statuses) == {302}
    assert found.missing == found.missing_orders == found.drift == 0
    note(f"topic {topic} made again", heard, found, said="when resumed")


async def made_again(of: Broken, topic: NewTopic) -> None:
    async with of.admin() as admin, asyncio.timeout(20):
        while topic.name not in await admin.list_topics():
            with contextlib.suppress(Exception):  # its deletion is not over yet
                await admin.create_topics([topic])
            await asyncio.sleep(0.2)


async def end_aggregators(of: Broken) -> None:
    for process in of.house.aggregators:
        process.terminate()
    await asyncio.gather(*(process.wait() for process in of.house.aggregators))
    of.house.aggregators.clear()


async def end_offset(of: Broken, partition: TopicPartition) -> int:
    consumer = AIOKafkaConsumer(bootstrap_servers=f"127.0.0.1:{of.proxy.port}")
    await consumer.start()
    try:
        return int((await consumer.end_offsets([partition]))[partition])
    finally:
        await consumer.stop()


async def stopped_partitions(of: Broken, wanted: int) -> list[dict[str, object]]:
    """Wait until so many partitions have stopped."""
    deadline = time.monotonic() + STOPPED_S
    while time.monotonic() < deadline:
        async with connected(of.house) as db:
            rows = [dict(row) for row in await db.fetch(_STOPPED)]
        if len(rows) >= wanted:
            return rows
        await asyncio.sleep(0.2)
    raise TimeoutError(f"{len(rows)} partitions have stopped, not {wanted}")


async def resume(of: Broken) -> None:
    async with connected(of.house) as db:
        await db.execute(_RESUME)


async def complete_through(of: Broken) -> object:
    async with connected(of.house) as db:
        return await db.fetchval("SELECT complete_through FROM complete_through")
