"""Months: what volume tiers add when one is closed, and what other terms would have paid for what was sold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from aggregator.conversions.terms import Terms
from aggregator.db.connect import Database


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What a partner gets more (or less) for its `conversions` on an offer in a period, in minor units."""

    offer_id: int
    partner_id: int
    period: str
    conversions: int
    currency: str
    amount_minor: int
    entry_id: int | None = None  # of the ledger, where it was booked


async def close(db: Database, period: str, actor: str, *, dry_run: bool) -> Sequence[Adjustment]:
    raise NotImplementedError


async def rerate(
    db: Database, offer_id: int, since: datetime, until: datetime, actor: str, reason: str, *, dry_run: bool
) -> Sequence[Adjustment]:
    raise NotImplementedError


async def what_if(
    db: Database, offer_id: int, proposed: Terms, since: datetime, until: datetime
) -> Sequence[Adjustment]:
    raise NotImplementedError
