"""After the edge there is no raw ip and no key: not in the journal, Redis, metrics or log lines (P10)."""

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import structlog

from loadtests.faults import edges
from loadtests.faults.edges import KEYS, TOKEN, VISITOR_KEY, Filled, RunningEdge, ask, get, request
from schemas import events, redis_keys
from schemas.http import HttpLog
from schemas.redis import done
from tracker import fast_lane
from tracker.app import admin
from tracker.doors import click as click_door
from tracker.metrics import prometheus
from tracker.steps import Click

IPS = ("203.0.113.77", "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff")
SECRETS = (TOKEN, KEYS.partition(":")[2], VISITOR_KEY, "wrong-token-7731")


@pytest.fixture
def visited(running: RunningEdge, monkeypatch: pytest.MonkeyPatch) -> RunningEdge:
    """Requests seem to come from the addresses of `IPS`: all connections of a test come from this machine."""
    coming, asked = iter(IPS * 1_000), click_door.asked

    def from_elsewhere(*of: Any, **said: Any) -> Click:
        found = asked(*of, **said)
        found.ip = next(coming)
        return found

    for door in (click_door, fast_lane):
        monkeypatch.setattr(door, "asked", from_elsewhere)
    return running


async def everything_in_redis(publisher: Filled) -> str:
    found = []
    async for key in publisher.redis.scan_iter("*"):
        kind = (await done(publisher.redis.type(key))).decode()
        value = await done(publisher.redis.hgetall(key) if kind == "hash" else publisher.redis.get(key))
        found.append(f"{key!r} {value!r}")
    return "\n".join(found)


async def use_every_door(running: RunningEdge, publisher: Filled) -> None:
    offer = edges.offer(destination_url="https://shop.example/?p={click_id}&ip={ip}")
    await publisher.write({redis_keys.offer(1): offer})
    running.edge.links.tier.void_all()
    for _ in IPS:
        found = await get(running.port, "/c/demo?sub1=a", Referer="https://blog.example/someone")
        assert found.status == 302
        assert not any(ip in found.headers["location"] for ip in IPS)
        assert "203.0.113.0" in found.headers["location"] or "2001%3Adb8%3Aaaaa%3A%3A" in found.headers["location"]
    click_id = found.headers["location"].partition("p=")[2].partition("&")[0]
    for params in ({"token": TOKEN, "order_id": "1"}, {"token": "wrong-token-7731"}, {"token": TOKEN, "amount": "x"}):
        await ask(running.port, request("/postback?" + urlencode({"click_id": click_id} | params)))
    bearer = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    await ask(running.port, request("/v1/conversions", "POST", bearer, b'{"click_id":"%s"}' % click_id.encode()))
    await ask(running.port, request("/v1/conversions", "POST", bearer, b"{"))
    await ask(running.port, request("/v1/conversions", "POST", bearer | {"Content-Encoding": "gzip"}, b"x"))
    await ask(running.port, request(f"/postback?token={TOKEN}\x01"))
    await ask(running.port, request("/c/demo", headers={"X-Forwarded-For": IPS[0], "Bad": "\x01"}))


async def test_no_raw_ip_and_no_key_is_anywhere_after_the_edge(
    visited: RunningEdge,
    publisher: Filled,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    await use_every_door(visited, publisher)
    await visited.edge.recorder.drained()
    await visited.edge.counters.flush(publisher.redis)
    while "link:1" not in await everything_in_redis(publisher):  # the edge's own flush may be under way
        await asyncio.sleep(0.01)
    printed = capsys.readouterr()
    places = {
        "journal": b"\n".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()).decode("latin-1"),
        "redis": await everything_in_redis(publisher),
        "metrics": prometheus(visited.edge).decode(),
        "log": printed.out + printed.err + caplog.text,
        "edge": repr(visited.edge),
    }
    assert "203.0.113.0" in places["journal"]
    assert "blog.example" in places["journal"]
    assert "request_unreadable" in places["log"]
    for place, text in places.items():
        for secret in (*IPS, *SECRETS, "2001:db8:aaaa:bbbb", "someone", "127.0.0.1" if place != "redis" else TOKEN):
            assert secret not in text, f"{secret} is in the {place}"
    assert {event.ip for event in visited.wrote() if isinstance(event, events.Click)} == {
        "203.0.113.0",
        "2001:db8:aaaa::",
    }


async def test_a_crash_is_logged_without_the_visitors_ip(running: RunningEdge, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr(click_door, "decide", crash)
    with structlog.testing.capture_logs() as logs:
        found = await get(running.port, "/c/demo")
    assert (found.status, found.json()["error"]["code"]) == (500, "internal")
    assert "RuntimeError" not in found.body.decode()
    (entry,) = (entry for entry in logs if entry["event"] == "request_crashed")
    assert "127.0.0.1" not in repr(entry)


def test_what_aiohttp_says_of_a_request_is_said_without_its_arguments() -> None:
    with structlog.testing.capture_logs() as logs:
        HttpLog().exception("Error handling request from %s", IPS[0], exc_info=RuntimeError("x"))
        HttpLog().debug("Error handling request from %s", IPS[0])
        HttpLog().warning("%s", IPS[0])
    assert IPS[0] not in repr(logs)


async def test_the_metrics_and_health_of_a_worker_are_on_its_own_socket(running: RunningEdge, tmp_path: Path) -> None:
    path = tmp_path / "admin"
    await get(running.port, "/c/demo")
    async with admin(running.edge, path):
        for name, expected in (
            ("/metrics", b'clickdam_edge_outcomes_total{outcome="recorded"} 1.0'),
            ("/ready", b"true"),
        ):
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(request(name))
            assert expected in (await edges.read_answer(reader)).body
            writer.close()
            await writer.wait_closed()
