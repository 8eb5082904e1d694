"""P7: a paused, resumed or created link takes effect on every connection to every worker within a second."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from loadtests.faults.edges import BROWSER
from loadtests.programme import api, call, make_programme
from loadtests.system import clickdam_up
from loadtests.wire import Wire, ask, connect
from loadtests.workload import Click

WORKERS = 2
CONNECTIONS = 12
LINKS = 10
CHANGES = 20
SEEN_MAX_S = 1.0
GIVE_UP_S = 10.0
TRAFFIC_EVERY_S = 0.005
PER_WORKER_MIN = 2  # connections
STATUS_OF = {"active": 302, "paused": 404}

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
async def told() -> AsyncIterator[dict[str, Any]]:
    """What a running Clickdam with two workers tells about itself."""
    with clickdam_up(workers=WORKERS) as data:
        yield json.loads(Path(data / "clickdam.json").read_text())


@pytest.fixture
async def session(told: dict[str, Any]) -> AsyncIterator[aiohttp.ClientSession]:
    async with api(told["api_url"], told["admin_key"]) as session:
        yield session


@pytest.fixture
async def wires(told: dict[str, Any]) -> AsyncIterator[list[Wire]]:
    """Connections that are kept open, several to each worker."""
    async with connected(told["edge_url"], CONNECTIONS) as wires:
        while min(per_worker(told, wires)) < PER_WORKER_MIN:
            wires.append(await connect(told["edge_url"]))
        yield wires


@asynccontextmanager
async def connected(edge_url: str, connections: int) -> AsyncIterator[list[Wire]]:
    wires = [await connect(edge_url) for _ in range(connections)]
    try:
        yield wires
    finally:
        for wire in wires:
            wire.writer.close()
            await wire.writer.wait_closed()


def per_worker(told: dict[str, Any], wires: Sequence[Wire]) -> list[int]:
    """How many of the connections each worker has."""
    ours = {wire.writer.get_extra_info("sockname")[1] for wire in wires}
    held = [psutil.Process(pid).net_connections("tcp") for pid in told["processes"]["worker"]]
    return [sum(bool(one.raddr) and one.raddr.port in ours for one in of_worker) for of_worker in held]


async def status(wire: Wire, code: str) -> int:
    headers = (("User-Agent", BROWSER), ("Accept", "text/html"))
    return (await ask(wire, Click(0, 0.0, "browser", 0, "GET", f"/c/{code}", headers, None), "go.example")).status


async def statuses(wires: Sequence[Wire], code: str) -> set[int]:
    """What all connections answer, asked at once."""
    return set(await asyncio.gather(*(status(wire, code) for wire in wires)))


async def until_seen(wires: Sequence[Wire], code: str, wanted: int) -> float:
    """Seconds until the last connection answers as wanted."""
    began = time.monotonic()

    async def on_one(wire: Wire) -> None:
        while await status(wire, code) != wanted:
            await asyncio.sleep(0)

    async with asyncio.timeout(GIVE_UP_S):
        await asyncio.gather(*(on_one(wire) for wire in wires))
    return time.monotonic() - began


@asynccontextmanager
async def light_traffic(edge_url: str, codes: Sequence[str]) -> AsyncIterator[Callable[[], int]]:
    """Clicks on other links meanwhile; gives how many were answered so far."""
    answered = 0

    async def send(wires: list[Wire]) -> None:
        nonlocal answered
        while True:
            assert await status(wires[answered % len(wires)], codes[answered % len(codes)]) == 302
            answered += 1
            await asyncio.sleep(TRAFFIC_EVERY_S)

    async with connected(edge_url, 2 * WORKERS) as wires:
        sending = asyncio.create_task(send(wires))
        try:
            yield lambda: answered
        finally:
            sending.cancel()
            (ended,) = await asyncio.gather(sending, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), ended


def report(what: str, took_s: Sequence[float], seen: str) -> None:
    median, most = statistics.median(took_s) * 1e3, max(took_s) * 1e3
    print(f"\nP7: {len(took_s)} {what}, seen by {seen}: median {median:.1f} ms, max {most:.1f} ms")


async def test_a_changed_link_is_seen_on_every_connection_within_a_second(
    told: dict[str, Any], session: aiohttp.ClientSession, wires: list[Wire], capsys: pytest.CaptureFixture[str]
) -> None:
    programme = await make_programme(session, "p7-change", LINKS, lambda: None)
    changed, others = programme.codes[0], programme.codes[1:]
    now, then, took_s = "active", "paused", []
    async with light_traffic(told["edge_url"], others) as clicks:
        for _ in range(CHANGES):
            for _ in range(3):  # warm wherever it is asked for
                assert await statuses(wires, changed) == {STATUS_OF[now]}
            shown = await call(session, "PATCH", f"/v1/links/{programme.link_ids[0]}", json={"status": then})
            took_s.append(await until_seen(wires, changed, STATUS_OF[then]))
            assert (shown["status"], shown["live"]) == (then, True)
            assert await statuses(wires, changed) == {STATUS_OF[then]}, "what was seen stays"
            now, then = then, now
            await asyncio.sleep(0.05)
    with capsys.disabled():
        seen = (
            f"all of {len(wires)} connections to {WORKERS} workers {per_worker(told, wires)} after the PATCH's answer"
        )
        report(f"changes of a warm link under {clicks():,} other clicks", took_s, seen)
    assert max(took_s) < SEEN_MAX_S


async def test_a_created_link_redirects_on_every_connection_when_its_post_returns(
    told: dict[str, Any], session: aiohttp.ClientSession, wires: list[Wire], capsys: pytest.CaptureFixture[str]
) -> None:
    programme = await make_programme(session, "p7-create", 1, lambda: None)
    like = await call(session, "PATCH", f"/v1/links/{programme.link_ids[0]}", json={"status": "active"})
    of = {name: like[name] for name in ("offer_id", "partner_id")}
    took_s = []
    for n in range(CHANGES):
        made = await call(session, "POST", "/v1/links", json=of | {"code": f"p7-new-{n}"})
        assert made["live"] is True
        assert await statuses(wires, made["code"]) == {302}, "at once: nobody has asked for it before"
        assert await statuses(wires, f"p7-asked-{n}") == {404}, "each worker now remembers that there is none"
        await call(session, "POST", "/v1/links", json=of | {"code": f"p7-asked-{n}"})
        took_s.append(await until_seen(wires, f"p7-asked-{n}", 302))
    with capsys.disabled():
        print(f"\nP7: {CHANGES} created links answered 302 at once on all of {len(wires)} connections")
        report("created links whose code was asked for just before", took_s, "all of them after the POST's answer")
    assert max(took_s) < SEEN_MAX_S
