"""One edge worker: what it opens, in the order it depends on, closed in reverse; its routes; its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog
from aiohttp import web

from schemas import limits
from schemas.errors import Refused
from schemas.http import Connection, serving
from schemas.settings import EdgeSettings
from tracker import intakes, visitor
from tracker.background import running
from tracker.clock import EdgeClock
from tracker.counters import counting_live
from tracker.doors import answers, conversions, health, look, page, pixel, postbacks, published
from tracker.doors.click import click
from tracker.edge import Edge
from tracker.fast_lane import Arrivals, FastLane
from tracker.links import caching_links
from tracker.log.on_journal import journal_log
from tracker.log.on_kafka import kafka_log
from tracker.log.recorder import recording
from tracker.metrics import prometheus
from tracker.steps import Known
from tracker.tally import Tally

log = structlog.get_logger()
T = TypeVar("T")
Door = Callable[[web.Request, Edge], Awaitable[web.Response]]
CONVERSION_DOORS: tuple[tuple[str, str, Door], ...] = (
    *((method, path, postbacks.postback) for path in postbacks.PATHS for method in ("GET", "POST")),
    *(("POST", path, postbacks.postback) for path in postbacks.SHARED),
    ("POST", "/v1/conversions", conversions.conversions),
    ("GET", "/pixel.gif", pixel.pixel),
    ("GET", "/tag.js", pixel.tag),
)
LOOKS: tuple[tuple[str, Door], ...] = (("/c/{code}+", look.inspect), ("/c/{code}/qr.svg", look.qr_code))
# Every format in which links to us are out there. In the last one, the first words of our own doors are no partners.
CLICK_DOORS: tuple[tuple[str, Door], ...] = (
    ("/c/{code}{end:/?}", click),
    ("/c", published.by_parameters),
    ("/aff_c", published.by_parameters),
    ("/click", published.by_parameters),
    ("/click.php", published.click_php),
    ("/", published.root),
    ("/tracking202/redirect/dl.php", published.prosper202),
    (
        f"/{{affiliate:(?!(?:c|v1|postback|live|ready)/){published.NAME}}}/{{offer:{published.NAME}}}{{end:/?}}",
        published.by_path,
    ),
)


@contextlib.asynccontextmanager
async def open_edge(settings: EdgeSettings, slot: int) -> AsyncIterator[Edge]:
    """Everything a worker needs. Registered in the log when this yields; closed in the log when it ends."""
    visitor.load_tables()
    async with contextlib.AsyncExitStack() as stack:
        tally = Tally()
        clock = EdgeClock()
        log_of = kafka_log if settings.is_kafka else journal_log
        heartbeat = await stack.enter_async_context(log_of(settings, slot, clock, tally))
        links = await stack.enter_async_context(caching_links(settings.redis_url))
        counters = await stack.enter_async_context(counting_live(settings.redis_url))
        recorder = await stack.enter_async_context(recording(heartbeat.log, tally))
        await stack.enter_async_context(running("heartbeat", heartbeat.beat(recorder)))
        known = Known(settings.visitor_secret, counters.caps)
        yield Edge(
            settings.keys, known, clock, links, heartbeat.log, recorder, counters, tally, settings.trusted_networks
        )


def routes(edge: Edge) -> web.Application:
    """The edge's doors as a flat table."""
    app = web.Application(middlewares=[refusals(edge)], client_max_size=limits.CONVERSIONS_BYTES_MAX)
    for method, path, door in (
        *CONVERSION_DOORS,
        *((method, path, door) for path, door in (*LOOKS, *CLICK_DOORS) for method in ("GET", "HEAD")),
        ("GET", "/live", health.live),
        ("GET", "/ready", health.ready),
    ):
        app.router.add_route(method, path, _handler(door, edge))
    return app


def _handler(door: Door, edge: Edge) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        return await door(request, edge)

    return handle


def refusals(edge: Edge) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Every refusal leaves in its door's shape: a receipt at the conversion doors, an error elsewhere."""

    @web.middleware
    async def middleware(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refused as refusal:
            return _refusal(request, edge, refusal)
        except web.HTTPException as error:
            response = _refusal(request, edge, _known(error))
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
            return response

    return middleware


_RECEIPT_PATHS = frozenset(postbacks.PATHS) | {"/v1/conversions"}
_HAS_TOKEN = re.compile(r"/[^/]+/postback")
_BY_STATUS = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def _known(error: web.HTTPException) -> Refused:
    return Refused(_BY_STATUS.get(error.status, "bad_request"), error.reason)


def _refusal(request: web.Request, edge: Edge, refusal: Refused) -> web.Response:
    if request.path in _RECEIPT_PATHS or _HAS_TOKEN.fullmatch(request.path):
        return answers.answer(intakes.rejection(edge, refusal), {})
    if page.wanted(request):
        return page.page(refusal.message, status=refusal.status, headers=refusal.headers)
    return web.json_response(refusal.body(), status=refusal.status, headers=refusal.headers)


async def serve(settings: EdgeSettings, slot: int, sock: socket.socket, admin_path: Path) -> None:
    """Run one worker on a listening socket until SIGTERM; return when all it answered is durable and closed.

    Raises journal.SlotTaken when another process has the slot.
    """
    sys.setswitchinterval(limits.SWITCH_S)
    gc.set_threshold(limits.GARBAGE_OBJECTS)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        edge = await _unless(stop, stack.enter_async_context(open_edge(settings, slot)))
        if edge is None:
            return
        gc.freeze()  # what is here now stays: looking it through for garbage holds everybody up for 50 ms
        async with admin(edge, admin_path), listening(settings, edge, sock):
            log.info("edge_ready_to_warm", slot=slot, pid=os.getpid(), incarnation=edge.clock.incarnation)
            async with running("warm-up", warm_up(edge)):
                await stop.wait()
            edge.draining = True
        log.info("edge_drained", slot=slot)


def listening(settings: EdgeSettings, edge: Edge, sock: socket.socket) -> AbstractAsyncContextManager[None]:
    """The edge's doors on a listening socket."""
    lane = partial(FastLane, edge, Arrivals(edge, asyncio.get_running_loop()))
    return serving(routes(edge), sock, lane if settings.fast_lane else Connection)


async def _unless(stop: asyncio.Event, opening: Coroutine[Any, Any, T]) -> T | None:
    """What `opening` returns; None when told to stop before, because an edge waits for a log to register in."""
    task, stopped = asyncio.create_task(opening), asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
    stopped.cancel()
    await asyncio.gather(task, stopped, return_exceptions=True)
    return None if task.cancelled() else task.result()


async def warm_up(edge: Edge) -> None:
    """Ready once Redis has been reached and its set of links is whole; what dies later is ridden out."""
    while not await edge.links.is_warm():
        await asyncio.sleep(limits.FLUSH_EVERY_S)
    edge.warm = True
    log.info("edge_ready")


@contextlib.asynccontextmanager
async def admin(edge: Edge, path: Path) -> AsyncIterator[None]:
    """Health and metrics of this worker on a unix socket, for its supervisor."""

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=prometheus(edge), content_type="text/plain")

    app = web.Application()
    app.router.add_get("/live", _handler(health.live, edge))
    app.router.add_get("/ready", _handler(health.ready, edge))
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    try:
        yield
    finally:
        await runner.cleanup()
