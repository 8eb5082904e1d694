"""A whole Clickdam on given servers, its processes real and open to ill-treatment: edge, aggregators, a programme."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import asyncpg
import psutil

from deploy.run.children import free_port
from loadtests.faults import edges

TOKEN = "token-of-the-house"  # noqa: S105 - of a programme that is thrown away
CODES = [f"house-{n}" for n in range(20)]
READY_S = 60.0
STOP_S = 20.0
_PROGRAMME = """
WITH a AS (INSERT INTO advertiser (name, token_sha256) VALUES ('House', $1) RETURNING id),
     p AS (INSERT INTO partner (name) VALUES ('House') RETURNING id),
     o AS (INSERT INTO offer (advertiser_id, name, destination_url, currency)
           SELECT id, 'House', 'https://shop.example/buy?from={sub1}', 'EUR' FROM a RETURNING id),
     t AS (INSERT INTO offer_terms (offer_id, model, amount_minor, currency) SELECT id, 'cpa', 100, 'EUR' FROM o)
INSERT INTO link (code, offer_id, partner_id) SELECT code, o.id, p.id FROM o, p, unnest($2::text[]) AS code
"""


@dataclass(slots=True)
class House:
    """What runs and where. `edge` is the supervisor's process; its workers are its children."""

    folder: Path
    database_url: str
    env: dict[str, str]
    edge_port: int
    admin_port: int
    workers: int
    edge: Process | None = None
    aggregators: list[Process] = field(default_factory=list)

    @property
    def edge_url(self) -> str:
        return f"http://127.0.0.1:{self.edge_port}"

    @property
    def kafka_servers(self) -> str:
        return self.env["CLICKDAM_LOG_URL"].removeprefix("kafka://")

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    async def start_edge(self) -> None:
        """Start it and wait until it is ready. Raises TimeoutError."""
        self.edge = await self.spawn("edge", "--workers", str(self.workers), CLICKDAM_ADMIN_PORT=str(self.admin_port))
        await self.ready()

    async def ready(self) -> None:
        async with asyncio.timeout(READY_S), aiohttp.ClientSession(f"http://127.0.0.1:{self.admin_port}") as admin:
            while True:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with admin.get("/ready") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.1)

    async def start_aggregator(self) -> Process:
        process = await self.spawn("aggregator", CLICKDAM_ADMIN_PORT=str(free_port()))
        self.aggregators.append(process)
        return process

    async def spawn(self, *command: str, **variables: str) -> Process:
        """One of our own commands, with what it says in `<folder>/<command>.log`."""
        with (self.folder / f"{command[0]}.log").open("ab") as output:
            return await asyncio.create_subprocess_exec(
                sys.executable, "-m", "deploy.run.cli", *command,
                env=self.env | variables, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def worker_pids(self) -> list[int]:
        children = psutil.Process(self.edge.pid).children() if self.edge else []
        return [child.pid for child in children if "edge-worker" in child.cmdline()]

    async def kill_edge(self) -> None:
        """kill -9 of the supervisor and all workers, at once."""
        assert self.edge is not None
        for pid in (self.edge.pid, *self.worker_pids()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self.edge.wait()

    async def metrics(self) -> dict[str, float]:
        """The edge's metrics, all workers summed, by name with labels."""
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{self.admin_port}") as admin,
            admin.get("/metrics") as answer,
        ):
            lines = (await answer.text()).splitlines()
        found: dict[str, float] = {}
        for line in lines:
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name] = found.get(name, 0.0) + float(value)
        return found

    async def stop(self) -> None:
        """Ask all to end, kill what does not."""
        running = [process for process in (self.edge, *self.aggregators) if process and process.returncode is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in running:
            try:
                await asyncio.wait_for(process.wait(), STOP_S)
            except TimeoutError:
                process.kill()
                await process.wait()


@asynccontextmanager
async def house(
    folder: Path,
    database_url: str,
    redis_url: str,
    log_url: str,
    *,
    workers: int = 1,
    aggregators: int = 1,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[House]:
    """Started and ready, a programme with `CODES` and `TOKEN` in it; stopped at the end. `settings` are further
    variables without their prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {
        "DATABASE_URL": database_url, "REDIS_URL": redis_url, "LOG_URL": log_url, "CLICK_KEYS": edges.KEYS,
        "VISITOR_KEY": edges.VISITOR_KEY, "SPOOL_FOLDER": str(folder / "spool"), "EDGE_NAME": "house",
    } | {name.upper(): value for name, value in (settings or {}).items()}  # fmt: skip
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("CLICKDAM_")}
    env |= {f"CLICKDAM_{name}": value for name, value in wanted.items()} | {"CLICKDAM_EDGE_PORT": str(port)}
    built = House(folder, database_url, env, port, free_port(), workers)
    try:
        await _migrate(built)
        await _make_programme(database_url)
        for _ in range(aggregators):
            await built.start_aggregator()
        await built.start_edge()
        yield built
    finally:
        await built.stop()


async def _migrate(built: House) -> None:
    process = await built.spawn("migrate")
    if await process.wait() != 0:
        raise RuntimeError((built.folder / "migrate.log").read_text())


async def _make_programme(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(_PROGRAMME, hashlib.sha256(TOKEN.encode()).digest(), CODES)
    finally:
        await connection.close()
