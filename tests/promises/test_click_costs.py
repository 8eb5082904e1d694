"""What a plain click costs an edge, counted and not timed: so that no cost creeps in unseen."""

from __future__ import annotations

import asyncio
import inspect
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from loadtests.faults import edges
from loadtests.faults.edges import Filled, RunningEdge, request
from schemas import limits
from schemas.redis import done

CLICKS = 2_000
CONNECTIONS = 100
# A group commit has some, whatever lies in it; so have beats, flushes and the publisher, which this loop runs as well.
PER_BATCH_MAX = {"tasks": 2, "futures": 6, "coroutines": 60}
# A connection has two of each: one accepts it, one waits for what aiohttp is to answer.
BESIDE_MAX = {"tasks": 2 * CONNECTIONS + 50, "futures": 2 * CONNECTIONS + 100, "coroutines": 2 * CONNECTIONS + 2_000}
CALLS_MAX = 100  # of Python functions for a click, its share of all that is beside it included
LOG_BYTES_MAX = 270  # of a browser's click with one sub id
CLICK = request("/c/demo?sub1=a", headers={"Accept": "text/html", "Accept-Language": "de", "Accept-Encoding": "gzip"})


@pytest.fixture(autouse=True)
def _patient_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted here does not depend on how busy this machine is."""
    monkeypatch.setattr(limits, "READ_TIMEOUT_S", 5.0)
    monkeypatch.setattr(limits, "ACK_DEADLINE_S", 5.0)


async def clicked(port: int) -> None:
    """2,000 clicks over some connections, one at a time on each, from a thread of its own."""
    await asyncio.to_thread(_click, port)


def _click(port: int) -> None:
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(CONNECTIONS)]
    for _ in range(CLICKS // CONNECTIONS):
        for client in clients:
            client.sendall(CLICK)
        for client in clients:
            assert client.recv(65_536).startswith(b"HTTP/1.1 302 ")
    for client in clients:
        client.close()


@contextmanager
def counted(counts: Counter[str]) -> Iterator[None]:
    """Tasks and futures made by the running loop, and calls in its thread: of Python functions, and of coroutines."""
    loop: Any = asyncio.get_running_loop()
    make_future, make_task = loop.create_future, loop.get_task_factory()

    def future() -> asyncio.Future[Any]:
        counts["futures"] += 1
        return make_future()

    def task(of: asyncio.AbstractEventLoop, coro: Any, **more: Any) -> asyncio.Task[Any]:
        counts["tasks"] += 1
        return asyncio.Task(coro, loop=of, **more)

    def called(frame: FrameType, what: str, _: Any) -> None:
        if what == "call":
            counts["coroutines" if _is_coroutine(frame.f_code) else "calls"] += 1

    loop.create_future = future
    loop.set_task_factory(task)
    sys.setprofile(called)
    try:
        yield
    finally:
        sys.setprofile(None)
        loop.set_task_factory(make_task)
        del loop.create_future


def _is_coroutine(code: CodeType) -> bool:
    return bool(code.co_flags & inspect.CO_COROUTINE)


async def costs(running: RunningEdge) -> tuple[Counter[str], int]:
    """What 2,000 warm clicks make, and in how many batches they were written."""
    await clicked(running.port)
    before, counts = running.edge.recorder.batches, Counter[str]()
    with counted(counts):
        await clicked(running.port)
    return counts, running.edge.recorder.batches - before


def most(batches: int) -> dict[str, int]:
    return {name: PER_BATCH_MAX[name] * batches + BESIDE_MAX[name] for name in PER_BATCH_MAX}


async def test_a_click_makes_no_task_no_future_and_no_coroutine(
    running: RunningEdge, capsys: pytest.CaptureFixture[str]
) -> None:
    counts, batches = await costs(running)
    with capsys.disabled():
        print(f"\n{CLICKS:,} clicks in {batches} batches: {dict(counts)}")
    assert {name: counts[name] for name, n in most(batches).items() if counts[name] > n} == {}
    assert counts["calls"] / CLICKS <= CALLS_MAX


async def test_without_the_fast_lane_a_click_makes_all_of_them(
    tmp_path: Path, redis_url: str, publisher: Filled
) -> None:
    """Or those would be counted wrongly."""
    async with edges.running_edge(edges.settings(tmp_path, redis_url, fast_lane=False)) as running:
        counts, batches = await costs(running)
    for name, n in most(batches).items():
        assert counts[name] >= CLICKS
        assert counts[name] > n


async def test_clicks_ask_redis_no_more_the_more_they_are(
    running: RunningEdge, publisher: Filled, capsys: pytest.CaptureFixture[str]
) -> None:
    await clicked(running.port)
    before = await commands(publisher)
    await clicked(running.port)
    asked = await commands(publisher) - before
    with capsys.disabled():
        print(f"\n{CLICKS:,} clicks: {dict(asked)} of Redis")
    assert asked.total() / CLICKS <= 0.02
    assert asked["cmdstat_mget"] <= 10


async def commands(publisher: Filled) -> Counter[str]:
    """What Redis has carried out, but for what a publisher does, and for this question."""
    stats = await done(publisher.redis.info("commandstats"))
    ours = ("cmdstat_mget", "cmdstat_hincrby", "cmdstat_expire", "cmdstat_eval", "cmdstat_evalsha", "cmdstat_hget")
    return Counter({name: int(stats.get(name, {"calls": 0})["calls"]) for name in ours})


async def test_a_click_writes_few_bytes(running: RunningEdge, capsys: pytest.CaptureFixture[str]) -> None:
    before = sum(map(len, edges.bodies(running.folder)))
    await clicked(running.port)
    await running.edge.recorder.drained()
    written = sum(map(len, edges.bodies(running.folder))) - before
    with capsys.disabled():
        print(f"\n{CLICKS:,} clicks: {written / CLICKS:.0f} bytes each in the log")
    assert written / CLICKS <= LOG_BYTES_MAX
