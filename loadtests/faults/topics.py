"""Topics for a test: made, read to their end, deleted, made smaller. Past the product's own code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from schemas import events
from schemas.events import Beat
from schemas.settings import LogSettings

PARTITIONS = 4
WAIT_S = 30.0
_TIME = {"message.timestamp.type": "LogAppendTime"}  # as `clickdam migrate` makes them


class Found(NamedTuple):
    partition: int
    offset: int
    value: bytes


@asynccontextmanager
async def administering(settings: LogSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_servers)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def make(settings: LogSettings, partitions: int = PARTITIONS) -> None:
    """Both topics, without copies."""
    async with administering(settings) as admin:
        await _make(admin, settings.kafka_events_topic, partitions)
        await _make(admin, settings.kafka_beats_topic, 1)


async def delete(settings: LogSettings) -> None:
    """The events topic."""
    async with administering(settings) as admin:
        await admin.delete_topics([settings.kafka_events_topic])


async def make_again(settings: LogSettings, partitions: int = PARTITIONS) -> None:
    """The events topic, after it was deleted."""
    async with administering(settings) as admin:
        await _make(admin, settings.kafka_events_topic, partitions)


async def _make(admin: AIOKafkaAdminClient, topic: str, partitions: int) -> None:
    """Return when the broker that is asked knows it; one that is being deleted is waited for."""
    new = NewTopic(topic, partitions, 1, topic_configs=_TIME)
    async with asyncio.timeout(WAIT_S):
        while (await admin.create_topics([new])).topic_errors[0][1] != 0:
            await asyncio.sleep(0.02)
        while (await admin.describe_topics([topic]))[0]["error_code"] != 0:
            await asyncio.sleep(0.02)


async def grow(settings: LogSettings, partitions: int) -> None:
    async with administering(settings) as admin:
        await admin.create_partitions({settings.kafka_events_topic: NewPartitions(partitions)})


async def allow(settings: LogSettings, bytes_max: int) -> None:
    """Let the events topic refuse what is larger."""
    async with administering(settings) as admin:
        resource = ConfigResource(
            ConfigResourceType.TOPIC, settings.kafka_events_topic, {"max.message.bytes": str(bytes_max)}
        )
        await admin.alter_configs([resource])


async def read(settings: LogSettings, topic: str) -> list[Found]:
    """Everything that is in a topic now, by partition and offset."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=settings.kafka_servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        found: list[Found] = []
        for partition, end in (await consumer.end_offsets(consumer.assignment())).items():
            while await consumer.position(partition) < end:
                batch = await consumer.getmany(partition, timeout_ms=500)
                found += [Found(partition.partition, one.offset, one.value) for one in batch.get(partition, [])]
        return sorted(found)
    finally:
        await consumer.stop()


async def values(settings: LogSettings) -> list[bytes]:
    """The events topic's, probes left out."""
    return [one.value for one in await read(settings, settings.kafka_events_topic) if b'"probe"' not in one.value]


async def beats(settings: LogSettings) -> list[Beat]:
    found = [events.decode(one.value) for one in await read(settings, settings.kafka_beats_topic)]
    return [beat for beat in found if isinstance(beat, Beat)]
