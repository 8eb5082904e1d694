"""The topics of the log in Kafka: made where they are missing, refused where they would break a promise."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import create_conn

from deploy.run.children import CannotStart
from schemas import limits
from schemas.kafka import connection, source, topic_ids
from schemas.settings import LogSettings, TopicSettings

READY_S = 30.0  # until new partitions have leaders; a cluster that has just started elects them one by one
CLOSE_S = 0.5  # a client of a frozen broker may not come to an end
TOTAL_S = 90.0  # whatever happens, the operator hears of it within this time
_HOUR_MS = 3_600_000
_STILL_NEW = (errors.UnknownTopicOrPartitionError.errno, errors.LeaderNotAvailableError.errno)
_BEATS_PARTITIONS = 1  # so that an edge's registration and the beats of other edges have an order


class _Found(NamedTuple):
    """A topic as it is: partition -> replicas, and its settings by Kafka's names."""

    replicas: dict[int, int]
    settings: dict[str, str]


class _Rule(NamedTuple):
    """What a setting has to be, in words and as a test."""

    setting: str
    must: str
    holds: Callable[[str], bool]


async def ensure_topics(settings: TopicSettings) -> list[str]:
    """Make the topics, or add the partitions, that are missing; answers what was done, a line each.

    Raises CannotStart when Kafka does not answer or does not allow it, and, naming every topic and setting, when a
    topic that exists would break what the log promises. Nothing has been changed then.
    """
    admin = AIOKafkaAdminClient(**connection(settings))
    try:
        async with asyncio.timeout(TOTAL_S):
            await _start(admin, settings)
            return await _ensure(admin, settings)
    except TimeoutError:
        raise CannotStart(f"Kafka at {_where(settings)} does not answer in time") from None
    except errors.KafkaError as error:
        raise CannotStart(f"Kafka at {_where(settings)} refuses: {_words(error)}") from None
    finally:
        await admin.close()


async def held(settings: LogSettings) -> dict[tuple[str, int], range]:
    """The offsets that the log holds, by source and partition. Raises CannotStart when Kafka does not say.

    It may take for ever while Kafka is frozen: the caller sets the time.
    """
    client, consumer = AIOKafkaClient(**connection(settings)), AIOKafkaConsumer(**connection(settings))
    try:
        await client.bootstrap()
        await consumer.start()
        ids = await topic_ids(client, [settings.kafka_events_topic, settings.kafka_beats_topic])
        known = await client.fetch_all_metadata()
        partitions = [TopicPartition(name, one) for name in ids for one in known.partitions_for_topic(name) or ()]
        firsts, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
    except errors.KafkaError as error:
        raise CannotStart(f"Kafka at {_where(settings)} does not say what it holds: {_words(error)}") from None
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.gather(client.close(), consumer.stop())
    return {(source(of.topic, ids[of.topic]), of.partition): range(firsts[of], ends[of]) for of in partitions}


async def _ensure(admin: AIOKafkaAdminClient, settings: TopicSettings) -> list[str]:
    wanted = {settings.kafka_events_topic: settings.kafka_partitions, settings.kafka_beats_topic: _BEATS_PARTITIONS}
    found = await _found(admin, wanted)
    refusals = [line for topic, one in found.items() for line in _refusals(topic, one, settings)]
    if refusals:
        raise CannotStart("\n".join(refusals))
    missing = {topic: count for topic, count in wanted.items() if topic not in found}
    growing = {topic: count for topic, count in wanted.items() if 0 < len(_replicas(found, topic)) < count}
    await _create(admin, missing, settings)
    await _grow(admin, growing)
    await _led(admin, wanted)
    return [f"topic {topic} created, partitions: {count}" for topic, count in missing.items()] + [
        f"topic {topic} grown, partitions: {len(found[topic].replicas)} -> {count}" for topic, count in growing.items()
    ]


def _replicas(found: dict[str, _Found], topic: str) -> dict[int, int]:
    return found[topic].replicas if topic in found else {}


def _refusals(topic: str, found: _Found, settings: TopicSettings) -> list[str]:
    fewest = min(found.replicas.values())
    lines = [
        f"topic {topic}: {rule.setting} is {found.settings.get(rule.setting)}, has to be {rule.must}"
        for rule in _rules(settings, fewest)
        if not rule.holds(found.settings.get(rule.setting, ""))
    ]
    if fewest < settings.kafka_replication:
        lines.append(f"topic {topic}: replication factor is {fewest}, has to be {settings.kafka_replication} or more")
    if topic == settings.kafka_beats_topic and len(found.replicas) > _BEATS_PARTITIONS:
        lines.append(f"topic {topic}: number of partitions is {len(found.replicas)}, has to be {_BEATS_PARTITIONS}")
    return lines


def _rules(settings: TopicSettings, replicas: int) -> list[_Rule]:
    insync, retention_ms = settings.kafka_min_insync, settings.kafka_retention_h * _HOUR_MS
    return [
        _Rule("cleanup.policy", "delete", lambda held: held == "delete"),
        _Rule("min.insync.replicas", f"{insync} or more", lambda held: _number(held) >= insync),
        _Rule(
            "min.insync.replicas",
            f"{replicas} or less, as many as there are replicas",
            lambda held: _number(held) <= replicas,
        ),
        _Rule("unclean.leader.election.enable", "false", lambda held: held == "false"),
        _Rule(
            "max.message.bytes",
            f"{limits.RECORD_BYTES_MAX} or more",
            lambda held: _number(held) >= limits.RECORD_BYTES_MAX,
        ),
        _Rule(
            "retention.ms",
            f"{retention_ms} or more",
            lambda held: held == "-1" or _number(held) >= retention_ms,
        ),
        _Rule(
            "message.timestamp.type",
            "LogAppendTime, because an edge's own time would end the retention of what it sends late",
            lambda held: held == "LogAppendTime",
        ),
        _Rule("retention.bytes", "-1, because a size ends the time early", lambda held: held == "-1"),
    ]


def _number(held: str) -> int:
    """-1 for what a broker does not say."""
    return int(held or -1)


def _settings_of_new(settings: TopicSettings) -> dict[str, str]:
    return {
        "cleanup.policy": "delete",
        "min.insync.replicas": str(settings.kafka_min_insync),
        "unclean.leader.election.enable": "false",
        "max.message.bytes": str(limits.RECORD_BYTES_MAX),
        "retention.ms": str(settings.kafka_retention_h * _HOUR_MS),
        "retention.bytes": "-1",
        "message.timestamp.type": "LogAppendTime",
    }


async def _found(admin: AIOKafkaAdminClient, topics: Iterable[str]) -> dict[str, _Found]:
    """The topics that exist. Asked by the list of all, because a question by name may make what it asks for."""
    names = sorted(set(topics) & set(await admin.list_topics()))
    if not names:
        return {}
    described = await _described(admin, names)
    asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    settings: dict[str, dict[str, str]] = {}
    for answer in await admin.describe_configs(asked):
        for code, message, _, name, entries in answer.resources:
            _raise(code, f"topic {name}: describing its settings", message)
            settings[name] = {entry[0]: entry[1] for entry in entries}
    return {
        name: _Found({one["partition"]: len(one["replicas"]) for one in partitions}, settings[name])
        for name, partitions in described.items()
    }


async def _described(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    topics = await admin.describe_topics(list(names))
    for topic in topics:
        if topic["error_code"] not in _STILL_NEW:
            _raise(topic["error_code"], f"topic {topic['topic']}: describing it")
    return {topic["topic"]: topic["partitions"] for topic in topics}


async def _create(admin: AIOKafkaAdminClient, missing: dict[str, int], settings: TopicSettings) -> None:
    new = [
        NewTopic(topic, count, settings.kafka_replication, topic_configs=_settings_of_new(settings))
        for topic, count in missing.items()
    ]
    if not new:
        return
    answer = await admin.create_topics(new)
    for topic, code, message in answer.topic_errors:
        doing = f"topic {topic}: creating it"
        if code == errors.InvalidReplicationFactorError.errno:
            doing += f" with CLICKDAM_KAFKA_REPLICATION={settings.kafka_replication}"
        if code != errors.TopicAlreadyExistsError.errno:  # somebody else migrates too
            _raise(code, doing, message)


async def _grow(admin: AIOKafkaAdminClient, growing: dict[str, int]) -> None:
    if growing:
        await admin.create_partitions({topic: NewPartitions(count) for topic, count in growing.items()})


async def _led(admin: AIOKafkaAdminClient, wanted: dict[str, int]) -> None:
    """Return when every partition has a leader."""
    try:
        async with asyncio.timeout(READY_S):
            while not _all_led(await _described(admin, wanted), wanted):
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise CannotStart(
            f"topics {', '.join(wanted)}: not every partition has a leader after {READY_S:.0f} s"
        ) from None


def _all_led(described: dict[str, list[dict[str, Any]]], wanted: dict[str, int]) -> bool:
    led = {topic: sum(one["leader"] >= 0 for one in partitions) for topic, partitions in described.items()}
    return all(led.get(topic, 0) >= count for topic, count in wanted.items())


async def _start(admin: AIOKafkaAdminClient, settings: TopicSettings) -> None:
    try:
        await admin.start()
    except errors.KafkaConnectionError:
        raise CannotStart(await _why_not_reached(settings)) from None


async def _why_not_reached(settings: TopicSettings) -> str:
    """aiokafka only logs why it could not connect, so the first server is asked once more."""
    how = {name: value for name, value in connection(settings).items() if name not in _NOT_OF_A_CONNECTION}
    host, _, port = settings.kafka_servers[0].rpartition(":")
    try:
        opened = await create_conn(host, int(port), **how)
    except (errors.KafkaError, OSError, TimeoutError) as error:
        return f"Kafka at {_where(settings)} cannot be reached: {_words(error)}"
    opened.close()
    return f"Kafka at {_where(settings)} cannot be reached"


_NOT_OF_A_CONNECTION = ("bootstrap_servers", "retry_backoff_ms")


def _raise(code: int, doing: str, message: str | None = None) -> None:
    if code:
        error = errors.for_code(code)
        raise CannotStart(f"{doing} was refused: {message or _words(error())}")


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _where(settings: LogSettings) -> str:
    return ",".join(settings.kafka_servers)
