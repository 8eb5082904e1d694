"""What an offer pays and brings in, from when on and for whom; whose offer it is; and what that makes of one order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal

import orjson

from aggregator.conversions.rates import Rates
from aggregator.db.connect import Database
from schemas import limits
from schemas.money import round_minor, share_of
from schemas.outcomes import Held

Side = Literal["payout", "revenue"]


@dataclass(frozen=True, slots=True)
class Tier:
    """What is paid from the `since`-th approved conversion of a month on, as the model of its terms is."""

    since: int
    amount_minor: int | None
    percent: Decimal | None


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms from `valid_from_ms` on (ms since 1970, minus infinity for the first): `amount_minor` per order (cpa, cpl)
    or click (cpc), or `percent` of the order's amount (cps), in `currency`. For all partners and events where none is
    named; `none` ends those of a partner or an event.

    `tiers` are settled when a month is closed: for the conversions beyond each, or for all of the month (not marginal).
    """

    valid_from_ms: float
    model: Literal["cpa", "cpc", "cpl", "cps", "none"]
    amount_minor: int | None
    percent: Decimal | None
    currency: str
    side: Side = "payout"
    partner_id: int | None = None
    event: str | None = None
    tiers: tuple[Tier, ...] = ()
    marginal: bool = True

    @property
    def key(self) -> tuple[Side, int | None, str | None]:
        """What they are terms of: later ones of the same take their place."""
        return self.side, self.partner_id, self.event

    def beyond(self, number: int) -> Terms:
        """The terms of the month's conversion with this number, from 1: what its tier pays."""
        tier = next((tier for tier in reversed(self.tiers) if tier.since <= number), None)
        return replace(self, amount_minor=tier.amount_minor, percent=tier.percent) if tier else self


@dataclass(frozen=True)
class Offer:
    """An offer as conversions need it: its terms, oldest first, its bounds, and what its advertiser says of further
    posts (`duplicates`) and of clicks beside coupons (`attribution`). `currency` is that of its bounds, and of amounts
    that came without one."""

    advertiser_id: int
    terms: tuple[Terms, ...]
    currency: str = ""
    timezone: str = "UTC"
    click_window_days: int = limits.CLICK_WINDOW_DAYS
    min_conversion_s: int = 0
    default_status: Literal["approved", "pending"] = "approved"
    auto_approve_days: int | None = None
    amount_max_minor: int | None = None
    payout_override_max_minor: int | None = None
    max_duration_months: int | None = None
    duplicates: Literal["ignore", "update", "increment", "record_repeat"] = "ignore"
    attribution: Literal["click", "coupon"] = "click"

    def terms_at(
        self, at_ms: int, side: Side = "payout", partner_id: int | None = None, event: str | None = None
    ) -> Terms | None:
        """The most specific terms that held at a time: for this event and partner, the event, the partner, all. Those
        at click time apply, so changing them never changes the past."""
        for key in ((side, partner_id, event), (side, None, event), (side, partner_id, None), (side, None, None)):
            for terms in self._newest_first.get(key, ()):
                if terms.valid_from_ms <= at_ms:
                    if terms.model != "none":
                        return terms
                    break
        return None

    @property
    def currencies(self) -> frozenset[str]:
        """Those of its terms and its own: among these and the orders' rates are needed."""
        return frozenset({self.currency, *(terms.currency for terms in self.terms)} - {""})

    @cached_property
    def _newest_first(self) -> Mapping[tuple[Side, int | None, str | None], list[Terms]]:
        found: dict[tuple[Side, int | None, str | None], list[Terms]] = defaultdict(list)
        for terms in reversed(self.terms):
            found[terms.key].append(terms)
        return dict(found)


@dataclass(frozen=True, slots=True)
class Price:
    """What an order pays the partner and brings in, each None where it cannot be told or there are no terms for it; and
    why a person must look, or a rate is waited for."""

    payout_minor: int | None
    currency: str
    revenue_minor: int | None
    revenue_currency: str | None
    reason: Held = Held.NONE


@dataclass(frozen=True, slots=True)
class Worth:
    """What is left of an order's amount, if it has one, on its event's day."""

    net_minor: int | None
    currency: str
    day: date


def price(
    offer: Offer | None,
    partner_id: int,
    event: str,
    at_ms: int,
    net_minor: int | None,
    currency: str,
    day: date,
    rates: Rates,
    *,
    override_minor: int | None = None,
    stated_revenue_minor: int | None = None,
) -> Price:
    """The money of an order by the terms that held at `at_ms`: its click's time, its event's where it has no click.

    `net_minor`, `override_minor` (instead of the payout terms, where the offer lets senders say so) and
    `stated_revenue_minor` (instead of the revenue terms) are in `currency`; "" is the offer's. Rounded HALF_UP, once.
    """
    if offer is None:
        return Price(None, currency, None, None, Held.NO_TERMS)
    worth = Worth(net_minor, currency or offer.currency, day)
    terms = offer.terms_at(at_ms, "payout", partner_id, event)
    paid_in = terms.currency if terms else worth.currency
    if override_minor is not None and offer.payout_override_max_minor is not None:
        payout_minor, reason = _overridden(offer, override_minor, paid_in, worth, rates)
    else:
        payout_minor, reason = by_terms(terms, worth, rates) if terms else (None, Held.NO_TERMS)
    if stated_revenue_minor is not None:
        return Price(payout_minor, paid_in, stated_revenue_minor, worth.currency, reason)
    owed = offer.terms_at(at_ms, "revenue", partner_id, event)
    if owed is None:
        return Price(payout_minor, paid_in, None, None, reason)
    revenue_minor, unclear = by_terms(owed, worth, rates)
    return Price(payout_minor, paid_in, revenue_minor, owed.currency, reason or unclear)


def by_terms(terms: Terms, worth: Worth, rates: Rates) -> tuple[int | None, Held]:
    """The amount if it can be told, and why a person must look. An amount in a currency without a rate is one that
    nobody can judge, so it is waited for even where what is paid does not depend on it."""
    amount_minor = 0 if terms.model == "cpc" else terms.amount_minor  # what pays clicks pays orders nothing
    if worth.net_minor is None:
        return amount_minor, Held.AMOUNT_MISSING if terms.percent is not None else Held.NONE
    if worth.net_minor < 0:
        return None, Held.NEGATIVE_AMOUNT
    amount = rates.convert(worth.net_minor, worth.currency, terms.currency, worth.day)
    if amount is None:
        return amount_minor, Held.NO_RATE
    if terms.percent is None:
        return amount_minor, Held.NONE
    return _rounded(share_of(amount, terms.percent))


def _overridden(offer: Offer, override_minor: int, paid_in: str, worth: Worth, rates: Rates) -> tuple[int | None, Held]:
    """What the sender says that the partner gets; above the offer's bound a person has to agree to it."""
    assert offer.payout_override_max_minor is not None
    amount = rates.convert(override_minor, worth.currency, paid_in, worth.day)
    measured = rates.convert(override_minor, worth.currency, offer.currency or worth.currency, worth.day)
    if amount is None or measured is None:
        return None, Held.NO_RATE
    payout_minor, reason = _rounded(amount)
    above = not 0 <= measured <= offer.payout_override_max_minor
    return payout_minor, reason or (Held.PAYOUT_ABOVE_BOUND if above else Held.NONE)


def _rounded(amount: Decimal) -> tuple[int | None, Held]:
    try:
        return round_minor(amount), Held.NONE
    except OverflowError:
        return None, Held.ABSURD_PAYOUT


_OFFERS = """
SELECT offer.id, advertiser_id, offer.currency, coalesce(offer.timezone, programme.timezone) AS timezone,
       click_window_days, min_conversion_s, default_status, auto_approve_days, amount_max_minor,
       payout_override_max_minor, max_duration_months, duplicates, attribution
FROM offer JOIN advertiser ON advertiser.id = advertiser_id CROSS JOIN programme WHERE offer.id = ANY ($1::int[])
"""
_TERMS = """
SELECT offer_id, (extract(epoch FROM valid_from) * 1000)::float8 AS valid_from_ms,
       model, amount_minor, percent, currency, side, partner_id, event, tiers::text, marginal
FROM offer_terms WHERE offer_id = ANY ($1::int[]) ORDER BY offer_id, valid_from
"""


async def read_offers(db: Database, offer_ids: Iterable[int]) -> Mapping[int, Offer]:
    """The offers with these ids, as far as there are any."""
    ids = sorted(set(offer_ids))
    terms: dict[int, list[Terms]] = {offer_id: [] for offer_id in ids}
    for row in await db.fetch(_TERMS, ids):
        fields = dict(row)
        terms[fields.pop("offer_id")].append(
            Terms(**fields | {"tiers": read_tiers(orjson.loads(row["tiers"] or "[]"))})
        )
    offers = {}
    for row in await db.fetch(_OFFERS, ids):
        fields = dict(row)
        offer_id = fields.pop("id")
        offers[offer_id] = Offer(terms=tuple(terms[offer_id]), **fields)
    return offers


def read_tiers(stored: Iterable[Mapping[str, Any]] | None) -> tuple[Tier, ...]:
    """Tiers as they lie in `offer_terms.tiers`, by their beginning."""
    tiers = (Tier(tier["from"], tier.get("amount_minor"), _decimal(tier.get("percent"))) for tier in stored or ())
    return tuple(sorted(tiers, key=lambda tier: tier.since))


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)
