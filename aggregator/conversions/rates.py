"""Exchange rates: one a day (UTC) for two currencies, as stored. Money in another currency waits for its day's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from uuid import UUID

from aggregator.db.connect import Database
from schemas.money import EXPONENT

NIL = UUID(int=0)
_EXACT = Context(prec=60)  # rounding happens once, at the end, to a whole minor unit
_RATES = """
SELECT currency, in_currency, day, rate FROM rate
WHERE currency = ANY ($1::text[]) AND in_currency = ANY ($1::text[]) AND day = ANY ($2::date[])
"""
_HAS_RATE = """
(c.sale_currency = {other} OR EXISTS (
    SELECT FROM rate WHERE day = (c.event_at AT TIME ZONE 'UTC')::date
       AND (currency, in_currency) IN ((c.sale_currency, {other}), ({other}, c.sale_currency))))
"""
_WAITING = f"""
SELECT conversion_id FROM conversion AS c JOIN offer ON offer.id = c.offer_id
WHERE c.status = 'pending' AND c.reason = 'no_rate' AND c.conversion_id > $2 AND {_HAS_RATE.format(other="c.currency")}
  AND (c.revenue_currency IS NULL OR {_HAS_RATE.format(other="c.revenue_currency")})
  AND (num_nulls(c.payout_override_minor, payout_override_max_minor) > 0 OR {_HAS_RATE.format(other="offer.currency")})
ORDER BY conversion_id LIMIT $1
"""  # noqa: S608 - our own names


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates at hand: (currency, in_currency, day) -> how much of the second one of the first is."""

    stored: Mapping[tuple[str, str, date], Decimal] = field(default_factory=dict)

    def convert(self, amount_minor: int, currency: str, in_currency: str, day: date) -> Decimal | None:
        """An amount in minor units of another currency, not rounded; by the rate the other way round where only that
        one is stored; None where neither is."""
        if currency == in_currency:
            return Decimal(amount_minor)
        if rate := self.stored.get((currency, in_currency, day)):
            amount = _EXACT.multiply(Decimal(amount_minor), rate)
        elif rate := self.stored.get((in_currency, currency, day)):
            amount = _EXACT.divide(Decimal(amount_minor), rate)
        else:
            return None
        return amount.scaleb(EXPONENT[in_currency] - EXPONENT[currency], _EXACT)


def day_of(event_at_ms: int) -> date:
    """The day (UTC) whose rate counts for what happened then."""
    return datetime.fromtimestamp(event_at_ms / 1000, UTC).date()


async def read_rates(db: Database, currencies: Collection[str], days: Collection[date]) -> Rates:
    """The rates of these days among these currencies: those of the amounts, and those that terms are in."""
    if len(set(currencies)) < 2:
        return Rates()
    rows = await db.fetch(_RATES, sorted(set(currencies)), sorted(set(days)))
    return Rates({(row["currency"], row["in_currency"], row["day"]): row["rate"] for row in rows})


async def waiting(db: Database, limit: int, after: UUID = NIL) -> Sequence[UUID]:
    """The conversions that wait for a rate which is there now, sorted, those `after` one: they can be priced again."""
    return [row["conversion_id"] for row in await db.fetch(_WAITING, limit, after)]
