"""Decide what becomes of a conversion and what it pays. Pure: the event and the offer in, a decision out."""

from __future__ import annotations

from dataclasses import dataclass

from aggregator.conversions.terms import Offer, Terms
from schemas import limits
from schemas.click_id import uuid_ms
from schemas.events import Conversion
from schemas.money import percent_of
from schemas.outcomes import EARNING, ClickClass, Status

BEFORE_CLICK_MS = 60_000  # a sender's clock may lag ours by this much
WINDOW_MS = limits.CLICK_WINDOW_DAYS * 86_400_000
_PENDING_CLASS = {ClickClass.FLAGGED: "flagged_click", ClickClass.OVER_CAP: "over_cap_click"}


@dataclass(frozen=True, slots=True)
class Decision:
    """`payout_minor` in `currency`: what we owe the partner, or would owe once a pending one is approved; None where
    it cannot be told, or nothing will be owed."""

    status: Status
    reason: str
    payout_minor: int | None
    currency: str


def decide(event: Conversion, offer: Offer | None) -> Decision:
    """Rejected if it can never earn, pending if a person must look at it, else approved."""
    click_ms = uuid_ms(event.click_uuid)
    terms = offer.terms_at(click_ms) if offer else None
    currency = terms.currency if terms else event.currency
    if reason := _rejection(event, offer, click_ms):
        return Decision(Status.REJECTED, reason, None, currency)
    payout_minor, unclear = _payout(event, terms)
    reason = event.reason or _PENDING_CLASS.get(ClickClass(event.click_class)) or unclear
    return Decision(Status.PENDING if reason else Status.APPROVED, reason, payout_minor, currency)


def _rejection(event: Conversion, offer: Offer | None, click_ms: int) -> str:
    if event.click_class not in EARNING:
        return "click_never_earns"
    if offer and offer.advertiser_id != event.advertiser_id:
        return "not_your_click"
    if event.event_at_ms < click_ms - BEFORE_CLICK_MS:
        return "before_click"
    if event.event_at_ms > click_ms + WINDOW_MS:
        return "after_window"
    return ""


def _payout(event: Conversion, terms: Terms | None) -> tuple[int | None, str]:
    """The payout if it can be told, and why a person must look."""
    if terms is None:
        return None, "no_terms"
    if event.amount_minor is not None and event.amount_minor < 0:
        return None, "negative_amount"
    if event.amount_minor is not None and event.currency != terms.currency:
        return None, "no_rate"
    if terms.percent is None:
        return terms.amount_minor, ""
    if event.amount_minor is None:
        return None, "amount_missing"
    try:
        return percent_of(event.amount_minor, terms.percent), ""
    except OverflowError:
        return None, "absurd_payout"
