"""`clickdam up`: a newcomer's first minute, and the figures after whatever was killed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import asyncpg
import psutil
import pytest

from deploy.run.backlog import rows_behind
from deploy.run.children import wait_until
from deploy.run.demo import count_recorded, send
from deploy.run.screen import BROWSER
from schemas.click_id import ClickKeys, read

START_S = 15.0
STOP_S = 15.0
FREE_PORTS = ["--edge-port", "0", "--api-port", "0", "--shop-port", "0"]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("CLICKDAM_")}


@dataclass
class Up:
    """A running `clickdam up`, its screen, how long it took."""

    data: Path
    process: subprocess.Popen[str]
    screen: list[str]
    took_s: float

    @property
    def told(self) -> dict[str, Any]:
        return dict(json.loads((self.data / "clickdam.json").read_text()))

    @property
    def commands(self) -> list[str]:
        return [line for line in self.screen if "curl" in line]

    def uuids(self, click_ids: list[str]) -> set[UUID]:
        keys = ClickKeys.parse(json.loads((self.data / "secrets.json").read_text())["click_keys"])
        return {read(keys, one).uuid for one in click_ids}

    def kill(self, *names: str) -> None:
        told = self.told["processes"]
        self.process.kill()
        for name in names:
            for pid in told[name]:
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def clickdam(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.run.cli", *arguments]
    return subprocess.run(command, env=CLEAN, capture_output=True, text=True, check=False, timeout=60)


def start(data: Path, *arguments: str) -> Up:
    began = time.monotonic()
    command = [sys.executable, "-m", "deploy.run.cli", "up", "--data", str(data), *FREE_PORTS, *arguments]
    errors = (data.parent / "errors").open("a+")
    process = subprocess.Popen(command, env=CLEAN, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    screen = []
    while not screen or "/v1/reports" not in screen[-1]:
        line = process.stdout.readline()
        assert line, f"up ended with {process.wait()}: {(data.parent / 'errors').read_text()[-2000:]}"
        screen.append(line.rstrip("\n"))
    errors.close()
    return Up(data, process, screen, time.monotonic() - began)


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="clickdam-tests-"))
    folder.chmod(0o711)
    yield folder / "data"
    shutil.rmtree(folder)


@pytest.fixture
def up(data: Path) -> Iterator[Up]:
    """It runs before and after each test on the same data folder."""
    running = start(data)
    yield running
    if running.process.poll() is None:
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(STOP_S) == 0
    assert running.process.stdout is not None
    running.process.stdout.close()


async def totals(up: Up) -> dict[str, int]:
    """The figures once all that is in the journal has been applied."""
    async with asyncio.timeout(10):
        while await rows_behind(up.data / "journal", up.told["database_url"]):
            await asyncio.sleep(0.1)
    connection = await asyncpg.connect(up.told["database_url"])
    figures = {
        "rows": "SELECT count(*) FROM click",
        "rolled up": "SELECT coalesce(sum(clicks), 0)::bigint FROM click_rollup",
        "conversions": "SELECT count(*) FROM conversion",
        "paid": "SELECT coalesce(sum(payout_minor), 0)::bigint FROM conversion",
    }
    found = {name: await connection.fetchval(sql) for name, sql in figures.items()}
    await connection.close()
    return found


def test_the_lines_of_the_screen_run_as_they_are(up: Up) -> None:
    click, sale, again, report = up.commands
    done = subprocess.run(["sh", "-c", f"{click}\n{sale}\n{again}"], capture_output=True, text=True, check=True)
    receipts = [json.loads(line) for line in done.stdout.splitlines()]
    assert [receipt["result"] for receipt in receipts] == ["accepted", "duplicate"]
    assert receipts[0]["conversion_id"] == receipts[1]["conversion_id"]

    def reported() -> bool:
        shown = subprocess.run(["sh", "-c", report], capture_output=True, text=True, check=True).stdout
        rows = json.loads(shown)["data"]
        return [(row["clicks"], row["conversions"], row["sale_amount"], row["payout"]) for row in rows] == [
            (1, 1, 4990, 1200)
        ]

    assert wait_until(reported, 10)


def test_the_description_is_complete_private_and_true(up: Up) -> None:
    told = up.told
    assert (up.data / "clickdam.json").stat().st_mode & 0o777 == 0o600
    assert (up.data / "secrets.json").stat().st_mode & 0o777 == 0o600
    assert {"edge_url", "api_url", "redis_url", "database_url", "admin_key", "processes", "demo"} <= told.keys()
    assert told["demo"].keys() >= {"link_url", "code", "partner_key", "advertiser_token", "shop_url"}
    assert told["processes"]["kafka"] == []
    for name in ("edge", "worker", "aggregator", "api", "valkey", "postgres"):
        (pid,) = told["processes"][name]
        assert psutil.pid_exists(pid)


async def test_the_shop_sells_and_shows_the_receipt(up: Up) -> None:
    async with aiohttp.ClientSession(headers={"User-Agent": BROWSER}) as session:
        async with session.get(up.told["demo"]["link_url"]) as arrived:
            assert str(arrived.url).startswith(up.told["demo"]["shop_url"])
            click_id = arrived.url.query["click_id"]
            assert click_id in await arrived.text()
        async with session.post(up.told["demo"]["shop_url"] + "/buy", data={"click_id": click_id}) as bought:
            assert "accepted" in await bought.text()


def test_a_used_port_and_a_locked_folder_are_one_clear_line_each(up: Up, tmp_path: Path) -> None:
    port = up.told["edge_url"].rpartition(":")[2]
    used = clickdam("up", "--data", str(tmp_path / "other"), "--edge-port", port)
    assert (used.returncode, len(used.stderr.splitlines())) == (1, 1)
    assert f"port {port} of 127.0.0.1 is in use" in used.stderr
    locked = clickdam("up", "--data", str(up.data), *FREE_PORTS)
    assert (locked.returncode, len(locked.stderr.splitlines())) == (1, 1)
    assert "another `clickdam up` runs on" in locked.stderr


def test_a_demo_with_a_killed_aggregator_records_what_was_answered(up: Up) -> None:
    done = clickdam("demo", "--data", str(up.data), "--kill", "--clicks", "400")
    assert done.returncode == 0, done.stderr
    assert "answered 400 = recorded 400" in done.stdout


@pytest.mark.parametrize("name", ["worker", "edge", "aggregator", "api", "valkey", "postgres"])
def test_what_dies_is_started_again_and_described_anew(up: Up, name: str) -> None:
    (before,) = up.told["processes"][name]
    os.kill(before, signal.SIGKILL)
    assert wait_until(lambda: up.told["processes"][name] not in ([], [before]), 10)


async def test_ctrl_c_under_load_ends_well_and_loses_nothing(data: Path) -> None:
    first = start(data)
    answered: list[str] = []
    sending = asyncio.create_task(send(first.told["demo"]["link_url"], 10_000_000, lambda _: None, answered))
    await asyncio.sleep(1)
    first.process.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(first.process.wait, STOP_S) == 0
    with pytest.raises(aiohttp.ClientError):
        await sending
    assert len(answered) > 50
    second = start(data)
    uuids = second.uuids(answered)
    assert await count_recorded(second.told["database_url"], uuids, lambda _: None) == len(uuids)
    await stop_and_compare(second)


@pytest.mark.parametrize(
    "killed",
    [(), ("postgres",), ("valkey",), ("edge", "worker", "aggregator", "api", "valkey", "postgres")],
    ids=["parent", "postgres", "valkey", "all"],
)
async def test_the_next_start_is_clean_and_exact_after_a_kill(data: Path, killed: tuple[str, ...]) -> None:
    first = start(data)
    before = await totals(first)
    uuids = first.uuids(await send(first.told["demo"]["link_url"], 200, lambda _: None))
    first.kill(*killed)
    second = start(data)
    assert second.took_s < START_S
    assert await count_recorded(second.told["database_url"], uuids, lambda _: None) == 200
    after = await totals(second)
    assert after == before | {"rows": before["rows"] + 200, "rolled up": before["rolled up"] + 200}
    await stop_and_compare(second)


async def stop_and_compare(up: Up) -> None:
    """A clean stop, after which raw rows and rollup agree."""
    figures = await totals(up)
    assert figures["rows"] == figures["rolled up"]
    up.process.terminate()
    assert up.process.wait(STOP_S) == 0
