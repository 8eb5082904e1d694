"""What becomes of a conversion, as a table."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from aggregator.conversions.attribution import Decision, decide
from aggregator.conversions.terms import Offer, Terms
from loadtests.faults.journals import conversion, uuid7
from schemas.limits import AMOUNT_MINOR_MAX
from schemas.outcomes import ClickClass, Status

CLICK_MS = 1_790_000_000_000
DAY_MS = 86_400_000
FOREVER = float("-inf")
CPA = Terms(FOREVER, "cpa", 500, None, "EUR")
CPS = Terms(FOREVER, "cps", None, Decimal("7.5"), "EUR")


def event(**fields: Any):
    return conversion(**({"click_uuid": uuid7(CLICK_MS), "event_at_ms": CLICK_MS + DAY_MS} | fields))


def offer(*terms: Terms) -> Offer:
    return Offer(advertiser_id=1, terms=terms)


@pytest.mark.parametrize(
    ("of", "terms", "status", "reason", "payout_minor"),
    [
        (event(), CPA, "approved", "", 500),
        (event(amount_minor=None), CPA, "approved", "", 500),
        (event(amount_minor=None, currency="USD"), CPA, "approved", "", 500),
        (event(amount_minor=4990), CPS, "approved", "", 374),  # 374.25
        (event(amount_minor=4987), CPS, "approved", "", 374),  # 374.025
        (event(amount_minor=20), CPS, "approved", "", 2),  # 1.5 rounds up
        (event(amount_minor=0), CPS, "approved", "", 0),
        (event(amount_minor=None), CPS, "pending", "amount_missing", None),
        (event(amount_minor=-1), CPS, "pending", "negative_amount", None),
        (event(currency="USD"), CPS, "pending", "no_rate", None),
        (event(currency="USD"), CPA, "pending", "no_rate", None),
        (event(reason="ambiguous_amount", amount_minor=None), CPS, "pending", "ambiguous_amount", None),
        (event(reason="ambiguous_amount", amount_minor=None), CPA, "pending", "ambiguous_amount", 500),
        (event(click_class=ClickClass.FLAGGED), CPS, "pending", "flagged_click", 374),
        (event(click_class=ClickClass.OVER_CAP), CPA, "pending", "over_cap_click", 500),
        (event(click_class=ClickClass.FALLBACK), CPA, "rejected", "click_never_earns", None),
        (event(click_class=ClickClass.TEST), CPA, "rejected", "click_never_earns", None),
        (event(click_class=ClickClass.UNCOUNTED), CPA, "rejected", "click_never_earns", None),
        (event(advertiser_id=2), CPA, "rejected", "not_your_click", None),
        (event(event_at_ms=CLICK_MS - 60_000), CPA, "approved", "", 500),
        (event(event_at_ms=CLICK_MS - 60_001), CPA, "rejected", "before_click", None),
        (event(event_at_ms=CLICK_MS + 30 * DAY_MS), CPA, "approved", "", 500),
        (event(event_at_ms=CLICK_MS + 30 * DAY_MS + 1), CPA, "rejected", "after_window", None),
        (event(event_at_ms=0), CPA, "rejected", "before_click", None),
    ],
)
def test_a_conversion_ends_in_a_status_with_its_reason_and_payout(
    of: Any, terms: Terms, status: str, reason: str, payout_minor: int | None
) -> None:
    assert decide(of, offer(terms)) == Decision(Status(status), reason, payout_minor, "EUR")


def test_a_payout_beyond_all_bounds_waits_for_a_person() -> None:
    terms = Terms(FOREVER, "cps", None, Decimal("900.000000"), "EUR")
    decision = decide(event(amount_minor=AMOUNT_MINOR_MAX), offer(terms))
    assert (decision.status, decision.reason, decision.payout_minor) == (Status.PENDING, "absurd_payout", None)


@pytest.mark.parametrize("known", [None, offer()])
def test_an_offer_without_terms_leaves_it_pending_in_its_own_currency(known: Offer | None) -> None:
    assert decide(event(currency="SEK"), known) == Decision(Status.PENDING, "no_terms", None, "SEK")


@pytest.mark.parametrize(("later_ms", "payout_minor"), [(1, 500), (0, 900), (-1, 900)])
def test_the_terms_at_click_time_apply(later_ms: int, payout_minor: int) -> None:
    later = Terms(CLICK_MS + later_ms, "cpa", 900, None, "EUR")
    assert decide(event(), offer(CPA, later)).payout_minor == payout_minor


def test_terms_that_begin_after_the_click_are_none() -> None:
    assert decide(event(), offer(Terms(CLICK_MS + 1, "cpa", 900, None, "EUR"))).reason == "no_terms"
