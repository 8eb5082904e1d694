"""A browser's connection, cheap enough for thousands of requests a second on one core: HTTP/1.1, kept alive, no
redirects followed, and certain about one thing: whether the answer was heard."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import urlsplit

from loadtests.workload import Click

CONNECT_S = 20.0
ANSWER_S = 15.0


class CutOff(Exception):
    """The request was sent and its answer never came: nobody can tell whether it counted."""


@dataclass(frozen=True, slots=True)
class Wire:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def alive(self) -> bool:
        return not (self.reader.at_eof() or self.writer.is_closing())


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    location: str


async def connect(url: str) -> Wire:
    """A connection to the origin `url`; while nobody listens it is tried again. Raises OSError after 20 s of that."""
    parts = urlsplit(url)
    deadline = asyncio.get_running_loop().time() + CONNECT_S
    while True:
        try:
            return Wire(*await asyncio.open_connection(parts.hostname, parts.port or 80))
        except OSError:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.05)


async def ask(wire: Wire, click: Click, host: str) -> Answer:
    """Send one click and hear its answer. Raises CutOff."""
    try:
        wire.writer.write(_request(click, host))
        async with asyncio.timeout(ANSWER_S):
            return await _answer(wire, click.method)
    except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
        wire.writer.transport.abort()
        raise CutOff(click.number) from error


def _request(click: Click, host: str) -> bytes:
    lines = [f"{click.method} {click.target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in click.headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


async def _answer(wire: Wire, method: str) -> Answer:
    head = (await wire.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
    if "transfer-encoding" in fields:
        raise ConnectionAbortedError("an answer of unknown length")
    if method != "HEAD":
        await wire.reader.readexactly(int(fields.get("content-length", "0")))
    if fields.get("connection", "").lower() == "close":
        wire.writer.close()
    return Answer(int(head[0].split(" ", 2)[1]), fields.get("location", ""))
