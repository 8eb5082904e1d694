"""Logs in a real Kafka to try a consumer with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import RecordsToDelete
from aiokafka.structs import TopicPartition

from loadtests.faults import drift, topics
from loadtests.faults.journals import CONSUMED_S
from schemas import events, limits
from schemas.settings import AggregatorSettings


@dataclass(slots=True)
class KafkaOnTrial:
    """Both topics, a producer for them, and the settings of a consumer with a group of its own."""

    settings: AggregatorSettings
    producer: AIOKafkaProducer

    async def append(self, of: Iterable[events.Event | bytes], partition: int = 0, *, row_events: int = 100) -> None:
        """Write events to a partition of the events topic; here each is a row of its own."""
        await self._send(self.settings.kafka_events_topic, partition, of)

    async def append_beats(self, *of: events.Beat) -> None:
        await self._send(self.settings.kafka_beats_topic, 0, of)

    async def _send(self, topic: str, partition: int, of: Iterable[events.Event | bytes]) -> None:
        bodies = [one if isinstance(one, bytes) else events.encode(one) for one in of]
        sent = [await self.producer.send(topic, body, partition=partition) for body in bodies]
        await asyncio.gather(*sent)

    async def ends(self) -> dict[tuple[str, int], int]:
        """Where each partition ends, by topic."""
        names = self.settings.kafka_events_topic, self.settings.kafka_beats_topic
        consumer = AIOKafkaConsumer(*names, bootstrap_servers=self.settings.kafka_servers)
        await consumer.start()
        try:
            return {tuple(of): end for of, end in (await consumer.end_offsets(consumer.assignment())).items()}
        finally:
            await consumer.stop()

    async def consumed(self, within_s: float = CONSUMED_S) -> None:
        """Wait until Postgres has passed all that lies in the partitions now, those that are stopped left out."""
        ends = await self.ends()
        async with asyncio.timeout(within_s):
            while await self._behind(ends):
                await asyncio.sleep(0.05)

    async def _behind(self, ends: dict[tuple[str, int], int]) -> bool:
        rows = await drift.fetch(
            self.settings.database_url,
            "SELECT source, partition, next FROM log_position WHERE stopped IS NULL AND source LIKE '%@%'",
        )
        applied = {(row["source"].rpartition("@")[0], row["partition"]): row["next"] for row in rows}
        return not applied or any(next_ < ends[of] for of, next_ in applied.items())

    async def drift(self) -> drift.Figures:
        """What the events topic says against what Postgres holds."""
        found = await topics.read(self.settings, self.settings.kafka_events_topic)
        return await drift.compare(self.settings.database_url, [one.value for one in found])

    async def delete_before(self, partition: int, offset: int) -> None:
        """Let the retention overtake whoever has not read so far."""
        async with topics.administering(self.settings) as admin:
            await admin.delete_records(
                {TopicPartition(self.settings.kafka_events_topic, partition): RecordsToDelete(offset)}
            )


@asynccontextmanager
async def kafka_on_trial(
    database_url: str, kafka_url: str, names: tuple[str, str], *, partitions: int = 2, make: bool = True, **fields: Any
) -> AsyncIterator[KafkaOnTrial]:
    """Topics that are made now, unless they are there."""
    settings = settings_of(database_url, kafka_url, names, **fields)
    if make:
        await topics.make(settings, partitions)
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka_servers, acks="all", linger_ms=5, max_batch_size=131_072,
        compression_type="zstd", enable_idempotence=True, request_timeout_ms=2_000,
        max_request_size=limits.RECORD_BYTES_MAX,
    )  # fmt: skip
    await producer.start()
    try:
        yield KafkaOnTrial(settings, producer)
    finally:
        await producer.stop()


def settings_of(database_url: str, kafka_url: str, names: tuple[str, str], **fields: Any) -> AggregatorSettings:
    wanted: dict[str, Any] = {
        "database_url": database_url, "log_url": kafka_url, "redis_url": "redis://127.0.0.1:1/0", "admin_port": 0,
        "kafka_events_topic": names[0], "kafka_beats_topic": names[1], "kafka_group": f"test-{uuid4().hex}",
    }  # fmt: skip
    return AggregatorSettings(**(wanted | fields))
