"""The aggregator as a process: it says how it is, and leaves when told to."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from deploy.run.children import free_port
from loadtests.faults.drift import drift
from loadtests.faults.journals import append, clicks, consumed, new_segment

START_S = 15.0


@asynccontextmanager
async def aggregator(
    database_url: str, redis_url: str, folder: Path
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A real process, and the URL of its admin port."""
    port = free_port()
    urls = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "LOG_URL": f"journal://{folder}"}
    env = os.environ | {f"CLICKDAM_{name}": url for name, url in urls.items()} | {"CLICKDAM_ADMIN_PORT": str(port)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from deploy.run.cli import main; main()", "aggregator",
        env=env, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


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
    async with aggregator(database_url, redis_url, tmp_path) as (process, admin):
        await becomes(f"{admin}/ready", 200)
        assert (await status(f"{admin}/live"))[0] == 200
        await consumed(database_url, tmp_path)
        _, metrics = await status(f"{admin}/metrics")
        assert re.search(r'clickdam_applied_events_total\{kind="click"\} 1000\.0', metrics)
        for name in ("fenced_batches_total", "dead_letters_total", "batch_seconds_bucket", "unread_rows"):
            assert f"clickdam_{name}" in metrics
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert time.monotonic() - began < 2
    assert (await drift(database_url, tmp_path)).drift == 0


async def test_it_is_alive_but_not_ready_while_postgres_and_redis_are_away_and_still_exits(tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    urls = f"postgresql://postgres@{nobody}/none", f"redis://{nobody}/0"
    async with aggregator(*urls, tmp_path) as (process, admin):
        await becomes(f"{admin}/live", 200)
        await asyncio.sleep(1)
        assert (await status(f"{admin}/ready"))[0] == 503
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert time.monotonic() - began < 2
