"""The aggregator's process: consumer, publisher, settlers of caps and of what is past, what comes after
conversions, partition keeper, measurers, pruner; an admin port."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, Counter, generate_latest

from aggregator.conversions import behind
from aggregator.db import partitions
from aggregator.flush.behind import measure
from aggregator.flush.prune import prune
from aggregator.flush.run import consume
from aggregator.publish import caps
from aggregator.publish import run as publisher
from aggregator.reports import drift
from aggregator.settled import run as settler
from schemas import limits
from schemas.settings import AggregatorSettings

log = structlog.get_logger()

Task = Callable[[], Awaitable[None]]
_EXIT_S = 1.5  # leaving a group of consumers in order takes CONSUMER_STOP_S at most
_RESTART_FIRST_S = 0.1
_CRASHES = Counter("clickdam_task_crashes", "Tasks of the aggregator that died and were started again", ["task"])
_READY = web.AppKey("ready", asyncio.Event)


async def serve(settings: AggregatorSettings) -> None:
    """Run until SIGTERM or SIGINT. A batch in progress is dropped then: it is read again by whoever comes next."""
    gc.set_threshold(limits.GARBAGE_OBJECTS)
    stopping, ready = asyncio.Event(), asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stopping.set)
    async with _admin(settings, ready) as port, _supervised(_tasks(settings, ready)):
        log.info("aggregator_ready", admin_port=port)
        await stopping.wait()
        ready.clear()
    log.info("aggregator_stopped")


def _tasks(settings: AggregatorSettings, ready: asyncio.Event) -> dict[str, Task]:
    tasks: dict[str, Task] = {
        "consumer": lambda: consume(settings, ready),
        "publisher": lambda: publisher.run(settings.database_url, settings.redis_url),
        "caps": lambda: caps.settle(settings.database_url, settings.redis_url),
        "behind": lambda: behind.run(settings),
        "settler": lambda: settler.run(settings),
        "partitions": lambda: partitions.keep(settings),
        "measure": lambda: measure(settings),
        "drift": lambda: drift.watch(settings),
    }
    return tasks if settings.is_kafka else tasks | {"prune": lambda: prune(settings)}


@asynccontextmanager
async def _supervised(tasks: dict[str, Task]) -> AsyncIterator[None]:
    running = [asyncio.create_task(_keep_running(name, task), name=name) for name, task in tasks.items()]
    try:
        yield
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=_EXIT_S)


async def _keep_running(name: str, task: Task) -> None:
    """None of the tasks may end by itself, so whatever ends one is a fault: it is shown and the task begins again."""
    pause_s = _RESTART_FIRST_S
    while True:
        began = asyncio.get_running_loop().time()
        try:
            await task()
            log.error("task_ended", task=name)
        except Exception:
            log.exception("task_crashed", task=name)
        _CRASHES.labels(name).inc()
        lasted_s = asyncio.get_running_loop().time() - began
        pause_s = _RESTART_FIRST_S if lasted_s > limits.TASK_RESTART_MAX_S else pause_s * 2
        await asyncio.sleep(min(pause_s, limits.TASK_RESTART_MAX_S))


@asynccontextmanager
async def _admin(settings: AggregatorSettings, ready: asyncio.Event) -> AsyncIterator[int]:
    """Serve health and metrics; the value is the port."""
    app = web.Application()
    app[_READY] = ready
    app.router.add_get("/live", _live)
    app.router.add_get("/ready", _ready)
    app.router.add_get("/metrics", _metrics)
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=limits.KEEPALIVE_S, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.admin_port, reuse_port=False)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def _live(_: web.Request) -> web.Response:
    return web.Response(text="live\n")


async def _ready(request: web.Request) -> web.Response:
    is_ready = request.app[_READY].is_set()
    return web.Response(text="ready\n" if is_ready else "not ready\n", status=200 if is_ready else 503)


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
