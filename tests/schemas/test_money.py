"""Amounts become whole minor units once, HALF_UP, and are never guessed."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import money
from schemas.limits import AMOUNT_MINOR_MAX
from schemas.money import AmbiguousAmount, major_to_minor, percent_of


@pytest.mark.parametrize(
    ("text", "currency", "minor"),
    [
        ("49.90", "EUR", 4990), ("49.9", "EUR", 4990), ("49", "EUR", 4900), ("0", "EUR", 0), ("0.00", "EUR", 0),
        ("12,34", "EUR", 1234), ("12,3", "EUR", 1230), ("1234,56", "EUR", 123456), ("1234,567", "EUR", 123457),
        ("0.005", "EUR", 1), ("0.0049", "EUR", 0), ("0.015", "EUR", 2), ("0.025", "EUR", 3), ("1.005", "USD", 101),
        ("-49.90", "EUR", -4990), ("-0.005", "EUR", -1), ("-1,234", "EUR", -123),
        ("500", "JPY", 500), ("500.5", "JPY", 501), ("500.49", "JPY", 500),
        ("1.2345", "KWD", 1235), ("1.234", "KWD", 1234),
        ("1.234", "EUR", 123), ("00012.30", "EUR", 1230), ("10000000000000.00", "EUR", AMOUNT_MINOR_MAX),
        ("1234567890123.454999999999999999999999", "EUR", 123456789012345),  # rounded once, not twice
    ],
)  # fmt: skip
def test_a_decimal_string_becomes_minor_units(text: str, currency: str, minor: int) -> None:
    assert major_to_minor(text, currency) == minor


@pytest.mark.parametrize("text", ["1,234", "12,345", "123,456", "0,500"])
@pytest.mark.parametrize("currency", ["EUR", "JPY", "KWD"])
def test_an_amount_that_two_countries_read_differently_is_ambiguous(text: str, currency: str) -> None:
    with pytest.raises(AmbiguousAmount):
        major_to_minor(text, currency)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "x", "1 000", " 1", "1\n", "1.", ".5", ",5", "1e3", "NaN", "Infinity", "-", "+5", "--5", "1.2.3",
        "1,234.50", "1.234,50", "1,234,567", "\uff11\uff12", "0x10", "1_000", "€5", "5 EUR", "1" * 25, "1." + "1" * 25,
        "\0", "5\0",
    ],
)  # fmt: skip
def test_what_is_no_plain_decimal_is_no_amount(text: str) -> None:
    with pytest.raises(ValueError, match=r"^") as refusal:
        major_to_minor(text, "EUR")
    assert not isinstance(refusal.value, AmbiguousAmount)


@pytest.mark.parametrize("text", ["10000000000000.01", "-10000000000000.01", "9" * 24])
def test_an_amount_beyond_the_bound_overflows(text: str) -> None:
    with pytest.raises(OverflowError):
        major_to_minor(text, "EUR")


@given(st.integers(0, 10**12), st.integers(0, 10**24 - 1), st.sampled_from(["JPY", "EUR", "KWD"]))
def test_rounding_is_exact_however_many_digits_there_are(whole: int, fraction: int, currency: str) -> None:
    exact = (Fraction(whole) + Fraction(fraction, 10**24)) * 10 ** money.EXPONENT[currency]
    assert major_to_minor(f"{whole}.{fraction:024}", currency) == int(exact + Fraction(1, 2))


@given(st.integers(0, AMOUNT_MINOR_MAX), st.decimals(0, 100, places=6))
def test_a_share_is_exact_before_it_is_rounded(amount_minor: int, percent: Decimal) -> None:
    exact = Fraction(amount_minor) * Fraction(percent) / 100
    assert percent_of(amount_minor, percent) == int(exact + Fraction(1, 2))


def test_currencies_have_the_decimals_of_iso_4217() -> None:
    assert {money.EXPONENT[code] for code in ("JPY", "KRW", "CLP", "XOF")} == {0}
    assert {money.EXPONENT[code] for code in ("KWD", "BHD", "TND")} == {3}
    assert {money.EXPONENT[code] for code in ("EUR", "USD", "INR", "MRU")} == {2}
    assert all(len(code) == 3 and code.isupper() for code in money.EXPONENT)


@given(st.integers(0, AMOUNT_MINOR_MAX), st.sampled_from([".", ","]), st.booleans())
def test_an_amount_is_read_as_who_says_the_decimal_separator_wrote_it(
    minor: int, separator: str, in_thousands: bool
) -> None:
    whole = f"{minor // 100:,}".replace(",", "" if not in_thousands else "." if separator == "," else ",")
    assert major_to_minor(f"{whole}{separator}{minor % 100:02}", "EUR", separator) == minor


@pytest.mark.parametrize(
    "text", ["1,23", "12,34", "1,2345", "1234,567", ",123", "1,,234", "1.234,567", "0,500.", "1,234.5.6"]
)
def test_a_thousands_mark_in_a_wrong_place_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match=r"\d"):
        major_to_minor(text, "EUR", ".")
