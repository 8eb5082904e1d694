"""P1 to P6 on three real brokers with min.insync.replicas=2: a leader dies, all are restarted one after another."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.run.kafka import start_again
from deploy.run.servers import Server
from loadtests.faults.house import House, house
from loadtests.faults.ridden import holds, ride_out

P99_MAX_S = 1.0
P99_STRICT_MAX_S = 0.250
STOP_S = 20.0
TOPICS = {"kafka_partitions": "4", "kafka_replication": "3", "kafka_min_insync": "2"}
LENGTHS = [pytest.param(False, id="short"), pytest.param(True, id="long", marks=pytest.mark.long)]


@dataclass
class Cluster:
    house: House
    brokers: list[Server]

    async def kill(self, n: int) -> None:
        self.brokers[n].process.kill()
        await asyncio.to_thread(self.brokers[n].process.wait)

    async def start_again(self, n: int) -> None:
        self.brokers[n] = await asyncio.to_thread(start_again, self.brokers[n])

    async def restart_in_order(self, n: int) -> None:
        self.brokers[n].process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(self.brokers[n].process.wait, STOP_S)
        await self.start_again(n)


@pytest.fixture(scope="module")
async def cluster(
    tmp_path_factory: pytest.TempPathFactory,
    kafka_cluster: list[Server],
    shared_database_url: str,
    shared_redis_url: str,
) -> AsyncIterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("cluster")
    log_url = "kafka://" + ",".join(broker.url.removeprefix("kafka://") for broker in kafka_cluster)
    async with house(folder, shared_database_url, shared_redis_url, log_url, settings=TOPICS) as built:
        yield Cluster(built, kafka_cluster)


@pytest.mark.parametrize("long", LENGTHS)
async def test_visitors_notice_nothing_when_a_leader_dies_and_comes_back(cluster: Cluster, long: bool) -> None:
    ridden = await ride_out(
        cluster.house, "one of three brokers killed", lambda: cluster.kill(0), lambda: cluster.start_again(0),
        30 if long else 5,
    )  # fmt: skip
    holds(ridden, P99_STRICT_MAX_S if long else P99_MAX_S)


@pytest.mark.parametrize("long", LENGTHS)
async def test_visitors_notice_nothing_when_a_leader_is_frozen(cluster: Cluster, long: bool) -> None:
    async def send(number: signal.Signals) -> None:
        os.kill(cluster.brokers[1].pid, number)

    ridden = await ride_out(
        cluster.house, "one of three brokers frozen", lambda: send(signal.SIGSTOP), lambda: send(signal.SIGCONT),
        30 if long else 8,
    )  # fmt: skip
    holds(ridden, P99_STRICT_MAX_S if long else P99_MAX_S)


@pytest.mark.parametrize("long", LENGTHS)
async def test_visitors_notice_nothing_of_a_rolling_restart(cluster: Cluster, long: bool) -> None:
    async def roll() -> None:
        for n in range(3):
            await cluster.restart_in_order(n)
            await asyncio.sleep(10 if long else 1)

    async def nothing() -> None:
        pass

    ridden = await ride_out(cluster.house, "rolling restart of three brokers", roll, nothing, 0)
    holds(ridden, P99_STRICT_MAX_S if long else P99_MAX_S)
