"""Kafka as the consumer's log: what is read, what stops a partition and what starts it again, what survives."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from prometheus_client import Gauge
from structlog.testing import capture_logs

from aggregator.db.connect import connected
from aggregator.flush import metrics
from aggregator.flush.batch import Batch, Begun, Moved, records
from aggregator.flush.fence import change_positions, positions
from aggregator.flush.kafka_ask import Asker
from aggregator.flush.kafka_in import KafkaReader
from deploy.run import kafka, servers
from deploy.run.children import free_port
from loadtests.faults import topics
from loadtests.faults.drift import fetch, value
from loadtests.faults.journals import beat, clicks, consuming, conversion
from loadtests.faults.kafkas import KafkaOnTrial, kafka_on_trial, settings_of
from schemas import events, limits, redis, redis_keys
from schemas.events import Probe

SOON_S = 40.0
_RESUME = "UPDATE log_position SET next = -1, stopped = NULL, stopped_at = NULL WHERE stopped IS NOT NULL"
_STOPPED = "SELECT source, partition, next, stopped FROM log_position WHERE stopped IS NOT NULL ORDER BY 1, 2"


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REREAD_POSITIONS_S", 0.3)
    monkeypatch.setattr(limits, "CONSUMER_METADATA_S", 0.5)


@pytest.fixture
async def log(
    database_url: str, redis_url: str, kafka_url: str, kafka_topics: tuple[str, str]
) -> AsyncIterator[KafkaOnTrial]:
    async with kafka_on_trial(database_url, kafka_url, kafka_topics, redis_url=redis_url) as trial:
        yield trial


async def becomes(what: Callable[[], Awaitable[Any]], wanted: Any = None) -> Any:
    """What it is when it is as wanted, or anything at all."""
    async with asyncio.timeout(SOON_S):
        while True:
            found = await what()
            if found == wanted if wanted is not None else found:
                return found
            await asyncio.sleep(0.05)


async def count(log: KafkaOnTrial) -> int:
    return int(await value(log.settings.database_url, "SELECT count(*) FROM click"))


async def stopped(log: KafkaOnTrial) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await fetch(log.settings.database_url, _STOPPED)]


async def gauge(of: Gauge, topic: str, partition: int) -> float:
    return float(of.labels(topic, partition)._value.get())


async def source_of(log: KafkaOnTrial, partition: int = 0) -> str:
    query = "SELECT source FROM log_position WHERE source LIKE $1 AND partition = $2"
    return str(await value(log.settings.database_url, query, f"{log.settings.kafka_events_topic}@%", partition))


# What is read


async def test_what_lies_in_all_partitions_is_applied_once(log: KafkaOnTrial, database_url: str) -> None:
    shared = clicks(3_000)
    for partition in (0, 1):
        await log.append([*shared, *clicks(1_000), conversion()], partition)
    await log.append_beats(beat("i", "open"), beat("i"))
    async with consuming(log.settings):
        await log.consumed()
    figures = await log.drift()
    assert (figures.drift, figures.in_postgres, figures.orders_in_postgres) == (0, 5_000, 2)
    assert await value(database_url, "SELECT name FROM edge") == "edge"


async def test_what_cannot_be_applied_is_put_aside_with_its_place_and_its_bytes(
    log: KafkaOnTrial, database_url: str
) -> None:
    probe = Probe(v=1, edge="edge", at_ms=1)
    await log.append([*clicks(10), b"{not json", probe, *clicks(10)], 1)
    async with consuming(log.settings):
        await log.consumed()
    (letter,) = await fetch(database_url, "SELECT * FROM dead_letter")
    assert (letter["source"], letter["partition"], letter["offset"]) == (await source_of(log), 1, 10)
    assert letter["reason"].startswith("undecodable")
    assert letter["body"] == b"{not json"
    assert await count(log) == 20


async def test_a_record_as_large_as_a_topic_takes_holds_nothing_up(log: KafkaOnTrial, database_url: str) -> None:
    """It is larger than what is fetched of a partition at once."""
    large = b"\x00" + random.Random(1).randbytes(limits.RECORD_BYTES_MAX - 200)
    for partition in (0, 1):
        await log.append([*clicks(500), large, *clicks(500)], partition)
    async with consuming(log.settings):
        await log.consumed()
    assert await count(log) == 2_000
    bodies = await fetch(database_url, "SELECT body FROM dead_letter")
    assert [row["body"] for row in bodies] == [large[: limits.DEAD_BYTES_MAX]] * 2


async def test_a_topic_is_begun_with_the_first_record_there_is(log: KafkaOnTrial) -> None:
    await log.append(clicks(300))
    await log.delete_before(0, 100)
    async with consuming(log.settings):
        await log.consumed()
    assert await count(log) == 200
    assert await stopped(log) == []


async def test_partitions_that_are_added_are_read(log: KafkaOnTrial) -> None:
    await log.append(clicks(100))
    async with consuming(log.settings):
        await log.consumed()
        await topics.grow(log.settings, 4)
        await log.producer.client.force_metadata_update()
        for partition in range(4):
            await log.append(clicks(100), partition)
        assert await becomes(lambda: count(log), 500)


async def test_kafka_is_told_how_far_we_are(log: KafkaOnTrial) -> None:
    await log.append(clicks(300))
    group = log.settings.kafka_group

    async def told() -> dict[int, int]:
        async with topics.administering(log.settings) as admin:
            found = await admin.list_consumer_group_offsets(group)
        return {of.partition: one.offset for of, one in found.items() if of.topic == log.settings.kafka_events_topic}

    async with consuming(log.settings):
        await becomes(told, {0: 300, 1: 0})


# One reader by itself


@contextlib.asynccontextmanager
async def reading(log: KafkaOnTrial) -> AsyncIterator[KafkaReader]:
    reader = KafkaReader(log.settings)
    try:
        yield reader
    finally:
        await reader.close()


async def batches(reader: KafkaReader, log: KafkaOnTrial, wanted: int) -> list[Batch]:
    """As many as wanted, from where Postgres says."""
    found: list[Batch] = []
    of = connected(log.settings.database_url, command_timeout_s=5, application_name="test")
    async with asyncio.timeout(SOON_S), of as db:
        while len(found) < wanted:
            while changes := await reader.seek(await positions(db)):
                await change_positions(db, changes)
            until = time.monotonic() + limits.REREAD_POSITIONS_S
            with contextlib.suppress(Moved):
                while len(found) < wanted and time.monotonic() < until:
                    batch = await reader.read()
                    found += [batch] if batch else []
    return found


async def test_partitions_take_turns_and_beats_are_not_kept_waiting(
    log: KafkaOnTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BATCH_EVENTS_MAX", 200)
    await log.append(clicks(4_000), 0)
    await log.append(clicks(100), 1)
    await log.append_beats(beat("i"))
    async with reading(log) as reader:
        found = await batches(reader, log, 12)
    assert max(len(batch.entries) for batch in found) <= 200
    places = [(batch.source.partition("@")[0], batch.partition) for batch in found]
    assert places.index((log.settings.kafka_events_topic, 1)) < 6
    assert places.index((log.settings.kafka_beats_topic, 0)) < 6


async def test_beats_carry_the_edges_that_have_registered_in_redis_and_where_the_partition_ended_then(
    log: KafkaOnTrial, redis_url: str
) -> None:
    async with redis.publishing(redis_url) as client:
        await redis.done(client.hset(redis_keys.EDGES, "b", b'{"edge": "house/1", "at_ms": 1700000000000}'))
    await log.append(clicks(1))
    await log.append_beats(beat("a"), beat("a"))
    async with reading(log) as reader:
        found = {batch.source.partition("@")[0]: batch for batch in await batches(reader, log, 2)}
    beats = found[log.settings.kafka_beats_topic]
    assert beats.begun == [Begun("b", "house/1", 1_700_000_000_000)]
    assert (beats.next, beats.end) == (2, 2)
    others = found[log.settings.kafka_events_topic]
    assert (others.begun, others.end) == ([], None)


@pytest.mark.parametrize(
    "held",
    [b"{}", b"no json", b'{"edge": "e", "at_ms": 99999999999999999}', b'{"edge": "\\u0000", "at_ms": 1}', None],
    ids=["too little", "nonsense", "no time", "no name", "redis away"],
)
async def test_beats_promise_nothing_when_registrations_cannot_be_known(
    held: bytes | None, log: KafkaOnTrial, redis_url: str
) -> None:
    if held is None:
        log.settings = log.settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_port()}/0"})
    else:
        async with redis.publishing(redis_url) as client:
            await redis.done(client.hset(redis_keys.EDGES, "b", held))
    await log.append_beats(beat("a"))
    async with reading(log) as reader:
        (batch,) = await batches(reader, log, 1)
    assert batch.begun is None


async def test_a_read_that_is_cancelled_loses_nothing(log: KafkaOnTrial) -> None:
    await log.append(clicks(50))
    async with reading(log) as reader:
        await batches(reader, log, 1)
        await log.append(clicks(50))
        for n in range(40):
            ahead = asyncio.create_task(reader.read())
            await asyncio.sleep(n / 4_000)
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)
        (again,) = await batches(reader, log, 1)
    assert (again.first, len(again.entries)) == (0, 100)


async def test_to_see_one_record_no_more_than_its_batch_is_fetched(log: KafkaOnTrial) -> None:
    """Of all partitions at once, with the whole backlog behind the record."""
    name = log.settings.kafka_events_topic
    bodies = [random.Random(n).randbytes(60_000) for n in range(12)]
    for body in bodies:
        await log.append([body])
    asker = Asker(log.settings)
    try:
        leader = (await asker.topics([name]))[name].leaders[0]
        client = await asker._found()
        send, sizes = client.send, []

        async def measured(*asked: Any) -> Any:
            answer = await send(*asked)
            sizes.append(len(answer.topics[0][1][0][-1]))
            return answer

        client.send = measured
        assert await asker.record((name, 0), leader, 3) == bodies[3]
        assert max(sizes) < 70_000
    finally:
        await asker.close()


# What stops a partition


async def test_an_overtaken_partition_stands_still_by_name_and_goes_on_when_it_is_resumed(
    log: KafkaOnTrial, database_url: str
) -> None:
    await log.append(clicks(100), 0)
    async with consuming(log.settings):
        await log.consumed()
    await log.append(clicks(200), 0)
    await log.append(clicks(50), 1)
    await log.delete_before(0, 150)
    with capture_logs() as logs:
        async with consuming(log.settings):
            found = await becomes(lambda: stopped(log))
            reason = "offsets 100 to 149 are gone unread: the retention has overtaken"
            assert found == [(await source_of(log), 0, 100, reason)]
            assert await becomes(lambda: count(log), 150)
            await asyncio.sleep(1)
            assert await count(log) == 150
            of = log.settings.kafka_events_topic
            assert metrics.STOPPED.labels(of, 0)._value.get() == 1
            assert metrics.STOPPED.labels(of, 1)._value.get() == 0
            await fetch(database_url, _RESUME)
            assert await becomes(lambda: count(log), 300)
            assert metrics.STOPPED.labels(of, 0)._value.get() == 0
    said = [(line["event"], line.get("partition")) for line in logs if line["event"].startswith("partition_")]
    assert said == [("partition_stopped", 0), ("partition_begins", 0), ("partition_resumed", 0)]


async def test_a_log_that_ends_before_what_was_applied_stops_the_partition(
    log: KafkaOnTrial, database_url: str
) -> None:
    await log.append(clicks(100))
    async with consuming(log.settings):
        await log.consumed()
        await fetch(database_url, "UPDATE log_position SET next = 120 WHERE next = 100")
        (found,) = await becomes(lambda: stopped(log))
        assert found[2:] == (120, "the log ends at offset 100, though everything before 120 was applied")
        labels = log.settings.kafka_events_topic, 0
        await becomes(lambda: gauge(metrics.STOPPED, *labels), 1)
        assert await gauge(metrics.LAG, *labels) == 0


async def test_another_record_in_the_place_of_the_last_one_stops_the_partition(
    log: KafkaOnTrial, database_url: str
) -> None:
    """As after an election of a replica that lay behind, or a broker restored from a copy."""
    await log.append(clicks(100))
    async with consuming(log.settings):
        await log.consumed()
    await log.append(clicks(100))
    await fetch(database_url, "UPDATE log_position SET last_digest = $1 WHERE next = 100", b"another!")
    async with consuming(log.settings):
        (found,) = await becomes(lambda: stopped(log))
        assert found[2:] == (100, "the record at offset 99 is not the one that was applied from there")
        assert await count(log) == 100


async def test_the_last_record_is_looked_at_again_whenever_a_partition_has_another_leader(
    database_url: str, redis_url: str, kafka_broker: list[servers.Server], kafka_topics: tuple[str, str]
) -> None:
    url = kafka_broker[0].url
    async with kafka_on_trial(database_url, url, kafka_topics, redis_url=redis_url) as log:
        await log.append(clicks(100))
        await log.append(clicks(100), 1)
    async with consuming(log.settings):
        await log.consumed()
        await asyncio.sleep(1)
        await fetch(database_url, "UPDATE log_position SET last_digest = 'another!' WHERE partition = 1")
        await asyncio.sleep(1)
        assert await stopped(log) == []
        kafka_broker[0].process.kill()
        kafka_broker[0].process.wait()
        kafka_broker[0] = await asyncio.to_thread(kafka.start_again, kafka_broker[0])
        async with kafka_on_trial(database_url, url, kafka_topics, redis_url=redis_url, make=False) as again:
            await again.append(clicks(100))
            await again.append(clicks(100), 1)
        (found,) = await becomes(lambda: stopped(log))
        assert found[1:] == (1, 100, "the record at offset 99 is not the one that was applied from there")
        assert await becomes(lambda: count(log), 300)


async def test_a_topic_made_again_under_us_stands_still_until_it_is_resumed(
    log: KafkaOnTrial, database_url: str
) -> None:
    await log.append(clicks(500))
    async with consuming(log.settings):
        await log.consumed()
        former = await source_of(log)
        await topics.delete(log.settings)
        await topics.make_again(log.settings, 2)
        await log.append(clicks(2_000))  # beyond where we were: their offsets look familiar
        found = await becomes(lambda: stopped(log))
        assert [row[1] for row in found] == [0, 1]
        for source, _, next_, reason in found:
            assert source != former
            assert next_ == -1
            ids = source.partition("@")[2], former.partition("@")[2]
            assert (
                reason == f"topic {log.settings.kafka_events_topic} was recreated: its id is {ids[0]}, and was {ids[1]}"
            )
        await log.append_beats(beat("i"))
        assert await becomes(lambda: value(database_url, "SELECT count(*) FROM edge"), 1)
        assert await count(log) == 500
        await fetch(database_url, _RESUME)
        assert await becomes(lambda: count(log), 2_500)


async def test_a_topic_made_again_while_nobody_looked_is_not_taken_for_the_former(log: KafkaOnTrial) -> None:
    await log.append(clicks(500))
    async with consuming(log.settings):
        await log.consumed()
    await topics.delete(log.settings)
    await topics.make_again(log.settings, 2)
    await log.append(clicks(2_000))
    async with consuming(log.settings):
        await becomes(lambda: stopped(log))
        await asyncio.sleep(1)
        assert await count(log) == 500


async def test_a_consumer_all_of_whose_partitions_stand_still_stays_in_the_group(log: KafkaOnTrial) -> None:
    """Kafka has no offset of ours for a topic that was made again, and leaving would hold up all the others."""
    await log.append(clicks(100))
    async with consuming(log.settings):
        await log.consumed()
    await topics.delete(log.settings)
    await topics.make_again(log.settings, 2)
    with capture_logs() as logs:
        async with consuming(log.settings), consuming(log.settings):
            await becomes(lambda: stopped(log))
            await becomes(lambda: sizes(logs), [1, 2])
            await asyncio.sleep(4)
            assert await sizes(logs) == [1, 2]
    assert [line["reason"] for line in logs if line["event"] == "consumer_given_up"] == []


async def test_a_batch_of_a_topic_that_was_made_again_is_not_handed_out(log: KafkaOnTrial) -> None:
    """Its offsets follow the former ones exactly; only the id tells."""
    await log.append(clicks(100))
    async with reading(log) as reader:
        (first,) = await batches(reader, log, 1)
        assert first.next == 100
        await topics.delete(log.settings)
        await topics.make_again(log.settings, 2)
        await log.append(clicks(300))
        with pytest.raises(Moved):  # noqa: PT012 - whichever read it is
            async with asyncio.timeout(SOON_S):
                while True:
                    assert await reader.read() is None


async def test_what_the_disk_of_a_broker_has_spoilt_stops_its_partition_alone(
    database_url: str, redis_url: str, kafka_broker: list[servers.Server], kafka_topics: tuple[str, str]
) -> None:
    async with kafka_on_trial(database_url, kafka_broker[0].url, kafka_topics, redis_url=redis_url) as log:
        await log.append(clicks(100), 0)
        await log.append(clicks(100), 1)
        (spoilt,) = kafka_broker[0].folder.rglob(f"{kafka_topics[0]}-0/*.log")
        with spoilt.open("r+b") as file:
            file.seek(-10, 2)
            file.write(b"\xff" * 5)
        async with consuming(log.settings):
            (found,) = await becomes(lambda: stopped(log))
            assert await becomes(lambda: count(log), 100)
        assert found[1] == 0
        assert re.match(r"what lies at or behind offset \d+ cannot be read: Corrupt", found[3])


async def test_what_the_disk_of_a_broker_has_spoilt_after_it_was_applied_holds_nothing_up(
    database_url: str, redis_url: str, kafka_broker: list[servers.Server], kafka_topics: tuple[str, str]
) -> None:
    """It can no longer be told whether it is the record that was applied; nothing else needs it."""
    async with kafka_on_trial(database_url, kafka_broker[0].url, kafka_topics, redis_url=redis_url) as log:
        for partition in (0, 1):
            await log.append(clicks(100), partition)
        async with consuming(log.settings):
            await log.consumed()
        for partition, (place, whence) in enumerate([(-10, 2), (61, 0)]):
            (spoilt,) = kafka_broker[0].folder.rglob(f"{kafka_topics[0]}-{partition}/*.log")
            with spoilt.open("r+b") as file:
                file.seek(place, whence)
                file.write(b"\xff" * 10)
            await log.append(clicks(100), partition)
        async with consuming(log.settings):
            assert await becomes(lambda: count(log), 400)
        assert await stopped(log) == []


async def test_what_is_stopped_stands_still_for_a_zombie_too(log: KafkaOnTrial, database_url: str) -> None:
    await log.append(clicks(100))
    await log.append(clicks(100), 1)
    async with consuming(log.settings):
        await log.consumed()
        await fetch(database_url, "UPDATE log_position SET stopped = 'by hand' WHERE partition = 0 AND next = 100")
        await log.append(clicks(100))
        await log.append(clicks(100), 1)
        assert await becomes(lambda: count(log), 300)
        await asyncio.sleep(1)
        assert await count(log) == 300


# What survives


async def test_consumers_share_the_partitions_and_take_over_from_each_other(log: KafkaOnTrial) -> None:
    shared = clicks(4_000)
    with capture_logs() as logs:
        async with consuming(log.settings):
            async with consuming(log.settings):
                for partition in (0, 1):
                    await log.append(shared, partition)
                await log.consumed()
                await becomes(lambda: sizes(logs), [1, 2])
            for partition in (0, 1):
                await log.append(clicks(500), partition)
            await log.consumed()
            await becomes(lambda: sizes(logs, 1), [3])
    figures = await log.drift()
    assert (figures.drift, figures.in_postgres) == (0, 5_000)


async def sizes(logs: list[Any], last: int = 2) -> list[int]:
    """Of what was assigned last to as many consumers."""
    assigned = [len(line["partitions"]) for line in logs if line["event"] == "partitions_assigned"]
    return sorted(assigned[-last:])


async def test_a_consumer_that_stands_still_though_there_is_more_is_built_again(
    log: KafkaOnTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiokafka's task that fetches has ended, and nothing in its interface tells."""
    monkeypatch.setattr(limits, "CONSUMER_STALL_S", 1.0)
    await log.append(clicks(100))
    async with reading(log) as reader:
        await batches(reader, log, 1)
        assert reader._member is not None
        reader._member._consumer._fetcher._fetch_task.cancel()
        with capture_logs() as logs:
            (batch,) = await batches(reader, log, 1)
    assert (batch.first, batch.next) == (0, 100)
    assert [line["reason"] for line in logs if line["event"] == "consumer_given_up"] == ["stalled"]


async def test_a_consumer_whom_the_group_does_not_answer_or_has_forgotten_is_built_again(
    log: KafkaOnTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log.append(clicks(100))
    monkeypatch.setattr(limits, "CONSUMER_ASSIGN_S", 0.5)
    holding_up = AIOKafkaConsumer(
        bootstrap_servers=log.settings.kafka_servers, group_id=log.settings.kafka_group, rebalance_timeout_ms=20_000
    )
    await holding_up.start()
    slow = LeavesSlowly()
    holding_up.subscribe([log.settings.kafka_events_topic], listener=slow)
    await slow.has_joined.wait()
    with capture_logs() as logs:
        async with reading(log) as reader:

            async def given_up() -> list[str]:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await batches(reader, log, 1)
                return [line["reason"] for line in logs if line["event"] == "consumer_given_up"]

            assert (await becomes(given_up))[0] == "not_assigned"
            monkeypatch.setattr(limits, "CONSUMER_ASSIGN_S", 20.0)
            slow.may_leave.set()
            await holding_up.stop()
            await batches(reader, log, 1)
            logs.clear()
            assert reader._member is not None
            reader._member.outcast_since = 1.0  # as when Kafka says that it does not know us, and no assignment follows
            assert await becomes(given_up) == ["outcast"]
            await batches(reader, log, 1)


class LeavesSlowly(ConsumerRebalanceListener):
    def __init__(self) -> None:
        self.has_joined, self.may_leave = asyncio.Event(), asyncio.Event()

    async def on_partitions_revoked(self, revoked: object) -> None:
        if self.has_joined.is_set():
            await self.may_leave.wait()

    async def on_partitions_assigned(self, assigned: object) -> None:
        self.has_joined.set()


async def test_a_consumer_that_has_failed_is_built_again_ever_later_and_says_so_once(
    log: KafkaOnTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.settings = log.settings.model_copy(update={"kafka_group": ""})  # which no broker takes
    with capture_logs() as logs:
        async with consuming(log.settings) as consumer:
            await asyncio.sleep(4)
            assert not consumer.done()
    said = [line["event"] for line in logs]
    assert said.count("consumer_failed") == 1
    assert 2 <= said.count("consumer_given_up") <= 8


async def test_topics_that_are_not_there_yet_are_waited_for(
    database_url: str, redis_url: str, kafka_url: str, kafka_topics: tuple[str, str]
) -> None:
    of = settings_of(database_url, kafka_url, kafka_topics, redis_url=redis_url)
    with capture_logs() as logs:
        async with consuming(of):
            await asyncio.sleep(1.5)
            async with kafka_on_trial(database_url, kafka_url, kafka_topics, redis_url=redis_url) as log:
                await log.append(clicks(100))
                assert await becomes(lambda: count(log), 100)
    assert [line["event"] for line in logs].count("topics_missing") == 1


async def test_a_broker_that_is_away_is_waited_for_and_that_is_said_once(
    database_url: str, redis_url: str, kafka_broker: list[servers.Server], kafka_topics: tuple[str, str]
) -> None:
    url = kafka_broker[0].url
    async with kafka_on_trial(database_url, url, kafka_topics, redis_url=redis_url) as log:
        await log.append(clicks(100))
    kafka_broker[0].process.kill()
    kafka_broker[0].process.wait()
    with capture_logs() as logs:
        async with consuming(log.settings) as consumer:
            await asyncio.sleep(2)
            kafka_broker[0] = await asyncio.to_thread(kafka.start_again, kafka_broker[0])
            began = time.monotonic()
            assert await becomes(lambda: count(log), 100)
            print(f"applied {time.monotonic() - began:.1f} s after the broker was back")

            kafka_broker[0].process.kill()
            kafka_broker[0].process.wait()
            await asyncio.sleep(2)
            kafka_broker[0] = await asyncio.to_thread(kafka.start_again, kafka_broker[0])
            began = time.monotonic()
            async with kafka_on_trial(database_url, url, kafka_topics, redis_url=redis_url, make=False) as again:
                await again.append(clicks(100))
            assert await becomes(lambda: count(log), 200)
            print(f"applied {time.monotonic() - began:.1f} s after the broker was back")
            assert not consumer.done()
    said = [line["event"] for line in logs if line["event"].startswith("kafka")]
    assert said == ["kafka_away", "kafka_is_back"] * 2
    assert (await log.drift()).drift == 0


async def test_events_of_the_log_are_read_as_they_were_written(log: KafkaOnTrial) -> None:
    written = [events.encode(one) for one in clicks(20)]
    await log.append(written)
    async with reading(log) as reader:
        (batch,) = await batches(reader, log, 1)
    assert [(record.offset, record.line, record.body) for record in records(batch.entries)] == [
        (offset, 1, body) for offset, body in enumerate(written)
    ]
