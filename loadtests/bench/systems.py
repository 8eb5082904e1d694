"""All systems up at once, so that they can take turns. Edges share a Valkey, a Postgres and the publisher; their logs
are applied afterwards, outside the timed runs: whoever watches the flood must not be measured with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import psutil

from deploy.run import kafka, servers
from deploy.run.children import CannotStart, free_port
from loadtests.bench import nginx
from loadtests.bench.contenders import Contender
from loadtests.bench.wrk import CODES
from loadtests.faults import edges
from loadtests.faults.house import House
from loadtests.heard import click_id_of
from schemas import redis_keys
from schemas.redis import done, publishing

STOP_S = 20.0
LIVE_S = 60.0
_KAFKA = {"KAFKA_PARTITIONS": "4", "KAFKA_REPLICATION": "1", "KAFKA_MIN_INSYNC": "1"}
_PROGRAMME = """
WITH a AS (INSERT INTO advertiser (name, token_sha256, postbacks_per_minute)
           VALUES ('Bench', sha256('bench'), 2000000000) RETURNING id),
     p AS (INSERT INTO partner (name) VALUES ('Bench') RETURNING id),
     o AS (INSERT INTO offer (advertiser_id, name, destination_url, currency)
           SELECT id, 'Bench', 'https://shop.example/buy', 'EUR' FROM a RETURNING id),
     t AS (INSERT INTO offer_terms (offer_id, model, percent, currency) SELECT id, 'cps', 10, 'EUR' FROM o)
INSERT INTO link (code, offer_id, partner_id)
SELECT name || '-' || n, o.id, p.id FROM o, p, unnest($1::text[]) AS name, generate_series(1, $2) AS n
"""


@dataclass(slots=True)
class Running:
    """A system that is up: its processes, their children included, but for a broker."""

    url: str
    roots: list[int]
    broker: int | None = None
    house: House | None = None

    @property
    def pids(self) -> list[int]:
        """Of all whose CPU a click needs."""
        return [*self.roots, self.broker] if self.broker else self.roots


@dataclass(slots=True)
class Systems:
    """What is up by its name, and why the rest is not."""

    folder: Path
    up: dict[str, Running] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    database_url: str = ""

    @property
    def houses(self) -> dict[str, House]:
        return {name: running.house for name, running in self.up.items() if running.house}


@contextlib.asynccontextmanager
async def running(folder: Path, contenders: Iterable[Contender], links: int = CODES) -> AsyncIterator[Systems]:
    """Start what these need, with so many links for each, stop it at the end. What cannot be started is missing, with
    its reason."""
    systems, wanted = Systems(folder), {str(one.system) for one in contenders}
    async with AsyncExitStack() as stack:
        for kind in ("raw", "bare"):
            if kind in wanted:
                port = free_port()
                command = [sys.executable, "-m", "loadtests.bench.redirects", kind, str(port)]
                process = _kept(stack, await asyncio.create_subprocess_exec(*command))
                systems.up[kind] = Running(f"http://127.0.0.1:{port}", [process.pid])
        if wanted & {"journal", "kafka", "nginx"}:
            valkey = servers.start_valkey(folder / "valkey")
            stack.callback(servers.stop_valkey, valkey)
            await _start_nginx(stack, systems, valkey) if "nginx" in wanted else None
            if logs := _logs(stack, systems, wanted):
                names = [one.name for one in contenders if one.system in logs]
                await _start_edges(stack, systems, logs, names, valkey, links)
        for of in systems.up.values():
            name = next(one.name for one in contenders if systems.up.get(one.system) is of)
            await _until_live(of.url, f"/c/{name}-{links}")
        yield systems


def _kept(stack: AsyncExitStack, process: Process) -> Process:
    stack.push_async_callback(_stop, process)
    return process


async def _stop(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_S)
    except TimeoutError:
        process.kill()
        await process.wait()


async def _start_nginx(stack: AsyncExitStack, systems: Systems, valkey: servers.Server) -> None:
    port = free_port()
    try:
        process = _kept(stack, await nginx.start(systems.folder / "nginx", port, valkey.url, "nginx"))
        systems.up["nginx"] = Running(f"http://127.0.0.1:{port}", [process.pid, valkey.pid])
    except CannotStart as reason:
        systems.missing["nginx"] = str(reason)


def _logs(stack: AsyncExitStack, systems: Systems, wanted: set[str]) -> dict[str, tuple[str, int | None]]:
    """URL of each log that is wanted and can be had, and the pid of its broker."""
    logs: dict[str, tuple[str, int | None]] = {}
    if "journal" in wanted:
        logs["journal"] = f"journal://{systems.folder}/journal", None
    if "kafka" in wanted:
        try:
            broker = kafka.start_kafka(systems.folder / "kafka")
            stack.callback(kafka.stop_kafka, broker)
            logs["kafka"] = broker.url, broker.pid
        except CannotStart as reason:
            systems.missing["kafka"] = str(reason)
    return logs


async def _start_edges(
    stack: AsyncExitStack,
    systems: Systems,
    logs: dict[str, tuple[str, int | None]],
    names: list[str],
    valkey: servers.Server,
    links: int,
) -> None:
    postgres = servers.start_postgres(systems.folder / "postgres")
    stack.callback(servers.stop_postgres, postgres)
    systems.database_url = postgres.url
    houses = {name: _house(systems, name, log_url, valkey.url) for name, (log_url, _) in logs.items()}
    for house in houses.values():
        await _migrate(house)
    await _make_links(postgres.url, names, links)
    # it publishes links; the journal that it would apply has no edge
    first = next(iter(houses.values()))
    idle = {"CLICKDAM_LOG_URL": f"journal://{systems.folder}/idle", "CLICKDAM_ADMIN_PORT": str(free_port())}
    publisher = _kept(stack, await first.spawn("aggregator", **idle))
    await _until_published(valkey.url)
    for name, house in houses.items():
        stack.push_async_callback(house.stop)
        await house.start_edge()
        assert house.edge is not None
        roots = [house.edge.pid, publisher.pid, valkey.pid, postgres.pid]
        systems.up[name] = Running(house.edge_url, roots, logs[name][1], house)


def _house(systems: Systems, name: str, log_url: str, redis_url: str) -> House:
    folder = systems.folder / name
    folder.mkdir(exist_ok=True)
    port = free_port()
    settings = _KAFKA | {
        "DATABASE_URL": systems.database_url, "REDIS_URL": redis_url, "LOG_URL": log_url, "CLICK_KEYS": edges.KEYS,
        "VISITOR_KEY": edges.VISITOR_KEY, "SPOOL_FOLDER": str(folder / "spool"), "EDGE_NAME": name,
        "EDGE_PORT": str(port),
    }  # fmt: skip
    env = {name: value for name, value in os.environ.items() if not name.startswith("CLICKDAM_")}
    env |= {f"CLICKDAM_{name}": value for name, value in settings.items()}
    return House(folder, systems.database_url, env, port, free_port(), workers=1)


async def _migrate(house: House) -> None:
    if await (await house.spawn("migrate")).wait() != 0:
        raise CannotStart((house.folder / "migrate.log").read_text())


async def _make_links(database_url: str, names: list[str], links: int) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(_PROGRAMME, names, links)
    finally:
        await connection.close()


async def _until_published(redis_url: str) -> None:
    """Wait until Redis has all links: the last one may come before the others. Raises CannotStart."""
    gives_up = time.monotonic() + LIVE_S
    async with publishing(redis_url) as redis:
        while not await done(redis.exists(redis_keys.COMPLETE)):
            if time.monotonic() > gives_up:
                raise CannotStart(f"the links were not published within {LIVE_S:.0f} s")
            await asyncio.sleep(0.05)


async def _until_live(url: str, path: str) -> None:
    """Wait until a link redirects, asked by a HEAD, which is no click. Raises CannotStart."""
    gives_up = time.monotonic() + LIVE_S
    while not (head := await _head(url, "HEAD", path)).startswith(b"HTTP/1.1 302"):
        if time.monotonic() > gives_up:
            raise CannotStart(f"{path} does not redirect, its last answer is {head[:100]!r}")
        await asyncio.sleep(0.05)


async def answer_bytes(url: str, path: str, body: str = "") -> int:
    """The size of the answer to a GET, or to a POST by the bench's advertiser; each of a system's is as long, its ids
    differ and nothing else does."""
    head = await _head(url, "POST" if body else "GET", path, body)
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return len(head) + int(length[1] if length else 0)


async def click_id(url: str, path: str) -> str:
    """That of a click made now."""
    found = click_id_of((await _head(url, "GET", path)).decode().partition("Location: ")[2].partition("\r")[0])
    assert found is not None
    return found


async def _head(url: str, method: str, path: str, body: str = "") -> bytes:
    sent = f"Authorization: Bearer bench\r\nContent-Length: {len(body)}\r\n" if body else ""
    try:
        reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
        ask = f"{method} {path} HTTP/1.1\r\nHost: go.example\r\nUser-Agent: {edges.BROWSER}\r\n{sent}\r\n{body}"
        writer.write(ask.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
    except (OSError, asyncio.IncompleteReadError):
        return b""
    return head


def pin(roots: Iterable[int], core: int) -> None:
    """Every thread of these processes and of their children to one core; what they start later inherits it."""
    for root in map(psutil.Process, roots):
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                for thread in process.threads():
                    with contextlib.suppress(ProcessLookupError):
                        os.sched_setaffinity(thread.id, {core})
