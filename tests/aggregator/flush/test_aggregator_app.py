"""The aggregator as a process: it says how it is, and leaves when told to."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from deploy.run.children import free_port
from deploy.run.servers import Server
from loadtests.faults.drift import drift
from loadtests.faults.journals import append, clicks, consumed, new_segment, settings
from loadtests.faults.kafkas import kafka_on_trial
from loadtests.faults.processes import aggregator
from loadtests.faults.proxy import FaultProxy
from loadtests.faults.topics import administering
from schemas import limits
from tests.conftest import KafkaTopics

START_S = 15.0


async def status(url: str) -> tuple[int, str]:
    try:
        async with aiohttp.ClientSession() as client, client.get(url) as answer:
            return answer.status, await answer.text()
    except aiohttp.ClientConnectionError:
        return 0, ""


async def becomes(url: str, wanted: int) -> None:
    async with asyncio.timeout(START_S):
        while (await status(url))[0] != wanted:
            await asyncio.sleep(0.05)


async def test_it_consumes_answers_on_its_admin_port_and_exits_in_order(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    append(new_segment(tmp_path), clicks(1_000))
    async with aggregator(settings(database_url, tmp_path, redis_url=redis_url)) as (process, admin):
        await becomes(f"{admin}/ready", 200)
        assert (await status(f"{admin}/live"))[0] == 200
        await consumed(database_url, tmp_path)
        _, metrics = await status(f"{admin}/metrics")
        assert re.search(r'clickdam_applied_events_total\{kind="click"\} 1000\.0', metrics)
        named = ("fenced_batches_total", "dead_letters_total", "batch_seconds_bucket", "unread_rows", "silent_edges")
        for name in (*named, "complete_through_timestamp_seconds"):
            assert f"clickdam_{name}" in metrics
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert time.monotonic() - began < 2
    assert (await drift(database_url, tmp_path)).drift == 0


async def test_it_is_alive_but_not_ready_while_postgres_and_redis_are_away_and_still_exits(tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    nowhere = settings(f"postgresql://postgres@{nobody}/none", tmp_path, redis_url=f"redis://{nobody}/0")
    async with aggregator(nowhere) as (process, admin):
        await becomes(f"{admin}/live", 200)
        await asyncio.sleep(1)
        assert (await status(f"{admin}/ready"))[0] == 503
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert time.monotonic() - began < 2


async def test_it_exits_at_once_while_postgres_is_frozen(database_url: str, redis_url: str, tmp_path: Path) -> None:
    parts = urlsplit(database_url)
    segment = new_segment(tmp_path)
    async with FaultProxy("127.0.0.1", parts.port or 5432) as proxy:
        url = parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{proxy.port}").geturl()
        async with aggregator(settings(url, tmp_path, redis_url=redis_url)) as (process, admin):
            await becomes(f"{admin}/ready", 200)
            proxy.mode = "blackhole"
            append(segment, clicks(100))
            await asyncio.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(5):
                assert await process.wait() == 0


async def test_on_kafka_it_shows_its_partitions_and_leaves_the_group_in_order(
    database_url: str, redis_url: str, kafka_url: str, kafka_topics: KafkaTopics
) -> None:
    async with kafka_on_trial(database_url, kafka_url, kafka_topics, redis_url=redis_url) as log:
        await log.append(clicks(1_000), 1)
        async with aggregator(log.settings) as (process, admin):
            await becomes(f"{admin}/ready", 200)
            await log.consumed()
            await asyncio.sleep(limits.REREAD_POSITIONS_S + 1)  # so often they are looked at
            _, metrics = await status(f"{admin}/metrics")
            of = f'{{partition="1",topic="{kafka_topics.events}"}}'
            for line in (
                f"clickdam_log_lag{of} 0.0",
                f"clickdam_stopped_partition{of} 0.0",
                "clickdam_assigned_partitions 3.0",
                "clickdam_rebalances_total 1.0",
            ):
                assert line in metrics.splitlines()
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
            assert time.monotonic() - began < 3
        async with administering(log.settings) as admin_client:
            (found,) = await admin_client.describe_consumer_groups([log.settings.kafka_group])
        ((_, _, state, *_),) = found.groups
        assert state == "Empty"
        assert (await log.drift()).drift == 0


async def test_it_exits_in_bounded_time_while_kafka_is_frozen(
    database_url: str, redis_url: str, kafka_broker: list[Server], kafka_topics: KafkaTopics
) -> None:
    async with kafka_on_trial(database_url, kafka_broker[0].url, kafka_topics, redis_url=redis_url) as log:
        await log.append(clicks(100))
        async with aggregator(log.settings) as (process, _):
            await log.consumed()
            kafka_broker[0].process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(2)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(8):
                assert await process.wait() == 0
            print(f"left in {time.monotonic() - began:.1f} s")
        kafka_broker[0].process.send_signal(signal.SIGCONT)
