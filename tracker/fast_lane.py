"""The fast lane: a plain click is answered where its bytes arrive, with no request object, task or future of its own.

A subclass of aiohttp's connection. What is a complete, plain `GET|HEAD /c/{code}` on a connection where nothing is
pending, for a link that is held, and ends in a redirect, is decided here by the same steps as at aiohttp's door and
answered when its batch is durable. Everything else is given to aiohttp as it came, request by request: it is the one
that refuses, waits for Redis, reads bodies. So the lane may give anything away, and never has to take anything.

One request of a connection is answered at a time; what comes meanwhile is held, and looked at afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any, NamedTuple

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from schemas import limits
from schemas.http import Connection
from schemas.links import CODE
from tracker.doors.click import HEADERS, asked, to_record
from tracker.edge import Edge
from tracker.framing import Framing
from tracker.steps import Click, Decision, decide

_LINE = re.compile(rb'(GET|HEAD) /c/(%s)/?(?:\?([!"$-~]*))? HTTP/1\.1\r\n' % CODE.pattern.encode())
_END = b"\r\n\r\n"
# Headers with which a request is none of ours: they change how it is read, or aiohttp refuses some of their values.
_AIOHTTPS = frozenset(
    "expect content-length content-type content-range content-location transfer-encoding upgrade proxy-connection etag "
    "max-forwards server".split()
)
_FIXED = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
_BODY = {"GET": "Content-Length: 0\r\n", "HEAD": ""}  # as aiohttp says it


class FastLane(Connection):
    """One connection of an edge."""

    def __init__(self, edge: Edge, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self._edge = edge
        self._framing = Framing()
        self._peer = ""
        self._is_answering = False
        self._is_holding = False
        self._is_closing = False
        self._held = b""
        self._answered: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]) if isinstance(peer, tuple) and peer else ""

    def data_received(self, data: bytes) -> None:
        if self._is_holding and data:  # without data aiohttp asks itself for the rest of what it has
            self._hold(data)
        elif data and self._is_about_to_wait():
            self._hold(data)
            self._loop.call_soon(self._go_on)
        else:
            self._take_or_give(data)

    def _take_or_give(self, data: bytes) -> None:
        if not (self._is_idle() and self._take(data)):
            self._give(data)

    def _give(self, data: bytes) -> None:
        """To aiohttp, as it came."""
        self._framing.follow(data)
        super().data_received(data)

    def _is_idle(self) -> bool:
        """Whether aiohttp waits for a request, or has not begun to, with nothing read, unread or unwritten."""
        waiter = self._waiter
        waits = self._request_count == 0 if waiter is None else not waiter.done()
        idle = waits and not self._messages and not self._paused
        return idle and self._framing.is_between and not (self._close or self._force_close)

    def _is_about_to_wait(self) -> bool:
        """Whether aiohttp has answered and will wait in a moment: who asks again at once must not be its for ever."""
        has_answered = self._request_count > 0 and not self._messages and not self._request_in_progress
        waits_for_none = self._waiter is None and self._framing.is_between  # and not for the rest of a body
        return has_answered and waits_for_none and not (self._close or self._force_close)

    def _hold(self, data: bytes) -> None:
        """One read at most: nothing more is read before what is held is looked at."""
        self._is_holding = True
        self._held += data
        self._pause_transport_reading()

    def _take(self, data: bytes) -> bool:
        """Whether the first request was answered here, or will be; what is behind it is held or looked at."""
        end = data.find(_END) + len(_END)
        head = data if end == len(data) else data[:end]
        if not len(_END) <= end <= limits.LANE_HEAD_BYTES_MAX:
            return False
        asks = _read(self._edge, self._peer, head)
        decision = asks and _decided(self._edge, asks)
        if not asks or not decision:
            return False
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        self._is_answering = self._is_holding = True
        if end < len(data):
            self._hold(data[end:])
        self._answer_when_durable(asks.click, decision, _redirect(decision.location or "", asks.method))
        return True

    def _answer_when_durable(self, click: Click, decision: Decision, answer: bytes) -> None:
        self._edge.lane_clicks += 1
        event = to_record(self._edge, click, decision)
        if event is None or not self._edge.recorder.answer_when_durable(event, click.at_ms, self, answer):
            self._loop.call_soon(self.answer, answer)  # not at once: who asks for thousands would nest them

    def answer(self, answer: bytes) -> None:
        """Write the answer that was waited for, and go on with what came meanwhile."""
        self._is_answering = False
        if self.transport is not None:
            self.transport.write(answer)
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)
        if self._is_closing:
            self.force_close()
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Look at what was held, once: if aiohttp waits still not, it is aiohttp's."""
        self._is_holding = False
        if self._held:
            held, self._held = self._held, b""
            self._resume_transport_reading()
            self._take_or_give(held)

    def close(self) -> None:
        """As aiohttp does with a request of its own: an answer that is waited for is still sent."""
        if self._is_answering:
            self._is_closing = True
        else:
            super().close()

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        if self._is_answering:
            self._is_closing = True
            self._answered = self._loop.create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._answered
        await super().shutdown(timeout)


class _Head:
    """What httptools says of one head. `plain`: a whole request without a body, on a connection that stays, no header
    said twice, in ASCII as all but a few are; then `headers` are its headers."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.on_header = self.headers.__setitem__  # a function of ours for each header would take longer than parsing
        self._renew()

    def _renew(self) -> None:
        self._parser = HttpRequestParser(self)

    def on_message_complete(self) -> None:
        self._stays = self._parser.should_keep_alive()  # afterwards it knows no more

    def plain(self, head: bytes) -> bool:
        self._stays = False
        self.headers.clear()
        try:
            self._parser.feed_data(head)
        except (HttpParserError, HttpParserUpgrade):
            self._stays = False
        if not self._stays:
            self._renew()
            return False
        lines = len(self.headers) + len(("request line", "end"))
        return head.count(b"\r\n") == lines <= limits.LANE_HEADERS_MAX and head.isascii()


class _Names(dict[bytes, str]):
    """Names of headers in lower case, by what they look like: there are few, so each is made once."""

    def __missing__(self, name: bytes) -> str:
        lower = name.lower().decode()
        if len(self) < limits.LANE_NAMES_MAX:
            self[name] = lower
        return lower


_head = _Head()  # one for all connections: it is given whole heads only
_names = _Names()


class _Asks(NamedTuple):
    method: str
    code: str
    click: Click


def _read(edge: Edge, peer: str, head: bytes) -> _Asks | None:
    """What a request asks; None where aiohttp should look at it."""
    line = _LINE.match(head)
    if line is None or not _head.plain(head):
        return None
    headers = {_names[name]: value for name, value in _head.headers.items()}
    if len(headers) < len(_head.headers) or "host" not in headers or not _AIOHTTPS.isdisjoint(headers):
        return None
    method, code, query = line.groups(b"")
    click = asked(
        edge,
        method=method.decode(),
        query=query.decode(),
        peer=peer,
        forwarded_for=_text(headers, "x-forwarded-for"),
        user_agent=_text(headers, "user-agent"),
        referer=_text(headers, "referer"),
        host=_text(headers, "host"),
        languages=_text(headers, "accept-language"),
    )
    return _Asks(method.decode(), code.decode(), click)


def _text(headers: dict[str, bytes], name: str) -> str:
    return headers[name].rstrip(b" \t").decode() if name in headers else ""


def _decided(edge: Edge, asks: _Asks) -> Decision | None:
    """The decision if it is a redirect, of configs that are held and fresh."""
    _, code, click = asks
    target = edge.links.held(code, click.host)
    if target is None or len(click.query) > limits.QUERY_BYTES_MAX:
        return None
    try:
        decision = decide(click, target, edge.keys.signing, edge.known)
    except Exception:  # whatever it is, aiohttp's door meets it again, says it and answers
        return None
    return decision if decision.location is not None else None


def _redirect(location: str, method: str) -> bytes:
    return (
        f"HTTP/1.1 302 Found\r\nLocation: {location}\r\n{_FIXED}{_BODY[method]}"
        f"Date: {rfc822_formatted_time()}\r\nServer: {SERVER_SOFTWARE}\r\n\r\n"
    ).encode("ascii")
