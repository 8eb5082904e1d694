"""The name of an order, from what is known without a look-up: the same whoever computes it, whenever."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any
from uuid import UUID

import orjson

from schemas import limits
from schemas.links import Offer, Scope

_DEFAULT: Scope = "advertiser"
_WINDOW_MS = limits.CLICK_WINDOW_DAYS_MAX * 86_400_000


def conversion_id(scope: Scope, advertiser_id: int, offer_id: int, event: str, order_id: str, click_uuid: UUID) -> UUID:
    """The order's name within its scope; without an order id a click converts once per event, whatever the scope."""
    if scope == "click" or not order_id:
        return _uuid8(["click", str(click_uuid), event])
    if scope == "offer":
        return _uuid8(["offer", advertiser_id, offer_id, event, order_id])
    if scope == "programme":
        return _uuid8(["programme", event, order_id])
    return _uuid8(["advertiser", advertiser_id, event, order_id])


def named(
    offer: Offer | None, advertiser_id: int, event: str, order_id: str, click_uuid: UUID, click_ms: int, now_ms: int
) -> tuple[UUID, UUID | None]:
    """The order's name, and the other one it may have been given where the offer's scope changed near its click: an
    order can be reported with clicks of both sides of the change."""
    offer_id = offer.id if offer else 0
    scope, other = _scopes(offer, click_ms, now_ms)
    name = conversion_id(scope, advertiser_id, offer_id, event, order_id, click_uuid)
    if other is None:
        return name, None
    former = conversion_id(other, advertiser_id, offer_id, event, order_id, click_uuid)
    return name, former if former != name else None


def repeat_id(conversion: UUID, text: str) -> UUID:
    """The name of a further conversion of the same order, where each is recorded: by the sender's event id, or by the
    intake's."""
    return _uuid8(["repeat", str(conversion), text])


def foreign_click_uuid(advertiser_id: int, foreign_click: str) -> UUID:
    """What stands for another tracker's click id in the name of an order that has no order id."""
    return _uuid8(["foreign_click", advertiser_id, foreign_click])


def _scopes(offer: Offer | None, click_ms: int, now_ms: int) -> tuple[Scope, Scope | None]:
    """The scope at the click, and its neighbour: the one before, for one longest window; else the one that came after
    the click and is in force at the receipt."""
    before: Scope | None = None
    began_ms, scope = 0, _DEFAULT
    for change in sorted(offer.scopes if offer else (), key=lambda change: change.valid_from):
        if change.valid_from <= click_ms:
            before, began_ms, scope = scope, change.valid_from, change.scope
        elif change.valid_from <= now_ms and (before is None or click_ms >= began_ms + _WINDOW_MS):
            return scope, change.scope
    return scope, before if click_ms < began_ms + _WINDOW_MS else None


def _uuid8(scope: list[Any]) -> UUID:
    """A UUIDv8 (RFC 9562) over BLAKE2b."""
    digest = blake2b(orjson.dumps(scope), digest_size=16).digest()
    return UUID(int=int.from_bytes(digest, "big") & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62)
