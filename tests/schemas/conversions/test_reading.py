"""From the text of a request to what it says, and what of it may be kept."""

from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote_plus, urlencode

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import limits
from schemas.conversions import reading
from schemas.conversions.dialects import DIALECTS, token_parameters
from schemas.conversions.posted import Posted
from schemas.conversions.reading import (
    HalfRead,
    posted_form,
    posted_json,
    read_form,
    without_secrets,
    without_secrets_json,
)
from schemas.errors import Refused

TOKEN = "cd_Zk3vQ9tR7mX2pL8s"  # a token as the API makes them, about


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


@pytest.mark.parametrize("name", reading.MONEY)
def test_json_has_each_amount_in_major_or_in_minor_units(name: str) -> None:
    assert getattr(posted_json({name: "1.5"}), name) == "1.5"
    assert getattr(posted_json({f"{name}_minor": 150}), f"{name}_minor") == 150
    for item in ({name: 1.5}, {name: 1}, {f"{name}_minor": "150"}, {f"{name}_minor": 1.0}, {f"{name}_minor": True}):
        with pytest.raises(Refused, match="wrong type") as refusal:
            posted_json(item)
        assert refusal.value.code == "bad_amount"
    with pytest.raises(Refused, match="exclude each other") as refusal:
        posted_json({name: "1.5", f"{name}_minor": 150})
    assert refusal.value.code == "bad_amount"


def test_json_has_the_fields_of_a_postback_and_no_others() -> None:
    item: dict[str, Any] = {
        "click_id": "c", "order_id": "o", "amount": "1", "currency": "EUR", "event": "e", "event_time": "t",
        "event_id": "i", "status": "Approved", "revenue": "2", "payout": "3", "refund_amount": "4",
        "remaining_amount": "5", "customer_id": "u", "coupon_code": "p",
    }  # fmt: skip
    read = posted_json(item | {"adv1": "x", "adv10": "y", "adv2": ""})
    assert read == Posted(
        **item | {"status": "approved", "original_status": "Approved"}, adv={"adv1": "x", "adv10": "y"}
    )
    assert read == posted_form(read_form(urlencode(item | {"adv1": "x", "adv10": "y"})), DIALECTS["clickdam"], {})
    assert set(DIALECTS["clickdam"].fields) == {name for name in reading.JSON_FIELDS if not name.endswith("_minor")}
    for name in ("adv", "adv0", "adv11", "original_status", "token", "transaction_id", "foreign_click", "v"):
        with pytest.raises(Refused, match="unknown field") as refusal:
            posted_json({name: "x"})
        assert refusal.value.field == name


def test_a_status_in_json_is_one_of_ours() -> None:
    with pytest.raises(Refused) as refusal:
        posted_json({"status": "lead"})
    assert refusal.value.code == "unknown_status"


def code_of(read: Callable[[], object]) -> str:
    try:
        read()
    except Refused as refusal:
        return refusal.code
    return ""


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    assert code_of(lambda: read_form(text)) in {"", "bad_parameters"}
    params = dict(parse_qsl(text, keep_blank_values=True))
    codes = {code_of(partial(posted_form, params, dialect, {})) for dialect in DIALECTS.values()}
    assert codes <= {"", "unknown_status", "ignored_status", "unsupported_parameter"}


@given(st.text("ab=&;%+2é41", max_size=40))
def test_a_form_reads_as_the_standard_has_it(text: str) -> None:
    try:
        wanted = [(name.lower(), value) for name, value in parse_qsl(text, keep_blank_values=True, errors="strict")]
    except ValueError:
        assert code_of(lambda: read_form(text)) == "bad_parameters"
        return
    is_told = len(set(wanted)) == len(dict(wanted))
    assert code_of(lambda: read_form(text)) == ("" if is_told else "bad_parameters")
    if is_told:
        assert read_form(text) == dict(wanted)


names_of_secrets = st.sampled_from([*token_parameters(), "signature", "authorization"])
secrets = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/=_-&: ", min_size=8, max_size=40)


def spelt(data: st.DataObject, text: str) -> str:
    """In any case where that does not matter, percent-encoded here and there, up to four times."""
    for _ in range(data.draw(st.integers(0, 4))):
        marks = data.draw(st.lists(st.booleans(), min_size=len(text), max_size=len(text)))
        safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-~"
        text = "".join(
            f"%{ord(letter):02x}" if marked or letter not in safe else letter
            for letter, marked in zip(text, marks, strict=True)
        )
    return text


def everything_in(raw: str) -> str:
    """The raw text, and how it reads decoded once, twice, ... nine times."""
    readings = [raw]
    for _ in range(9):
        readings.append(unquote_plus(readings[-1]))
    return "\n".join(readings)


@given(st.data(), names_of_secrets, secrets)
def test_no_secret_survives_however_it_was_encoded(data: st.DataObject, name: str, secret: str) -> None:
    cased = "".join(letter.upper() if data.draw(st.booleans()) else letter for letter in name)
    pair = f"{spelt(data, cased)}={quote(secret, safe='')}"
    copies = [f"adv{n}={spelt(data, secret) if n else quote_plus(secret)}" for n in range(2)]
    others = ["click_id=abc", "order_id=7"]
    text = "&".join(data.draw(st.permutations([pair, pair, *(copy.replace("&", "%26") for copy in copies), *others])))
    raw = without_secrets(text)
    assert secret not in everything_in(raw)
    assert "click_id=abc" in raw.split("&")
    assert "order_id=7" in raw.split("&")


@pytest.mark.parametrize(
    "text",
    [
        f"token={TOKEN}", f"TOKEN={TOKEN}", f"ToKeN={TOKEN}", f"%74oken={TOKEN}", f"%54OKEN={TOKEN}",
        f"%2574oken={TOKEN}", f"tok%65n={TOKEN}", f"+token={TOKEN}", f"token+={TOKEN}", f"token%00={TOKEN}",
        f"token[]={TOKEN}", f"token%5B%5D={TOKEN}", f"security-token={TOKEN}", f"Security_Token={TOKEN}",
        f"token={TOKEN}&token={TOKEN}", f"token=x&token={TOKEN}", f"a=1;token={TOKEN}", f"a=1%3Btoken%3D{TOKEN}",
        f"token:{TOKEN}", f"token%3D{TOKEN}", f"token=={TOKEN}", f"token%3A+{TOKEN}", f"a=token {TOKEN}",
        f"url=https%3A%2F%2Fx%2F%3Ftoken%3D{TOKEN}", f"url=https%253A%252F%252Fx%253Fsecure%253D{TOKEN}",
        f"a=%7B%22token%22%3A+%22{TOKEN}%22%7D", f"a=Authorization:+Bearer+{TOKEN}", f"a=Bearer%20{TOKEN}",
        f"secure={TOKEN}", f"verification_token={TOKEN}", f"security_token={TOKEN}", f"upd_key={TOKEN}",
        f"adv_sectkn={TOKEN}", f"signature={TOKEN}", f"&&token={TOKEN}&", f"token=%00{TOKEN}", f"?token={TOKEN}",
        f"adv1=%25252525{'%2525' * 5}74oken={TOKEN}", f"{TOKEN}=token={TOKEN}",
    ],
)  # fmt: skip
def test_no_token_survives_where_its_name_stands_somehow(text: str) -> None:
    assert TOKEN not in everything_in(without_secrets(text))
    assert TOKEN not in everything_in(without_secrets(f"order_id=1&{text}&amount=2"))


@given(st.data(), st.sampled_from(["adv1", "order_id", "x", "toke", "url", ""]))
def test_what_is_known_to_be_secret_survives_nowhere(data: st.DataObject, name: str) -> None:
    around = st.text("abc/=:;,", max_size=5)
    value = data.draw(around) + TOKEN + data.draw(around)
    raw = without_secrets(f"a=1&{name}={spelt(data, value)}&{spelt(data, value)}", (TOKEN,))
    assert TOKEN not in everything_in(raw)
    assert raw.startswith("a=1&")


@pytest.mark.parametrize(
    "address",
    [
        "192.0.2.7", "192.0.2.7:443", "2001:db8::7", "[2001:db8::7]:443", "::1", "::ffff:192.0.2.7",
        "2001:DB8:0:0:0:0:0:7", "192.0.2.7, 198.51.100.9", "for=192.0.2.7;proto=https", "fe80::1", "2001:db8::",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["ip", "adv1", "x"])
def test_no_address_of_a_buyer_is_kept(name: str, address: str) -> None:
    for value in (address, quote(address), quote(quote(address))):
        raw = without_secrets(f"click_id=c&{name}={value}&amount=1")
        assert raw in ("click_id=c&***&amount=1", f"click_id=c&{name}=***&amount=1")
    assert orjson.loads(without_secrets_json({"order_id": "1", name: address})) == {"order_id": "1", name: "***"}


@pytest.mark.parametrize(
    "text",
    [
        "", "a", "=", "&", "click_id=abc&amount=49.90&currency=EUR", "order_id=secure-shop-1", "adv1=token-sale",
        "adv1=100%25", "event_time=2026-11-23T12:00:00.250Z", "amount=1.234.567,80", "order_id=1.2.3", "order_id=a:b:c",
        "order_id=2026.11.23.400", "t=12:00:00", "a=b=c", "sum=5&sum=5", "CLICK_ID=%41",
        "x=é", "x=%C3%A9", "event=signature",
    ],
)  # fmt: skip
def test_what_is_no_secret_is_kept_as_it_was_sent(text: str) -> None:
    assert without_secrets(text, ("", "1234567")) == text


def test_what_is_kept_reads_as_what_was_sent() -> None:
    text = "click_id=c&order_id=%C3%A9&amount=1&token=abcdefgh&secure=hgfedcba&adv1=abcdefgh"
    kept = without_secrets(text)
    assert kept == "click_id=c&order_id=%C3%A9&amount=1&token=***&secure=***&adv1=***"
    read = posted_form(read_form(kept), DIALECTS["clickdam"], {})
    assert read == Posted(click_id="c", order_id="é", amount="1", adv={"adv1": "***"})


@pytest.mark.parametrize("of", ["%=%&", "&", "%0=&", "a&b=1&", "a=%25", "token"])
def test_what_is_cut_off_is_not_looked_through(of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(reading, "_decoded", lambda text: looked.append(len(text)) or text)
    assert without_secrets(of * 100_000, (TOKEN,)).endswith("…")
    item = {f"{n}%": of * 10 for n in range(10_000)}
    assert without_secrets_json({"adv1": of * 100_000} | item, (TOKEN,)).endswith("…")
    assert len(looked) < 1_000
    assert sum(looked) < 100 * limits.RAW_MAX


def test_no_half_of_a_secret_is_kept_where_it_is_cut() -> None:
    for at in range(limits.RAW_MAX - 60, limits.RAW_MAX + 20):
        assert TOKEN[:6] not in without_secrets(f"a={'x' * at}&b={TOKEN}&c=1", (TOKEN,))
        assert TOKEN[:6] not in without_secrets(f"a=%41{'x' * at}{TOKEN}{'y' * limits.RAW_MAX * 2}", (TOKEN,))
        assert TOKEN[:6] not in without_secrets_json({"adv1": f"%41{'x' * at}{TOKEN}", "adv2": "y"}, (TOKEN,))


def test_a_long_intake_is_cut_and_says_so() -> None:
    whole = "a=" + "x" * (limits.RAW_MAX - 2)
    assert without_secrets(whole) == whole
    assert without_secrets(whole + "x") == whole[:-1] + "…"
    assert len(without_secrets_json({"order_id": "é" * 9_999})) == limits.RAW_MAX


@pytest.mark.parametrize(
    ("item", "kept"),
    [
        ({"click_id": "c", "amount_minor": 5}, {"click_id": "c", "amount_minor": 5}),
        ({"token": TOKEN}, {"token": "***"}),
        ({"Security_Token": TOKEN, "x": TOKEN}, {"Security_Token": "***", "x": "***"}),
        ({"t%6Fken": TOKEN}, {"t%6Fken": "***"}),
        ({"token": [TOKEN], "x": {"y": TOKEN}}, {"token": "***", "x": "***"}),
        ({"signature": 12345678}, {"signature": "***"}),
        ({"adv1": f"https://x/?token={TOKEN}"}, {"adv1": "***"}),
        ({"adv1": f"a {TOKEN[:3]}%{ord(TOKEN[3]):02x}{TOKEN[4:]}"}, {"adv1": "***"}),
        ({TOKEN: "x"}, {"***": "x"}),
        ({"order_id": "1"}, {"order_id": "1"}),
    ],
)
def test_json_is_kept_without_its_secrets(item: dict[str, Any], kept: dict[str, Any]) -> None:
    assert orjson.loads(without_secrets_json(item, (TOKEN,))) == kept


@pytest.mark.parametrize("item", [None, [], [TOKEN], TOKEN, 1])
def test_of_what_is_no_conversion_nothing_is_kept(item: Any) -> None:
    assert without_secrets_json(item) == ""


@pytest.mark.parametrize(
    ("read", "order_id"),
    [
        (lambda: posted_form({"order_id": "7", "status": "what"}, DIALECTS["clickdam"], {}), "7"),
        (lambda: posted_form({"txid": "7", "et": "sale", "status": "?"}, DIALECTS["clickdam"], {}), ""),
        (lambda: posted_json({"order_id": "7", "amount": 5}), "7"),
        (lambda: posted_json({"order_id": 7}), ""),
        (lambda: posted_json({"colour": "red", "order_id": "7"}), "7"),
    ],
)
def test_what_is_refused_is_found_by_its_order_all_the_same(read: Callable[[], Posted], order_id: str) -> None:
    with pytest.raises(HalfRead) as refused:
        read()
    assert refused.value.order_id == order_id
