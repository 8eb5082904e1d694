"""Money: integer minor units with an ISO 4217 currency; Decimal in between, HALF_UP at the end, never a float."""

import re
from decimal import ROUND_HALF_UP, Context, Decimal

from schemas.limits import AMOUNT_MINOR_MAX

# ISO 4217, list one (active codes) with their number of decimals; funds and metals codes left out.
_TWO_DECIMALS = """
AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP CRC CUP CVE
CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR
KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB
PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY
TTD TWD TZS UAH USD UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG
"""
EXPONENT = (
    dict.fromkeys(_TWO_DECIMALS.split(), 2)
    | dict.fromkeys("BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF".split(), 0)
    | dict.fromkeys("BHD IQD JOD KWD LYD OMR TND".split(), 3)
)

_DECIMAL = re.compile(r"-?\d{1,24}([.,]\d{1,24})?", re.ASCII)
_AMBIGUOUS = re.compile(r"\d{1,3},\d{3}", re.ASCII)
_EXACT = Context(prec=60)  # digits enough for any amount that is read: rounding happens once, at the end


class AmbiguousAmount(ValueError):
    """`1,234` is a thousand in one country and one and a bit in another."""


def major_to_minor(text: str, currency: str, decimal_separator: str = "") -> int:
    """Minor units of a decimal string in major units, e.g. `49.90` EUR -> 4990.

    A decimal comma is read where it cannot be a thousands separator (`12,34`). Where it is known what the sender's
    `decimal_separator` is, the other mark may stand between thousands. Raises AmbiguousAmount for `1,234`, ValueError
    for what is no number, OverflowError above the bound; a negative amount comes back negative.
    """
    if decimal_separator:
        text = _without_thousands(text, decimal_separator)
    elif _AMBIGUOUS.fullmatch(text):
        raise AmbiguousAmount(text)
    if not _DECIMAL.fullmatch(text):
        raise ValueError(text)
    return round_minor(Decimal(text.replace(",", ".")).scaleb(EXPONENT[currency], _EXACT))


def _without_thousands(text: str, decimal_separator: str) -> str:
    """`1.234,5` as `1234.5`, where the comma is said to be the decimal separator."""
    whole, mark, decimals = text.partition(decimal_separator)
    other = "," if decimal_separator == "." else "."
    if other in whole and not re.fullmatch(rf"-?\d{{1,3}}(\{other}\d{{3}})+", whole, re.ASCII):
        raise ValueError(text)
    return f"{whole.replace(other, '')}{'.' if mark else ''}{decimals}"


def percent_of(amount_minor: int, percent: Decimal) -> int:
    """A share of an amount in minor units, rounded HALF_UP."""
    return round_minor(share_of(Decimal(amount_minor), percent))


def share_of(amount: Decimal, percent: Decimal) -> Decimal:
    """The same of an amount that is not rounded yet, and not rounded."""
    return _EXACT.multiply(amount, percent).scaleb(-2, _EXACT)


def round_minor(amount: Decimal) -> int:
    """Whole minor units, HALF_UP. Raises OverflowError beyond `AMOUNT_MINOR_MAX` either way."""
    minor = int(amount.quantize(Decimal(1), ROUND_HALF_UP, _EXACT))
    if abs(minor) > AMOUNT_MINOR_MAX:
        raise OverflowError(minor)
    return minor
