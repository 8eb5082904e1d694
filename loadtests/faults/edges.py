"""An edge worker inside the test's own process, in front of a Redis that the test fills by hand."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from schemas import events, journal, limits, redis_keys
from schemas.events import Beat, Event
from schemas.links import Advertiser, Config, Link, Offer, Partner, Programme, Reference
from schemas.redis import Redis, RedisError, done, publishing
from schemas.settings import EdgeSettings, load
from tracker.app import listening, open_edge
from tracker.edge import Edge

KEYS = "1:" + "ab" * 32
VISITOR_KEY = "cd" * 16
TOKEN, OTHER_TOKEN = "token-of-advertiser-1", "token-of-advertiser-2"
BROWSER = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"
)
ANSWER_S = 30.0
DESTINATION = "https://shop.example/buy?from={sub1}&p={click_id}"


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def offer(offer_id: int = 1, **fields: Any) -> Offer:
    wanted: dict[str, Any] = {
        "advertiser_id": 1, "name": "Shop", "status": "active", "destination_url": DESTINATION, "currency": "EUR",
    } | fields  # fmt: skip
    return Offer(v=(1, 1), id=offer_id, **wanted)


def link(code: str = "demo", **fields: Any) -> Link:
    wanted: dict[str, Any] = {"v": (1, 1), "id": 1, "offer_id": 1, "partner_id": 1, "status": "active"} | fields
    return Link(code=code, **wanted)


def programme(**fields: Any) -> Programme:
    wanted: dict[str, Any] = {"timezone": "Europe/Berlin", "currency": "EUR"} | fields
    return Programme(v=(1, 1), **wanted)


def configs() -> dict[str, Config]:
    """A programme without a fallback, one link `demo`, a paused one, two advertisers. Its offer was called `77` before,
    and its partner `acme`."""
    return {
        redis_keys.PROGRAMME: programme(),
        redis_keys.link("demo"): link(),
        redis_keys.link("paused"): link("paused", id=2, status="paused"),
        redis_keys.offer(1): offer(),
        redis_keys.partner(1): Partner(v=(1, 1), id=1, name="Partner", status="active"),
        **{redis_keys.offer_reference(name): Reference(v=(1, 1), id=1) for name in ("1", "77")},
        **{redis_keys.partner_reference(name): Reference(v=(1, 1), id=1) for name in ("1", "acme")},
        **advertiser(),
        **advertiser(2, OTHER_TOKEN),
    }


def advertiser(advertiser_id: int = 1, token: str = TOKEN, **fields: Any) -> dict[str, Config]:
    """An advertiser under all its keys."""
    made = Advertiser(id=advertiser_id, **{"v": (1, 1), "status": "active"} | fields)
    pixel = {redis_keys.pixel(made.pixel_key): Reference(v=made.v, id=made.id)} if made.pixel_key else {}
    return {redis_keys.advertiser(digest(token)): made, redis_keys.advertiser_by_id(advertiser_id): made, **pixel}


@dataclass(slots=True)
class Filled:
    """A Redis as a publisher keeps it: values, marker, sequence, beats."""

    redis: Redis
    beating: bool = True  # else neither beats nor the marker's renewal

    async def write(self, found: Mapping[str, Config]) -> None:
        """Without telling anybody."""
        await done(self.redis.mset({key: msgspec.json.encode(value) for key, value in found.items()}))

    async def change(self, key: str, value: Config, *, tell: bool = True) -> None:
        await self.write({key: value})
        sequence = await done(self.redis.incr(redis_keys.SEQUENCE))
        if tell:
            await done(self.redis.publish(redis_keys.CHANGES, f"{sequence} {key}"))

    async def beat(self) -> None:
        sequence = int(await done(self.redis.get(redis_keys.SEQUENCE)) or 0)
        await done(self.redis.publish(redis_keys.CHANGES, f"{sequence} "))

    async def keep(self) -> None:
        """Beat and renew the marker until cancelled, whatever becomes of Redis."""
        while True:
            with contextlib.suppress(*RedisError):
                if self.beating:
                    await self._keep_once()
            await asyncio.sleep(0.2)

    async def _keep_once(self) -> None:
        await done(self.redis.set(redis_keys.COMPLETE, 1, ex=limits.COMPLETE_TTL_S))
        await self.beat()


@asynccontextmanager
async def filled(redis_url: str, found: Mapping[str, Config] | None = None) -> AsyncIterator[Filled]:
    """Write configs and keep the marker and the stream alive."""
    async with publishing(redis_url) as redis:
        publisher = Filled(redis)
        await publisher.write(configs() if found is None else found)
        await done(redis.set(redis_keys.COMPLETE, 1, ex=limits.COMPLETE_TTL_S))
        keeper = asyncio.create_task(publisher.keep(), name="beats")
        try:
            yield publisher
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class RunningEdge:
    """An edge that listens on `port` of 127.0.0.1 and writes its journal to `folder`."""

    edge: Edge
    port: int
    folder: Path

    def logged(self) -> list[Event]:
        """Everything in the journal, in order."""
        return logged(self.folder)

    def wrote(self) -> list[Event]:
        """Everything but beats."""
        return [event for event in self.logged() if not isinstance(event, Beat)]


def settings(folder: Path, redis_url: str, **fields: Any) -> EdgeSettings:
    wanted: dict[str, Any] = {
        "log_url": f"journal://{folder}", "edge_name": "edge", "click_keys": KEYS, "visitor_key": VISITOR_KEY,
    } | fields  # fmt: skip
    return load(EdgeSettings, redis_url=redis_url, **wanted)


@asynccontextmanager
async def running_edge(of: EdgeSettings, slot: int = 0) -> AsyncIterator[RunningEdge]:
    """Serve one worker on a free port until this ends; then it is drained and closed in its log."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    async with open_edge(of, slot) as edge, listening(of, edge, sock):
        edge.warm = await edge.links.is_warm()
        yield RunningEdge(edge, sock.getsockname()[1], of.journal_folder)


async def follows(edge: Edge) -> None:
    """Return when the edge hears the invalidation stream."""
    async with asyncio.timeout(5):
        while not edge.links.stream_healthy:
            await asyncio.sleep(0.005)


def bodies(folder: Path) -> list[bytes]:
    """The rows of a journal, in order."""
    found: list[bytes] = []
    for slot in journal.slots(folder):
        for path in journal.segments(journal.slot_folder(folder, slot)):
            with journal.reading(path) as segment:
                found += [row.body for row in segment.rows(journal.FIRST_OFFSET, 2**40)]
    return found


def logged(folder: Path) -> list[Event]:
    return [events.decode(line) for body in bodies(folder) for line in body.split(b"\n")]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; header names in lower case. Status 0: the connection was closed without an answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


def request(
    path: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> bytes:
    """A request's bytes, with a browser's User-Agent unless told otherwise."""
    lines = {"Host": "go.example", "User-Agent": BROWSER} | dict(headers or {})
    if body is not None:
        lines |= {"Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("utf-8", "surrogateescape") + (body or b"")


async def ask(port: int, raw: bytes) -> Answer:
    """Send bytes on a connection of their own and read one answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(raw)
        async with asyncio.timeout(ANSWER_S):
            return await read_answer(reader, has_body=not raw.startswith(b"HEAD"))
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def get(port: int, path: str, **headers: str) -> Answer:
    """A browser's GET; header names are written with `_` for `-`."""
    return await ask(port, request(path, headers={name.replace("_", "-"): value for name, value in headers.items()}))


async def get_all(port: int, paths: Iterable[str], connections: int = 20) -> list[Answer]:
    """Many GETs over a few connections at once."""
    waiting = iter(list(paths))

    async def one_connection() -> list[Answer]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        found = []
        for path in waiting:
            writer.write(request(path))
            async with asyncio.timeout(ANSWER_S):
                found.append(await read_answer(reader))
        writer.close()
        await writer.wait_closed()
        return found

    return [
        answer for found in await asyncio.gather(*(one_connection() for _ in range(connections))) for answer in found
    ]


async def read_answer(reader: asyncio.StreamReader, *, has_body: bool = True) -> Answer:
    """The next answer on a connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return Answer(0, {}, b"")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    size = int(headers.get("content-length", 0)) if has_body else 0
    return Answer(int(first.split(" ")[1]), headers, await reader.readexactly(size))
