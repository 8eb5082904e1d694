"""What an offer pays, from when on, and whose offer it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from aggregator.db.connect import Connection


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms from `valid_from_ms` on (ms since 1970, minus infinity for the first): `amount_minor` per order (cpa) or
    `percent` of its amount (cps), in `currency`."""

    valid_from_ms: float
    model: Literal["cpa", "cps"]
    amount_minor: int | None
    percent: Decimal | None
    currency: str


@dataclass(frozen=True, slots=True)
class Offer:
    """An offer as conversions need it; its terms oldest first."""

    advertiser_id: int
    terms: tuple[Terms, ...]

    def terms_at(self, at_ms: int) -> Terms | None:
        """The terms that held at a time: those at click time apply, so changing them never changes the past."""
        return next((terms for terms in reversed(self.terms) if terms.valid_from_ms <= at_ms), None)


_OFFERS = "SELECT id, advertiser_id FROM offer WHERE id = ANY ($1::int[])"
_TERMS = """
SELECT offer_id, (extract(epoch FROM valid_from) * 1000)::float8 AS valid_from_ms,
       model, amount_minor, percent, currency
FROM offer_terms WHERE offer_id = ANY ($1::int[]) ORDER BY offer_id, valid_from
"""


async def read_offers(db: Connection, offer_ids: Iterable[int]) -> Mapping[int, Offer]:
    """The offers with these ids, as far as there are any."""
    ids = sorted(set(offer_ids))
    terms: dict[int, list[Terms]] = {offer_id: [] for offer_id in ids}
    for row in await db.fetch(_TERMS, ids):
        terms[row["offer_id"]].append(
            Terms(row["valid_from_ms"], row["model"], row["amount_minor"], row["percent"], row["currency"])
        )
    rows = await db.fetch(_OFFERS, ids)
    return {row["id"]: Offer(row["advertiser_id"], tuple(terms[row["id"]])) for row in rows}
