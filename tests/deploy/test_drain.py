"""An edge on Kafka from the outside: what it leaves behind when it is killed, and who sends and closes that."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deploy.run.children import free_port, wait_until
from deploy.run.http import answers
from loadtests.faults import topics
from loadtests.faults.edges import KEYS, VISITOR_KEY
from schemas import limits
from schemas.settings import LogSettings
from tracker.clock import EdgeClock
from tracker.log.journal_out import JournalLog
from tracker.log.on_journal import JournalHeartbeat
from tracker.tally import Tally

START_S = 30.0
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("CLICKDAM_")}
NOWHERE = "kafka://127.0.0.1:1"


def variables(of: LogSettings, spool: Path, redis_url: str) -> dict[str, str]:
    values = {
        "LOG_URL": of.log_url, "KAFKA_EVENTS_TOPIC": of.kafka_events_topic, "KAFKA_BEATS_TOPIC": of.kafka_beats_topic,
        "SPOOL_FOLDER": str(spool), "REDIS_URL": redis_url, "CLICK_KEYS": KEYS, "VISITOR_KEY": VISITOR_KEY,
        "EDGE_NAME": "house",
    }  # fmt: skip
    return CLEAN | {f"CLICKDAM_{name}": value for name, value in values.items()}


@pytest.fixture
def env(kafka_log: LogSettings, tmp_path: Path, redis_url: str) -> dict[str, str]:
    return variables(kafka_log, tmp_path / "spool", redis_url)


@contextlib.contextmanager
def edge(env: dict[str, str], workers: int, *, ready: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor whose workers have registered."""
    port, admin_port = free_port(), free_port()
    command = [sys.executable, "-m", "deploy.run.cli", "edge", "--workers", str(workers), "--edge-port", str(port)]
    own = {"CLICKDAM_ADMIN_PORT": str(admin_port)}
    with subprocess.Popen(command, env=env | own, stderr=subprocess.DEVNULL) as process:
        try:
            if ready:
                assert wait_until(lambda: up(admin_port) == workers, START_S)
            else:
                assert wait_until(lambda: answers(f"http://127.0.0.1:{admin_port}/live"), START_S)
            yield process
        finally:
            kill(process)


def up(admin_port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return 0
    return sum(line.startswith("clickdam_worker_up") and line.endswith(" 1.0") for line in lines)


def kill(process: subprocess.Popen[bytes]) -> None:
    """The supervisor and its workers at once, as a machine that loses its power."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children()):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


def drain(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.run.cli", "drain", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)


async def open_edges(of: LogSettings) -> list[str]:
    """The names of incarnations without a closing record."""
    found = await topics.beats(of)
    closed = {beat.incarnation for beat in found if beat.state == "closed"}
    return sorted(beat.edge for beat in found if beat.state == "open" and beat.incarnation not in closed)


async def until_open(of: LogSettings, names: list[str]) -> None:
    async with asyncio.timeout(START_S):
        while await open_edges(of) != names:
            await asyncio.sleep(0.1)


async def test_every_slot_of_an_edge_that_is_gone_is_sent_and_closed(
    env: dict[str, str], kafka_log: LogSettings, tmp_path: Path
) -> None:
    with edge(env, workers=2):
        await until_open(kafka_log, ["house/0", "house/1"])
    done = drain(env, str(tmp_path / "spool"))
    assert (done.returncode, done.stdout.splitlines()) == (
        0, ["edge-0: sent, and its edge closed", "edge-1: sent, and its edge closed"]
    ), done.stderr  # fmt: skip
    assert await open_edges(kafka_log) == []
    done = drain(env, str(tmp_path / "spool"))
    assert (done.returncode, done.stdout) == (0, f"nothing is left in {tmp_path / 'spool'}\n")


async def test_the_slot_of_an_edge_that_lives_is_named_and_left_alone(
    env: dict[str, str], kafka_log: LogSettings, tmp_path: Path
) -> None:
    with edge(env, workers=1):
        await until_open(kafka_log, ["house/0"])
        done = drain(env, str(tmp_path / "spool"))
        assert (done.returncode, done.stdout) == (1, "edge-0: its edge lives and sends it by itself: left alone\n")
        assert await open_edges(kafka_log) == ["house/0"]


def test_without_kafka_nothing_is_sent_and_that_is_said(env: dict[str, str], tmp_path: Path) -> None:
    with edge(env, workers=1):
        pass
    before = sorted(path.name for path in (tmp_path / "spool" / "edge-0").glob("*.journal"))
    done = drain(env, str(tmp_path / "spool"), "--log-url", NOWHERE)
    assert done.returncode == 1
    assert done.stdout == "edge-0: not sent: Kafka at 127.0.0.1:1 does not answer\n"
    assert before
    assert sorted(path.name for path in (tmp_path / "spool" / "edge-0").glob("*.journal")) == before


def test_a_journal_is_no_place_to_drain_to(tmp_path: Path) -> None:
    done = drain(CLEAN, str(tmp_path), "--log-url", f"journal://{tmp_path}")
    assert done.returncode == 2
    assert done.stderr == (
        f"clickdam: CLICKDAM_LOG_URL='journal://{tmp_path}': a spool is sent to kafka://host:9092,host:9092\n"
    )


async def test_what_is_no_spool_is_refused_and_nothing_of_it_touched(tmp_path: Path) -> None:
    """A journal has the same files: drained as a spool, it would be gone before its own aggregator has read it."""
    log = JournalLog(tmp_path / "journal", 0, "house", lambda: "incarnation")
    log.lock()
    await JournalHeartbeat("house/0", EdgeClock(), Tally(), log).register()
    await log.close()
    spool = {"CLICKDAM_LOG_URL": NOWHERE}
    for folder, why in (
        (tmp_path, "is no spool: there is no folder edge-0 in it"),
        (tmp_path / "journal", "is a journal and no spool: an aggregator reads it"),
    ):
        done = drain(CLEAN | spool, str(folder))
        assert (done.returncode, done.stderr) == (1, f"clickdam: {folder} {why}\n")
    env = variables(LogSettings(log_url=NOWHERE), tmp_path / "journal", "redis://127.0.0.1:1/0")
    assert f"SPOOL_FOLDER='{tmp_path / 'journal'}': is a journal" in refused(env)
    assert len(list((tmp_path / "journal" / "edge-0").glob("*.journal"))) == 1


async def test_a_supervisor_drains_and_closes_the_slots_it_does_not_use(
    env: dict[str, str], kafka_log: LogSettings
) -> None:
    with edge(env, workers=3):
        await until_open(kafka_log, ["house/0", "house/1", "house/2"])
    with edge(env, workers=1) as process:
        await until_open(kafka_log, ["house/0"])
        process.terminate()
        assert process.wait(limits.EXIT_S) == 0
    assert await open_edges(kafka_log) == []


def test_an_edge_that_waits_for_a_log_to_register_in_ends_when_it_is_told_to(tmp_path: Path) -> None:
    nowhere = LogSettings(log_url=NOWHERE)
    with edge(variables(nowhere, tmp_path / "spool", "redis://127.0.0.1:1/0"), 1, ready=False) as process:
        time.sleep(2)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(limits.EXIT_S) == 0
        assert time.monotonic() - began < limits.EXIT_S / 2


def test_a_spool_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "spool").touch()
    env = variables(LogSettings(log_url=NOWHERE), tmp_path / "spool", "redis://127.0.0.1:1/0")
    assert f"clickdam: CLICKDAM_SPOOL_FOLDER='{tmp_path / 'spool'}': cannot write there: " in refused(env)


def refused(env: dict[str, str]) -> str:
    """What an edge says that does not start."""
    command = [sys.executable, "-m", "deploy.run.cli", "edge", "--edge-port", "0"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1
    return done.stderr
