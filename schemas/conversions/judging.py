"""Whether what was sent is a conversion: a pure function to the event of the log, or a refusal with its reason.

`accepted` means valid; that it is durable is the door's business, that it is paid once is the aggregator's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from schemas import limits, money
from schemas.click_id import ClickId
from schemas.conversions import names
from schemas.conversions.posted import Posted
from schemas.conversions.reading import MASK, has_address
from schemas.errors import Refused
from schemas.events import NO_CLICK, Conversion
from schemas.links import Advertiser, Offer
from schemas.outcomes import ClickClass, Held

DEFAULT_EVENT = "sale"
_PLAIN = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]*")
_NOT_PLAIN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_OF_HUNDREDTHS = "EUR"  # like most currencies: what an amount is read as while it is not known of which
_SECONDS = re.compile(r"\d{9,11}(\.\d{1,9})?", re.ASCII)
_TIME_AHEAD_MAX_S = 86_400.0  # a sender's clock or zone may be off, but not by more than a day
_NEVER_EARNS = {
    ClickClass.FALLBACK: "the click went to a fallback",
    ClickClass.UNCOUNTED: "the click was a HEAD request",
}


def judge(
    posted: Posted,
    click: ClickId | None,
    offer: Offer | None,
    advertiser: Advertiser,
    intake_id: bytes,
    now_ms: int,
    *,
    door: str,
    raw: str,
) -> Conversion:
    """The event of a valid conversion; raises Refused with the reason for an invalid one.

    `click` is what `read_click` said of `posted.click_id`, `offer` that of the click, `now_ms` the receipt,
    `advertiser.dialect` what was spoken. A conversion on a test's click is judged like any other: that it is none is
    the door's business.
    """
    if door == "pixel":
        posted = _of_a_page(posted)
    foreign_click = _whose(posted, click, offer, advertiser, now_ms)
    event = _text(posted.event or DEFAULT_EVENT, limits.EVENT_NAME_MAX, "bad_event")
    order_id = _text(posted.order_id, limits.ORDER_ID_MAX, "bad_order_id")
    click_uuid = click.uuid if click else NO_CLICK
    if foreign_click:
        click_uuid = names.foreign_click_uuid(advertiser.id, foreign_click)
    name, former = names.named(
        offer, advertiser.id, event, order_id, click_uuid, click.at_ms if click else now_ms, now_ms
    )
    currency = _currency(posted.currency or (offer.currency if offer else ""))
    amounts, ambiguous = _amounts(posted, currency, advertiser.decimal_separator)
    refund, remaining = _refund(posted, amounts)
    return Conversion(
        v=1,
        intake_id=UUID(bytes=intake_id),
        conversion_id=name,
        former_id=former,
        click_uuid=click.uuid if click else NO_CLICK,
        click_class=int(click.click_class) if click else 0,
        link_id=click.link_id if click else 0,
        offer_id=click.offer_id if click else 0,
        partner_id=click.partner_id if click else 0,
        advertiser_id=advertiser.id,
        event=event,
        order_id=order_id,
        event_at_ms=_event_time(posted.event_time, now_ms),
        amount_minor=amounts["amount"],
        currency=currency,
        reason=_held(door, ambiguous, amounts, currency, offer),
        door=door,
        dialect=advertiser.dialect,
        raw=raw,
        status=posted.status,
        original_status=_kept(posted.original_status, limits.STATUS_MAX),
        event_id=_text(posted.event_id, limits.EVENT_ID_MAX, "bad_event_id"),
        refund_minor=refund,
        remaining_minor=remaining,
        revenue_minor=amounts["revenue"],
        payout_minor=_payout(amounts["payout"], offer),
        customer_id=_text(posted.customer_id, limits.CUSTOMER_ID_MAX, "bad_customer_id"),
        coupon_code=_text(posted.coupon_code.strip().upper(), limits.COUPON_CODE_MAX, "bad_coupon_code"),
        foreign_click=foreign_click,
        adv={name: _without_address(_kept(value, limits.VALUE_MAX)) for name, value in posted.adv.items()},
    )


def _of_a_page(posted: Posted) -> Posted:
    """What a page says, whose source anybody can read: it reports a sale, and changes none."""
    for field in ("status", "refund_amount", "remaining_amount"):
        if getattr(posted, field):
            raise Refused("not_from_a_page", "a page cannot say what became of an order", field)
    return msgspec.structs.replace(posted, revenue="", payout="", event_id="")


def _whose(posted: Posted, click: ClickId | None, offer: Offer | None, advertiser: Advertiser, now_ms: int) -> str:
    """The foreign click id, if the conversion has one; raises Refused where nothing says whose it is."""
    if click:
        if click.click_class in _NEVER_EARNS:
            raise Refused("click_never_earns", _NEVER_EARNS[click.click_class], "click_id")
        if offer is None or offer.advertiser_id != advertiser.id:
            raise Refused("not_your_click", "this click belongs to another advertiser's offer", "click_id")
        return ""
    if posted.click_id:
        if now_ms >= (advertiser.foreign_clicks_until_ms or 0):
            raise Refused("bad_click_id", "this is no click id of ours", "click_id")
        return _text(posted.click_id, limits.FOREIGN_CLICK_MAX, "bad_click_id")
    if not (posted.coupon_code.strip() or posted.customer_id):
        raise Refused("missing_click_id", "click_id is needed, or a coupon_code, or a customer_id", "click_id")
    if not posted.order_id:
        raise Refused("missing_order_id", "without a click an order_id is needed", "order_id")
    return ""


def _currency(text: str) -> str:
    """Empty where neither the sender nor an offer says it; raises Refused for none of ISO 4217."""
    if text and not (text.isascii() and text.upper() in money.EXPONENT):
        raise Refused("unknown_currency", f"{text[:16]!r} is no ISO 4217 currency", "currency")
    return text.upper()


def _amounts(posted: Posted, currency: str, decimal_separator: str) -> tuple[dict[str, int | None], bool]:
    """Each amount in minor units, and whether one that the conversion can wait for cannot be told."""
    found = {
        "amount": posted.amount_minor, "revenue": posted.revenue_minor, "payout": posted.payout_minor,
        "refund_amount": posted.refund_amount_minor, "remaining_amount": posted.remaining_amount_minor,
    }  # fmt: skip
    ambiguous = False
    for name, minor in found.items():
        text: str = getattr(posted, name)
        if minor is None and not text:
            continue
        if minor is not None and not currency:
            raise Refused("missing_currency", f"without a click {name}_minor needs a currency", "currency")
        try:
            found[name] = _bounded(_minor(text, currency, decimal_separator, name) if text else minor, name)
        except money.AmbiguousAmount:
            if name in ("refund_amount", "remaining_amount"):
                raise Refused("bad_amount", f"{text!r} is a thousand or one and a bit", name) from None
            ambiguous = True
    return found, ambiguous


def _minor(text: str, currency: str, decimal_separator: str, name: str) -> int:
    try:
        return money.major_to_minor(text, currency or _OF_HUNDREDTHS, decimal_separator)
    except money.AmbiguousAmount:
        raise
    except OverflowError:
        raise Refused("absurd_amount", "the amount is beyond any order", name) from None
    except ValueError:
        raise Refused("bad_amount", f"{text[:32]!r} is no decimal number", name) from None


def _bounded(minor: int | None, name: str) -> int | None:
    if minor is not None and minor < 0:
        raise Refused("negative_amount", "an amount is not negative", name)
    if minor is not None and minor > limits.AMOUNT_MINOR_MAX:
        raise Refused("absurd_amount", "the amount is beyond any order", name)
    return minor


def _refund(posted: Posted, amounts: Mapping[str, int | None]) -> tuple[int | None, int | None]:
    """What is given back and what is left. What is given back is counted once, by its `event_id`: without one, what is
    left has to be said, or a sender's retry would refund twice."""
    refund, remaining = amounts["refund_amount"], amounts["remaining_amount"]
    if refund is None or posted.event_id:
        return refund, remaining
    if remaining is None:
        raise Refused("event_id_missing", "a refund needs an event_id, or the remaining_amount", "event_id")
    return None, remaining


def _payout(minor: int | None, offer: Offer | None) -> int | None:
    """Instead of what the terms say, where the offer allows it; passed over where it does not."""
    return None if offer and offer.payout_override_max_minor is None else minor


def _held(door: str, ambiguous: bool, amounts: Mapping[str, int | None], currency: str, offer: Offer | None) -> Held:
    """Why it waits, as far as an edge can tell. A page's goes first: what its server says then replaces all of it."""
    if door == "pixel":
        return Held.PIXEL
    if ambiguous:
        return Held.AMBIGUOUS_AMOUNT
    amount, payout = amounts["amount"], _payout(amounts["payout"], offer)
    bounds = (offer.amount_max_minor, offer.payout_override_max_minor) if offer else (None, None)
    comparable = offer is not None and currency == offer.currency
    if amount is not None and bounds[0] is not None and comparable and amount > bounds[0]:
        return Held.ABOVE_BOUND
    if payout is not None and (bounds[1] is None or not comparable or payout > bounds[1]):
        return Held.PAYOUT_ABOVE_BOUND
    return Held.NONE


def _text(text: str, longest: int, code: str) -> str:
    """Raises Refused for what cannot be a name: cutting it could make one of two."""
    if len(text) > longest or not (text.isprintable() or _PLAIN.fullmatch(text)):
        field = code.removeprefix("bad_")
        raise Refused(code, f"{field} has at most {longest} printable characters", field)
    return text


def _kept(text: str, longest: int) -> str:
    return _NOT_PLAIN.sub("", text)[:longest]


def _without_address(text: str) -> str:
    return MASK if has_address(text) else text


def _event_time(text: str, now_ms: int) -> int:
    """RFC 3339 or Unix seconds; the receipt where the sender says nothing."""
    if not text:
        return now_ms
    try:
        at = datetime.fromtimestamp(float(text), UTC) if _SECONDS.fullmatch(text) else datetime.fromisoformat(text)
        at_ms = int(at.timestamp() * 1000) if at.tzinfo else -1
    except (ValueError, OverflowError, OSError):
        at_ms = -1
    if at_ms < 0 or at_ms > now_ms + _TIME_AHEAD_MAX_S * 1000:
        raise Refused(
            "bad_event_time", "event_time is RFC 3339 with a zone, or Unix seconds, not in the future", "event_time"
        )
    return at_ms
