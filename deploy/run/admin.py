"""Health and metrics of a set of workers, seen as one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector, web
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from deploy.run.children import CannotStart, Kept
from deploy.run.listening import why_not

log = structlog.get_logger()

ASK_WORKER_S = 2.0  # a frozen worker must not hold up the figures of the others


@dataclass(frozen=True, slots=True)
class Worker:
    """One slot: its socket, the unix socket of its own health doors, its process."""

    slot: int
    socket: socket.socket
    admin: Path
    kept: Kept


@contextlib.asynccontextmanager
async def admin_site(host: str, port: int, workers: Sequence[Worker]) -> AsyncIterator[None]:
    """Serve `/live`, `/ready` and `/metrics` of all workers. Raises CannotStart."""

    async def live(_: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def ready(_: web.Request) -> web.Response:
        states = [status == 200 for status, _ in await ask_all(workers, "/ready")]
        return web.json_response({"ready": all(states), "workers": states}, status=200 if all(states) else 503)

    async def metrics(_: web.Request) -> web.Response:
        answers = await ask_all(workers, "/metrics")
        body = merged([text if status == 200 else "" for status, text in answers], [w.kept.starts - 1 for w in workers])
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    app = web.Application()
    app.add_routes([web.get("/live", live), web.get("/ready", ready), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, handle_signals=False)
    await runner.setup()
    try:
        await _listen(runner, host, port)
        yield
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise CannotStart(why_not(host, port, error)) from None
    log.info("admin_listens", port=runner.addresses[0][1])


async def ask_all(workers: Iterable[Worker], path: str) -> list[tuple[int, str]]:
    """Status and body of every worker's own door; 503 for one that does not answer."""
    return await asyncio.gather(*(_ask(worker.admin, path) for worker in workers))


async def _ask(admin: Path, path: str) -> tuple[int, str]:
    connector, timeout = UnixConnector(str(admin)), ClientTimeout(total=ASK_WORKER_S)
    try:
        async with (
            ClientSession(connector=connector, timeout=timeout) as session,
            session.get(f"http://worker{path}") as answer,
        ):
            return answer.status, await answer.text()
    except (ClientError, OSError, TimeoutError):
        return 503, ""


def merged(texts: Sequence[str], restarts: Sequence[int]) -> bytes:
    """The workers' metrics (Prometheus text, empty from a silent worker) as one, each sample labelled with its slot."""
    families: dict[str, Metric] = {}
    for slot, text in enumerate(texts):
        for family in text_string_to_metric_families(text):
            whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            whole.samples += [
                sample._replace(labels=sample.labels | {"worker": str(slot)}) for sample in family.samples
            ]
    return generate_latest(_Collected([*families.values(), *_own(texts, restarts)]))


def _own(texts: Sequence[str], restarts: Sequence[int]) -> Iterator[Metric]:
    up = GaugeMetricFamily("clickdam_worker_up", "Whether the worker answers", labels=["worker"])
    again = CounterMetricFamily("clickdam_worker_restarts", "Times a dead worker was started again", labels=["worker"])
    for slot, (text, count) in enumerate(zip(texts, restarts, strict=True)):
        up.add_metric([str(slot)], 1.0 if text else 0.0)
        again.add_metric([str(slot)], max(0, count))
    yield up
    yield again


@dataclass(frozen=True, slots=True)
class _Collected(Collector):
    metrics: list[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.metrics
