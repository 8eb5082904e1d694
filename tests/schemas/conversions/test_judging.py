"""What a conversion door judges: every reason it may give, the order's name, the time it happened."""

import os
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.faults.edges import offer
from schemas import click_id, events, limits
from schemas.click_id import ClickKey, ClickKeys
from schemas.conversions import judging, names, reading
from schemas.conversions.dialects import DIALECTS
from schemas.conversions.posted import Posted
from schemas.conversions.reading import posted_form, posted_json, read_click, read_form
from schemas.errors import STATUS, Refused
from schemas.links import Advertiser
from schemas.outcomes import ClickClass

KEYS = ClickKeys((ClickKey(1, b"k" * 32), ClickKey(2, b"")))
NOW = int(datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp() * 1000)
INTAKE_ID = click_id.uuid7_bytes(NOW, bytes(10))


def a_click(click_class: int = ClickClass.NORMAL, key: ClickKey = KEYS.signing) -> str:
    return click_id.mint(key, click_id.uuid7_bytes(NOW - 60_000, os.urandom(10)), 11, 1, 33, click_class)


CLICK = a_click()


def judge(*, of: str = CLICK, advertiser_id: int = 1, **fields: Any) -> events.Conversion:
    click = read_click(KEYS, of)
    fields.setdefault("click_id", of)
    advertiser = Advertiser(v=(1, 1), id=advertiser_id, status="active")
    return judging.judge(Posted(**fields), click, offer(), advertiser, INTAKE_ID, NOW, door="postback", raw="")


def reason_of(**fields: Any) -> str:
    with pytest.raises(Refused) as refusal:
        judge(**fields)
    assert STATUS[refusal.value.code] < 500
    return refusal.value.code


def test_a_valid_conversion_becomes_an_event_that_survives_the_log() -> None:
    found = judge(order_id="o-1", amount="49.90", currency="usd", event="lead", event_time="2026-11-23T12:00:00+02:00")
    click = read_click(KEYS, CLICK)
    assert click
    assert found == events.decode(events.encode(found))
    assert (found.click_uuid, found.link_id, found.offer_id, found.partner_id) == (click.uuid, 11, 1, 33)
    assert (found.order_id, found.amount_minor, found.currency, found.event) == ("o-1", 4990, "USD", "lead")
    assert found.event_at_ms == NOW - 2 * 3_600_000
    assert found.intake_id == UUID(bytes=INTAKE_ID)


def test_what_is_not_said_is_the_offers_or_the_default() -> None:
    found = judge()
    assert (found.currency, found.event, found.order_id, found.amount_minor) == ("EUR", "sale", "", None)
    assert found.event_at_ms == NOW


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"amount": "x"}, "bad_amount"),
        ({"amount": "1.234,50"}, "bad_amount"),
        ({"amount": "5 EUR"}, "bad_amount"),
        ({"amount": "-1"}, "negative_amount"),
        ({"amount": "-0.01"}, "negative_amount"),
        ({"amount": "-1,234"}, "negative_amount"),
        ({"amount_minor": -1}, "negative_amount"),
        ({"amount": "99999999999999"}, "absurd_amount"),
        ({"amount_minor": limits.AMOUNT_MINOR_MAX + 1}, "absurd_amount"),
        ({"currency": "XXX"}, "unknown_currency"),
        ({"currency": "€"}, "unknown_currency"),
        ({"currency": "EURO"}, "unknown_currency"),
        ({"order_id": "x" * (limits.ORDER_ID_MAX + 1)}, "bad_order_id"),
        ({"order_id": "a\0b"}, "bad_order_id"),
        ({"order_id": "a\nb"}, "bad_order_id"),
        ({"order_id": "a\ud800"}, "bad_order_id"),
        ({"event": "x" * (limits.EVENT_NAME_MAX + 1)}, "bad_event"),
        ({"event": "a\tb"}, "bad_event"),
        ({"event": "\x9f"}, "bad_event"),
        ({"event_time": "yesterday"}, "bad_event_time"),
        ({"advertiser_id": 2}, "not_your_click"),
    ],
)
def test_an_invalid_conversion_is_refused_with_its_reason(fields: dict[str, Any], code: str) -> None:
    assert reason_of(**fields) == code


def test_a_conversion_on_an_offer_that_is_gone_is_nobodys() -> None:
    advertiser = Advertiser(v=(1, 1), id=1, status="active")
    with pytest.raises(Refused, match="another advertiser"):
        judging.judge(Posted(), read_click(KEYS, CLICK), None, advertiser, INTAKE_ID, NOW, door="postback", raw="")


def test_an_ambiguous_amount_is_accepted_with_the_reason_that_keeps_it_pending() -> None:
    found = judge(amount="1,234")
    assert (found.amount_minor, found.reason) == (None, "ambiguous_amount")


def test_zero_is_an_amount() -> None:
    assert judge(amount="0").amount_minor == 0
    assert judge(amount_minor=0).amount_minor == 0
    assert judge(amount_minor=limits.AMOUNT_MINOR_MAX).amount_minor == limits.AMOUNT_MINOR_MAX


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "missing_click_id"),
        ("x", "bad_click_id"),
        (CLICK[:-1], "bad_click_id"),
        (CLICK + "A", "bad_click_id"),
        ("é" * 51, "bad_click_id"),
        (CLICK[:20] + ("A" if CLICK[20] != "A" else "B") + CLICK[21:], "forged_click_id"),
        (a_click(key=ClickKey(2, b"x" * 16)), "retired_key"),
        (a_click(key=ClickKey(9, b"x" * 16)), "unknown_key"),
        (a_click(ClickClass.FALLBACK), "click_never_earns"),
        (a_click(ClickClass.UNCOUNTED), "click_never_earns"),
    ],
    ids=lambda value: value if len(value) < 20 else "an id",  # a fresh id would name the test anew each time
)
def test_a_click_id_that_cannot_earn_is_refused_with_its_reason(text: str, code: str) -> None:
    with pytest.raises(Refused) as refusal:
        judge(of=text)
    assert refusal.value.code == code
    assert (refusal.value.status == 503) == (code == "unknown_key")


@pytest.mark.parametrize("click_class", [ClickClass.NORMAL, ClickClass.FLAGGED, ClickClass.OVER_CAP])
def test_a_flagged_click_and_one_over_its_cap_may_convert_and_say_so(click_class: ClickClass) -> None:
    assert judge(of=a_click(click_class)).click_class == click_class


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
    assert reason_of(event_time=text) == "bad_event_time"


def test_with_an_order_id_the_order_is_the_advertisers_whatever_the_click() -> None:
    name = judge(order_id="o-1").conversion_id
    assert judge(order_id="o-1", of=a_click()).conversion_id == name
    assert judge(order_id="o-1", amount="5", currency="USD").conversion_id == name
    others = [judge(order_id="o-2"), judge(order_id="o-1", event="lead"), judge(order_id="O-1"), judge()]
    assert len({name} | {other.conversion_id for other in others}) == 5
    assert names.conversion_id("advertiser", 2, 1, "sale", "o-1", uuid4()) != name
    assert (name.version, name.variant) == (8, "specified in RFC 4122")


def test_without_an_order_id_a_click_converts_once_per_event() -> None:
    assert judge().conversion_id == judge().conversion_id
    assert judge().conversion_id != judge(event="lead").conversion_id
    assert judge().conversion_id != judge(of=a_click()).conversion_id


def one_name(advertiser_id: int, event: str, order_id: str, click: UUID) -> UUID:
    return names.conversion_id("advertiser", advertiser_id, 1, event, order_id, click)


@given(st.tuples(st.integers(0, 50), st.text(max_size=9), st.text(min_size=1, max_size=9)), st.data())
def test_two_orders_never_share_a_name(order: tuple[int, str, str], data: st.DataObject) -> None:
    """Not even where event and order id could be cut apart elsewhere."""
    advertiser, event, order_id = order
    cut = data.draw(st.integers(0, len(event + order_id) - 1))
    joined = event + order_id
    other = (advertiser, joined[:cut], joined[cut:])
    click = UUID(int=7)
    try:
        same = one_name(*order, click) == one_name(*other, click)
    except TypeError:  # a surrogate, which the door refuses
        return
    assert same == (order == other)


def test_parameters_are_read_in_any_case_and_unknown_ones_are_ignored() -> None:
    assert posted_form(
        read_form("CLICK_ID=c&Order_Id=%C3%A9&amount=1+2&x=y&event="), DIALECTS["clickdam"], {}
    ) == Posted(click_id="c", order_id="é", amount="1 2")


def test_the_same_parameter_twice_with_one_value_is_one() -> None:
    assert read_form("a=1&A=1") == {"a": "1"}


@pytest.mark.parametrize("text", ["a=1&a=2", "a=1&A=", "a=%ff", "a=%ed%a0%80", "&".join(f"a{n}=1" for n in range(65))])
def test_parameters_that_cannot_be_told_are_refused(text: str) -> None:
    with pytest.raises(Refused) as refusal:
        read_form(text)
    assert refusal.value.code == "bad_parameters"


@pytest.mark.parametrize(
    ("item", "code", "field"),
    [
        ([], "bad_parameters", None),
        ("x", "bad_parameters", None),
        (None, "bad_parameters", None),
        ({"token": "x"}, "bad_parameters", "token"),
        ({"x" * 500: "x"}, "bad_parameters", "x" * 64),
        ({"click_id": 1}, "bad_parameters", "click_id"),
        ({"click_id": None}, "bad_parameters", "click_id"),
        ({"order_id": ["a"]}, "bad_parameters", "order_id"),
        ({"amount": 49.90}, "bad_amount", "amount"),
        ({"amount": 49}, "bad_amount", "amount"),
        ({"amount_minor": "4990"}, "bad_amount", "amount_minor"),
        ({"amount_minor": 49.0}, "bad_amount", "amount_minor"),
        ({"amount_minor": True}, "bad_amount", "amount_minor"),
        ({"amount_minor": None}, "bad_amount", "amount_minor"),
        ({"amount": "1", "amount_minor": 100}, "bad_amount", "amount"),
    ],
)
def test_json_of_a_wrong_shape_names_the_field(item: Any, code: str, field: str | None) -> None:
    with pytest.raises(Refused) as refusal:
        posted_json(item)
    assert (refusal.value.code, refusal.value.field) == (code, field)


def test_json_of_the_right_shape_is_read() -> None:
    item = {"click_id": "c", "order_id": "o", "amount_minor": 1, "currency": "EUR", "event": "e", "event_time": "t"}
    assert posted_json(item) == Posted(**item)


def test_a_token_is_only_known_by_its_digest() -> None:
    assert reading.token_digest("t") == "e3b98a4da31a127d4bde6e43033f66ba274cab0eb7eb1c70ec41402bf6273dd8"
    assert len(reading.token_digest("\ud800")) == 64
    with pytest.raises(Refused, match="needed"):
        reading.token_digest("")


def test_the_future_ends_a_day_after_the_receipt() -> None:
    late = datetime.fromtimestamp(NOW / 1000, UTC) + timedelta(days=1, milliseconds=1)
    assert reason_of(event_time=late.isoformat()) == "bad_event_time"
