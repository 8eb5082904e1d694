"""What is a conversion, and why something is none: every reason that a judge may give, and nothing beside it."""

import os
import random
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.faults.edges import offer
from schemas import click_id, events, limits
from schemas.click_id import ClickKey, ClickKeys
from schemas.conversions import judging, names
from schemas.conversions.posted import Posted
from schemas.conversions.reading import read_click
from schemas.errors import REJECTIONS, STATUS, Refused
from schemas.events import NO_CLICK
from schemas.links import Advertiser, Offer, ScopeFrom
from schemas.outcomes import ClickClass, Held

KEYS = ClickKeys((ClickKey(1, b"k" * 32), ClickKey(2, b"")))
NOW = int(datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp() * 1000)
INTAKE_ID = click_id.uuid7_bytes(NOW, bytes(10))
ADVERTISER = Advertiser(v=(1, 1), id=1, status="active")
MOVING = msgspec.structs.replace(ADVERTISER, foreign_clicks_until_ms=NOW + 1)
OFFER = offer()
MUTATIONS = 100_000


def a_click(click_class: int = ClickClass.NORMAL, key: ClickKey = KEYS.signing) -> str:
    return click_id.mint(key, click_id.uuid7_bytes(NOW - 60_000, os.urandom(10)), 11, 1, 33, click_class)


CLICK = a_click()


def judge(
    *, of: str = CLICK, offer: Offer | None = OFFER, advertiser: Advertiser = ADVERTISER, door: str = "postback",
    raw: str = "", **fields: Any,
) -> events.Conversion:  # fmt: skip
    """A conversion with the click `of`, as the doors have it judged."""
    click = read_click(KEYS, of)
    posted = Posted(click_id=of, **fields)
    return judging.judge(posted, click, offer if click else None, advertiser, INTAKE_ID, NOW, door=door, raw=raw)


def refusal_of(**fields: Any) -> Refused:
    with pytest.raises(Refused) as refusal:
        judge(**fields)
    return refusal.value


def test_a_valid_conversion_becomes_an_event_that_survives_the_log() -> None:
    found = judge(
        order_id="o-1", amount="49.90", currency="usd", event="lead", event_time="2026-11-23T12:00:00+02:00",
        event_id="e-1", status="pending", original_status="Hold", revenue="7", customer_id="u", coupon_code=" save ",
        remaining_amount="40", refund_amount="9.90", adv={"adv1": "x"}, door="postback", raw="a=b",
    )  # fmt: skip
    click = read_click(KEYS, CLICK)
    assert click
    assert found == events.decode(events.encode(found))
    assert found == events.Conversion(
        v=1, intake_id=UUID(bytes=INTAKE_ID), conversion_id=found.conversion_id, click_uuid=click.uuid, click_class=0,
        link_id=11, offer_id=1, partner_id=33, advertiser_id=1, event="lead", order_id="o-1",
        event_at_ms=NOW - 2 * 3_600_000, amount_minor=4990, currency="USD", door="postback", dialect="clickdam",
        raw="a=b", status="pending", original_status="Hold", event_id="e-1", refund_minor=990, remaining_minor=4000,
        revenue_minor=700, customer_id="u", coupon_code="SAVE", adv={"adv1": "x"},
    )  # fmt: skip


def test_what_is_not_said_is_the_offers_or_the_default() -> None:
    found = judge()
    assert (found.currency, found.event, found.order_id, found.amount_minor) == ("EUR", "sale", "", None)
    assert (found.event_at_ms, found.reason, found.former_id) == (NOW, "", None)


@pytest.mark.parametrize("said", ["192.0.2.7", "2001:DB8::7", "buyer at 192.0.2.7:443", "x" * 200 + " 192.0.2.7"])
def test_no_address_of_a_buyer_is_kept_beside_a_conversion(said: str) -> None:
    assert judge(adv={"adv1": said, "adv2": "1.2.3", "adv3": "10:20:30"}).adv == {
        "adv1": "***", "adv2": "1.2.3", "adv3": "10:20:30",
    }  # fmt: skip


LONG = "x" * 256
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"amount": "x"}, "bad_amount", "amount"),
    ({"amount": "1.234,50"}, "bad_amount", "amount"),
    ({"amount": "1,234.50"}, "bad_amount", "amount"),
    ({"amount": "5 EUR"}, "bad_amount", "amount"),
    ({"amount": " "}, "bad_amount", "amount"),
    ({"amount": "1e3"}, "bad_amount", "amount"),
    ({"amount": "NaN"}, "bad_amount", "amount"),
    ({"amount": "١٢"}, "bad_amount", "amount"),
    ({"amount": "{sum}"}, "bad_amount", "amount"),
    ({"amount": "9" * 30}, "bad_amount", "amount"),
    ({"revenue": "x"}, "bad_amount", "revenue"),
    ({"payout": "%10"}, "bad_amount", "payout"),
    ({"refund_amount": "x", "event_id": "e"}, "bad_amount", "refund_amount"),
    ({"remaining_amount": "x"}, "bad_amount", "remaining_amount"),
    ({"refund_amount": "1,234", "event_id": "e"}, "bad_amount", "refund_amount"),
    ({"remaining_amount": "1,234"}, "bad_amount", "remaining_amount"),
    ({"amount": "-1"}, "negative_amount", "amount"),
    ({"amount": "-0.01"}, "negative_amount", "amount"),
    ({"amount": "-1,234"}, "negative_amount", "amount"),
    ({"amount_minor": -1}, "negative_amount", "amount"),
    ({"revenue": "-1"}, "negative_amount", "revenue"),
    ({"payout": "-1"}, "negative_amount", "payout"),
    ({"refund_amount_minor": -1, "event_id": "e"}, "negative_amount", "refund_amount"),
    ({"remaining_amount": "-1"}, "negative_amount", "remaining_amount"),
    ({"amount": "99999999999999"}, "absurd_amount", "amount"),
    ({"amount": "-99999999999999"}, "absurd_amount", "amount"),
    ({"amount_minor": limits.AMOUNT_MINOR_MAX + 1}, "absurd_amount", "amount"),
    ({"revenue": "99999999999999"}, "absurd_amount", "revenue"),
    ({"currency": "XXX"}, "unknown_currency", "currency"),
    ({"currency": "€"}, "unknown_currency", "currency"),
    ({"currency": "EURO"}, "unknown_currency", "currency"),
    ({"currency": "\u017fek"}, "unknown_currency", "currency"),
    ({"order_id": LONG}, "bad_order_id", "order_id"),
    ({"order_id": "a\0b"}, "bad_order_id", "order_id"),
    ({"order_id": "a\nb"}, "bad_order_id", "order_id"),
    ({"order_id": "a\ud800"}, "bad_order_id", "order_id"),
    ({"event": "x" * 65}, "bad_event", "event"),
    ({"event": "a\tb"}, "bad_event", "event"),
    ({"event": "\x9f"}, "bad_event", "event"),
    ({"event_id": LONG}, "bad_event_id", "event_id"),
    ({"event_id": "\x7f"}, "bad_event_id", "event_id"),
    ({"customer_id": LONG}, "bad_customer_id", "customer_id"),
    ({"customer_id": "\0"}, "bad_customer_id", "customer_id"),
    ({"coupon_code": "x" * 65}, "bad_coupon_code", "coupon_code"),
    ({"coupon_code": "a\0"}, "bad_coupon_code", "coupon_code"),
    ({"event_time": "yesterday"}, "bad_event_time", "event_time"),
    ({"refund_amount": "1"}, "event_id_missing", "event_id"),
    ({"refund_amount_minor": 100}, "event_id_missing", "event_id"),
    ({"advertiser": msgspec.structs.replace(ADVERTISER, id=2)}, "not_your_click", "click_id"),
    ({"offer": offer(advertiser_id=2)}, "not_your_click", "click_id"),
    ({"offer": None}, "not_your_click", "click_id"),
    ({"of": ""}, "missing_click_id", "click_id"),
    ({"of": "", "order_id": "o"}, "missing_click_id", "click_id"),
    ({"of": "", "order_id": "o", "coupon_code": "  "}, "missing_click_id", "click_id"),
    ({"of": "", "coupon_code": "SAVE"}, "missing_order_id", "order_id"),
    ({"of": "", "customer_id": "u"}, "missing_order_id", "order_id"),
    ({"of": "", "customer_id": "u", "order_id": "o", "amount_minor": 1}, "missing_currency", "currency"),
    ({"of": "", "customer_id": "u", "order_id": "o", "remaining_amount_minor": 1}, "missing_currency", "currency"),
    ({"of": "x"}, "bad_click_id", "click_id"),
    ({"of": "x", "coupon_code": "SAVE", "order_id": "o"}, "bad_click_id", "click_id"),
    ({"of": CLICK[:-1]}, "bad_click_id", "click_id"),
    ({"of": CLICK + "A"}, "bad_click_id", "click_id"),
    ({"of": "é" * 51}, "bad_click_id", "click_id"),
    ({"of": LONG, "advertiser": MOVING}, "bad_click_id", "click_id"),
    ({"of": "a\0", "advertiser": MOVING}, "bad_click_id", "click_id"),
    ({"of": CLICK[:20] + ("A" if CLICK[20] != "A" else "B") + CLICK[21:]}, "forged_click_id", "click_id"),
    (
        {"of": CLICK[:20] + ("A" if CLICK[20] != "A" else "B") + CLICK[21:], "advertiser": MOVING},
        "forged_click_id", "click_id",
    ),
    ({"of": a_click(key=ClickKey(2, b"x" * 16))}, "retired_key", "click_id"),
    ({"of": a_click(key=ClickKey(9, b"x" * 16))}, "unknown_key", "click_id"),
    ({"of": a_click(ClickClass.FALLBACK)}, "click_never_earns", "click_id"),
    ({"of": a_click(ClickClass.FALLBACK), "offer": None}, "click_never_earns", "click_id"),
    ({"of": a_click(ClickClass.UNCOUNTED)}, "click_never_earns", "click_id"),
    ({"door": "pixel", "status": "approved"}, "not_from_a_page", "status"),
    ({"door": "pixel", "status": "reversed"}, "not_from_a_page", "status"),
    ({"door": "pixel", "refund_amount": "1"}, "not_from_a_page", "refund_amount"),
    ({"door": "pixel", "remaining_amount": "1"}, "not_from_a_page", "remaining_amount"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "code", "field"), REFUSED, ids=[f"{n}-{code}" for n, (_, code, _) in enumerate(REFUSED)]
)
def test_what_is_no_conversion_is_refused_with_its_reason_and_field(
    fields: dict[str, Any], code: str, field: str
) -> None:
    refusal = refusal_of(**fields)
    assert (refusal.code, refusal.field) == (code, field)
    assert refusal.message
    assert (refusal.status == 503) == (code == "unknown_key")
    assert refusal.status == STATUS[code]


def test_the_reason_of_a_long_value_is_short() -> None:
    for fields in ({"amount": "x" * 9_999}, {"currency": "x" * 9_999}, {"order_id": "x" * 9_999}):
        assert len(refusal_of(**fields).message) < 150


def test_no_mutated_click_id_is_accepted() -> None:
    """Of a hundred thousand: one, two or many characters changed, swapped, cut, repeated, in another case."""
    chance = random.Random(7)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    ours = [a_click(click_class, key) for click_class in ClickClass for key in (KEYS.signing,)]
    began, accepted, forged = perf_counter(), [], 0
    for n in range(MUTATIONS):
        text = mutated(ours[n % len(ours)], chance, alphabet)
        try:
            click = read_click(KEYS, text)
        except Refused as refusal:
            forged += refusal.code == "forged_click_id"
            continue
        if click is not None and text not in ours:
            accepted.append(text)
    print(f"{MUTATIONS} mutated click ids in {perf_counter() - began:.1f} s: {forged} forged, {len(accepted)} accepted")
    assert accepted == []
    assert forged > MUTATIONS // 2, "most have the form of ours"


def mutated(text: str, chance: random.Random, alphabet: str) -> str:
    at, other = chance.randrange(len(text)), chance.randrange(len(text))
    kind = chance.randrange(10)
    if kind < 6:
        return text[:at] + chance.choice(alphabet) + text[at + 1 :]
    if kind < 8:
        changed = list(text)
        changed[at], changed[other] = changed[other], changed[at]
        return "".join(changed)
    if kind == 8:
        return "".join(chance.choice(alphabet) if chance.random() < 0.3 else letter for letter in text)
    return chance.choice([text[:at], text.swapcase(), text + text[:at], text[at:] + text[:at], f" {text}", text[::-1]])


@pytest.mark.parametrize("click_class", [ClickClass.NORMAL, ClickClass.FLAGGED, ClickClass.OVER_CAP, ClickClass.TEST])
def test_other_clicks_than_fallbacks_are_judged_and_say_their_class(click_class: ClickClass) -> None:
    assert judge(of=a_click(click_class)).click_class == click_class


@pytest.mark.parametrize(
    ("text", "separator", "minor"),
    [
        ("12,34", "", 1234), ("1,234", ".", 123_400), ("1,234", ",", 123), ("1.234", ",", 123_400), ("1.234", ".", 123),
        ("1,234.50", ".", 123_450), ("1.234,50", ",", 123_450), ("1,234,567.8", ".", 123_456_780),
        ("1.234.567,8", ",", 123_456_780), ("12.34", ".", 1234), ("12,34", ",", 1234), ("7", ",", 700), ("7", ".", 700),
    ],
)  # fmt: skip
def test_the_advertisers_decimal_separator_says_what_an_amount_is(text: str, separator: str, minor: int) -> None:
    speaks = msgspec.structs.replace(ADVERTISER, decimal_separator=separator)
    found = judge(advertiser=speaks, amount=text, remaining_amount=text)
    assert (found.amount_minor, found.remaining_minor, found.reason) == (minor, minor, "")


@pytest.mark.parametrize("text", ["1,23", "1,2345", "12,34", "1234,567", ",5", "1,,234", "1.2,345", "1.234.567"])
def test_a_mark_that_stands_where_no_thousands_end_is_no_number(text: str) -> None:
    speaks = msgspec.structs.replace(ADVERTISER, decimal_separator=".")
    assert refusal_of(advertiser=speaks, amount=text).code == "bad_amount"


@pytest.mark.parametrize("name", ["amount", "revenue", "payout"])
def test_an_ambiguous_amount_is_none_and_keeps_the_conversion_pending(name: str) -> None:
    found = judge(**{name: "1,234"}, offer=offer(payout_override_max_minor=10))
    assert (getattr(found, f"{name}_minor"), found.reason) == (None, "ambiguous_amount")


def test_zero_is_an_amount_and_the_bound_itself_is_no_absurdity() -> None:
    assert judge(amount="0").amount_minor == 0
    assert judge(amount_minor=0).amount_minor == 0
    assert judge(amount_minor=limits.AMOUNT_MINOR_MAX).amount_minor == limits.AMOUNT_MINOR_MAX


@pytest.mark.parametrize(
    ("fields", "bounds", "reason"),
    [
        ({"amount": "100"}, {"amount_max_minor": 10_000}, Held.NONE),
        ({"amount": "100.01"}, {"amount_max_minor": 10_000}, Held.ABOVE_BOUND),
        ({"amount_minor": 10_001}, {"amount_max_minor": 10_000}, Held.ABOVE_BOUND),
        ({"amount": "0.01"}, {"amount_max_minor": 0}, Held.ABOVE_BOUND),
        ({"amount": "100.01", "currency": "USD"}, {"amount_max_minor": 10_000}, Held.NONE),  # settled with a rate
        ({"amount": "99999"}, {}, Held.NONE),
        ({"payout": "5"}, {"payout_override_max_minor": 500}, Held.NONE),
        ({"payout": "5.01"}, {"payout_override_max_minor": 500}, Held.PAYOUT_ABOVE_BOUND),
        ({"payout_minor": 501}, {"payout_override_max_minor": 500}, Held.PAYOUT_ABOVE_BOUND),
        ({"payout": "5", "currency": "JPY"}, {"payout_override_max_minor": 500}, Held.PAYOUT_ABOVE_BOUND),
        ({"payout": "5.01"}, {}, Held.NONE),
        ({"amount": "2", "payout": "2"}, {"amount_max_minor": 1, "payout_override_max_minor": 1}, Held.ABOVE_BOUND),
        ({"amount": "1,234", "payout": "2"}, {"payout_override_max_minor": 1}, Held.AMBIGUOUS_AMOUNT),
    ],
)
def test_what_is_above_the_offers_bounds_waits(fields: dict[str, Any], bounds: dict[str, int], reason: Held) -> None:
    assert judge(**fields, offer=offer(**bounds)).reason == reason


def test_a_payout_counts_only_where_the_offer_allows_it() -> None:
    assert judge(payout="5").payout_minor is None
    assert judge(payout="5", offer=offer(payout_override_max_minor=500)).payout_minor == 500
    assert judge(payout="9", offer=offer(payout_override_max_minor=500)).payout_minor == 900, "a person may allow it"
    unknown = judge(of="", order_id="o", coupon_code="SAVE", payout="5", currency="EUR")
    assert (unknown.payout_minor, unknown.reason) == (500, "payout_above_bound")


@pytest.mark.parametrize(
    ("fields", "refund", "remaining"),
    [
        ({"refund_amount": "5", "event_id": "e"}, 500, None),
        ({"refund_amount_minor": 500, "event_id": "e"}, 500, None),
        ({"remaining_amount": "0"}, None, 0),
        ({"remaining_amount_minor": 700}, None, 700),
        ({"refund_amount": "5", "remaining_amount": "7"}, None, 700),
        ({"refund_amount": "5", "remaining_amount": "7", "event_id": "e"}, 500, 700),
    ],
)
def test_a_refund_has_its_senders_id_or_says_what_remains(
    fields: dict[str, Any], refund: int | None, remaining: int | None
) -> None:
    found = judge(**fields)
    assert (found.refund_minor, found.remaining_minor) == (refund, remaining)


def test_a_page_reports_a_sale_that_waits_and_nothing_more() -> None:
    found = judge(
        door="pixel", amount="1,234", order_id="o", payout="99", revenue="99", event_id="e",
        offer=offer(payout_override_max_minor=1),
    )  # fmt: skip
    assert (found.door, found.reason) == ("pixel", "pixel")
    assert (found.payout_minor, found.revenue_minor, found.event_id) == (None, None, "")


def test_without_a_click_a_coupon_or_a_customer_says_whose_it_is() -> None:
    for fields in ({"coupon_code": "save"}, {"customer_id": "u"}):
        found = judge(of="", order_id="o", amount="5", currency="USD", **fields)
        assert (found.click_uuid, found.link_id, found.offer_id, found.partner_id) == (NO_CLICK, 0, 0, 0)
        assert (found.amount_minor, found.currency, found.foreign_click, found.reason) == (500, "USD", "", "")
        assert found.conversion_id == names.conversion_id("advertiser", 1, 0, "sale", "o", NO_CLICK)


def test_an_amount_of_an_unknown_currency_is_kept_in_hundredths() -> None:
    found = judge(of="", order_id="o", coupon_code="S", amount="5.5", revenue="1")
    assert (found.amount_minor, found.revenue_minor, found.currency) == (550, 100, "")


def test_another_trackers_click_id_is_taken_while_its_advertiser_moves_here() -> None:
    found = judge(of="wABC123", advertiser=MOVING, amount="5", currency="EUR")
    assert (found.foreign_click, found.click_uuid, found.offer_id) == ("wABC123", NO_CLICK, 0)
    assert found.conversion_id == judge(of="wABC123", advertiser=MOVING).conversion_id
    assert found.conversion_id != judge(of="wABC124", advertiser=MOVING).conversion_id
    assert found.conversion_id != judge(of="wABC123", advertiser=MOVING, event="lead").conversion_id
    with_order = judge(of="wABC123", advertiser=MOVING, order_id="o-1").conversion_id
    assert with_order == judge(order_id="o-1").conversion_id, "the order is the advertiser's, whatever the click"


@pytest.mark.parametrize("until", [None, 0, NOW - 1, NOW])
def test_another_trackers_click_id_is_refused_before_and_after_that(until: int | None) -> None:
    advertiser = msgspec.structs.replace(ADVERTISER, foreign_clicks_until_ms=until)
    assert refusal_of(of="wABC123", advertiser=advertiser).code == "bad_click_id"


def test_what_is_only_kept_is_cut_and_cleaned() -> None:
    found = judge(adv={"adv1": "a\0b\ud800" + "x" * 300}, original_status="\n" + "y" * 100, status="pending")
    assert found.adv == {"adv1": ("ab" + "x" * 300)[: limits.VALUE_MAX]}
    assert found.original_status == "y" * limits.STATUS_MAX
    assert events.decode(events.encode(found)) == found


def test_an_order_is_named_by_the_scope_of_its_offer_at_its_click() -> None:
    scoped = offer(scopes=(ScopeFrom(valid_from=NOW - 120_000, scope="offer"),))
    found = judge(order_id="o-1", offer=scoped)
    assert found.conversion_id == names.conversion_id("offer", 1, 1, "sale", "o-1", NO_CLICK)
    assert found.former_id == judge(order_id="o-1").conversion_id


texts = st.one_of(
    st.sampled_from(["", "", "5", "1,234", "-1", "EUR", "jpy", "sale", CLICK, "2026-11-23T12:00:00Z"]),
    st.text(max_size=20),
)
minors = st.none() | st.integers(-1, limits.AMOUNT_MINOR_MAX + 1)
anything = st.builds(
    Posted,
    adv=st.dictionaries(st.sampled_from(["adv1", "adv2"]), st.text(max_size=9)),
    status=st.sampled_from(["", "approved", "reversed"]),
    **{
        field: minors if field.endswith("_minor") else texts
        for field in Posted.__struct_fields__
        if field not in ("adv", "status")
    },
)


@given(
    anything, st.sampled_from(["", CLICK, "wABC"]), st.sampled_from([ADVERTISER, MOVING]),
    st.sampled_from(["postback", "json", "pixel"]),
)  # fmt: skip
def test_whatever_is_posted_is_an_event_within_its_bounds_or_has_a_reason(
    posted: Posted, text: str, advertiser: Advertiser, door: str
) -> None:
    click = read_click(KEYS, text)
    bounded = offer(amount_max_minor=1, payout_override_max_minor=1)
    try:
        event = judging.judge(
            msgspec.structs.replace(posted, click_id=text),
            click,
            bounded if click else None,
            advertiser,
            INTAKE_ID,
            NOW,
            door=door,
            raw="",
        )
    except Refused as refusal:
        code = refusal.code
    else:
        code = ""
        assert events.decode(events.encode(event)) == event
        written = [
            event.order_id,
            event.event,
            event.customer_id,
            event.coupon_code,
            event.foreign_click,
            *event.adv.values(),
        ]
        assert not any(set(value) & {chr(n) for n in range(32)} for value in written)
        amounts = (
            event.amount_minor,
            event.revenue_minor,
            event.payout_minor,
            event.refund_minor,
            event.remaining_minor,
        )
        assert all(0 <= minor <= limits.AMOUNT_MINOR_MAX for minor in amounts if minor is not None)
        assert event.reason or (event.payout_minor or 0) <= 1
        assert event.reason == "pixel" or door != "pixel"
        assert event.currency or click is None
    assert not code or code in REJECTIONS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-23T12:00:00Z", NOW),
        ("2026-11-23T12:00:00.250Z", NOW + 250),
        ("2026-11-23T12:00:00+00:00", NOW),
        ("2026-11-23 17:45:00+05:45", NOW),
        ("2026-11-22T12:00:00-08:00", NOW - 16 * 3_600_000),
        (str(NOW // 1000), NOW),
        (f"{NOW // 1000}.5", NOW + 500),
        ("2026-11-24T12:00:00Z", NOW + 86_400_000),
    ],
)
def test_an_event_time_is_rfc_3339_with_a_zone_or_unix_seconds(text: str, expected: int) -> None:
    assert judge(event_time=text).event_at_ms == expected


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-23T12:00:00", "2026-11-23", "12:00", "23.11.2026", str(NOW), "0", "-1", "1e9", "nan", "inf", " ", "\0",
        "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "1969-12-31T23:59:59Z", "2026-11-24T12:00:00.001Z",
        "99999999999", "2026-13-01T00:00:00Z", "x" * 10_000, "\u0661" * 10, "\ud800",
    ],
)  # fmt: skip
def test_any_other_event_time_is_refused(text: str) -> None:
    assert refusal_of(event_time=text).code == "bad_event_time"


def test_the_future_ends_a_day_after_the_receipt() -> None:
    late = datetime.fromtimestamp(NOW / 1000, UTC) + timedelta(days=1, milliseconds=1)
    assert refusal_of(event_time=late.isoformat()).code == "bad_event_time"
