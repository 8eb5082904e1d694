"""Two edges in one process, one with the fast lane and one without, and all that is heard of them.

What comes back on a connection is compared byte for byte, but for the date; a click id stands for what it says and for
the event that was recorded under it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from loadtests.faults import edges, odd_requests
from loadtests.faults.edges import RunningEdge, link, offer, programme
from loadtests.faults.odd_requests import Said
from schemas import click_id, events, redis_keys
from schemas.click_id import ClickKeys
from schemas.events import Click, Conversion, Intake
from schemas.links import Cap, Config, Domain, Landing, Partner, Targeting
from schemas.redis import done, publishing

AT_ONCE = 100  # connections
DEAF_S = 5.0  # a connection on which nothing happens for so long is ended by its client
KEYS = ClickKeys.parse(edges.KEYS)
_DATE = re.compile(rb"\r\nDate: [^\r]+")
_CLICK_ID = re.compile(rb"[A-Za-z0-9_-]{51}")


def configs() -> dict[str, Config]:
    """Links of every kind, beside those of `edges.configs()`."""
    far, past = 4_000_000_000_000, 1_000_000_000_000
    offers = [
        offer(),
        offer(2, deep_link_hosts=frozenset({"shop.example"}), click_id_parameter="cid"),
        offer(3, landings=tuple(Landing(url=f"https://{n}.example/{{sub1}}", weight=n) for n in (1, 2, 3))),
        offer(4, caps=(Cap(id=4, period="month", clicks=10**6),)),
        offer(5, caps=(Cap(id=5, period="total", clicks=1, over_cap="pass"),)),
        offer(6, targeting=Targeting(include={"os": frozenset({"ios"})}), fallback_url="https://fall.example/{os}"),
        offer(7, access="private"),
        offer(8, destination_url="https://pass.example/p?x=1#f", pass_parameters=True),
        offer(9, starts_ms=far), offer(10, ends_ms=past, fallback_url="https://late.example/?c={click_id}"),
        offer(11, destination_url="https://é.example/{country}/{device}/{os}/{browser}?i={ip}&u={user_agent}&r={referer}&s={source_id}"
                                  "&n={offer_name}&a={affiliate_name}&x={unknown}&g={gclid}&m=[[sub2]]"),
    ]  # fmt: skip
    codes = "demo deep landings counted over targeted private passed soon gone macros".split()
    links = [link(code, id=20 + n, offer_id=1 + n) for n, code in enumerate(codes)]
    links += [link("own", id=40, destination_url="https://own.example/{sub1}"), link("blocked", id=41, partner_id=2)]
    blocks: Any = frozenset({(0, "source_id", "bad"), (0, "sub1", "bad")})
    domains = {
        "own.example": Domain(own_links=True, fallback_url="https://domain.example/"),
        "archived.example": Domain(archived=True), "other.example": Domain(),
    }  # fmt: skip
    return edges.configs() | {
        redis_keys.PROGRAMME: programme(domains=domains, blocks=blocks),
        redis_keys.partner(2): Partner(v=(1, 1), id=2, name="Other", status="blocked"),
        **{redis_keys.offer(one.id): one for one in offers},
        **{redis_keys.link(one.code): one for one in links},
        redis_keys.link("demo", "own.example"): link("demo", id=42, destination_url="https://of-domain.example/"),
    }


@contextlib.asynccontextmanager
async def an_edge(
    folder: Path, redis_url: str, database: int, *, fast_lane: bool, **more: Any
) -> AsyncIterator[RunningEdge]:
    """A warm edge with a Redis database of its own."""
    url = redis_url.rpartition("/")[0] + f"/{database}"
    settings = edges.settings(folder / f"{database}", url, fast_lane=fast_lane, trusted_proxies="127.0.0.0/8", **more)
    async with publishing(url) as redis:
        await done(redis.flushdb())
    async with edges.filled(url, configs()), edges.running_edge(settings) as running:
        await edges.follows(running.edge)
        for key in configs():
            code = key.removeprefix("link:")
            if code != key and "/" not in code:
                await edges.get(running.port, f"/c/{code}")
        yield running


@contextlib.asynccontextmanager
async def two_doors(folder: Path, redis_url: str) -> AsyncIterator[tuple[RunningEdge, RunningEdge]]:
    async with (
        an_edge(folder, redis_url, 0, fast_lane=False) as slow,
        an_edge(folder, redis_url, 1, fast_lane=True) as fast,
    ):
        yield slow, fast


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of some connections: the bytes on each, the events, the outcomes, the live counters."""

    streams: list[bytes]
    written: Counter[str]
    tally: Counter[str]
    live: Counter[str]


async def heard_of(running: RunningEdge, said: Sequence[Said]) -> Heard:
    room = asyncio.Semaphore(AT_ONCE)

    async def one(of: Said) -> bytes:
        async with room:
            return await say(running.port, of)

    raw = await asyncio.gather(*map(one, said))
    await running.edge.recorder.drained()
    wrote = running.wrote()
    by_id = {event.id.bytes: event for event in wrote if isinstance(event, Click)}
    streams = [_DATE.sub(b"\r\nDate: -", _CLICK_ID.sub(lambda found: _told(found[0], by_id), one)) for one in raw]
    return Heard(streams, Counter(map(_content, wrote)), Counter(running.edge.tally.totals), Counter())


def _told(text: bytes, by_id: dict[bytes, Click]) -> bytes:
    """What a click id says, and the event under it."""
    try:
        said = click_id.read(KEYS, text.decode())
    except (ValueError, LookupError):
        return text
    event = by_id.get(said.uuid.bytes)
    return f"<{said.link_id} {said.offer_id} {said.partner_id} {said.click_class} {event and _content(event)}>".encode()


def _content(event: events.Event) -> str:
    """An event without what is its own: id and time."""
    if isinstance(event, Conversion):
        event = msgspec.structs.replace(event, intake_id=event.conversion_id, event_at_ms=0)
    elif isinstance(event, Intake):
        event = msgspec.structs.replace(event, intake_id=_NO_ID)
    elif isinstance(event, Click):
        event = msgspec.structs.replace(event, id=_NO_ID)
    return events.encode(event).decode()


_NO_ID = click_id.read(KEYS, odd_requests.CLICK).uuid


async def live(redis_url: str) -> Counter[str]:
    """The live counters that a closed edge has left, whatever the quarter hour."""
    found: Counter[str] = Counter()
    async with publishing(redis_url) as redis:
        for pattern in ("live:*", "cap:*:*"):
            async for key in redis.scan_iter(pattern):
                of = "" if pattern == "live:*" else key.decode().rpartition(":")[0] + " "
                kept = await done(redis.hgetall(key))
                found.update({of + field.decode(): int(n) for field, n in kept.items()})
    return found


async def say(port: int, said: Said) -> bytes:
    """Say it all on a connection of its own; everything that comes back until its end."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        listening = asyncio.create_task(_listen(sock, found := bytearray()))
        for wanted, segment in said.segments:
            while found.count(b"HTTP/1.1 ") < wanted and not listening.done():
                await asyncio.sleep(0.001)
            with contextlib.suppress(OSError):
                await loop.sock_sendall(sock, segment)
            for _ in range(said.turns):  # after three, the edge in this loop has read it
                await asyncio.sleep(0)
        await listening
        return bytes(found)


async def _listen(sock: socket.socket, found: bytearray) -> None:
    loop, heard = asyncio.get_running_loop(), b"-"
    while heard:
        try:
            async with asyncio.timeout(DEAF_S):
                heard = await loop.sock_recv(sock, 65_536)
        except ConnectionError:
            heard = b""
        except TimeoutError:
            heard = b""
            found += b"<nothing>"
        found += heard


def differences(said: Sequence[Said], slow: Heard, fast: Heard) -> list[str]:
    """Where two edges differ, in words."""
    found = [
        "\n  ".join(map(_short, (b" | ".join(segment for _, segment in one.segments), *_apart(there, here))))
        for one, there, here in zip(said, slow.streams, fast.streams, strict=True)
        if there != here
    ]
    found.sort(key=len)
    counts = (
        ("event", slow.written, fast.written),
        ("outcome", slow.tally, fast.tally),
        ("live", slow.live, fast.live),
    )
    for name, there, here in counts:
        parted = [key for key in {*there, *here} if there[key] != here[key]]
        found += [f"{name} {key}: aiohttp {there[key]}, lane {here[key]}" for key in parted]
    return found


def _apart(there: bytes, here: bytes) -> tuple[bytes, bytes]:
    """Two streams from a little before they part."""
    parted = next((at for at, (one, other) in enumerate(zip(there, here, strict=False)) if one != other), len(here))
    same = max(0, parted - 200)
    return b"aiohttp: ..." + there[same:], b"lane:    ..." + here[same:]


def _short(raw: bytes) -> str:
    return re.sub(r"(.)\1{19,}", lambda found: f"<{len(found[0])} {found[1]}>", repr(raw)).replace(
        repr(odd_requests.END)[2:-1], "<END>"
    )


async def both_doors(folder: Path, redis_url: str, said: Sequence[Said]) -> list[Heard]:
    async with two_doors(folder, redis_url) as doors:
        found = await asyncio.gather(*(heard_of(door, said) for door in doors))
    urls = [redis_url.rpartition("/")[0] + f"/{database}" for database in (0, 1)]
    return [replace(of, live=await live(url)) for of, url in zip(found, urls, strict=True)]
