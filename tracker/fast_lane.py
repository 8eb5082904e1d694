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
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
import structlog
from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from schemas import limits
from schemas.http import Connection
from schemas.links import CODE
from tracker import postback_lane
from tracker.doors.click import HEADERS, asked, count_caps, to_record
from tracker.edge import Edge
from tracker.framing import Framing
from tracker.log.recorder import Answered
from tracker.proxies import client_ip
from tracker.steps import Click, Decision, Target, judge, redirects

log = structlog.get_logger()
_LINE = re.compile(rf'(GET|HEAD) /c/({CODE.pattern})/?(?:\?([!"$-~]*))? HTTP/1\.1\r', re.ASCII)
_POSTBACK = b"GET /postback?"
_POSTBACK_LINE = re.compile(r'GET /postback\?([!"$-~]*) HTTP/1\.1\r', re.ASCII)
_CLICKS = (b"GET /c/", b"HEAD /c/")
_END = b"\r\n\r\n"
_END_BYTES = len(_END)
# Headers with which a request is none of ours: they change how it is read, or aiohttp refuses some of their values.
_AIOHTTPS = frozenset(
    "expect content-length content-type content-range content-location transfer-encoding upgrade proxy-connection etag "
    "max-forwards server".split()
)
_SENDERS = frozenset({"authorization", "x-clickdam-signature"})
_OWN = _SENDERS | {"referer", "x-forwarded-for"}  # hardly anybody says the same
_NAMES = _AIOHTTPS | _OWN | {"user-agent", "host", "accept-language"}
_FOUND = b"HTTP/1.1 302 Found\r\nLocation: "
_FIXED = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
_BODY = {"GET": "Content-Length: 0\r\n", "HEAD": ""}  # as aiohttp says it


class Arrivals:
    """What came on all connections in one turn of the loop, looked at together afterwards: all is read, then decided,
    then recorded. Between system calls, and one after the other, the same code lasts half as long again, because it is
    more than the processor's caches hold."""

    def __init__(self, edge: Edge, loop: asyncio.AbstractEventLoop) -> None:
        self._edge = edge
        self._loop = loop
        self._clicks: list[tuple[FastLane, bytes]] = []
        self._postbacks: list[tuple[FastLane, bytes]] = []
        self._answers = postback_lane.Answers(edge, loop)

    def add_click(self, connection: FastLane, data: bytes) -> None:
        if not self._clicks:
            self._loop.call_soon(self._look_at_clicks)
        self._clicks.append((connection, data))

    def add_postback(self, connection: FastLane, data: bytes) -> None:
        if not self._postbacks:
            self._loop.call_soon(self._look_at_postbacks)
        self._postbacks.append((connection, data))

    def _look_at_clicks(self) -> None:
        came, self._clicks = self._clicks, []
        now_ms, now = self._edge.clock.now_ms(), self._loop.time()
        try:
            asked = [_read(self._edge, now_ms, connection.peer, data) for connection, data in came]
            answers = _answers(self._edge, asked)
        except Exception:
            log.exception("lane_failed")
            answers = [None] * len(came)
        waiting: list[Answered] = []
        for (connection, data), of in zip(came, answers, strict=True):
            try:
                if of is None:
                    connection.pass_on(data)
                    continue
                connection.take(data, of.size_bytes, now)
                if of.event is None:
                    connection.answer(of.text)
                else:
                    waiting.append((of.event, connection, of.text))
            except Exception:
                log.exception("click_failed")  # one connection's fault is not that of the others
                connection.force_close()
        self._edge.recorder.answer_when_durable(waiting, now_ms)

    def _look_at_postbacks(self) -> None:
        came, self._postbacks = self._postbacks, []
        now = self._loop.time()
        heads = [_read_postback(data) for _, data in came]
        asked = [
            self._asked(connection.peer, *head[1:]) if head else None
            for (connection, _), head in zip(came, heads, strict=True)
        ]
        taken = [postback_lane.put(self._edge, asks) if asks else None for asks in asked]
        for (connection, data), head, of in zip(came, heads, taken, strict=True):
            try:
                if head and of:
                    connection.take(data, head[0], now)
                    self._answers.when_durable(of, connection)
                else:
                    connection.pass_on(data)
            except Exception:
                log.exception("postback_failed")
                connection.force_close()

    def _asked(self, peer: str, query: str, forwarded_for: str) -> postback_lane.Asked | None:
        return postback_lane.read(self._edge, query, client_ip(peer, forwarded_for, self._edge.trusted_proxies))


class FastLane(Connection):
    """One connection of an edge. While `_is_holding` something is pending: what came is looked at or will be, or an
    answer is waited for."""

    def __init__(self, edge: Edge, arrivals: Arrivals, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self._edge = edge
        self._arrivals = arrivals
        self._framing = Framing()
        self._is_holding = False
        self._held = b""
        self._is_closing = False
        self._released: asyncio.Future[None] | None = None
        self.peer = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if isinstance(peer, tuple) and peer else ""

    def data_received(self, data: bytes) -> None:
        if self._is_holding and data:  # without data aiohttp asks itself for the rest of what it has
            self._hold(data)
        elif data and self._waiter is None and self._is_about_to_wait():
            self._hold(data)
            self._loop.call_soon(self._go_on)
        else:
            self._look_at(data)

    def _look_at(self, data: bytes) -> None:
        if data.startswith(_CLICKS) and self._is_idle():
            self._is_holding = True
            self._arrivals.add_click(self, data)
        elif data.startswith(_POSTBACK) and self._is_idle():
            self._is_holding = True
            self._arrivals.add_postback(self, data)
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
        if not self._request_count:
            return False
        has_answered = not self._messages and not self._request_in_progress
        return has_answered and self._framing.is_between and not (self._close or self._force_close)

    def _hold(self, data: bytes) -> None:
        """One read at most: nothing more is read before what is held is looked at."""
        self._is_holding = True
        self._held += data
        self._pause_transport_reading()

    def pass_on(self, data: bytes) -> None:
        """What came is aiohttp's."""
        self._give(data + self._release())
        if self._is_closing:
            super().close()

    def take(self, data: bytes, size_bytes: int, now: float) -> None:
        """The first request of what came will be answered; hold the rest."""
        self._next_keepalive_close_time = now + self._keepalive_timeout
        if size_bytes < len(data):
            came_since, self._held = self._held, b""
            self._hold(data[size_bytes:] + came_since)

    def answer(self, answer: bytes) -> None:
        """Write the answer that was waited for, and go on with what came meanwhile."""
        if self.transport is not None:
            self.transport.write(answer)
        if self._held or self._is_closing or self._released is not None:
            self._go_on()
        else:
            self._is_holding = False

    def _go_on(self) -> None:
        """Close, if told to meanwhile; else look at what was held, once: if aiohttp still does not wait, it has it."""
        held = self._release()
        if self._is_closing:
            self.force_close()
        elif held:
            self._look_at(held)

    def _release(self) -> bytes:
        """Nothing is pending any more; what was held."""
        self._is_holding = False
        held, self._held = self._held, b""
        if held:
            self._resume_transport_reading()
        if self._released is not None and not self._released.done():
            self._released.set_result(None)
        return held

    def close(self) -> None:
        """As aiohttp does with a request of its own: an answer that is waited for is still sent."""
        if self._is_holding:
            self._is_closing = True
        else:
            super().close()

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        if self._is_holding:
            self._is_closing = True
            self._released = self._loop.create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._released
        await super().shutdown(timeout)


class _Plain:
    """Says of a head whether httptools takes it for one whole request without a body, on a connection that stays."""

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._parser = HttpRequestParser(self)

    def on_message_complete(self) -> None:
        self._stays = self._parser.should_keep_alive()  # afterwards it knows no more

    def __call__(self, head: bytes) -> bool:
        self._stays = False
        try:
            self._parser.feed_data(head)
        except (HttpParserError, HttpParserUpgrade):
            self._stays = False
        if not self._stays:
            self._renew()
        return self._stays


_is_plain = _Plain()  # one for all connections: it is given whole heads only


class _Asks(msgspec.Struct, gc=False):
    """The first request of what came."""

    size_bytes: int
    method: str
    code: str
    click: Click


def _read(edge: Edge, now_ms: int, peer: str, data: bytes) -> _Asks | None:
    """What the first request asks; None where aiohttp should look at it."""
    found_head = _head(data)
    line = _LINE.fullmatch(found_head[1]) if found_head else None
    if found_head is None or line is None:
        return None
    size_bytes, _, headers = found_head
    method, code, query = line.groups("")
    said = headers.get
    click = asked(
        edge,
        now_ms,
        method,
        query,
        peer,
        said("x-forwarded-for", ""),
        said("user-agent", ""),
        said("referer", ""),
        headers["host"],
        said("accept-language", ""),
    )
    return _Asks(size_bytes, method, code, click)


def _read_postback(data: bytes) -> tuple[int, str, str] | None:
    """How long a plain postback is, its query, and for whom it says that it comes; None where it is none."""
    head = _head(data)
    line = _POSTBACK_LINE.fullmatch(head[1]) if head else None
    if head is None or line is None or not _SENDERS.isdisjoint(head[2]):
        return None
    return head[0], line[1], head[2].get("x-forwarded-for", "")


class _Lines(dict[bytes, tuple[str, str] | None]):
    """What a header's line says: its name in lower case and its value, None where it does not matter. Most lines are
    said by many, so what they say is kept."""

    def __missing__(self, line: bytes) -> tuple[str, str] | None:
        name, _, value = line.decode("ascii").partition(":")
        name = name.lower()
        said = (name, value.partition("\r")[0].strip(" \t")) if name in _NAMES else None
        if name not in _OWN and len(line) <= limits.LANE_LINE_BYTES_MAX:
            if len(self) >= limits.LANE_LINES_MAX:
                self.clear()
            self[line] = said
        return said


_says = _Lines().__getitem__


def _head(data: bytes) -> tuple[int, str, dict[str, str]] | None:
    """How long the first request is, its first line, and those of its headers that matter; None where it is not plain.
    httptools sees to it that each line is one header, none continued on the next."""
    size_bytes = data.find(_END) + _END_BYTES
    head = data if size_bytes == len(data) else data[:size_bytes]
    if not _END_BYTES <= size_bytes <= limits.LANE_HEAD_BYTES_MAX or not head.isascii() or not _is_plain(head):
        return None
    line, *lines = head.split(b"\n")
    if len(lines) > limits.LANE_HEADERS_MAX:
        return None
    found = [*filter(None, map(_says, lines))]
    headers = dict(found)
    if len(headers) < len(found) or "host" not in headers or not _AIOHTTPS.isdisjoint(headers):
        return None
    return size_bytes, line.decode("ascii"), headers


class _Answer(msgspec.Struct, gc=False):
    """The answer to it, and the event that is to be durable first, if any."""

    size_bytes: int
    text: bytes
    event: bytes | None


def _answers(edge: Edge, asked: Sequence[_Asks | None]) -> list[_Answer | None]:
    """What is decided of configs that are held and fresh, and counted at once. None unless it is a redirect."""
    answers: list[_Answer | None] = [None] * len(asked)
    judged = [
        (n, asks, target)
        for n, asks in enumerate(asked)
        if asks and (target := _held(edge, asks)) and _leads_somewhere(edge, asks.click, target)
    ]
    decisions = _decisions(edge, [asks.click for _, asks, _ in judged], [target for *_, target in judged])
    date = rfc822_formatted_time()
    for (n, asks, _), decision in zip(judged, decisions, strict=True):
        if decision is not None:
            event = to_record(edge, asks.click, decision)
            answers[n] = _Answer(asks.size_bytes, _redirect(decision.location or "", asks.method, date), event)
            edge.lane_clicks += 1
    return answers


def _decisions(edge: Edge, clicks: Sequence[Click], targets: Sequence[Target]) -> Sequence[Decision | None]:
    """One after the other where one of them fails, so that it does not take the others along."""
    try:
        return redirects(clicks, targets, edge.keys.signing)
    except Exception:
        if len(clicks) == 1:
            return [None]
        return [_decisions(edge, [click], [target])[0] for click, target in zip(clicks, targets, strict=True)]


def _held(edge: Edge, asks: _Asks) -> Target | None:
    too_long = len(asks.click.query) > limits.QUERY_BYTES_MAX
    return None if too_long else edge.links.held(asks.code, asks.click.host)


def _leads_somewhere(edge: Edge, click: Click, target: Target) -> bool:
    try:
        judge(click, target, edge.known)
    except Exception:  # whatever it is, aiohttp's door meets it again, says it and answers
        return False
    if click.caps:
        count_caps(edge, click)
    return click.destination is not None


def _redirect(location: str, method: str, date: str) -> bytes:
    return _FOUND + location.encode("ascii") + _rest(method, date)


@lru_cache(maxsize=8)
def _rest(method: str, date: str) -> bytes:
    """Of the answer, behind the location: the same for all of a second."""
    return f"\r\n{_FIXED}{_BODY[method]}Date: {date}\r\nServer: {SERVER_SOFTWARE}\r\n\r\n".encode("ascii")
