"""Clients that are slow, silent or gone have no more of the fast lane than of aiohttp, and no less."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import sqlite3
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from loadtests.faults import edges, odd_requests
from loadtests.faults.doors import an_edge
from loadtests.faults.edges import RunningEdge
from schemas import journal, limits

TAKEN_BYTES_MAX = 20_000_000  # from a client that does not read; kernels buffer some MB
READ_IN_THE_END = 300  # of the answers that wait for it
Scene = Callable[[RunningEdge], Awaitable[Any]]
CLICK = edges.request("/c/demo?sub1=a")


@pytest.fixture(autouse=True)
def _patient_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not make one of them give up."""
    monkeypatch.setattr(limits, "READ_TIMEOUT_S", 5.0)
    monkeypatch.setattr(limits, "ACK_DEADLINE_S", 5.0)


def seen_alike(folder: Path, redis_url: str, scene: Scene) -> Any:
    """What comes of a scene, and it must be the same at both doors: what it says, events written, outcomes."""
    slow, fast = seen(folder, redis_url, scene)
    assert slow == fast
    return slow


def seen(folder: Path, redis_url: str, scene: Scene) -> list[Any]:
    """What comes of a scene at aiohttp's door, and at the lane."""

    async def at_door(*, fast_lane: bool) -> Any:
        async with an_edge(folder, redis_url, int(fast_lane), fast_lane=fast_lane) as running:
            for count in (running.edge.tally.totals, running.edge.counters._counts):
                count.clear()
            before = len(running.wrote())
            found = await scene(running)
            await running.edge.recorder.drained()
            return found, len(running.wrote()) - before, dict(running.edge.tally.totals)

    return [uvloop.run(at_door(fast_lane=fast_lane)) for fast_lane in (False, True)]


@contextlib.asynccontextmanager
async def a_client(running: RunningEdge, receive_bytes: int | None = None) -> AsyncIterator[socket.socket]:
    with socket.socket() as sock:
        sock.setblocking(False)
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", running.port))
        yield sock


async def sent(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def heard(sock: socket.socket, answers: int | None = None, within_s: float = 20.0) -> Counter[bytes]:
    """Status of each answer that comes; until there are so many, else until the connection ends, or it is silent."""
    found = bytearray()
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(within_s):
            while answers is None or found.count(b"HTTP/1.1 ") < answers:
                more = await asyncio.get_running_loop().sock_recv(sock, 1 << 20)
                found += more or b"HTTP/1.1 end "
                if not more:
                    break
    return Counter(re.findall(rb"HTTP/1\.1 (\w+) ", found))


@contextlib.contextmanager
def log_held_up(running: RunningEdge) -> Iterator[None]:
    """Somebody else has the journal's write lock."""
    (slot,) = (journal.slot_folder(running.folder, slot) for slot in journal.slots(running.folder))
    with contextlib.closing(sqlite3.connect(journal.segments(slot)[-1], isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        yield
        holder.execute("ROLLBACK")


def test_whoever_has_said_that_no_more_comes_is_let_go_and_counted_once(tmp_path: Path, valkey_url: str) -> None:
    async def scene(running: RunningEdge) -> Any:
        async with a_client(running) as early, a_client(running) as late:
            await sent(early, CLICK)
            early.shutdown(socket.SHUT_WR)
            await sent(late, CLICK)
            first = await heard(late, 1)
            late.shutdown(socket.SHUT_WR)
            return await heard(early), first, await heard(late)

    _, written, tally = seen_alike(tmp_path, valkey_url, scene)
    assert (written, tally) == (2, {"recorded": 2})


def test_whoever_is_gone_before_the_answer_is_counted_once_and_leaves_nothing_behind(
    tmp_path: Path, valkey_url: str
) -> None:
    async def scene(running: RunningEdge) -> Any:
        await heard_one(running)
        tasks = len(asyncio.all_tasks())
        for reset in (True, False) * 20:
            async with a_client(running) as sock:
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await sent(sock, CLICK)
                await asyncio.sleep(0.001)
        async with asyncio.timeout(20):
            while len(asyncio.all_tasks()) > tasks:
                await asyncio.sleep(0.01)
        return await heard_one(running)

    assert seen_alike(tmp_path, valkey_url, scene) == ({b"302": 1}, 42, {"recorded": 42})


async def heard_one(running: RunningEdge) -> Counter[bytes]:
    async with a_client(running) as sock:
        await sent(sock, CLICK)
        return await heard(sock, 1)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_whoever_does_not_read_is_not_read_from_and_gets_every_answer_in_the_end(
    method: str, tmp_path: Path, valkey_url: str
) -> None:
    """Its answers fill the kernel's buffers and some of ours; then nothing more is taken from it."""
    raw = edges.request("/c/macros?gclid=" + "x" * 250, method, {"User-Agent": "é" * 500, "X": "y" * 6_000})

    async def scene(running: RunningEdge) -> Any:
        async with a_client(running, receive_bytes=4_096) as sock:
            whole = await taken(sock, raw)
            wanted = min(whole, READ_IN_THE_END)
            return whole * len(raw), await heard(sock, wanted) >= Counter({b"302": wanted})

    for (taken_bytes, got_all), _, _ in seen(tmp_path, valkey_url, scene):
        print(f"{method}: {taken_bytes:,} bytes were taken")
        assert got_all
        assert taken_bytes < TAKEN_BYTES_MAX


async def taken(sock: socket.socket, raw: bytes) -> int:
    """How many copies of a request are taken, until for a second nothing is."""
    whole, rest = 0, memoryview(raw)
    with contextlib.suppress(TimeoutError):
        while whole * len(raw) < TAKEN_BYTES_MAX:
            async with asyncio.timeout(1):
                while (size := sent_now(sock, rest)) == 0:
                    await asyncio.sleep(0.001)
            rest = rest[size:] or memoryview(raw)
            whole += len(rest) == len(raw)
    return whole


def sent_now(sock: socket.socket, data: memoryview) -> int:
    try:
        return sock.send(data)
    except BlockingIOError:
        return 0


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_thousands_of_requests_in_one_segment_are_all_answered(
    method: str, tmp_path: Path, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of GET the events find the queue full, so that nothing is waited for."""
    many = 2_000

    async def scene(running: RunningEdge) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(limits, "QUEUE_EVENTS_MAX", 0)
            async with a_client(running) as sock:
                await sent(sock, odd_requests.head(f"{method} /c/demo HTTP/1.1", "Host: a") * many)
                return await heard(sock, many)

    outcome = {"GET": "lost", "HEAD": "uncounted"}[method]
    assert seen_alike(tmp_path, valkey_url, scene) == ({b"302": many}, 0, {outcome: many})


def test_who_is_silent_is_let_go_and_who_asks_now_and_then_is_kept(
    tmp_path: Path, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "KEEPALIVE_S", 1.0)

    async def scene(running: RunningEdge) -> Any:
        said = {"nothing": b"", "half a head": CLICK[:30], "a click": CLICK, "a click and a half": CLICK + CLICK[:30]}

        async def silent(raw: bytes) -> Counter[bytes]:
            async with a_client(running) as sock:
                await sent(sock, raw)
                return await heard(sock, within_s=20)

        async def asks_again() -> int:
            async with a_client(running) as sock:
                answers = 0
                for _ in range(12):
                    await sent(sock, CLICK)
                    answers += (await heard(sock, 1))[b"302"]
                    await asyncio.sleep(0.2)
                return answers

        return dict(zip(said, await asyncio.gather(*map(silent, said.values())), strict=True)), await asks_again()

    (ended, answers), _, _ = seen_alike(tmp_path, valkey_url, scene)
    assert ended == {
        "nothing": {b"end": 1}, "half a head": {b"end": 1}, "a click": {b"302": 1, b"end": 1},
        "a click and a half": {b"302": 1, b"end": 1},
    }  # fmt: skip
    assert answers == 12


def test_an_edge_that_leaves_gives_the_answer_it_owes(tmp_path: Path, valkey_url: str) -> None:
    """As after SIGTERM: what waits for the log is answered, and then the connection ends."""

    async def leaving(folder: Path, *, fast_lane: bool) -> Any:
        async with contextlib.AsyncExitStack() as client:
            async with an_edge(folder, valkey_url, int(fast_lane), fast_lane=fast_lane) as running:
                sock = await client.enter_async_context(a_client(running))
                idle = await client.enter_async_context(a_client(running))
                await sent(idle, CLICK)
                await heard(idle, 1)
                held = contextlib.ExitStack()
                held.enter_context(log_held_up(running))
                asyncio.get_running_loop().call_later(0.3, held.close)
                await sent(sock, CLICK + CLICK)
                await asyncio.sleep(0.05)
            return await heard(sock), await heard(idle), len(running.wrote()), dict(running.edge.tally.totals)

    slow, fast = [uvloop.run(leaving(tmp_path, fast_lane=fast_lane)) for fast_lane in (False, True)]
    assert slow == fast
    assert slow[:2] == ({b"302": 1, b"end": 1}, {b"end": 1})


def test_past_the_deadline_a_click_is_answered_and_counted_late(
    tmp_path: Path, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ACK_DEADLINE_S", 0.1)

    async def scene(running: RunningEdge) -> Any:
        running.edge.tally.totals.clear()  # of warming up, on a slow disk
        with log_held_up(running):
            return await heard_one(running)

    assert seen_alike(tmp_path, valkey_url, scene) == ({b"302": 1}, 1, {"late": 1})
