"""What a conversion door was sent, read and judged: pure functions from parameters to the event, or a refusal.

`accepted` means valid; that it is durable is the door's business, that it is paid once is the aggregator's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b, sha256
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID

import orjson

from schemas import click_id, limits, money
from schemas.click_id import ClickId, ClickKeys
from schemas.errors import Refused
from schemas.events import Conversion
from schemas.links import Offer
from schemas.outcomes import EARNING, ClickClass

DEFAULT_EVENT = "sale"
JSON_FIELDS = frozenset("click_id order_id amount amount_minor currency event event_time".split())
_PLAIN = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]*")
_SECONDS = re.compile(r"\d{9,11}(\.\d{1,9})?", re.ASCII)
_TIME_AHEAD_MAX_S = 86_400.0  # a sender's clock or zone may be off, but not by more than a day


@dataclass(frozen=True, slots=True)
class Posted:
    """One conversion as it was sent; strings unread, empty where absent."""

    click_id: str = ""
    order_id: str = ""
    amount: str = ""
    amount_minor: int | None = None
    currency: str = ""
    event: str = ""
    event_time: str = ""


def read_form(text: str) -> dict[str, str]:
    """Query or form parameters by name. Raises Refused for too many, or for one that is said twice, differently."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=limits.QUERY_PARAMS_MAX)
    except ValueError as error:
        raise Refused("bad_parameters", f"the parameters cannot be read: {type(error).__name__}") from None
    found: dict[str, str] = {}
    for name, value in ((name.lower(), value) for name, value in pairs):
        if found.setdefault(name, value) != value:
            raise Refused("bad_parameters", f"{name[:64]!r} is given twice, with different values", name[:64])
    return found


def posted_form(params: dict[str, str]) -> Posted:
    """What a postback's parameters say; those that we do not know are ignored, as senders expect."""
    return Posted(
        click_id=params.get("click_id", ""),
        order_id=params.get("order_id", ""),
        amount=params.get("amount", ""),
        currency=params.get("currency", ""),
        event=params.get("event", ""),
        event_time=params.get("event_time", ""),
    )


def posted_json(item: Any) -> Posted:
    """One JSON conversion. Raises Refused naming the field."""
    if not isinstance(item, dict):
        raise Refused("bad_parameters", "a conversion is an object")
    for name, value in item.items():
        if name not in JSON_FIELDS:
            raise Refused("bad_parameters", f"unknown field {name[:64]!r}", name[:64])
        wanted: type | tuple[type, ...] = int if name == "amount_minor" else str
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise Refused("bad_amount" if "amount" in name else "bad_parameters", f"{name} has a wrong type", name)
    if "amount" in item and "amount_minor" in item:
        raise Refused("bad_amount", "amount and amount_minor exclude each other", "amount")
    return Posted(**item)


def token_digest(token: str) -> str:
    """How an advertiser's token is named in Redis. Raises Refused when there is none."""
    if not token:
        raise Refused("missing_token", "a token is needed", "token")
    return sha256(token.encode(errors="replace")).hexdigest()


def read_click(keys: ClickKeys, text: str) -> ClickId:
    """The click that a conversion names. Raises Refused."""
    if not text:
        raise Refused("missing_click_id", "click_id is needed", "click_id")
    try:
        click = click_id.read(keys, text)
    except click_id.NotAClickId as error:
        raise Refused("bad_click_id", f"this is no click id: {error}", "click_id") from None
    except click_id.UnknownKey:
        raise Refused("unknown_key", "the key of this click id is not known here yet", "click_id") from None
    except click_id.RetiredKey:
        raise Refused("retired_key", "the key of this click id is retired", "click_id") from None
    except click_id.Forged:
        raise Refused("forged_click_id", "this click id is not ours", "click_id") from None
    if click.click_class not in EARNING:
        raise Refused("click_never_earns", _NEVER_EARNS[click.click_class], "click_id")
    return click


_NEVER_EARNS = {
    ClickClass.FALLBACK: "the click went to a fallback",
    ClickClass.TEST: "the click was a test",
    ClickClass.UNCOUNTED: "the click was a HEAD request",
}


def judge(
    posted: Posted, click: ClickId, offer: Offer | None, advertiser_id: int, intake_id: bytes, now_ms: int
) -> Conversion:
    """The event of a valid conversion. Raises Refused with the reason for an invalid one."""
    if offer is None or offer.advertiser_id != advertiser_id:
        raise Refused("not_your_click", "this click belongs to another advertiser's offer", "click_id")
    currency = _currency(posted.currency or offer.currency)
    amount_minor, reason = _amount(posted, currency)
    event = _event_name(posted.event or DEFAULT_EVENT)
    order_id = _order_id(posted.order_id)
    return Conversion(
        v=1,
        intake_id=UUID(bytes=intake_id),
        conversion_id=conversion_id(advertiser_id, event, order_id, click.uuid),
        click_uuid=click.uuid,
        click_class=int(click.click_class),
        link_id=click.link_id,
        offer_id=click.offer_id,
        partner_id=click.partner_id,
        advertiser_id=advertiser_id,
        event=event,
        order_id=order_id,
        event_at_ms=_event_time(posted.event_time, now_ms),
        amount_minor=amount_minor,
        currency=currency,
        reason=reason,
    )


def conversion_id(advertiser_id: int, event: str, order_id: str, click: UUID) -> UUID:
    """The order's name, from what is known without a look-up. Scope: advertiser + event + order id; without an order
    id click + event. A UUIDv8 (RFC 9562) over BLAKE2b."""
    scope = ["advertiser", advertiser_id, event, order_id] if order_id else ["click", str(click), event]
    digest = blake2b(orjson.dumps(scope), digest_size=16).digest()
    return UUID(int=int.from_bytes(digest, "big") & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62)


def _currency(text: str) -> str:
    if text.upper() not in money.EXPONENT:
        raise Refused("unknown_currency", f"{text[:16]!r} is no ISO 4217 currency", "currency")
    return text.upper()


def _amount(posted: Posted, currency: str) -> tuple[int | None, str]:
    """Minor units, and the reason to keep the conversion pending if they cannot be told."""
    try:
        minor = posted.amount_minor
        if posted.amount:
            minor = money.major_to_minor(posted.amount, currency)
    except money.AmbiguousAmount:
        return None, "ambiguous_amount"
    except OverflowError:
        raise Refused("absurd_amount", "the amount is beyond any order", "amount") from None
    except ValueError:
        raise Refused("bad_amount", f"{posted.amount[:32]!r} is no decimal number", "amount") from None
    if minor is not None and minor < 0:
        raise Refused("negative_amount", "an amount is not negative", "amount")
    if minor is not None and minor > limits.AMOUNT_MINOR_MAX:
        raise Refused("absurd_amount", "the amount is beyond any order", "amount_minor")
    return minor, ""


def _event_name(text: str) -> str:
    if len(text) > limits.EVENT_NAME_MAX or not _PLAIN.fullmatch(text):
        raise Refused("bad_event", f"an event has at most {limits.EVENT_NAME_MAX} printable characters", "event")
    return text


def _order_id(text: str) -> str:
    if len(text) > limits.ORDER_ID_MAX or not _PLAIN.fullmatch(text):
        raise Refused("bad_order_id", f"an order id has at most {limits.ORDER_ID_MAX} printable characters", "order_id")
    return text


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
