"""`clickdam up`: a newcomer's first minute, and the figures after whatever was killed."""

from __future__ import annotations

import asyncio
import contextlib
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

from deploy.run.backlog import behind, held
from deploy.run.children import wait_until
from deploy.run.demo import SENDERS, count_recorded, send
from deploy.run.demo_shop import send_postback
from deploy.run.screen import BROWSER
from schemas.click_id import ClickKeys, read
from schemas.settings import LogSettings

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


@contextlib.contextmanager
def start(data: Path, *arguments: str) -> Iterator[Up]:
    """It runs until it is stopped, or killed when this ends."""
    began = time.monotonic()
    command = [sys.executable, "-m", "deploy.run.cli", "up", "--data", str(data), *FREE_PORTS, *arguments]
    errors = data.parent / "errors"
    with (
        errors.open("a") as stderr,
        subprocess.Popen(command, env=CLEAN, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        assert process.stdout is not None
        screen = []
        while not screen or "/v1/reports" not in screen[-1]:
            line = process.stdout.readline()
            assert line, f"up ended with {process.wait()}: {errors.read_text()[-2000:]}"
            screen.append(line.rstrip("\n"))
        try:
            yield Up(data, process, screen, time.monotonic() - began)
        finally:
            process.kill()


def end(up: Up, ask: signal.Signals = signal.SIGINT) -> None:
    up.process.send_signal(ask)
    assert up.process.wait(STOP_S) == 0


@contextlib.contextmanager
def new_folder() -> Iterator[Path]:
    """Not pytest's own, where root's Postgres could not reach it."""
    folder = Path(tempfile.mkdtemp(prefix="clickdam-tests-"))
    folder.chmod(0o711)
    yield folder / "data"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    """One for all tests that leave it running."""
    with new_folder() as data, start(data) as running:
        yield running
        end(running)


@pytest.fixture
def data() -> Iterator[Path]:
    with new_folder() as data:
        yield data


async def totals(up: Up) -> dict[str, int]:
    """The demo partner's figures when all that is in the log has been applied; the others have a past."""
    log = LogSettings(log_url=up.told["log_url"])
    async with asyncio.timeout(10):
        while await behind(await held(log), up.told["database_url"]):
            await asyncio.sleep(0.1)
    connection = await asyncpg.connect(up.told["database_url"])
    figures = {
        "rows": "count(*) FROM click",
        "rolled up": "coalesce(sum(clicks), 0)::bigint FROM click_rollup",
        "conversions": "count(*) FROM conversion",
        "paid": "coalesce(sum(payout_minor), 0)::bigint FROM conversion",
    }
    partner = "SELECT partner_id FROM link WHERE code = 'demo'"
    found = {
        name: await connection.fetchval(f"SELECT {sum_of} WHERE partner_id = ({partner})")
        for name, sum_of in figures.items()
    }
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


def test_what_makes_no_sense_is_refused_before_anything_starts(tmp_path: Path) -> None:
    for option, value in (("--edge-port", "70000"), ("--workers", "0")):
        assert clickdam("up", "--data", str(tmp_path / "data"), option, value).returncode == 2
    assert not (tmp_path / "data").exists()


def test_a_demo_with_a_killed_aggregator_records_what_was_answered(up: Up) -> None:
    done = clickdam("demo", "--data", str(up.data), "--kill", "--clicks", "400")
    assert done.returncode == 0, done.stderr
    assert "answered 400 = recorded 400" in done.stdout


@pytest.mark.parametrize("name", ["worker", "edge", "aggregator", "api", "valkey", "postgres"])
def test_what_dies_is_started_again_and_described_anew(up: Up, name: str) -> None:
    (before,) = up.told["processes"][name]
    os.kill(before, signal.SIGKILL)
    assert wait_until(lambda: up.told["processes"][name] not in ([], [before]), 10)


async def test_ctrl_c_under_load_and_kills_of_everything_lose_nothing(data: Path) -> None:
    """P5: it ends within 15 s of SIGINT under load, and nothing that was answered is lost."""
    everything = ("edge", "worker", "aggregator", "api", "valkey", "postgres")
    with start(data) as up:
        answered = await stop_under_load(up)
    for sales, killed in enumerate(((), ("postgres",), ("valkey",), everything)):
        with start(data) as up:
            assert up.took_s < START_S
            await compare(up, answered, sales)
            answered += await send(up.told["demo"]["link_url"], 200, lambda _: None)
            token = up.told["demo"]["advertiser_token"]
            receipt = await send_postback(up.told["edge_url"], token, answered[-1], f"order-{sales}")
            assert json.loads(receipt)["result"] == "accepted"
            up.kill(*killed)
    with start(data) as up:
        await compare(up, answered, 4)
        end(up, signal.SIGTERM)


async def test_it_ends_in_time_with_everything_it_leans_on_frozen_and_loses_nothing(data: Path) -> None:
    """P5, where it is hard: Postgres and Valkey hold every connection open and answer nothing."""
    with start(data) as up:
        answered = await send(up.told["demo"]["link_url"], 200, lambda _: None)
        freeze(up, "postgres", "valkey")
        answered += await send(up.told["demo"]["link_url"], 200, lambda _: None)
        began = time.monotonic()
        up.process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(up.process.wait, STOP_S) == 0
        print(f"ended {time.monotonic() - began:.1f} s after SIGINT with Postgres and Valkey frozen")
    with start(data) as up:
        await compare(up, answered, 0)
        end(up, signal.SIGTERM)


async def test_a_kafka_of_its_own_keeps_every_click_whatever_is_killed_or_frozen(data: Path) -> None:
    """P1 and P5 on the other log: clicks that Kafka cannot take wait in the spool."""
    everything = ("edge", "worker", "aggregator", "api", "valkey", "postgres", "kafka")
    with start(data, "--kafka") as up:
        assert up.told["log_url"].startswith("kafka://127.0.0.1:")
        answered = await send(up.told["demo"]["link_url"], 200, lambda _: None)
        await compare(up, answered, 0)
        answered += await send(up.told["demo"]["link_url"], 200, lambda _: None)
        up.kill(*everything)
    with start(data) as up:  # the folder remembers
        await compare(up, answered, 0)
        (before,) = up.told["processes"]["kafka"]
        os.kill(before, signal.SIGKILL)
        answered += await send(up.told["demo"]["link_url"], 200, lambda _: None)
        assert wait_until(lambda: up.told["processes"]["kafka"] not in ([], [before]), 10)
        freeze(up, "kafka", "postgres", "valkey")
        answered += await send(up.told["demo"]["link_url"], 200, lambda _: None)
        began = time.monotonic()
        end(up)
        print(f"ended {time.monotonic() - began:.1f} s after SIGINT with Kafka, Postgres and Valkey frozen")
    with start(data) as up:
        await compare(up, answered, 0)
        end(up, signal.SIGTERM)
    assert not list((data / "journal").iterdir())


def test_a_folder_stays_with_the_log_it_began_with(up: Up) -> None:
    with new_folder() as data:
        shutil.copytree(up.data / "journal", data / "journal")
        refused = clickdam("up", "--data", str(data), "--kafka", *FREE_PORTS)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert "is a journal, and events may wait in it: --kafka needs a new --data" in refused.stderr


def freeze(up: Up, *names: str) -> None:
    """Stop these servers with all their processes; `clickdam up` ends them when it cannot wait any longer."""
    for name in names:
        (pid,) = up.told["processes"][name]
        for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            one.suspend()


async def stop_under_load(up: Up) -> list[str]:
    """Ctrl-C while clicks are sent; the ids of those that were answered."""
    answered: list[str] = []
    sending = asyncio.create_task(send(up.told["demo"]["link_url"], 10_000_000, lambda _: None, answered))
    while len(answered) < 100:
        await asyncio.sleep(0.05)
    up.process.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(up.process.wait, STOP_S) == 0
    with pytest.raises(aiohttp.ClientError):
        await sending
    return answered


async def compare(up: Up, answered: list[str], sales: int) -> None:
    """Every answered click is one row; rows beyond are clicks whose answer was cut off by the Ctrl-C."""
    uuids = up.uuids(answered)
    recorded = await count_recorded(up.told["database_url"], uuids, lambda _: None)
    figures = await totals(up)
    print(f"started in {up.took_s:.1f} s: answered {len(uuids)} = recorded {recorded}, in all {figures}")
    assert len(uuids) == len(answered) == recorded
    assert figures["rows"] == figures["rolled up"]
    assert (figures["conversions"], figures["paid"]) == (sales, sales * 1_200)
    assert len(uuids) <= figures["rows"] <= len(uuids) + SENDERS
