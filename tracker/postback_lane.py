"""Postbacks in the fast lane: what the door for postbacks does with a plain one whose advertiser and offer are held.

Judged by the same functions and answered with the same bytes. Whatever is to be refused before it is an intake, asked
of Redis, or looks odd is left to the door.
"""

from __future__ import annotations

import asyncio
from functools import partial
from http import HTTPStatus
from typing import NamedTuple

import structlog
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE

from schemas import limits
from schemas.conversions.dialects import DIALECTS
from schemas.conversions.reading import token_of
from schemas.outcomes import Outcome
from tracker import intakes, senders
from tracker.doors import answers, postbacks
from tracker.doors.answers import Answer
from tracker.edge import Edge
from tracker.intakes import Sender, Waiting
from tracker.log.recorder import Answering

log = structlog.get_logger()
PATH = "/postback"


class Taken(NamedTuple):
    """A postback that is on its way into the log."""

    sender: Sender
    form: postbacks.Form
    waiting: Waiting


def take(edge: Edge, query: str, ip: str) -> Taken | None:
    """Hand a postback to the recorder; None where the door should have a look at it instead."""
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
    sender = Sender(advertiser, postbacks.DOOR)
    return Taken(sender, form, intakes.put(edge, sender, sent, offer))


def answer_when_durable(edge: Edge, taken: Taken, connection: Answering) -> None:
    """Tell `connection` to answer as soon as it is known what became of it."""
    waiter = taken.waiting[2]
    if waiter is None:
        connection.answer(_answer(edge, taken, None))
    else:
        waiter.add_done_callback(partial(_tell, edge, taken, connection))


def _tell(edge: Edge, taken: Taken, connection: Answering, waiter: asyncio.Future[Outcome]) -> None:
    try:
        connection.answer(_answer(edge, taken, waiter.result()))
    except Exception:
        log.exception("answer_failed")
        connection.force_close()


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
