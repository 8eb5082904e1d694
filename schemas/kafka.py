"""How to reach a Kafka, and which topic a name stands for today. Clients are opened where they are used."""

from __future__ import annotations

import ssl
import uuid
from io import BytesIO
from typing import Any, NamedTuple

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from schemas import limits
from schemas.settings import LogSettings


def connection(settings: LogSettings) -> dict[str, Any]:
    """What every client of aiokafka takes to connect, and how long one request may last."""
    return {
        "bootstrap_servers": settings.kafka_servers,
        "client_id": settings.kafka_client_id,
        "request_timeout_ms": int(limits.KAFKA_REQUEST_S * 1000),
        "retry_backoff_ms": 100,
        "security_protocol": settings.kafka_security.upper(),
        "ssl_context": _ssl(settings) if settings.kafka_security.endswith("ssl") else None,
        "sasl_mechanism": settings.kafka_sasl,
        "sasl_plain_username": settings.kafka_username,
        "sasl_plain_password": settings.kafka_password and settings.kafka_password.get_secret_value(),
    }


def _ssl(settings: LogSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.kafka_ca_file and str(settings.kafka_ca_file))
    if settings.kafka_cert_file and settings.kafka_key_file:
        context.load_cert_chain(settings.kafka_cert_file, settings.kafka_key_file)
    return context


def source(topic: str, topic_id: str) -> str:
    """The name of a topic's contents: one that was deleted and made again is another source."""
    return f"{topic}@{topic_id}"


class Leader(NamedTuple):
    """The broker that leads a partition, -1 for none. The epoch changes with each election."""

    node: int
    epoch: int


class Topic(NamedTuple):
    """A topic as it is today: its id (32 hex digits) and, by number, the leaders of its partitions."""

    id: str
    leaders: dict[int, Leader]


async def topics(client: AIOKafkaClient, names: list[str], node: int | None = None) -> dict[str, Topic]:
    """Each topic that exists, as `node` knows it, else any broker. Raises KafkaError.

    Ids came with version 10 of Metadata (KIP-516); aiokafka itself speaks version 5.
    """
    response = await client.send(client.get_random_node() if node is None else node, _TopicIds(names))
    found = {}
    for code, name, topic_id, _, partitions, *_ in response.topics:
        if code == 0:
            found[name] = Topic(
                topic_id.hex, {number: Leader(node, epoch) for _, number, node, epoch, *_ in partitions}
            )
        elif code != _UNKNOWN_TOPIC:
            raise for_code(code)(name)
    return found


async def topic_ids(client: AIOKafkaClient, names: list[str]) -> dict[str, str]:
    """The id of each topic that exists. Raises KafkaError."""
    return {name: topic.id for name, topic in (await topics(client, names)).items()}


_UNKNOWN_TOPIC = 3


class _Uuid(AbstractType[uuid.UUID]):
    @classmethod
    def encode(cls, value: uuid.UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> uuid.UUID:
        return uuid.UUID(bytes=data.read(16))


_PARTITION = Schema(
    ("error_code", Int16), ("partition", Int32), ("leader", Int32), ("leader_epoch", Int32),
    ("replicas", CompactArray(Int32)), ("isr", CompactArray(Int32)), ("offline", CompactArray(Int32)),
    ("tags", TaggedFields),
)  # fmt: skip


class _Answer(Response):
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", CompactArray(
            ("node_id", Int32), ("host", CompactString("utf-8")), ("port", Int32), ("rack", CompactString("utf-8")),
            ("tags", TaggedFields),
        )),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        ("topics", CompactArray(
            ("error_code", Int16), ("name", CompactString("utf-8")), ("id", _Uuid), ("is_internal", Boolean),
            ("partitions", CompactArray(_PARTITION)), ("authorized", Int32), ("tags", TaggedFields),
        )),
        ("cluster_authorized", Int32),
        ("tags", TaggedFields),
    )  # fmt: skip


class _Question(RequestStruct):
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Answer
    SCHEMA = Schema(
        ("topics", CompactArray(("id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields))),
        ("create", Boolean),
        ("with_cluster", Boolean),
        ("with_topic", Boolean),
        ("tags", TaggedFields),
    )


class _TopicIds(Request[_Question]):
    API_KEY = 3

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_Question]) -> _Question:
        no_id, no_tags = uuid.UUID(int=0), {}  # type: ignore[var-annotated]
        topics = [(no_id, topic, no_tags) for topic in self._topics]
        return request_struct_class(topics, False, False, False, no_tags)
