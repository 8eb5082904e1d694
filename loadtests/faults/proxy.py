"""A TCP proxy in front of one server (Postgres, Valkey) that fails in a chosen way, inside the test's own process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from typing import Literal, Self, get_args

Mode = Literal["pass", "refuse", "reset", "blackhole", "latency"]
CHUNK_BYTES = 65_536
CONNECT_S = 5.0
PATTERN_BYTES_MAX = 64
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(slots=True, eq=False)
class _Wire:
    """One client's connection and ours to the server for it."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    deaf: bool = False  # the client shall not hear the answer to what it sent last

    def cut(self) -> None:
        _reset(self.client)
        _reset(self.server)


@dataclass(slots=True)
class _Cut:
    pattern: bytes
    forward: bool
    times: int


@dataclass(slots=True, eq=False)
class FaultProxy:
    """`async with FaultProxy(host, port) as proxy` listens on `proxy.port` of 127.0.0.1.

    `proxy.mode` takes effect at once, for connections that are open too:
    `pass`; `refuse`: nobody listens, what was open is reset; `reset`: each connection is reset as soon as it is there;
    `blackhole`: connections are accepted and nothing is carried until the mode changes, as with a frozen server;
    `latency`: each piece is carried `latency_ms` later. `cuts` counts the connections cut by `cut_on`, `requests` the
    pieces that clients sent. Pieces from the server that hold `swallow` are lost, if it is not empty, and counted in
    `swallowed`.
    """

    upstream_host: str
    upstream_port: int
    latency_ms: float = 500.0
    port: int = 0
    cuts: int = 0
    requests: int = 0
    swallow: bytes = b""
    swallowed: int = 0
    _mode: Mode = "pass"
    _listener: socket.socket | None = None
    _carrying: asyncio.Event = field(default_factory=asyncio.Event)
    _wires: set[_Wire] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _cut: _Cut | None = None
    _replies_to_drop: int = 0

    async def __aenter__(self) -> Self:
        self._carrying.set()
        self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop_listening()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"no such mode: {mode}")
        self._mode = mode
        self._carrying.clear() if mode == "blackhole" else self._carrying.set()
        if mode in ("refuse", "reset"):
            self.cut_all()
        if mode == "refuse":
            self._stop_listening()
        elif self._listener is None:
            self._listen()

    def cut_on(self, pattern: bytes, *, forward: bool, times: int = 1) -> None:
        """Cut the next `times` connections whose client sends `pattern`: with `forward` only after the server has
        answered it (the client never hears), without it the server never sees it. Raises ValueError for a pattern
        that is empty or longer than 64 bytes."""
        if not 0 < len(pattern) <= PATTERN_BYTES_MAX:
            raise ValueError(f"a pattern has 1 to {PATTERN_BYTES_MAX} bytes")
        self._cut = _Cut(pattern, forward, times)

    def drop_replies(self, replies: int) -> None:
        """Swallow the next `replies` pieces the server sends; connections stay open."""
        self._replies_to_drop = replies

    def cut_all(self) -> None:
        """Reset every open connection, both sides."""
        for wire in self._wires:
            wire.cut()

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(128)
        listener.setblocking(False)
        self._listener, self.port = listener, listener.getsockname()[1]
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _stop_listening(self) -> None:
        if self._listener:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            client, _ = listener.accept()
            task = asyncio.get_running_loop().create_task(self._serve(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        from_client, client = await asyncio.open_connection(sock=sock)
        try:
            await self._carrying.wait()
            if self._mode == "reset":
                return
            upstream = asyncio.open_connection(self.upstream_host, self.upstream_port)
            from_server, server = await asyncio.wait_for(upstream, CONNECT_S)
        except (OSError, TimeoutError):
            return
        else:
            await self._carry(_Wire(client, server), from_client, from_server)
        finally:
            _reset(client)

    async def _carry(self, wire: _Wire, from_client: asyncio.StreamReader, from_server: asyncio.StreamReader) -> None:
        self._wires.add(wire)
        ways = [
            asyncio.create_task(self._requests(wire, from_client)),
            asyncio.create_task(self._replies(wire, from_server)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            await _flush(wire)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            wire.cut()
            self._wires.discard(wire)

    async def _requests(self, wire: _Wire, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            seen = b""  # the end of the piece before: a pattern may lie across two
            while piece := await reader.read(CHUNK_BYTES):
                self.requests += 1
                cut = self._cut_for(seen, piece)
                if cut and not cut.forward:
                    wire.cut()
                    return
                wire.deaf = wire.deaf or cut is not None
                seen = (seen + piece)[-PATTERN_BYTES_MAX:]
                await self._pass_on(wire.server, piece)

    async def _replies(self, wire: _Wire, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(CHUNK_BYTES):
                if wire.deaf:
                    wire.cut()
                    return
                if self.swallow and self.swallow in piece:
                    self.swallowed += 1
                    continue
                if self._replies_to_drop > 0:
                    self._replies_to_drop -= 1
                    continue
                await self._pass_on(wire.client, piece)

    async def _pass_on(self, writer: asyncio.StreamWriter, piece: bytes) -> None:
        await self._carrying.wait()
        if self._mode == "latency":
            await asyncio.sleep(self.latency_ms / 1_000)
        writer.write(piece)
        await writer.drain()

    def _cut_for(self, seen: bytes, piece: bytes) -> _Cut | None:
        cut = self._cut
        if cut is None or cut.times <= 0 or cut.pattern not in seen[1 - len(cut.pattern) :] + piece:
            return None
        cut.times -= 1
        self.cuts += 1
        return cut


async def _flush(wire: _Wire) -> None:
    """What was read is delivered before the other side hears that the connection is over."""
    for writer in (wire.client, wire.server):
        with contextlib.suppress(OSError, TimeoutError):
            writer.close()
            await asyncio.wait_for(writer.wait_closed(), 1.0)


def _reset(writer: asyncio.StreamWriter) -> None:
    transport = writer.transport
    if not transport.is_closing():
        with contextlib.suppress(OSError):
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()
