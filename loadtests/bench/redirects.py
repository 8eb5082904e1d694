"""The two servers that only redirect: `python -m loadtests.bench.redirects bare|raw PORT`."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import cast

import uvloop
from aiohttp import web

LOCATION = "https://shop.example/buy?click_id=" + "A" * 51
BACKLOG = 4_096  # with the 128 of aiohttp, 256 connections at once wait for retransmissions: a p99 of 700 ms
_ANSWER = f"HTTP/1.1 302 Found\r\nLocation: {LOCATION}\r\nContent-Length: 0\r\n\r\n".encode()


class Raw(asyncio.Protocol):
    """Counts blank lines, and redirects whatever was asked; nothing in Python can answer with less."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.head = b""

    def data_received(self, data: bytes) -> None:
        *whole, self.head = (self.head + data).split(b"\r\n\r\n")
        self.transport.write(_ANSWER * len(whole))


async def _raw(listening: socket.socket) -> None:
    server = await asyncio.get_running_loop().create_server(Raw, sock=listening, backlog=BACKLOG)
    await server.serve_forever()


async def _redirect(request: web.Request) -> web.Response:
    return web.Response(status=302, headers={"Location": LOCATION})


async def live(request: web.Request) -> web.Response:
    """The other request of mixed runs, answered as an edge does."""
    return web.json_response({"live": True})


def bare() -> web.Application:
    """What people begin with."""
    app = web.Application()
    app.router.add_get("/c/{code}", _redirect)
    app.router.add_get("/live", live)
    return app


def _bare(listening: socket.socket) -> None:
    web.run_app(bare(), sock=listening, backlog=BACKLOG, access_log=None, print=None, loop=uvloop.new_event_loop())


def main() -> None:
    kind, port = sys.argv[1:]
    listening = socket.create_server(("127.0.0.1", int(port)))
    if kind == "bare":
        _bare(listening)
    else:
        uvloop.run(_raw(listening))


if __name__ == "__main__":
    main()
