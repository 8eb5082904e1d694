"""A house on one broker of its own, everything it depends on behind proxies that fail in a chosen way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from aiokafka.admin import AIOKafkaAdminClient

from deploy.run.children import free_port
from deploy.run.kafka import start_again, start_kafka, stop_kafka
from deploy.run.servers import Server
from loadtests.faults.house import House, house
from loadtests.faults.proxy import FaultProxy, Mode
from loadtests.faults.ridden import Act

EVENTS, BEATS = "clickdam.events", "clickdam.beats"
TOPICS = {"kafka_partitions": "4", "kafka_replication": "1", "kafka_min_insync": "1"}


@dataclass(slots=True)
class Broken:
    """`proxy` stands before the broker; `proxies` are all three, before broker, Redis and Postgres."""

    house: House
    server: Server
    proxy: FaultProxy
    proxies: list[FaultProxy]

    async def freeze(self) -> None:
        os.kill(self.server.pid, signal.SIGSTOP)

    async def thaw(self) -> None:
        os.kill(self.server.pid, signal.SIGCONT)

    async def kill(self) -> None:
        self.server.process.kill()
        await asyncio.to_thread(self.server.process.wait)

    async def start_again(self) -> None:
        self.server = await asyncio.to_thread(start_again, self.server)

    def turn(self, mode: Mode) -> Act:
        """Give the broker's proxy another mode."""

        async def turned() -> None:
            self.proxy.mode = mode

        return turned

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        """The broker's own administration, past the proxy."""
        client = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{self.proxy.port}")
        await client.start()
        try:
            yield client
        finally:
            await client.close()


@asynccontextmanager
async def broken(folder: Path, database_url: str, redis_url: str, *, aggregators: int = 1) -> AsyncIterator[Broken]:
    """Started and whole; stopped at the end."""
    async with AsyncExitStack() as stack:
        port = free_port()
        before_kafka = await stack.enter_async_context(FaultProxy("127.0.0.1", port))
        before_redis, redis = await _proxied(stack, redis_url)
        before_postgres, database = await _proxied(stack, database_url)
        advertised = {"advertised.listeners": f"PLAINTEXT://127.0.0.1:{before_kafka.port}"}
        server = await asyncio.to_thread(start_kafka, folder / "kafka", port, advertised)
        servers = [server]
        stack.push_async_callback(_stop, servers)
        log_url = f"kafka://127.0.0.1:{before_kafka.port}"
        living = house(folder, database, redis, log_url, aggregators=aggregators, settings=TOPICS)
        built = await stack.enter_async_context(living)
        found = Broken(built, server, before_kafka, [before_kafka, before_redis, before_postgres])
        try:
            yield found
        finally:
            servers[0] = found.server
            for proxy in found.proxies:
                proxy.mode = "pass"
            with contextlib.suppress(ProcessLookupError):
                await found.thaw()


async def _proxied(stack: AsyncExitStack, url: str) -> tuple[FaultProxy, str]:
    """A proxy in front of what the URL names, and the URL that leads through it."""
    parts = urlsplit(url)
    proxy = await stack.enter_async_context(FaultProxy(parts.hostname or "", parts.port or 0))
    user, at, _ = parts.netloc.rpartition("@")
    return proxy, parts._replace(netloc=f"{user}{at}127.0.0.1:{proxy.port}").geturl()


async def _stop(servers: list[Server]) -> None:
    await asyncio.to_thread(partial(stop_kafka, *servers))
