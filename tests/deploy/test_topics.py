"""`clickdam migrate` makes the topics, and refuses those that would break what the log promises."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.run import kafka
from deploy.run.children import CannotStart, free_port
from deploy.run.topics import _Found, _refusals, ensure_topics
from schemas import limits
from schemas.settings import BadSettings, TopicSettings, load
from tests.conftest import KafkaTopics

RIGHT = {"message.timestamp.type": "LogAppendTime"}  # all else of a broker's defaults is
USER, PASSWORD = "stranger", "a-password"
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("CLICKDAM_")}


def wanted(kafka_url: str, topics: KafkaTopics, **fields: object) -> TopicSettings:
    small: dict[str, object] = {"kafka_partitions": 2, "kafka_replication": 1, "kafka_min_insync": 1}
    names = {"kafka_events_topic": topics.events, "kafka_beats_topic": topics.beats}
    return TopicSettings(log_url=kafka_url, **(small | names | fields))


@pytest.fixture
async def admin(kafka_url: str) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=kafka_url.removeprefix("kafka://"))
    await client.start()
    yield client
    await client.close()


async def partitions(admin: AIOKafkaAdminClient, topic: str) -> int:
    (found,) = await admin.describe_topics([topic])
    return len(found["partitions"])


async def test_missing_topics_are_made_and_then_there_is_nothing_to_do(
    kafka_url: str, kafka_topics: KafkaTopics, admin: AIOKafkaAdminClient
) -> None:
    settings = wanted(kafka_url, kafka_topics)
    assert await ensure_topics(settings) == [
        f"topic {kafka_topics.events} created, partitions: 2",
        f"topic {kafka_topics.beats} created, partitions: 1",
    ]
    assert await ensure_topics(settings) == []
    assert [await partitions(admin, topic) for topic in kafka_topics] == [2, 1]


async def test_a_topic_gets_the_partitions_it_lacks_and_keeps_those_it_has(
    kafka_url: str, kafka_topics: KafkaTopics, admin: AIOKafkaAdminClient
) -> None:
    await ensure_topics(wanted(kafka_url, kafka_topics))
    done = await ensure_topics(wanted(kafka_url, kafka_topics, kafka_partitions=5))
    assert done == [f"topic {kafka_topics.events} grown, partitions: 2 -> 5"]
    assert await ensure_topics(wanted(kafka_url, kafka_topics)) == []
    assert await partitions(admin, kafka_topics.events) == 5


@pytest.mark.parametrize(
    ("setting", "held", "must"),
    [
        ("cleanup.policy", "compact", "delete"),
        ("cleanup.policy", "compact,delete", "delete"),
        ("min.insync.replicas", "2", "1 or less, as many as there are replicas"),
        ("unclean.leader.election.enable", "true", "false"),
        ("max.message.bytes", "100000", f"{limits.RECORD_BYTES_MAX} or more"),
        ("retention.ms", "3600000", "604800000 or more"),
        ("retention.bytes", "1000000", "-1, because a size ends the time early"),
        (
            "message.timestamp.type",
            "CreateTime",
            "LogAppendTime, because an edge's own time would end the retention of what it sends late",
        ),
    ],
)
async def test_a_setting_that_breaks_a_promise_is_refused_by_its_name(
    setting: str, held: str, must: str, kafka_url: str, kafka_topics: KafkaTopics, admin: AIOKafkaAdminClient
) -> None:
    await admin.create_topics([NewTopic(kafka_topics.events, 2, 1, topic_configs=RIGHT | {setting: held})])
    with pytest.raises(CannotStart) as refused:
        await ensure_topics(wanted(kafka_url, kafka_topics))
    assert str(refused.value) == f"topic {kafka_topics.events}: {setting} is {held}, has to be {must}"
    assert kafka_topics.beats not in await admin.list_topics()


def test_what_a_broker_does_not_say_is_refused_by_its_name() -> None:
    """Some that speak Kafka's protocol have other settings than Apache Kafka."""
    refusals = _refusals("t", _Found({0: 3}, {}), TopicSettings(log_url="kafka://b:1"))
    assert [line.split(",")[0] for line in refusals] == [
        f"topic t: {setting} is None"
        for setting in (
            "cleanup.policy",
            "min.insync.replicas",
            "unclean.leader.election.enable",
            "max.message.bytes",
            "retention.ms",
            "message.timestamp.type",
            "retention.bytes",
        )
    ]


async def test_all_that_is_wrong_is_said_at_once(
    kafka_url: str, kafka_topics: KafkaTopics, admin: AIOKafkaAdminClient
) -> None:
    await admin.create_topics(
        [
            NewTopic(kafka_topics.events, 2, 1, topic_configs=RIGHT),
            NewTopic(kafka_topics.beats, 3, 1, topic_configs=RIGHT),
        ]
    )
    with pytest.raises(CannotStart) as refused:
        await ensure_topics(wanted(kafka_url, kafka_topics, kafka_replication=3, kafka_min_insync=2))
    assert sorted(str(refused.value).splitlines()) == sorted(
        [
            f"topic {kafka_topics.beats}: number of partitions is 3, has to be 1",
            *(
                f"topic {topic}: {line}"
                for topic in kafka_topics
                for line in (
                    "min.insync.replicas is 1, has to be 2 or more",
                    "replication factor is 1, has to be 3 or more",
                )
            ),
        ]
    )


async def test_more_replicas_than_brokers_are_refused_by_the_variable(
    kafka_url: str, kafka_topics: KafkaTopics
) -> None:
    with pytest.raises(CannotStart, match=r"creating it with CLICKDAM_KAFKA_REPLICATION=3 was refused: .*1 broker"):
        await ensure_topics(wanted(kafka_url, kafka_topics, kafka_replication=3, kafka_min_insync=2))


def test_more_replicas_in_sync_than_there_are_is_refused_by_the_variables() -> None:
    with pytest.raises(BadSettings, match=r"CLICKDAM_KAFKA_MIN_INSYNC=2: is more than CLICKDAM_KAFKA_REPLICATION=1"):
        load(TopicSettings, log_url="kafka://b:1", kafka_replication=1, kafka_min_insync=2)


async def test_two_may_migrate_at_once(kafka_url: str, kafka_topics: KafkaTopics) -> None:
    settings = wanted(kafka_url, kafka_topics)
    await asyncio.gather(ensure_topics(settings), ensure_topics(settings), ensure_topics(settings))
    assert await ensure_topics(settings) == []


@pytest.fixture(scope="module")
def guarded_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker that lets one user in, who may do nothing."""
    inside, outside = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    controller = f"127.0.0.1:{free_port()}"
    settings = {
        "listeners": f"PLAINTEXT://{inside},USERS://{outside},CONTROLLER://{controller}",
        "advertised.listeners": f"PLAINTEXT://{inside},USERS://{outside}",
        "controller.quorum.voters": f"1@{controller}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,USERS:SASL_PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.users.plain.sasl.jaas.config": (
            f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    server = kafka.start_kafka(tmp_path_factory.mktemp("guarded"), int(inside.partition(":")[2]), settings)
    yield f"kafka://{outside}"
    kafka.stop_kafka(server)


@pytest.mark.parametrize(
    ("password", "said"),
    [(PASSWORD, "creating it was refused: Authorization failed."), ("wrong", "cannot be reached: .*[Aa]uthentication")],
)
async def test_who_may_not_is_told_so_in_one_line(
    password: str, said: str, guarded_url: str, kafka_topics: KafkaTopics
) -> None:
    user = {"kafka_security": "sasl_plaintext", "kafka_sasl": "PLAIN", "kafka_username": USER}
    with pytest.raises(CannotStart, match=said) as refused:
        await ensure_topics(wanted(guarded_url, kafka_topics, **user, kafka_password=password))
    assert len(str(refused.value).splitlines()) == 1
    assert PASSWORD not in str(refused.value)


def migrate(database_url: str, log_url: str, topics: KafkaTopics) -> subprocess.CompletedProcess[str]:
    variables = {
        "DATABASE_URL": database_url, "LOG_URL": log_url, "KAFKA_EVENTS_TOPIC": topics.events,
        "KAFKA_BEATS_TOPIC": topics.beats, "KAFKA_REPLICATION": "1", "KAFKA_MIN_INSYNC": "1",
    }  # fmt: skip
    env = CLEAN | {f"CLICKDAM_{name}": value for name, value in variables.items()}
    command = [sys.executable, "-m", "deploy.run.cli", "migrate"]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)


def test_migrate_makes_the_topics_of_the_log_that_is_set(
    database_url: str, kafka_url: str, kafka_topics: KafkaTopics
) -> None:
    done = migrate(database_url, kafka_url, kafka_topics)
    assert done.stdout.splitlines() == [
        f"topic {kafka_topics.events} created, partitions: 12",
        f"topic {kafka_topics.beats} created, partitions: 1",
    ]
    assert migrate(database_url, kafka_url, kafka_topics).stdout == "nothing to do\n"


def test_migrate_needs_no_kafka_for_a_journal(database_url: str, kafka_topics: KafkaTopics, tmp_path: Path) -> None:
    assert migrate(database_url, f"journal://{tmp_path}", kafka_topics).stdout == "nothing to do\n"


def test_an_absent_broker_is_one_clear_line(database_url: str, kafka_topics: KafkaTopics) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    done = migrate(database_url, f"kafka://{nobody}", kafka_topics)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"Kafka at {nobody} cannot be reached" in done.stderr
