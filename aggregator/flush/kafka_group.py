"""One membership in Kafka's group of consumers, from joining to leaving: what is assigned, and what was fetched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.consumer import fetcher
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import CommitFailedError, CorruptRecordException, KafkaError
from aiokafka.structs import TopicPartition

from aggregator.flush import metrics
from aggregator.flush.batch import Entry
from schemas import limits
from schemas.kafka import connection
from schemas.settings import AggregatorSettings

log = structlog.get_logger()

_NO_PARTITION = TopicPartition("", 0)
_made = tuple.__new__  # an entry by its own name takes three times as long
_leaving: set[asyncio.Task[None]] = set()  # members that could not leave in time; they end by their own timeouts


class _Records(fetcher.PartitionRecords):
    """Fetched records as they are unpacked, passed on without a call for each: aiokafka makes another one of each, of
    eleven fields, and that took a third of what a consumer does for an event. Aborted transactions are not looked for,
    because nobody who writes to our topics has any."""

    next_fetch_offset: int

    def __iter__(self) -> Iterator[Any]:
        found: Iterator[Any] = self._records_iterator
        return found

    def _unpack_records(self) -> Iterator[Any]:
        while self._records.has_next():
            batch = self._records.next_batch()
            if self._check_crcs and not batch.validate_crc():
                raise CorruptRecordException(f"Invalid CRC - {self._tp}")
            for record in () if batch.is_control_batch else batch:
                if record.offset >= self.next_fetch_offset:  # a batch may begin before what was asked for
                    self.next_fetch_offset = record.offset + 1
                    yield record
            self.next_fetch_offset = batch.next_offset  # also past what compaction has removed at its end


fetcher.PartitionRecords = _Records  # where aiokafka looks for it with every fetch


class Member(ConsumerRebalanceListener):
    """A consumer of the group. `generation` counts the changes of what is `assigned`: all that was sought and fetched
    before one is void. `unassigned_since` is when the wait for the group's answer began, None when it is there."""

    def __init__(self, settings: AggregatorSettings) -> None:
        self._topics = [settings.kafka_events_topic, settings.kafka_beats_topic]
        self._consumer = AIOKafkaConsumer(**_options(settings))
        self._hint: asyncio.Task[None] | None = None
        self._waiting: asyncio.Task[Any] | None = None
        self.assigned: frozenset[TopicPartition] = frozenset()
        self.generation = 0
        self.unassigned_since: float | None = time.monotonic()
        self.outcast_since: float | None = None

    async def join(self) -> None:
        """Find the cluster and ask to be taken into the group. Raises KafkaError, TimeoutError; leave it then too."""
        async with asyncio.timeout(limits.CONSUMER_START_S):
            await self._consumer.start()
        self._consumer.subscribe(self._topics, listener=self)

    async def leave(self) -> None:
        """Leave in bounded time: aiokafka's own stop waits for what is under way."""
        for task in (self._hint, self._waiting):
            if task:
                task.cancel()
        leaving = asyncio.create_task(_stop(self._consumer))
        _leaving.add(leaving)
        leaving.add_done_callback(_leaving.discard)
        await asyncio.wait({leaving}, timeout=limits.CONSUMER_STOP_S)

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self.assigned = frozenset()
        self.generation += 1
        self.unassigned_since = time.monotonic()

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self.assigned = frozenset(assigned)
        self.generation += 1
        self.unassigned_since = self.outcast_since = None
        metrics.REBALANCES.inc()
        log.info("partitions_assigned", partitions=sorted(f"{topic}/{number}" for topic, number in self.assigned))

    def read_only(self, readable: Set[TopicPartition]) -> None:
        """Fetch these of the assigned partitions, leave the others."""
        self._consumer.pause(*self.assigned - readable)
        self._consumer.resume(*readable)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Forget what was fetched of a partition, and fetch it from this offset."""
        self._consumer.seek(partition, offset)

    async def fetched(self, partition: TopicPartition) -> list[Entry]:
        """What has been fetched of a partition, at most BATCH_EVENTS_MAX records. Raises KafkaError, and then nothing
        of it was fetched."""
        entries: list[Entry] = []
        while self.unassigned_since is None and (room := limits.BATCH_EVENTS_MAX - len(entries)):
            unpacked = await self._consumer.getmany(partition, max_records=min(room, limits.UNPACKED_MAX))
            if not unpacked:
                break
            entries += [_made(Entry, (one.offset, one.value or b"", True)) for one in unpacked[partition]]
            await asyncio.sleep(0)  # getmany does not wait for more, and so lets nobody else work
        return entries

    async def wait(self) -> None:
        """For a moment, while there is nothing to fetch; it counts as reading, or the group would take us for idle.
        Raises KafkaError when there will never be."""
        if self._waiting is None or self._waiting.done():
            # of no partition, because one that nobody has sought may have no place in aiokafka's own books, and raises;
            # until something is assigned; not cancelled, because aiokafka would take it for reading from then on
            self._waiting = asyncio.create_task(self._consumer.getmany(_NO_PARTITION))
        done, _ = await asyncio.wait({self._waiting}, timeout=limits.CONSUMER_POLL_S)
        if done:
            self._waiting.result()

    async def position(self, partition: TopicPartition) -> int:
        """The next offset that `fetched` would answer, of a partition that was sought."""
        position: int = await self._consumer.position(partition)
        return position

    def hint(self, applied: Mapping[TopicPartition, int]) -> None:
        """Tell Kafka how far we are, for tools that show it; nothing depends on it, and so nobody waits for it."""
        if applied and (self._hint is None or self._hint.done()):
            self._hint = asyncio.create_task(self._tell(applied))

    async def _tell(self, applied: Mapping[TopicPartition, int]) -> None:
        try:
            async with asyncio.timeout(limits.KAFKA_REQUEST_S):
                await self._consumer.commit(dict(applied))
        except CommitFailedError:  # the group knows us no more; a new assignment should follow
            self.outcast_since = self.outcast_since or time.monotonic()
        except (KafkaError, TimeoutError) as error:
            log.debug("offsets_not_told", error=repr(error))
        else:
            self.outcast_since = None


async def _stop(consumer: AIOKafkaConsumer) -> None:
    try:
        await consumer.stop()
    except Exception as error:
        log.warning("consumer_stopped_badly", error=repr(error))


def _options(settings: AggregatorSettings) -> dict[str, Any]:
    """Said in full, because aiokafka's defaults are made for somebody else."""
    return connection(settings) | {
        "group_id": settings.kafka_group,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "isolation_level": "read_uncommitted",
        "check_crcs": True,
        "partition_assignment_strategy": (RoundRobinPartitionAssignor,),
        "session_timeout_ms": _ms(limits.CONSUMER_SESSION_S),
        "heartbeat_interval_ms": _ms(limits.CONSUMER_HEARTBEAT_S),
        "rebalance_timeout_ms": _ms(limits.CONSUMER_JOIN_S),
        "max_poll_interval_ms": _ms(limits.CONSUMER_UNUSED_S),
        "metadata_max_age_ms": _ms(limits.CONSUMER_METADATA_S),
        "connections_max_idle_ms": _ms(limits.KAFKA_IDLE_S),
        "fetch_min_bytes": limits.FETCH_BYTES_MIN,
        "fetch_max_bytes": limits.FETCH_BYTES_MAX,
        "max_partition_fetch_bytes": limits.FETCH_PARTITION_BYTES_MAX,
        "fetch_max_wait_ms": _ms(limits.FETCH_WAIT_S),
        "consumer_timeout_ms": _ms(limits.FETCH_WAIT_S),
        "max_poll_records": limits.BATCH_EVENTS_MAX,
    }


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
