"""A sale without a click may come in no stated currency: in hundredths of its offer's, if that has any."""

import os
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from aggregator.conversions.attribution import Coupon, ImportedClick, Owner, Owners
from aggregator.conversions.rates import Rates
from aggregator.conversions.states import Known, apply, lifted, owned
from aggregator.conversions.terms import Offer, Terms
from schemas.click_id import uuid7_bytes
from schemas.conversions.judging import judge
from schemas.conversions.posted import Posted
from schemas.events import Conversion
from schemas.links import Advertiser

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
MOVING = Advertiser(v=(1, 1), id=1, status="active", foreign_clicks_until_ms=NOW_MS + 1)


def sent(**fields: str) -> Conversion:
    """As an edge judges it."""
    intake_id = uuid7_bytes(NOW_MS, os.urandom(10))
    return judge(Posted(order_id="o-1", **fields), None, None, MOVING, intake_id, NOW_MS, door="postback", raw="")


def known(currency: str, *, click: bool = False) -> Known:
    terms = Terms(float("-inf"), "cps", None, Decimal(10), currency)
    clicks = {(1, "wABC"): ImportedClick(uuid4(), 0, 7, 3, NOW - timedelta(days=1))} if click else {}
    coupons = {(1, "SAVE"): Coupon(7, 3, None, None)}
    return Known(Owners({7: Offer(1, (terms,), currency=currency)}, coupons, {}, clicks, set()), Rates())


@pytest.mark.parametrize(
    ("currency", "status", "reason", "amount", "payout"),
    [("EUR", "approved", "", 4990, 499), ("JPY", "pending", "ambiguous_amount", 4990, 499)],
)
def test_an_amount_in_no_stated_currency_is_the_offers_or_waits(
    currency: str, status: str, reason: str, amount: int, payout: int
) -> None:
    state = apply(None, sent(coupon_code="SAVE", amount="49.90"), known(currency)).state
    assert state
    assert (state.status, state.reason, state.sale_currency) == (status, reason, currency)
    assert (state.sale_amount_minor, state.payout_minor) == (amount, payout)


@pytest.mark.parametrize(("currency", "reason"), [("EUR", ""), ("KWD", "ambiguous_amount")])
def test_so_does_one_that_was_parked_until_its_click_was_known(currency: str, reason: str) -> None:
    parked = apply(None, sent(click_id="wABC", amount="49.90"), known(currency)).state
    assert parked
    assert parked.reason == "unknown_click"
    owner = Owner(UUID(int=7), NOW_MS - 1, 0, 0, 7, 3)
    assert owned(parked, owner, known(currency, click=True)).reason == reason


def test_a_stated_currency_needs_no_look() -> None:
    state = apply(None, sent(coupon_code="SAVE", amount="4990", currency="JPY"), known("JPY")).state
    assert state
    assert (state.status, state.sale_amount_minor, state.payout_minor) == ("approved", 4990, 499)


def test_a_person_who_has_looked_may_approve_it() -> None:
    state = apply(None, sent(coupon_code="SAVE", amount="4990"), known("JPY")).state
    assert state
    assert lifted(state, known("JPY"), by_person=True).status == "approved"
