"""Questions to Kafka, over connections of their own: a fetch that waits for records would hold their answers up."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import CorruptRecordException, KafkaError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.record.memory_records import MemoryRecords

from aggregator.flush.sources import Held
from schemas import limits
from schemas.kafka import Leader, Topic, connection, topics
from schemas.settings import LogSettings

Place = tuple[str, int]  # topic, partition
_EARLIEST, _END = -2, -1  # in place of a time
_ANY_REPLICA = -1
_READ_UNCOMMITTED = 0
_ONE_BATCH = 1  # byte at most, which a broker exceeds for the first batch: all partitions are asked at the same time


class Asker:
    """Asks; each step of a question takes ASK_S at most. Whatever fails, the next one finds the cluster anew."""

    def __init__(self, settings: LogSettings) -> None:
        self._settings = settings
        self._client: AIOKafkaClient | None = None

    async def topics(self, names: Iterable[str], node: int | None = None) -> dict[str, Topic]:
        """The topics that exist, as this broker or any knows them. Raises KafkaError."""
        try:
            return await topics(await self._found(), list(names), node)
        except KafkaError:
            await self.close()
            raise

    async def held(self, leaders: Mapping[Place, Leader]) -> dict[Place, Held]:
        """What the leaders have of these partitions; those that cannot be asked now are missing. Raises KafkaError."""
        client = await self._found()
        earliest, end = await asyncio.gather(_offsets(client, leaders, _EARLIEST), _offsets(client, leaders, _END))
        return {place: Held(earliest[place], end[place]) for place in earliest.keys() & end.keys()}

    async def end(self, place: Place, leader: Leader) -> int | None:
        """Where a partition ends, None when that cannot be asked now. Raises KafkaError."""
        return (await _offsets(await self._found(), {place: leader}, _END)).get(place)

    async def record(self, place: Place, leader: Leader, offset: int) -> bytes | None:
        """The record at an offset, None when there is none that can be read. Raises KafkaError."""
        topic, partition = place
        request = FetchRequest(0, 1, _ONE_BATCH, _READ_UNCOMMITTED, [(topic, [(partition, offset, _ONE_BATCH)])])
        response = await (await self._found()).send(leader.node, request)
        ((_, ((_, code, *_, packed),)),) = response.topics
        try:
            if code:
                raise for_code(code)(topic)
            return _value_at(MemoryRecords(packed), offset)
        except CorruptRecordException:
            return None

    async def close(self) -> None:
        """Let go of the connections."""
        client, self._client = self._client, None
        if client:
            await client.close()

    async def _found(self) -> AIOKafkaClient:
        if self._client is None:
            client = AIOKafkaClient(**connection(self._settings) | {"request_timeout_ms": int(limits.ASK_S * 1000)})
            await client.bootstrap()
            self._client = client
        return self._client


async def _offsets(client: AIOKafkaClient, leaders: Mapping[Place, Leader], time: int) -> dict[Place, int]:
    by_node: dict[int, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for (topic, partition), leader in leaders.items():
        by_node[leader.node][topic].append((partition, time))
    answers = await asyncio.gather(*(_offsets_at(client, node, asked) for node, asked in by_node.items()))
    return {place: offset for answer in answers for place, offset in answer.items()}


async def _offsets_at(
    client: AIOKafkaClient, node: int, asked: Mapping[str, list[tuple[int, int]]]
) -> dict[Place, int]:
    request = OffsetRequest(_ANY_REPLICA, _READ_UNCOMMITTED, list(asked.items()))
    try:
        response = await client.send(node, request)
    except KafkaError:
        return {}
    return {
        (topic, partition): offset
        for topic, partitions in response.topics
        for partition, code, _, offset in partitions
        if code == 0
    }


def _value_at(records: Any, offset: int) -> bytes | None:
    while records.has_next():
        batch = records.next_batch()
        if not batch.validate_crc():
            raise CorruptRecordException
        for record in () if batch.is_control_batch else batch:
            if record.offset == offset:
                return record.value or b""
    return None
