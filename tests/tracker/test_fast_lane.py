"""The fast lane keeps what is its own, whatever aiohttp had to answer on the same connection meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from loadtests.faults.edges import Filled, RunningEdge, request
from tracker import steps

BROWSERS = {
    "Accept": "text/html,application/xhtml+xml",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Accept-Language": "de-DE,de;q=0.9",
    "Connection": "keep-alive",
    "Cookie": "a=b; c=d",
    "Referer": "https://blog.example.org/tents?page=2",
    "Sec-Fetch-Mode": "navigate",
    "Upgrade-Insecure-Requests": "1",
}
CLICK = request("/c/demo", headers=BROWSERS)
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
BETWEEN = {
    "a health check": request("/live", headers=BROWSERS),
    "a postback": request("/postback?token=x", "POST", BROWSERS | FORM, b"click_id=x"),
    "a link that nobody knows": request("/c/nothing", headers=BROWSERS),
    "a paused link": request("/c/paused", headers=BROWSERS),
    "a look": request("/c/demo+", headers=BROWSERS),
    "HTTP that is not plain": request("/c/demo", headers=BROWSERS | {"Expect": "nothing"}),
}


async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: bytes) -> bytes:
    """The status of the answer to a request, which is read to its end."""
    writer.write(raw)
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(length)
    return head.split()[1]


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
async def test_whatever_aiohttp_answers_the_next_click_is_the_lanes(running: RunningEdge, between: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    await answered(reader, writer, CLICK)  # a cold link is aiohttp's, too
    for _ in range(3):
        before = running.edge.lane_clicks
        assert await answered(reader, writer, CLICK) == b"302"
        assert running.edge.lane_clicks == before + 1
        await answered(reader, writer, between)
    writer.close()


async def test_a_changed_link_is_asked_for_by_aiohttp_and_then_the_lanes_again(
    running: RunningEdge, publisher: Filled
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    for _ in range(3):
        running.edge.links.tier.void_all()
        before = running.edge.lane_clicks
        assert {await answered(reader, writer, CLICK) for _ in range(3)} == {b"302"}
        assert running.edge.lane_clicks == before + 2
    writer.close()


async def test_a_click_that_cannot_be_decided_is_aiohttps_and_takes_no_other_along(
    running: RunningEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = steps._location

    def failing(click: steps.Click, target: steps.Target, click_id: str) -> str:
        if "bad" in click.query:
            raise RuntimeError("a fault of ours")
        return location(click, target, click_id)

    connections = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(10)]
    await answered(*connections[0], CLICK)
    monkeypatch.setattr(steps, "_location", failing)
    before = running.edge.lane_clicks
    asked = [request("/c/demo?sub1=bad") if n == 5 else CLICK for n in range(10)]
    found = await asyncio.gather(*(answered(*of, raw) for of, raw in zip(connections, asked, strict=True)))
    assert found == [b"500" if n == 5 else b"302" for n in range(10)]
    assert running.edge.lane_clicks == before + 9
    for _, writer in connections:
        writer.close()
