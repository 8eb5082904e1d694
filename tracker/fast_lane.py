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

_LINE = re.compile(rf"(GET|HEAD) /c/({CODE.pattern})/?(?:\?([!\"$-~]*))? HTTP/1\.1\r\n", re.ASCII)
_BEGINS = (b"GET /c/", b"HEAD /c/")
_END = b"\r\n\r\n"
# Headers with which a request is none of ours, and those that say whose click it is. httptools has seen before that
# each line is one header, and that none is continued on the next.
_AIOHTTPS = frozenset(
    "expect content-length content-type content-range content-location transfer-encoding upgrade proxy-connection etag "
    "max-forwards server".split()
)
_HEADERS = re.compile(
    rf"\r\n(user-agent|referer|host|accept-language|x-forwarded-for|{'|'.join(sorted(_AIOHTTPS))}):"
    r"[ \t]*([^\r]*(?<![ \t]))",
    re.IGNORECASE | re.ASCII,
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
        if self._is_holding:
            self._hold(data)
        elif self._is_idle():
            if not self._take(data):
                self._give(data)
        elif self._is_about_to_wait():
            self._hold(data)
            self._loop.call_soon(self._go_on)
        else:
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
        if not head.startswith(_BEGINS) or len(head) > limits.LANE_HEAD_BYTES_MAX or not _is_plain(head):
            return False
        asks = _read(self._edge, self._peer, head.decode("ascii"))
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
        """Look at what was held."""
        self._is_holding = False
        if self._held:
            held, self._held = self._held, b""
            self._resume_transport_reading()
            self.data_received(held)

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


class _Plain:
    """Says of a head whether httptools takes it for one whole request, without a body, on a connection that stays; and
    whether it is ASCII, as all but a few are."""

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._parser = HttpRequestParser(self)

    def on_message_complete(self) -> None:
        self._is_plain = self._parser.should_keep_alive()  # afterwards it knows no more

    def __call__(self, head: bytes) -> bool:
        self._is_plain = False
        try:
            self._parser.feed_data(head)
        except (HttpParserError, HttpParserUpgrade):
            self._is_plain = False
        if self._is_plain:
            return head.isascii() and head.count(b"\r\n") < limits.LANE_HEADERS_MAX
        self._renew()
        return False


_is_plain = _Plain()  # one for all connections: it is given whole heads only


class _Asks(NamedTuple):
    method: str
    code: str
    click: Click


def _read(edge: Edge, peer: str, head: str) -> _Asks | None:
    """What a plain head asks; None where aiohttp should look at it."""
    line, found = _LINE.match(head), _HEADERS.findall(head)
    headers = {name.lower(): value for name, value in found}
    if line is None or len(headers) < len(found) or "host" not in headers or not _AIOHTTPS.isdisjoint(headers):
        return None
    method, code, query = line.groups("")
    said = headers.get
    click = asked(
        edge,
        method=method,
        query=query,
        peer=peer,
        forwarded_for=said("x-forwarded-for", ""),
        user_agent=said("user-agent", ""),
        referer=said("referer", ""),
        host=said("host", ""),
        languages=said("accept-language", ""),
    )
    return _Asks(method, code, click)


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
