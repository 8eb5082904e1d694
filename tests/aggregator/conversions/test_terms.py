"""What an order pays: the most specific terms of its click's time, rounded once."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.conversions.rates import Rates, day_of
from aggregator.conversions.terms import Offer, Price, Terms, price, read_offers, read_tiers
from aggregator.db.connect import connect
from aggregator.db.instants import to_ms
from schemas.limits import AMOUNT_MINOR_MAX
from schemas.outcomes import Held

FOREVER = float("-inf")
CLICK_MS = 1_790_000_000_000
DAY = day_of(CLICK_MS)
RATES = Rates(
    {
        ("USD", "EUR", DAY): Decimal("0.9"),
        ("EUR", "JPY", DAY): Decimal("160.5"),
        ("KWD", "EUR", DAY): Decimal("3"),
        ("USD", "KWD", DAY): Decimal("0.3"),
    }
)
NO_RATES = Rates()


def cpa(amount_minor: int = 500, currency: str = "EUR", since: float = FOREVER, **to: Any) -> Terms:
    return Terms(since, "cpa", amount_minor, None, currency, **to)


def cps(percent: str = "10", currency: str = "EUR", since: float = FOREVER, **to: Any) -> Terms:
    return Terms(since, "cps", None, Decimal(percent), currency, **to)


def none(since: float = CLICK_MS, **to: Any) -> Terms:
    return Terms(since, "none", None, None, "EUR", **to)


def of(*terms: Terms, **fields: Any) -> Offer:
    return Offer(1, terms, **{"currency": "EUR"} | fields)


def priced(offer: Offer | None, net_minor: int | None = 4990, currency: str = "EUR", **said: Any) -> Price:
    wanted = {"partner_id": 7, "event": "sale", "at_ms": CLICK_MS, "day": DAY, "rates": RATES} | said
    return price(offer, net_minor=net_minor, currency=currency, **wanted)


PAYOUTS: list[tuple[Offer | None, int | None, str, int | None, str, str]] = [
    # terms, amount, its currency, payout, its currency, reason
    (of(cpa()), 4990, "EUR", 500, "EUR", ""),
    (of(cpa()), None, "EUR", 500, "EUR", ""),
    (of(cpa()), 0, "EUR", 500, "EUR", ""),
    (of(cpa()), None, "SEK", 500, "EUR", ""),  # nothing to convert
    (of(cpa()), 4990, "SEK", 500, "EUR", "no_rate"),
    (of(Terms(FOREVER, "cpl", 300, None, "EUR")), None, "EUR", 300, "EUR", ""),
    (of(cps()), 4990, "EUR", 499, "EUR", ""),
    (of(cps("7.5")), 4990, "EUR", 374, "EUR", ""),  # 374.25
    (of(cps("7.5")), 20, "EUR", 2, "EUR", ""),  # 1.5 rounds up
    (of(cps()), 0, "EUR", 0, "EUR", ""),
    (of(cps()), 4990, "", 499, "EUR", ""),  # the offer's
    (of(cps()), None, "EUR", None, "EUR", "amount_missing"),
    (of(cps()), -1, "EUR", None, "EUR", "negative_amount"),
    (of(cpa()), -1, "EUR", None, "EUR", "negative_amount"),
    (of(cps()), 4990, "SEK", None, "EUR", "no_rate"),
    (of(cps()), 4990, "USD", 449, "EUR", ""),  # 4491 cents
    (of(cps("100", "JPY")), 100, "EUR", 161, "JPY", ""),  # 1 EUR is 160.5 JPY, which has no minor unit
    (of(cps("100", "EUR")), 1605, "JPY", 1000, "EUR", ""),  # the other way round
    (of(cps("100", "EUR")), 1000, "KWD", 300, "EUR", ""),  # three decimals to two
    (of(cps("100", "KWD")), 100, "USD", 300, "KWD", ""),  # two decimals to three
    (of(cps("900")), AMOUNT_MINOR_MAX, "EUR", None, "EUR", "absurd_payout"),
    (of(), 4990, "SEK", None, "SEK", "no_terms"),
    (of(cpa(since=CLICK_MS + 1)), 4990, "EUR", None, "EUR", "no_terms"),
    (of(cpa(side="revenue")), 4990, "EUR", None, "EUR", "no_terms"),
    (None, 4990, "SEK", None, "SEK", "no_terms"),
]


@pytest.mark.parametrize(("offer", "net_minor", "currency", "payout_minor", "paid_in", "reason"), PAYOUTS)
def test_an_order_pays_what_its_terms_say(
    offer: Offer | None, net_minor: int | None, currency: str, payout_minor: int | None, paid_in: str, reason: str
) -> None:
    found = priced(offer, net_minor, currency)
    assert (found.payout_minor, found.currency, found.reason) == (payout_minor, paid_in, Held(reason))


GENERAL, PARTNER = cpa(1), cpa(2, partner_id=7)
EVENT, BOTH = cpa(3, event="sale"), cpa(4, partner_id=7, event="sale")


@pytest.mark.parametrize(
    ("terms", "partner_id", "event", "payout_minor"),
    [
        ((GENERAL, PARTNER, EVENT, BOTH), 7, "sale", 4),
        ((BOTH, EVENT, PARTNER, GENERAL), 7, "sale", 4),
        ((GENERAL, PARTNER, EVENT), 7, "sale", 3),  # what an event pays goes before what a partner gets for any event
        ((GENERAL, PARTNER, EVENT, BOTH), 7, "lead", 2),
        ((GENERAL, PARTNER, EVENT, BOTH), 8, "sale", 3),
        ((GENERAL, PARTNER, EVENT, BOTH), 8, "lead", 1),
        ((PARTNER, EVENT, BOTH), 8, "lead", None),
        ((GENERAL, cpa(9, since=CLICK_MS)), 7, "sale", 9),
        ((GENERAL, cpa(9, since=CLICK_MS + 1)), 7, "sale", 1),
        ((PARTNER, cpa(9, since=CLICK_MS)), 7, "sale", 2),  # newer terms for all are no news for a partner with its own
        ((GENERAL, cpa(9, since=CLICK_MS + 1, partner_id=7)), 7, "sale", 1),
        ((GENERAL, cpa(8, since=CLICK_MS - 2), cpa(9, since=CLICK_MS - 1)), 7, "sale", 9),
        # special terms end, and what is less special counts again
        ((GENERAL, PARTNER, none(partner_id=7)), 7, "sale", 1),
        ((GENERAL, PARTNER, none(partner_id=7, since=CLICK_MS + 1)), 7, "sale", 2),
        (
            (GENERAL, PARTNER, none(partner_id=7, since=CLICK_MS - 2), cpa(6, since=CLICK_MS - 1, partner_id=7)),
            7,
            "sale",
            6,
        ),
        ((GENERAL, PARTNER, EVENT, none(event="sale")), 7, "sale", 2),
        ((GENERAL, PARTNER, EVENT, BOTH, none(partner_id=7, event="sale")), 7, "sale", 3),
        ((PARTNER, none(partner_id=7)), 7, "sale", None),
    ],
)
def test_the_most_specific_terms_that_held_at_click_time_apply(
    terms: tuple[Terms, ...], partner_id: int, event: str, payout_minor: int | None
) -> None:
    assert priced(of(*terms), partner_id=partner_id, event=event).payout_minor == payout_minor


@pytest.mark.parametrize(
    ("offer", "said", "wanted"),
    [
        (of(cpa()), {}, Price(500, "EUR", None, None)),
        (of(cpa(), cpa(900, side="revenue")), {}, Price(500, "EUR", 900, "EUR")),
        (of(cpa(), cps("20", "USD", side="revenue")), {"net_minor": 900}, Price(500, "EUR", 200, "USD")),
        (of(cpa(), cps(side="revenue")), {"net_minor": None}, Price(500, "EUR", None, "EUR", Held.AMOUNT_MISSING)),
        (of(cpa(), cps("1", "CHF", side="revenue")), {}, Price(500, "EUR", None, "CHF", Held.NO_RATE)),
        (of(cpa(), cpa(9, side="revenue", partner_id=7)), {"partner_id": 8}, Price(500, "EUR", None, None)),
        # what the sender states goes before the terms, in the currency that it is stated in
        (of(cpa(), cpa(900, side="revenue")), {"stated_revenue_minor": 800}, Price(500, "EUR", 800, "EUR")),
        (of(cpa()), {"stated_revenue_minor": 0, "currency": "USD"}, Price(500, "EUR", 0, "USD")),
        (of(cpa()), {"stated_revenue_minor": 8, "currency": "", "net_minor": None}, Price(500, "EUR", 8, "EUR")),
    ],
)
def test_revenue_has_terms_of_its_own(offer: Offer, said: dict[str, Any], wanted: Price) -> None:
    assert priced(offer, **said) == wanted


BOUND = {"payout_override_max_minor": 1000}


@pytest.mark.parametrize(
    ("offer", "override_minor", "currency", "payout_minor", "reason"),
    [
        (of(cpa(), **BOUND), 800, "EUR", 800, ""),
        (of(cpa(), **BOUND), 0, "EUR", 0, ""),
        (of(cpa(), **BOUND), 1000, "EUR", 1000, ""),
        (of(cpa(), **BOUND), 1001, "EUR", 1001, "payout_above_bound"),
        (of(cpa(), **BOUND), -1, "EUR", -1, "payout_above_bound"),
        (of(cpa(), **BOUND), 1111, "USD", 1000, ""),  # 999.9 of the offer's currency, which the bound is in
        (of(cpa(), **BOUND), 1112, "USD", 1001, "payout_above_bound"),
        (of(cpa(), **BOUND), 800, "SEK", None, "no_rate"),
        (of(cps(), **BOUND), 800, "EUR", 800, ""),
        (of(**BOUND), 800, "EUR", 800, ""),
        (of(cpa()), 800, "EUR", 500, ""),  # this offer lets nobody say so
    ],
)
def test_a_sender_sets_the_payout_only_within_the_offers_bound(
    offer: Offer, override_minor: int, currency: str, payout_minor: int | None, reason: str
) -> None:
    found = priced(offer, None, currency, override_minor=override_minor)
    assert (found.payout_minor, found.reason) == (payout_minor, Held(reason))


AMOUNTS = st.integers(0, 10**12)
PERCENTS = st.decimals("0.000001", "100", places=6)
CURRENCIES = st.sampled_from(("JPY", "EUR", "USD", "KWD"))
DECIMALS = {"JPY": 0, "EUR": 2, "USD": 2, "KWD": 3}


@given(AMOUNTS, PERCENTS, CURRENCIES, CURRENCIES, st.decimals("0.0001", "9999", places=10), st.booleans())
def test_a_share_is_exact_until_it_is_rounded_once(
    net_minor: int, percent: Decimal, currency: str, paid_in: str, rate: Decimal, inverse: bool
) -> None:
    pair = (paid_in, currency, DAY) if inverse else (currency, paid_in, DAY)
    found = priced(of(cps(str(percent), paid_in)), net_minor, currency, rates=Rates({pair: rate}))
    worth = Fraction(net_minor)
    if currency != paid_in:
        times = 1 / Fraction(rate) if inverse else Fraction(rate)
        worth *= times * Fraction(10) ** (DECIMALS[paid_in] - DECIMALS[currency])
    exact = worth * Fraction(percent) / 100
    half_up = int(exact + Fraction(1, 2))
    if half_up > AMOUNT_MINOR_MAX:
        assert (found.payout_minor, found.reason) == (None, Held.ABSURD_PAYOUT)
    else:
        assert found.payout_minor == half_up


@given(st.lists(st.tuples(st.integers(-5, 5), st.sampled_from((None, 7, 8)), st.sampled_from((None, "sale", "lead")))))
def test_terms_that_begin_later_change_nothing_that_was_earned(
    begins: list[tuple[int, int | None, str | None]],
) -> None:
    terms = [
        cpa(n, since=CLICK_MS + later_ms, partner_id=partner_id, event=event)
        for n, (later_ms, partner_id, event) in enumerate(sorted(begins, key=lambda one: one[0]), 1)
    ]
    before = [one for one in terms if one.valid_from_ms <= CLICK_MS]
    assert priced(of(*terms)) == priced(of(*before))


@given(st.integers(0, 10**9), st.integers(0, 10**9), PERCENTS)
def test_more_never_pays_less(one: int, other: int, percent: Decimal) -> None:
    less, more = (priced(of(cps(str(percent))), net).payout_minor for net in sorted((one, other)))
    assert less is not None
    assert more is not None
    assert less <= more


@pytest.mark.parametrize(
    ("number", "amount_minor"), [(1, 500), (9, 500), (10, 600), (99, 600), (100, 800), (10**6, 800)]
)
def test_a_tier_holds_from_its_number_on(number: int, amount_minor: int) -> None:
    tiers = read_tiers([{"from": 100, "amount_minor": 800}, {"from": 10, "amount_minor": 600}])
    assert replace(cpa(500), tiers=tiers).beyond(number).amount_minor == amount_minor


def test_a_day_is_utc() -> None:
    assert day_of(1_790_035_200_000 - 1) == date(2026, 9, 21)
    assert day_of(int(datetime(2026, 9, 22, tzinfo=UTC).timestamp() * 1000)) == date(2026, 9, 22)


def test_an_offer_names_the_currencies_that_rates_are_needed_for() -> None:
    assert of(cpa(currency="USD"), cps(currency="JPY")).currencies == {"EUR", "USD", "JPY"}


async def test_offers_are_read_with_all_that_settling_needs(database_url: str) -> None:
    db = await connect(database_url, command_timeout_s=10)
    await db.execute("""
        UPDATE programme SET timezone = 'Asia/Kathmandu';
        INSERT INTO advertiser (name, token_sha256, duplicates, attribution) VALUES ('a', 'x', 'increment', 'coupon');
        INSERT INTO partner (name) VALUES ('p');
        INSERT INTO offer (advertiser_id, name, destination_url, currency, timezone, click_window_days,
                           min_conversion_s, default_status, auto_approve_days, amount_max_minor,
                           payout_override_max_minor, max_duration_months)
        VALUES (1, 'o', 'https://shop.example', 'USD', 'Europe/Berlin', 45, 60, 'pending', 14, 100000, 5000, 12),
               (1, 'plain', 'https://shop.example', 'EUR', NULL, DEFAULT, DEFAULT, DEFAULT, NULL, NULL, NULL, NULL);
        INSERT INTO offer_terms (offer_id, valid_from, model, amount_minor, percent, currency, side, partner_id, event,
                                 tiers, marginal)
        VALUES (1, '2026-01-01Z', 'cps', NULL, 12.5, 'EUR', 'payout', 1, 'sale',
                '[{"from": 100, "percent": "15"}, {"from": 10, "percent": "13.25"}]', false),
               (1, '2026-02-01Z', 'cpa', 2, NULL, 'USD', 'payout', NULL, 'other', NULL, true),
               (1, '2026-01-01Z', 'cpa', 1, NULL, 'USD', 'payout', NULL, 'other', NULL, true),
               (1, '-infinity', 'cpl', 300, NULL, 'USD', 'payout', NULL, NULL, NULL, true),
               (1, '-infinity', 'cpa', 900, NULL, 'USD', 'revenue', NULL, NULL, NULL, true)""")
    offers = await read_offers(db, [2, 1, 404, 1])
    await db.close()
    assert offers.keys() == {1, 2}
    newest = offers[1].terms_at(to_ms(datetime(2026, 3, 1, tzinfo=UTC)), event="other")
    assert newest is not None
    assert newest.amount_minor == 2
    others = [terms for terms in offers[1].terms if terms.event != "other"]
    general, revenue, special = sorted(others, key=lambda terms: (terms.valid_from_ms, terms.side))
    assert (general, revenue) == (
        Terms(FOREVER, "cpl", 300, None, "USD"),
        Terms(FOREVER, "cpa", 900, None, "USD", side="revenue"),
    )
    tiers = read_tiers([{"from": 10, "percent": "13.25"}, {"from": 100, "percent": "15"}])
    since = datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000
    assert special == Terms(
        since, "cps", None, Decimal("12.5"), "EUR", partner_id=1, event="sale", tiers=tiers, marginal=False
    )
    assert replace(offers[1], terms=()) == Offer(
        1, (), "USD", "Europe/Berlin", 45, 60, "pending", 14, 100_000, 5_000, 12, "increment", "coupon"
    )
    assert offers[2] == Offer(
        1, (), "EUR", "Asia/Kathmandu", duplicates="increment", attribution="coupon"
    )  # no terms of its own, the programme's zone
