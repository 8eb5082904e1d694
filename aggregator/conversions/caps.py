"""Caps on conversions, payout and revenue: counted in the transaction that approves, so that no more is approved than
they allow. What was counted stays counted, whatever becomes of it later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from aggregator.conversions.rates import Rates, day_of, read_rates
from aggregator.db.connect import Database
from aggregator.db.instants import at
from schemas.limits import AMOUNT_MINOR_MAX
from schemas.links import Period
from schemas.money import round_minor
from schemas.outcomes import Status
from schemas.periods import begins_s

_COLUMNS = """
SELECT cap.id, coalesce(offer_id, 0), coalesce(partner_id, 0), kind, period, amount, cap.currency, over_cap_status,
       coalesce(offer.timezone, programme.timezone)
FROM programme, cap LEFT JOIN offer ON offer.id = offer_id WHERE kind <> 'clicks'
"""
_CAPS = f"""{_COLUMNS} AND (offer_id IS NULL OR offer_id = ANY ($1::int[]))
      AND (partner_id IS NULL OR partner_id = ANY ($2::int[]))
ORDER BY cap.id
"""
# The rows are locked in the order they are inserted in, those that were there too.
_LOCK = """
INSERT INTO cap_use AS held (cap_id, begins, used)
SELECT cap_id, begins, 0 FROM unnest($1::int[], $2::timestamptz[]) AS wanted (cap_id, begins)
ON CONFLICT (cap_id, begins) DO UPDATE SET used = held.used
RETURNING cap_id, extract(epoch FROM begins)::bigint AS begins_s, used
"""
_USE = """
UPDATE cap_use SET used = taken.used
FROM unnest($1::int[], $2::timestamptz[], $3::bigint[]) AS taken (cap_id, begins, used)
WHERE (cap_use.cap_id, cap_use.begins) = (taken.cap_id, taken.begins)
"""
# What its period has already when a cap is set; money in other currencies is left out.
_BEGIN = """
INSERT INTO cap_use (cap_id, begins, used)
SELECT $1, $2, least(coalesce(sum(CASE kind WHEN 'conversions' THEN conversions
                                            WHEN 'payout' THEN payout_minor ELSE revenue_minor END), 0),
                     9223372036854775807)
FROM cap LEFT JOIN conversion_rollup AS held
     ON quarter >= $2 AND (cap.offer_id IS NULL OR held.offer_id = cap.offer_id)
    AND (cap.partner_id IS NULL OR held.partner_id = cap.partner_id)
    AND (kind = 'conversions' OR held.currency = cap.currency)
WHERE cap.id = $1
"""


class Cap(NamedTuple):
    """At most `amount` in a period, of conversions, or minor units of `currency`; `offer_id` or `partner_id` is 0 where
    it is on all of them."""

    id: int
    offer_id: int
    partner_id: int
    kind: str
    period: Period
    amount: int
    currency: str | None
    over_cap_status: str
    timezone: str


@dataclass(frozen=True, slots=True)
class Approval:
    """What an approval would take. `id` names it in the answer. One that adds to a conversion that is approved already
    takes no further `conversions`, only the money it adds."""

    id: UUID
    offer_id: int
    partner_id: int
    event_at_ms: int
    payout_minor: int
    currency: str
    revenue_minor: int = 0
    revenue_currency: str | None = None
    conversions: int = 1


Place = tuple[int, int]  # a cap's id and where its period begins, in s since 1970


class _Taking(NamedTuple):
    """What an approval takes of a cap; None where that cannot be told: there is no rate of its day."""

    cap: Cap
    place: Place
    amount: int | None


async def take(db: Database, approvals: Sequence[Approval]) -> dict[UUID, Status]:
    """Count these against their caps, in this order, each wholly or not at all; for those that are over, by id, what
    becomes of them. One that cannot be held against a cap, for want of a rate, is over. Locks what it counts to the
    transaction's end."""
    caps = await read_caps(db, {one.offer_id for one in approvals}, {one.partner_id for one in approvals})
    if not caps:
        return {}
    rates = await _rates(db, caps, approvals)
    takings = {one.id: [_taking(cap, one, rates) for cap in caps if _concerns(cap, one)] for one in approvals}
    places = {taking.place for some in takings.values() for taking in some}
    if not places:
        return {}
    used = await _lock(db, places)
    before = dict(used)
    over = {}
    for approval in approvals:
        refused_by = _count(used, takings[approval.id])
        if refused_by is not None:
            over[approval.id] = Status(refused_by.over_cap_status)
    await _write(db, {place: use for place, use in used.items() if use != before[place]})
    return over


async def read_caps(db: Database, offer_ids: Iterable[int], partner_ids: Iterable[int]) -> list[Cap]:
    """The caps on conversions and money that hold for any of these offers and partners."""
    rows = await db.fetch(_CAPS, sorted(set(offer_ids)), sorted(set(partner_ids)))
    return [Cap(*row) for row in rows]


async def begin(db: Database, cap_id: int, now_ms: int) -> None:
    """Count what is approved already in the present period of a cap that was just set. What is approved beside it, at
    the same moment, is not counted; one on clicks is not counted here at all."""
    row = await db.fetchrow(f"{_COLUMNS} AND cap.id = $1", cap_id)
    if row is not None:
        cap = Cap(*row)
        await db.execute(_BEGIN, cap_id, at(begins_s(cap.period, cap.timezone, now_ms) * 1000))


async def used(db: Database, cap_id: int, begins: int) -> int:
    """How much of a cap is used in the period that begins then (s since 1970)."""
    held = await db.fetchval("SELECT used FROM cap_use WHERE cap_id = $1 AND begins = $2", cap_id, at(begins * 1000))
    return held or 0


def _concerns(cap: Cap, approval: Approval) -> bool:
    return cap.offer_id in (0, approval.offer_id) and cap.partner_id in (0, approval.partner_id)


def _taking(cap: Cap, approval: Approval, rates: Rates) -> _Taking:
    begins = begins_s(cap.period, cap.timezone, approval.event_at_ms)
    return _Taking(cap, (cap.id, begins), _amount(cap, approval, rates))


def _amount(cap: Cap, approval: Approval, rates: Rates) -> int | None:
    if cap.kind == "conversions":
        return approval.conversions
    amount_minor, currency = _money(cap, approval)
    if not amount_minor or currency == cap.currency:
        return amount_minor
    worth = rates.convert(amount_minor, currency, cap.currency or "", day_of(approval.event_at_ms))
    return None if worth is None or worth > AMOUNT_MINOR_MAX else round_minor(worth)


def _money(cap: Cap, approval: Approval) -> tuple[int, str]:
    if cap.kind == "payout":
        return approval.payout_minor, approval.currency
    return approval.revenue_minor, approval.revenue_currency or ""


def _count(used: dict[Place, int], takings: Iterable[_Taking]) -> Cap | None:
    """Count one approval, unless that is too much for one of its caps: that one."""
    takings = list(takings)
    for cap, place, amount in takings:
        if amount is None or (amount and used[place] + amount > cap.amount):
            return cap
    for _, place, amount in takings:
        used[place] += amount or 0
    return None


async def _rates(db: Database, caps: Iterable[Cap], approvals: Sequence[Approval]) -> Rates:
    """Those between the currencies of these caps and of this money, on its days."""
    in_caps = {cap.currency for cap in caps if cap.currency}
    paid = {one.currency for one in approvals} | {one.revenue_currency for one in approvals if one.revenue_currency}
    if not in_caps or in_caps | paid == in_caps & paid:
        return Rates()
    return await read_rates(db, in_caps | paid, {day_of(one.event_at_ms) for one in approvals})


async def _lock(db: Database, places: Iterable[Place]) -> dict[Place, int]:
    """How much of each is used."""
    cap_ids, begins = zip(*((cap_id, at(begins_s * 1000)) for cap_id, begins_s in sorted(places)), strict=True)
    rows = await db.fetch(_LOCK, cap_ids, begins)
    return {(row["cap_id"], row["begins_s"]): row["used"] for row in rows}


async def _write(db: Database, used: Mapping[Place, int]) -> None:
    if used:
        rows = [(cap_id, at(begins_s * 1000), used[cap_id, begins_s]) for cap_id, begins_s in sorted(used)]
        await db.execute(_USE, *zip(*rows, strict=True))
