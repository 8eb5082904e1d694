"""Postbacks in the fast lane: what the door for postbacks does with a plain one whose advertiser and offer are held.

Judged by the same functions and answered with the same bytes. Whatever is to be refused before it is an intake, asked
of Redis, or looks odd is left to the door.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import NamedTuple

import structlog
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE

from schemas import limits
from schemas.conversions.dialects import DIALECTS
from schemas.conversions.reading import token_of
from schemas.links import Offer
from schemas.outcomes import Outcome
from tracker import intakes, senders
from tracker.doors import answers, postbacks
from tracker.doors.answers import Answer
from tracker.edge import Edge
from tracker.intakes import Sender, Sent, Waiting
from tracker.log.recorder import Answering

log = structlog.get_logger()
PATH = "/postback"


class Asked(NamedTuple):
    """A postback, read, that the lane takes."""

    sender: Sender
    form: postbacks.Form
    sent: Sent
    offer: Offer | None


class Taken(NamedTuple):
    """One on its way into the log."""

    sender: Sender
    form: postbacks.Form
    waiting: Waiting


def read(edge: Edge, query: str, ip: str) -> Asked | None:
    """What a postback says; None where the door should have a look at it instead."""
    form = postbacks.read(query)
    token = token_of(form.said)
    advertiser = edge.links.held_advertiser(senders.token_digest(token)) if token else None
    if advertiser is None or advertiser.signing_key is not None or len(query) > limits.QUERY_BYTES_MAX:
        return None
    try:
        advertiser = postbacks.speaking(senders.allowed(advertiser, ip), PATH)
        senders.check_signature(advertiser, b"", "")
        sent = postbacks.sent(edge, advertiser, token, form)
        offer = edge.links.held_offer(sent.click.offer_id) if sent.click else None
        if sent.click and offer is None:
            return None
        edge.rates.take(advertiser, senders.SERVERS, 1, edge.clock.now_ms())
    except Exception:  # whatever it is, the door meets it again, says it and answers
        return None
    return Asked(Sender(advertiser, postbacks.DOOR), form, sent, offer)


def put(edge: Edge, asked: Asked) -> Taken | None:
    """Judge it and hand it to the recorder; None where that fails, and the door fails at it, too."""
    try:
        waiting = intakes.put(edge, asked.sender, asked.sent, asked.offer)
    except Exception:
        log.exception("lane_failed")
        return None
    edge.lane_postbacks += 1
    return Taken(asked.sender, asked.form, waiting)


class Answers:
    """What is to be answered in one turn of the loop: all is written down first, and sent then."""

    def __init__(self, edge: Edge, loop: asyncio.AbstractEventLoop) -> None:
        self._edge = edge
        self._loop = loop
        self._known: list[tuple[Taken, Answering, Outcome | None]] = []

    def when_durable(self, taken: Taken, connection: Answering) -> None:
        """`connection` is told to answer as soon as it is known what became of it."""
        waiter = taken.waiting[2]
        if waiter is None:
            self._add(taken, connection, None)
        else:
            waiter.add_done_callback(lambda known: self._add(taken, connection, known.result()))

    def _add(self, taken: Taken, connection: Answering, outcome: Outcome | None) -> None:
        if not self._known:
            self._loop.call_soon(self._give)
        self._known.append((taken, connection, outcome))

    def _give(self) -> None:
        known, self._known = self._known, []
        for connection, answer in [(connection, self._made(taken, outcome)) for taken, connection, outcome in known]:
            try:
                if answer is None:
                    connection.force_close()
                else:
                    connection.answer(answer)
            except Exception:
                log.exception("answer_failed")  # one connection's fault is not that of the others
                connection.force_close()

    def _made(self, taken: Taken, outcome: Outcome | None) -> bytes | None:
        try:
            return _answer(self._edge, taken, outcome)
        except Exception:
            log.exception("no_answer")
            return None


def _answer(edge: Edge, taken: Taken, outcome: Outcome | None) -> bytes:
    sent, judged, _ = taken.waiting
    receipt = intakes.receipt(edge, taken.sender, sent, judged, outcome)
    return _bytes(answers.to(receipt, taken.form.said, DIALECTS[taken.sender.advertiser.dialect].answer))


def _bytes(of: Answer) -> bytes:
    """As aiohttp writes it."""
    fixed = "".join(f"{name}: {value}\r\n" for name, value in of.headers.items())
    head = (
        f"HTTP/1.1 {of.status} {_PHRASES[of.status]}\r\n{fixed}Content-Type: {of.content_type}\r\n"
        f"Content-Length: {len(of.body)}\r\nDate: {rfc822_formatted_time()}\r\nServer: {SERVER_SOFTWARE}\r\n\r\n"
    )
    return head.encode("ascii") + of.body


_PHRASES = {status.value: status.phrase for status in HTTPStatus}
