"""Real servers for the tests: one PostgreSQL, Valkey and Kafka for the session, a database of its own for each test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import asyncpg
import pytest

from aggregator.db.migrate import migrate
from deploy.run import kafka, servers
from loadtests.faults import edges, ridden, topics
from loadtests.faults.edges import Filled, RunningEdge
from schemas import redis
from schemas.settings import LogSettings

TEMPLATE = "clickdam_template"


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """Not under pytest's own folder, which root keeps to itself: Postgres runs as another user."""
    folder = Path(tempfile.mkdtemp(prefix="clickdam-tests-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def valkey_url(server_folder: Path) -> Iterator[str]:
    server = servers.start_valkey(server_folder / "valkey")
    yield server.url
    servers.stop_valkey(server)


@pytest.fixture(scope="session")
def postgres_url(server_folder: Path) -> Iterator[str]:
    """The superuser's URL of the database `postgres`."""
    server = servers.start_postgres(server_folder / "postgres")
    yield server.url
    servers.stop_postgres(server)


@pytest.fixture(scope="session")
def kafka_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A Kafka of one broker: the one that CLICKDAM_TEST_KAFKA=host:port names, else our own."""
    given = os.environ.get("CLICKDAM_TEST_KAFKA")
    if given:
        yield f"kafka://{given}"
        return
    folder: Path = request.getfixturevalue("server_folder")
    server = kafka.start_kafka(folder / "kafka")
    yield server.url
    kafka.stop_kafka(server)


class KafkaTopics(NamedTuple):
    events: str
    beats: str


@pytest.fixture
def kafka_topics() -> KafkaTopics:
    """Names for topics that nobody else uses; the test makes the topics."""
    name = f"test.{uuid4().hex}"
    return KafkaTopics(f"{name}.events", f"{name}.beats")


@pytest.fixture
async def kafka_log(kafka_url: str, kafka_topics: KafkaTopics) -> LogSettings:
    """A log in Kafka that nobody else uses, its topics made, four partitions."""
    settings = LogSettings(
        log_url=kafka_url, kafka_events_topic=kafka_topics.events, kafka_beats_topic=kafka_topics.beats
    )
    await topics.make(settings)
    return settings


@pytest.fixture(scope="module")
def kafka_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[servers.Server]]:
    """Three brokers to be frozen and killed, for the tests of one file; each leaves them running: a broker that has
    been killed is replaced in the list by what `kafka.start_again` returns."""
    brokers = kafka.start_kafka_cluster(tmp_path_factory.mktemp("kafka"))
    yield brokers
    for broker in brokers:
        broker.process.kill()
        broker.process.wait()


@pytest.fixture
def kafka_broker(tmp_path: Path) -> Iterator[list[servers.Server]]:
    """One broker to be frozen and killed, for one test, which puts what `kafka.start_again` returns into the list."""
    brokers = [kafka.start_kafka(tmp_path / "kafka")]
    yield brokers
    for broker in brokers:
        broker.process.kill()
        broker.process.wait()


@pytest.fixture(scope="session")
async def migrated_template(postgres_url: str) -> str:
    await run(postgres_url, f"CREATE DATABASE {TEMPLATE}")
    await migrate(named(postgres_url, TEMPLATE))
    return TEMPLATE


@asynccontextmanager
async def fresh_database(postgres_url: str, template: str) -> AsyncIterator[str]:
    name = f"test_{uuid4().hex}"
    await run(postgres_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield named(postgres_url, name)
    await run(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database_url(postgres_url: str, migrated_template: str) -> AsyncIterator[str]:
    """A fresh, migrated database, dropped afterwards."""
    async with fresh_database(postgres_url, migrated_template) as url:
        yield url


@pytest.fixture(scope="module")
async def shared_database_url(postgres_url: str, migrated_template: str) -> AsyncIterator[str]:
    """The same for all tests of a file."""
    async with fresh_database(postgres_url, migrated_template) as url:
        yield url


@pytest.fixture(scope="module")
async def shared_redis_url(valkey_url: str) -> str:
    """A Redis that was empty before the tests of a file; they leave it to each other as it is."""
    async with redis.publishing(valkey_url) as client:
        await redis.done(client.flushall())
    return valkey_url


@pytest.fixture
async def redis_url(valkey_url: str) -> str:
    """An empty Redis database."""
    client = redis.publishing(valkey_url)
    await redis.done(client.flushall())
    await client.aclose()
    return valkey_url


@pytest.fixture
async def publisher(redis_url: str) -> AsyncIterator[Filled]:
    """The configs of `edges.configs()` in Redis, with marker and beats kept alive."""
    async with edges.filled(redis_url) as publisher:
        yield publisher


@pytest.fixture
async def running(tmp_path: Path, redis_url: str, publisher: Filled) -> AsyncIterator[RunningEdge]:
    """A warm edge in this process that hears the invalidation stream."""
    async with edges.running_edge(edges.settings(tmp_path, redis_url)) as running:
        await edges.follows(running.edge)
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The faults that were ridden out, as one table."""
    if ridden.rows:
        terminalreporter.section("faults")
        for row in (ridden.HEAD, tuple("---" for _ in ridden.HEAD), *ridden.rows):
            terminalreporter.write_line(f"| {' | '.join(row)} |")


def named(url: str, database: str) -> str:
    return url.rpartition("/")[0] + f"/{database}"


async def run(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
