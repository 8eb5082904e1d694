"""What becomes of an intake: read, judged, written, answered with a receipt. The same for every door for conversions.

Whoever sends one here is known to be an advertiser. What it sends is written also where it is rejected, so that it can
be found and run again; not what it will send again anyhow.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import msgspec

from schemas import events, limits
from schemas.click_id import ClickId, uuid7_bytes
from schemas.conversions.judging import judge
from schemas.conversions.posted import Posted
from schemas.conversions.reading import HalfRead, read_click
from schemas.errors import Refused
from schemas.events import Conversion, Intake
from schemas.links import Advertiser, Offer
from schemas.outcomes import ClickClass, Outcome, Result
from tracker.edge import Edge
from tracker.links import NotReady

COUNTED_AS = "conversion_"
_NOTHING = Posted()
_NO_HEADERS: Mapping[str, str] = {}
_DURABLE = {Outcome.RECORDED: 200, Outcome.SPOOLED: 202}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SEND_AGAIN = frozenset({408, 429, 503})


class Sender(NamedTuple):
    """Who sends, and through which door. `advertiser.dialect` is the one that is spoken there."""

    advertiser: Advertiser
    door: str


class Sent(NamedTuple):
    """One conversion as it came, read as far as it could be; `refusal` says why no further."""

    raw: str
    posted: Posted = _NOTHING
    click: ClickId | None = None
    refusal: Refused | None = None


class Receipt(NamedTuple):
    """What a sender is told of one conversion, and the status and headers that it alone is answered with."""

    body: dict[str, Any]
    status: int
    headers: Mapping[str, str] = _NO_HEADERS

    @property
    def is_to_be_sent_again(self) -> bool:
        return self.status in _SEND_AGAIN


T = TypeVar("T")
Judged = Conversion | Refused
Waiting = tuple[Sent, Judged, asyncio.Future[Outcome] | None]


def read(edge: Edge, raw: str, posted: Callable[[], Posted]) -> Sent:
    """What was sent, and the click of ours that it proves."""
    said, raw = _NOTHING, _plain(raw)
    try:
        said = posted()
        return Sent(raw, said, read_click(edge.keys, said.click_id))
    except HalfRead as refusal:
        return Sent(raw, Posted(order_id=refusal.order_id), refusal=refusal)
    except Refused as refusal:
        return Sent(raw, said, refusal=refusal)


def _plain(text: str) -> str:
    """The text without what no database takes, and no screen shows."""
    return text if text.isprintable() else _CONTROL.sub("", text)


async def take(edge: Edge, sender: Sender, sent: Sent) -> Receipt:
    """Judge a conversion, make it durable, say what became of it. Raises Refused."""
    (receipt,) = await _receipts(edge, sender, await _put_all(edge, sender, [sent]))
    return receipt


async def take_many(edge: Edge, sender: Sender, items: Sequence[T], read_one: Callable[[T], Sent]) -> list[Receipt]:
    """The same for many. Raises Refused where that goes for all of them; what was written of them then is removed as a
    copy, once they are sent again.

    Some at a time, then other requests have their turn; one body after the other, because their conversions would wait
    for each other's, and be late.
    """
    waiting: list[Waiting] = []
    async with edge.judging:
        for n in range(0, len(items), limits.CONVERSIONS_AT_ONCE):
            portion = [read_one(item) for item in items[n : n + limits.CONVERSIONS_AT_ONCE]]
            waiting += await _put_all(edge, sender, portion)
            await asyncio.sleep(0)
    return await _receipts(edge, sender, waiting)


async def _put_all(edge: Edge, sender: Sender, all_sent: Sequence[Sent]) -> list[Waiting]:
    try:
        offers = await edge.links.offers({sent.click.offer_id for sent in all_sent if sent.click})
    except NotReady:
        raise Refused("unavailable", "try again in a moment") from None
    return [put(edge, sender, sent, offers.get(sent.click.offer_id) if sent.click else None) for sent in all_sent]


async def _receipts(edge: Edge, sender: Sender, waiting: Iterable[Waiting]) -> list[Receipt]:
    return [receipt(edge, sender, sent, judged, await waiter if waiter else None) for sent, judged, waiter in waiting]


def put(edge: Edge, sender: Sender, sent: Sent, offer: Offer | None) -> Waiting:
    """Judge one and hand it to the recorder; no future where there is nothing to write, or no room to."""
    now_ms = edge.clock.now_ms()
    intake_id = uuid7_bytes(now_ms, os.urandom(10))
    judged = _judge(sender, sent, offer, intake_id, now_ms)
    if isinstance(judged, Conversion) and not _is_test(sent):
        return sent, judged, edge.recorder.put(events.encode(judged), now_ms, COUNTED_AS)
    if isinstance(judged, Refused) and judged.status >= 500:
        return sent, judged, None
    intake = events.encode(_intake(sender, sent, judged, intake_id))
    return sent, judged, edge.recorder.put(intake, now_ms, f"{COUNTED_AS}intake_")


def _judge(sender: Sender, sent: Sent, offer: Offer | None, intake_id: bytes, now_ms: int) -> Judged:
    if sent.refusal:
        return sent.refusal
    try:
        return judge(
            sent.posted, sent.click, offer, sender.advertiser, intake_id, now_ms, door=sender.door, raw=sent.raw
        )
    except Refused as refusal:
        return refusal


def _is_test(sent: Sent) -> bool:
    return sent.click is not None and sent.click.click_class is ClickClass.TEST


def _intake(sender: Sender, sent: Sent, judged: Judged, intake_id: bytes) -> Intake:
    """What is kept of an intake that is no conversion."""
    made = Intake(
        v=1,
        intake_id=UUID(bytes=intake_id),
        advertiser_id=sender.advertiser.id,
        result="test" if _is_test(sent) else "rejected",
        reason=judged.code if isinstance(judged, Refused) else judged.reason,
        door=sender.door,
        dialect=sender.advertiser.dialect,
        raw=sent.raw,
        order_id=_plain(sent.posted.order_id)[: limits.ORDER_ID_MAX],
    )
    click = sent.click
    if click is None:
        return made
    return msgspec.structs.replace(
        made, click_uuid=click.uuid, click_class=int(click.click_class), link_id=click.link_id,
        offer_id=click.offer_id, partner_id=click.partner_id,
    )  # fmt: skip


def receipt(edge: Edge, sender: Sender, sent: Sent, judged: Judged, outcome: Outcome | None) -> Receipt:
    """What its sender is told, when it is known what became of it; that it is a duplicate is a hint."""
    if isinstance(judged, Refused) and judged.status >= 500:
        return rejection(edge, judged)
    if outcome not in _DURABLE:
        return rejection(edge, Refused("not_durable", "not stored in time: send it again"))
    if _is_test(sent):
        return _test_receipt(edge, sender, sent, judged)
    if isinstance(judged, Refused):
        return rejection(edge, judged)
    is_repeated = edge.has_taken(_said(judged))
    return _accepted(judged, Result.DUPLICATE if is_repeated else Result.ACCEPTED, _DURABLE[outcome])


def _said(event: Conversion) -> Hashable:
    """What makes a further intake of an order the same again."""
    if not (event.status or event.event_id or event.remaining_minor is not None):
        return event.conversion_id
    return event.conversion_id, event.status, event.event_id, event.refund_minor, event.remaining_minor


def _accepted(event: Conversion, result: Result, status: int) -> Receipt:
    body = {"result": result, "reason": event.reason or None, "conversion_id": str(event.conversion_id)}
    if status == 202:
        body["status_url"] = f"/v1/conversions/{event.conversion_id}"
    return Receipt(body, status)


def rejection(edge: Edge, refusal: Refused) -> Receipt:
    edge.tally.count(f"{COUNTED_AS}refused_{refusal.code}", edge.clock.now_ms())
    return _rejected(refusal)


def _rejected(refusal: Refused) -> Receipt:
    body = {
        "result": Result.REJECTED, "reason": refusal.code, "conversion_id": None,
        "message": refusal.message, "field": refusal.field,
    }  # fmt: skip
    return Receipt(body, refusal.status, refusal.headers)


def _test_receipt(edge: Edge, sender: Sender, sent: Sent, judged: Judged) -> Receipt:
    """How a test was read, and what its receipt would be."""
    edge.tally.count(f"{COUNTED_AS}test", edge.clock.now_ms())
    would_be = _rejected(judged) if isinstance(judged, Refused) else _accepted(judged, Result.ACCEPTED, 200)
    fields = {name: value for name, value in msgspec.structs.asdict(sent.posted).items() if value not in ("", None, {})}
    body = {"test": True, "dialect": sender.advertiser.dialect, "fields": fields, "receipt": would_be.body}
    return Receipt(body, would_be.status, would_be.headers)
