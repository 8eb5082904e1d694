"""Kafka as the edge writes it: one life of a producer, in batches of our own, one record an event.

aiokafka delivers an idempotent batch until it succeeds, for ever if need be: whoever waits here brings a deadline, and
a batch that is given up may still arrive. After a refusal the producer's numbering has a gap that the broker does not
forgive, so one that has failed is spent: stop it and begin another.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from zlib import crc32

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, MessageSizeTooLargeError, RecordListTooLargeError
from aiokafka.structs import RecordMetadata

from schemas import kafka, limits
from schemas.settings import LogSettings
from tracker.log.recorder import LogFailed

_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)


class TooLarge(LogFailed):
    """The broker takes no batch of this size. `events` are those that were in it."""

    def __init__(self, events: Sequence[bytes]) -> None:
        super().__init__(f"refused as too large: {len(events)} events, {sum(map(len, events))} bytes")
        self.events = events


def partition_of(first: bytes, partitions: int) -> int:
    """The partition of a group commit, by its first event: even, and the same when a spool sends it again."""
    return crc32(first) % partitions


class Portion:
    """How many bytes are sent as one batch: half of what the broker refused, doubled again after a while."""

    def __init__(self) -> None:
        self._bytes_max = self._usual = 2 * limits.BATCH_BYTES_MAX
        self._changed = 0.0

    @property
    def bytes_max(self) -> int:
        now = time.monotonic()
        if self._bytes_max < self._usual and now > self._changed + limits.PORTION_DOUBLED_S:
            self._bytes_max, self._changed = min(2 * self._bytes_max, self._usual), now
        return self._bytes_max

    def refused(self, events: Sequence[bytes]) -> None:
        """These were too large together. One that was alone says nothing of the others."""
        if len(events) > 1:
            self._bytes_max, self._changed = sum(map(len, events)) // 2, time.monotonic()


class KafkaOut:
    """One life of a producer; `spent` when something was refused or failed."""

    def __init__(self, settings: LogSettings) -> None:
        self._events, self._beats = settings.kafka_events_topic, settings.kafka_beats_topic
        self._where = f"Kafka at {','.join(settings.kafka_servers)}"
        self._producer = AIOKafkaProducer(**_options(settings))
        self._ids: dict[str, str] = {}
        self._last: dict[tuple[str, int], int] = {}
        self.spent = False

    async def start(self, within_s: float = limits.PRODUCER_START_S) -> None:
        """Find the cluster and the topics. Raises LogFailed; stop it then too."""
        with self._in_our_words():
            async with asyncio.timeout(within_s):
                await self._producer.start()
                self._ids = await self._topic_ids()
                for topic in self._ids:
                    await self._producer.partitions_for(topic)

    @property
    def source(self) -> str:
        """The name of the events topic's contents, in beats; empty until it is found."""
        return kafka.source(self._events, self._ids[self._events]) if self._ids else ""

    @property
    def partitions(self) -> int:
        """How many the events topic has now. Raises LogFailed when it is gone."""
        known = self._producer.client.cluster.partitions_for_topic(self._events)
        if not known:
            raise LogFailed(f"topic {self._events} is gone")
        return len(known)

    async def send(self, groups: Mapping[int, Sequence[bytes]], bytes_max: int) -> dict[int, int]:
        """Deliver events, by partition, in batches of at most `bytes_max`; answers the last offset of each partition
        when all is acknowledged. Raises LogFailed, TooLarge."""
        return await self._deliver(self._events, groups, bytes_max)

    async def send_beats(self, beats: Sequence[bytes]) -> None:
        """Deliver beats, in order. Raises LogFailed."""
        await self._deliver(self._beats, {0: beats}, limits.BATCH_BYTES_MAX)

    async def verify(self) -> None:
        """Raises LogFailed when one of the topics is not the one that was found at the start: what was acknowledged
        may lie in either."""
        with self._in_our_words():
            async with asyncio.timeout(limits.PROBE_S):
                if await self._topic_ids() != self._ids:
                    raise LogFailed("a topic was deleted and made again")

    async def stop(self) -> None:
        """Let go of the cluster in bounded time; what is not acknowledged by now is abandoned.

        aiokafka's own stop waits for every acknowledgement, and its tasks for each other, so they are ended first.
        """
        self.spent = True
        await _end(_tasks_of(self._producer))
        stopping = asyncio.create_task(self._producer.stop())
        await asyncio.wait({stopping}, timeout=limits.PRODUCER_STOP_S / 2)
        await _end([stopping, *_tasks_of(self._producer)])

    async def _topic_ids(self) -> dict[str, str]:
        topics = [self._events, self._beats]
        found = await kafka.topic_ids(self._producer.client, topics)
        missing = [topic for topic in topics if topic not in found]
        if missing:
            raise LogFailed(f"no such topic: {', '.join(missing)}; `clickdam migrate` makes them")
        return found

    async def _deliver(self, topic: str, groups: Mapping[int, Sequence[bytes]], bytes_max: int) -> dict[int, int]:
        sent: list[tuple[int, Sequence[bytes], asyncio.Future[RecordMetadata]]] = []
        try:
            with self._in_our_words():
                for partition, events in groups.items():
                    for piece in pieces(events, bytes_max):
                        future = await self._producer.send_batch(self._batch(piece), topic, partition=partition)
                        sent.append((partition, piece, future))
                for partition, piece, future in sent:
                    self._acknowledged(topic, partition, (await _taken(piece, future)).offset, len(piece))
        finally:
            for *_, future in sent:
                future.cancel()  # of those that nobody waits for any more: their failure is told to nobody
        return {partition: self._last[topic, partition] for partition in groups}

    def _batch(self, events: Sequence[bytes]) -> Any:
        batch = self._producer.create_batch()
        for event in events:
            if batch.append(timestamp=None, key=None, value=event) is None:  # the broker puts its own time
                raise LogFailed(f"{len(events)} events are more than a batch holds")
        batch.close()
        return batch

    @contextlib.contextmanager
    def _in_our_words(self) -> Iterator[None]:
        """What fails in here raises LogFailed, and the producer is spent. Everything, not Kafka's errors alone: the
        client trips over connections that close under it, and there is a rung below."""
        try:
            yield
        except LogFailed:
            self.spent = True
            raise
        except (TimeoutError, KafkaConnectionError):
            self.spent = True
            raise LogFailed(f"{self._where} does not answer") from None
        except Exception as error:
            self.spent = True
            raise LogFailed(f"{self._where}: {error!r}") from error

    def _acknowledged(self, topic: str, partition: int, base: int, count: int) -> None:
        if base <= self._last.get((topic, partition), -1):
            raise LogFailed(f"{topic}/{partition} begins again at {base}: the topic was deleted and made again")
        self._last[topic, partition] = base + count - 1


def pieces(events: Sequence[bytes], bytes_max: int) -> Iterator[Sequence[bytes]]:
    """The events in order, cut so that no piece is larger than `bytes_max`, unless it is a single event."""
    if sum(map(len, events)) <= bytes_max:
        yield events
        return
    piece: list[bytes] = []
    size = 0
    for event in events:
        if piece and size + len(event) > bytes_max:
            yield piece
            piece, size = [], 0
        piece.append(event)
        size += len(event)
    yield piece


async def _taken(events: Sequence[bytes], future: asyncio.Future[RecordMetadata]) -> RecordMetadata:
    try:
        return await future
    except _TOO_LARGE:
        raise TooLarge(events) from None


def _options(settings: LogSettings) -> dict[str, Any]:
    """Said in full, because aiokafka's defaults are neither safe nor what a release before had."""
    return kafka.connection(settings) | {
        "enable_idempotence": True,
        "acks": "all",
        "linger_ms": 0,  # the recorder has lingered already
        "max_batch_size": limits.RECORD_BYTES_MAX,  # our own batches end sooner
        "max_request_size": limits.RECORD_BYTES_MAX,
        "compression_type": "snappy",  # a tenth of the time that aiokafka's lz4 takes, and nearly its size
        # nobody waits longer, and a frozen broker leaves time to find another one
        "request_timeout_ms": int(limits.PROBE_S * 1000),
        "metadata_max_age_ms": int(limits.KAFKA_METADATA_S * 1000),
        "connections_max_idle_ms": int(limits.KAFKA_IDLE_S * 1000),
    }


def _tasks_of(producer: AIOKafkaProducer) -> list[asyncio.Task[Any]]:
    """The tasks that work for this producer; it knows of some itself, but hands out none."""
    parts = {id(part) for part in (producer, producer.client, producer._sender, producer._message_accumulator)}  # noqa: SLF001
    return [task for task in asyncio.all_tasks() if id(_works_for(task)) in parts]


def _works_for(task: asyncio.Task[Any]) -> object:
    frame = getattr(task.get_coro(), "cr_frame", None)
    return frame.f_locals.get("self") if frame else None


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel them and wait, in bounded time, until they have ended."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=limits.PRODUCER_STOP_S / 4)
    for task in tasks:
        if task.done() and not task.cancelled():
            with contextlib.suppress(Exception):
                task.result()
