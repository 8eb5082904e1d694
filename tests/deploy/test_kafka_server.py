"""Kafka out of a wheel and fetched jars: durable, checked, and back on its port whatever was killed."""

import shutil
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import TopicPartition

from deploy.run import kafka
from deploy.run.listening import listen, port_of
from deploy.run.servers import Server


async def make(url: str, topic: str, copies: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=url.removeprefix("kafka://"))
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, copies)])
    await admin.close()


async def record(url: str, topic: str, value: bytes) -> None:
    """Get one record acknowledged."""
    async with AIOKafkaProducer(bootstrap_servers=url.removeprefix("kafka://"), acks="all") as producer:
        await producer.send_and_wait(topic, value)


async def recorded(url: str, topic: str) -> bytes:
    """The first record of the topic."""
    consumer = AIOKafkaConsumer(bootstrap_servers=url.removeprefix("kafka://"), auto_offset_reset="earliest")
    consumer.assign([TopicPartition(topic, 0)])
    async with consumer:
        return bytes((await consumer.getone()).value)


async def test_a_record_outlives_a_killed_broker_on_the_same_port(kafka_broker: list[Server]) -> None:
    (killed,) = kafka_broker
    await make(killed.url, "clicks", 1)
    await record(killed.url, "clicks", b"one")
    killed.process.kill()
    killed.process.wait()
    kafka_broker[0] = kafka.start_kafka(killed.folder, killed.port)
    assert kafka_broker[0].url == killed.url
    assert await recorded(killed.url, "clicks") == b"one"


async def test_a_cluster_goes_on_without_one_broker_and_takes_it_back(kafka_cluster: list[Server]) -> None:
    killed = kafka_cluster[0]
    await make(killed.url, "clicks", 3)
    killed.process.kill()
    killed.process.wait()
    await record(kafka_cluster[1].url, "clicks", b"one")
    kafka_cluster[0] = kafka.start_again(killed)
    assert await recorded(killed.url, "clicks") == b"one"


def test_a_jar_that_differs_is_refused_by_name(tmp_path: Path) -> None:
    copy = tmp_path / "jars"
    shutil.copytree(kafka.cache(), copy)
    jar = kafka.jars(copy)[0]
    jar.write_bytes(jar.read_bytes()[:-1] + b"?")
    with pytest.raises(kafka.CannotStart, match=rf"^{jar} is not what it should be .*$"):
        kafka.jars(copy)


def test_what_is_cached_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "jars"
    shutil.copytree(kafka.cache(), copy)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # where nobody answers
    assert len(kafka.jars(copy)) == 46
    kafka.jars(copy)[0].unlink()
    with pytest.raises(kafka.CannotStart, match=r"^cannot fetch com\.dynatrace\.hash4j:hash4j:0\.22\.0 for Kafka: .*$"):
        kafka.jars(copy)
    assert not (copy / "half").exists()


def test_without_its_extra_it_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "find_spec", lambda name: None)
    with pytest.raises(kafka.CannotStart, match=r"^Kafka of our own needs .*: install clickdam\[kafka\]$"):
        kafka.start_kafka(tmp_path)


def test_what_kafka_dies_of_is_one_clear_line(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0)[0] as taken:
        why = rf"^kafka did not start on kafka://127\.0\.0\.1:{port_of(taken)}: .*: Address already in use$"
        with pytest.raises(kafka.CannotStart, match=why):
            kafka.start_kafka(tmp_path, port_of(taken))
