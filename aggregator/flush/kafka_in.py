"""Kafka as the consumer's log: the group says which partitions are ours, Postgres where to read on in them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import structlog
from aiokafka.errors import CorruptRecordException, KafkaError, OffsetOutOfRangeError, RecordTooLargeError
from aiokafka.structs import TopicPartition

from aggregator.flush import metrics
from aggregator.flush.batch import Batch, Begun, Change, Entry, Moved, Position, Positions
from aggregator.flush.kafka_ask import Asker
from aggregator.flush.kafka_group import Member
from aggregator.flush.registered import registered
from aggregator.flush.sources import Held, beginnings, change_of, changed_before, stop
from schemas import limits, redis
from schemas.kafka import Leader, Topic, source
from schemas.settings import AggregatorSettings

log = structlog.get_logger()

_PAUSE_FIRST_S = 0.1
_FAILED = "consumer_failed"
_OF_A_RECORD = (CorruptRecordException, RecordTooLargeError)


class _Found(NamedTuple):
    """An assigned partition as Postgres and its broker know it."""

    partition: TopicPartition
    source: str
    leader: Leader
    position: Position
    held: Held


class _Doubt(NamedTuple):
    """What the client could not read at an offset, and how often it has tried."""

    offset: int
    error: str
    times: int


@dataclass(slots=True)
class _Reading:
    """What is read in one generation of the assignment, in turns: `next` of each partition, and the leader under whom
    the record before it was found to be ours. A partition that `next` lacks was in hand when something went wrong.
    `behind` is where one stood, and since when, though the broker has more of it; `empty_at` is when one last had
    nothing for us."""

    generation: int
    ids: Mapping[str, str] = field(default_factory=dict)
    turns: deque[TopicPartition] = field(default_factory=deque)
    next: dict[TopicPartition, int] = field(default_factory=dict)
    leaders: dict[TopicPartition, Leader] = field(default_factory=dict)
    behind: dict[TopicPartition, tuple[int, float]] = field(default_factory=dict)
    empty_at: dict[TopicPartition, float] = field(default_factory=dict)


class KafkaReader:
    """Reads the assigned partitions of both topics, taking turns.

    A batch is handed out only when its topic and the leader of its partition, asked for after it was fetched, still are
    those under whom the position was found to be true. A consumer that has failed, or stands still though the broker
    has more, is given up and built again.
    """

    def __init__(self, settings: AggregatorSettings) -> None:
        self._settings = settings
        self._names = [settings.kafka_events_topic, settings.kafka_beats_topic]
        self._asker = Asker(settings)
        self._redis = redis.publishing(settings.redis_url)
        self._member: Member | None = None
        self._reading = _Reading(-1)
        self._doubts: dict[TopicPartition, _Doubt] = {}
        self._stopped: frozenset[TopicPartition] = frozenset()
        self._trouble = ""
        self._pause_s = _PAUSE_FIRST_S

    async def seek(self, positions: Positions) -> list[Change]:
        if self._member is None:
            return []
        try:
            return await self._seek(self._member, positions)
        except KafkaError as error:
            await self._wait_after("kafka_away", repr(error))
            return []

    async def read(self) -> Batch | None:
        member = self._member
        if member is None:
            await self._join()
            return None
        if member.generation != self._reading.generation:
            raise Moved("the assignment has changed")
        try:
            batch = await self._next_in_turn(member)
        except KafkaError as error:
            await self._give_up(type(error).__name__)
            await self._wait_after(_FAILED, repr(error))
            return None
        if batch is None:
            await asyncio.sleep(limits.CONSUMER_POLL_S)
        return batch

    async def close(self) -> None:
        member, self._member = self._member, None
        if member:
            await member.leave()
        await self._asker.close()
        await self._redis.aclose()

    async def _seek(self, member: Member, positions: Positions) -> list[Change]:
        generation = member.generation
        topics = await self._asker.topics(self._names)
        begin = [one for name, topic in topics.items() for one in beginnings(name, topic.id, topic.leaders, positions)]
        if begin:
            return begin
        found = await self._found(member, topics, positions)
        if reason := await self._stuck(member, found):
            await self._give_up(reason)
            return []
        ids = {name: topic.id for name, topic in topics.items()}
        reading = self._reading
        if (reading.generation, reading.ids) != (generation, ids):
            reading = _Reading(generation, ids)
        judged = await asyncio.gather(*(self._judge(one, reading) for one in found))
        changes = [*chain.from_iterable(found or () for found in judged)]
        if not changes and generation == member.generation:
            self._go_on(member, reading, dict(zip(found, (one is not None for one in judged), strict=True)))
        return changes

    async def _found(self, member: Member, topics: Mapping[str, Topic], positions: Positions) -> list[_Found]:
        """The assigned partitions that can be asked for now. Raises KafkaError."""
        leaders = {
            partition: topics[partition.topic].leaders[partition.partition]
            for partition in sorted(member.assigned)
            if partition.topic in topics and partition.partition in topics[partition.topic].leaders
        }
        held = await self._asker.held(leaders)
        sources = {name: source(name, topic.id) for name, topic in topics.items()}
        return [
            _Found(partition, sources[partition.topic], leader, positions[of], held[partition])
            for partition, leader in leaders.items()
            if partition in held and (of := (sources[partition.topic], partition.partition)) in positions
        ]

    async def _judge(self, one: _Found, reading: _Reading) -> list[Change] | None:
        """What has to become of a position; None when that cannot be told now."""
        number, at = one.partition.partition, one.position.next
        change = change_of(one.source, number, one.position, one.held) or self._doubted(one)
        is_known = reading.next.get(one.partition) == at and reading.leaders[one.partition] == one.leader
        if change or one.position.stopped or is_known or one.held.earliest >= at:
            return [change] if change else []
        try:
            before = await self._asker.record(one.partition, one.leader, at - 1)
        except KafkaError as error:
            log.warning("partition_waits", topic=one.partition.topic, partition=number, error=repr(error))
            return None
        change = changed_before(one.source, number, one.position, before)
        return [change] if change else []

    def _go_on(self, member: Member, reading: _Reading, found: Mapping[_Found, bool]) -> None:
        """Read on from these positions; one that could not be judged waits."""
        stopped = frozenset(one.partition for one in found if one.position.stopped)
        for one, is_judged in found.items():
            if one.partition in stopped or not is_judged:
                reading.next.pop(one.partition, None)
                continue
            if reading.next.get(one.partition) != one.position.next:
                member.seek(one.partition, one.position.next)
            reading.next[one.partition], reading.leaders[one.partition] = one.position.next, one.leader
        readable = {one for one in member.assigned if one in reading.next and one.topic in reading.ids}
        member.read_only(readable)
        going_on = [one for one in reading.turns if one in readable]
        reading.turns = deque([*going_on, *sorted(readable.difference(going_on))])
        self._reading = reading
        member.hint({one.partition: one.position.next for one in found if one.position.next >= 0})
        for one in self._stopped.intersection(readable):
            log.info("partition_resumed", topic=one.topic, partition=one.partition)
        self._stopped = stopped
        _show(member, found)
        if self._trouble != _FAILED and member.unassigned_since is None:
            self._well()

    async def _next_in_turn(self, member: Member) -> Batch | None:
        reading = self._reading
        if not reading.turns:
            await member.wait()
        for partition in list(reading.turns):
            first = reading.next.pop(partition)  # put back when nothing has gone wrong
            entries = await self._fetched(member, partition, first)
            if not entries:
                reading.next[partition] = first
                reading.empty_at[partition] = time.monotonic()
                continue
            reading.turns.remove(partition)
            reading.turns.append(partition)
            batch = await self._batch(member, partition, first, entries)
            reading.next[partition] = batch.next
            self._doubts.pop(partition, None)
            self._well()
            return batch
        return None

    async def _fetched(self, member: Member, partition: TopicPartition, first: int) -> list[Entry]:
        try:
            return await member.fetched(partition)
        except OffsetOutOfRangeError:
            reason = "has no such offset"
        except _OF_A_RECORD as error:
            reason = repr(error)
            known = self._doubts.get(partition)
            times = known.times + 1 if known and known.offset == first else 1
            self._doubts[partition] = _Doubt(first, reason, times)
        log.warning("partition_sought_again", topic=partition.topic, partition=partition.partition, error=reason)
        await asyncio.sleep(limits.CONSUMER_POLL_S)
        raise Moved(reason)

    async def _batch(self, member: Member, partition: TopicPartition, first: int, entries: Sequence[Entry]) -> Batch:
        """Raises Moved when it cannot be said for sure whose offsets these are."""
        reading, (name, number) = self._reading, partition
        leader = reading.leaders[partition]
        try:
            begun, end = await self._company(partition, leader)
            topic = (await self._asker.topics([name], leader.node)).get(name)
        except KafkaError as error:
            self._reading = _Reading(-1)
            await self._wait_after("kafka_away", repr(error))
            raise Moved("the broker cannot be asked") from error
        if topic is None or topic.id != reading.ids[name] or topic.leaders.get(number) != leader:
            raise Moved("the topic was deleted, or has another leader")
        if member.generation != reading.generation:
            raise Moved("the assignment has changed")
        return Batch(source(name, topic.id), number, first, entries[-1].offset + 1, entries, begun, end)

    async def _company(self, partition: TopicPartition, leader: Leader) -> tuple[list[Begun] | None, int | None]:
        """For beats, the edges that have registered in Redis and, asked for after that, where the partition ends."""
        if partition.topic != self._settings.kafka_beats_topic:
            return [], None
        begun = await registered(self._redis)
        end = await self._asker.end(partition, leader)
        return (begun, end) if end is not None else (None, None)

    def _doubted(self, one: _Found) -> Change | None:
        """Stops a partition whose next record could not be read twice."""
        doubt = self._doubts.get(one.partition)
        if doubt is None or doubt.offset != one.position.next or doubt.times < 2 or one.position.stopped:
            return None
        del self._doubts[one.partition]
        reason = f"what lies at or behind offset {doubt.offset} cannot be read: {doubt.error}"
        return stop(one.source, one.partition.partition, one.position, reason)

    # The consumer's life

    async def _join(self) -> None:
        member = None
        try:
            known = await self._asker.topics(self._names)
            if missing := sorted(set(self._names) - known.keys()):
                await self._wait_after("topics_missing", f"{', '.join(missing)}: `clickdam migrate` makes them")
                return
            member = Member(self._settings)
            await member.join()
        except (KafkaError, TimeoutError) as error:
            await self._wait_after("kafka_away", repr(error))
        else:
            member, self._member = None, member
        finally:
            if member:
                await member.leave()

    async def _give_up(self, reason: str) -> None:
        member, self._member = self._member, None
        self._reading = _Reading(-1)
        metrics.REBUILDS.labels(reason).inc()
        log.warning("consumer_given_up", reason=reason)
        if member:
            await member.leave()

    async def _stuck(self, member: Member, found: Iterable[_Found]) -> str:
        """Why the consumer will not go on by itself, empty when it does. The broker has just answered all this."""
        now, reading = time.monotonic(), self._reading
        if member.unassigned_since and now - member.unassigned_since > limits.CONSUMER_ASSIGN_S:
            return "not_assigned"
        if member.outcast_since and now - member.outcast_since > limits.CONSUMER_STALL_S:
            return "outcast"
        if reading.generation != member.generation:
            return ""
        for partition, held in ((one.partition, one.held) for one in found if one.partition in reading.next):
            position = await member.position(partition)
            stood_at, since = reading.behind.get(partition, (position, now))
            if held.end <= position:
                reading.behind.pop(partition, None)
            elif stood_at != position:
                reading.behind[partition] = position, now
            elif reading.empty_at.get(partition, 0.0) - since > limits.CONSUMER_STALL_S:
                return "stalled"
            else:
                reading.behind[partition] = stood_at, since
        return ""

    async def _wait_after(self, trouble: str, error: str) -> None:
        """Before the next attempt, each time longer. It is said once, however often it is met."""
        if trouble != self._trouble:
            log.warning(trouble, error=error)
        self._trouble = trouble
        await asyncio.sleep(self._pause_s)
        longest_s = limits.REBUILD_PAUSE_MAX_S if trouble == _FAILED else limits.ASK_PAUSE_MAX_S
        self._pause_s = min(self._pause_s * 2, longest_s)

    def _well(self) -> None:
        if self._trouble:
            log.info("kafka_is_back", after=self._trouble)
        self._trouble, self._pause_s = "", _PAUSE_FIRST_S


def _show(member: Member, found: Iterable[_Found]) -> None:
    metrics.ASSIGNED.set(len(member.assigned))
    metrics.LAG.clear()
    metrics.STOPPED.clear()
    for one in found:
        labels = one.partition.topic, one.partition.partition
        metrics.LAG.labels(*labels).set(max(0, one.held.end - max(one.position.next, one.held.earliest)))
        metrics.STOPPED.labels(*labels).set(one.position.stopped is not None)
