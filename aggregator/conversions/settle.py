"""Settle conversions inside the consumer's transaction: each intake once, each order once, each with its payout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from aggregator.conversions.attribution import Decision, decide
from aggregator.conversions.terms import read_offers
from aggregator.db.connect import Connection
from aggregator.db.instants import at, quarter
from schemas.click_id import uuid_ms
from schemas.events import Conversion, Intake
from schemas.outcomes import Result, Status

_INTAKE = """
INSERT INTO conversion_intake (intake_id, conversion_id, result)
SELECT intake_id, conversion_id, $3 FROM unnest($1::uuid[], $2::uuid[]) AS new (intake_id, conversion_id)
ON CONFLICT DO NOTHING RETURNING intake_id
"""
_DUPLICATES = "UPDATE conversion_intake SET result = $2 WHERE intake_id = ANY ($1::uuid[])"
_COLUMNS = {
    "conversion_id": "uuid", "intake_id": "uuid", "click_id": "uuid", "link_id": "int", "offer_id": "int",
    "partner_id": "int", "advertiser_id": "int", "event": "text", "order_id": "text", "event_at": "timestamptz",
    "received_at": "timestamptz", "status": "text", "reason": "text", "sale_amount_minor": "bigint",
    "sale_currency": "text", "payout_minor": "bigint", "currency": "text",
}  # fmt: skip
_CONVERSION = f"""
INSERT INTO conversion ({", ".join(_COLUMNS)})
SELECT * FROM unnest({", ".join(f"${n}::{kind}[]" for n, kind in enumerate(_COLUMNS.values(), 1))})
ON CONFLICT DO NOTHING RETURNING conversion_id
"""  # noqa: S608
_ROLLUP = """
INSERT INTO conversion_rollup AS held
    (quarter, link_id, offer_id, partner_id, currency, shard, conversions, sale_amount_minor, payout_minor)
SELECT quarter, link_id, offer_id, partner_id, currency, $6, conversions, sale, payout
FROM unnest($1::timestamptz[], $2::int[], $3::int[], $4::int[], $5::text[], $7::bigint[], $8::bigint[], $9::bigint[])
    AS new (quarter, link_id, offer_id, partner_id, currency, conversions, sale, payout)
ON CONFLICT (quarter, link_id, offer_id, partner_id, currency, shard) DO UPDATE
    SET conversions = held.conversions + excluded.conversions,
        sale_amount_minor = held.sale_amount_minor + excluded.sale_amount_minor,
        payout_minor = held.payout_minor + excluded.payout_minor
"""


class _Settled(NamedTuple):
    event: Conversion
    decision: Decision


async def settle(db: Connection, intakes: Sequence[Conversion | Intake], shard: int) -> int:
    """Write what is new and answer how many orders that were.

    A copy of an intake vanishes; a further intake for an order is kept as its duplicate. Of several in one batch the
    first in the order of the log wins. Ids are written sorted, so that partitions side by side do not deadlock.
    """
    conversions = [event for event in intakes if isinstance(event, Conversion)]
    if not conversions:
        return 0
    new = await _take_in(db, conversions)
    offers = await read_offers(db, (event.offer_id for event in new))
    candidates = _first_by_order(new)
    settled = await _write(db, [_Settled(event, decide(event, offers.get(event.offer_id))) for event in candidates])
    await _mark_duplicates(db, new, settled)
    await _roll_up(db, settled, shard)
    return len(settled)


async def _take_in(db: Connection, conversions: Sequence[Conversion]) -> list[Conversion]:
    """The intakes seen for the first time, in the order of the log."""
    by_intake: dict[UUID, Conversion] = {}
    for event in conversions:
        by_intake.setdefault(event.intake_id, event)
    ordered = [by_intake[intake_id] for intake_id in sorted(by_intake)]
    rows = await db.fetch(
        _INTAKE, [event.intake_id for event in ordered], [event.conversion_id for event in ordered], Result.ACCEPTED
    )
    new = {row["intake_id"] for row in rows}
    return [event for event in by_intake.values() if event.intake_id in new]


def _first_by_order(intakes: Sequence[Conversion]) -> list[Conversion]:
    """One intake for each order, the first of the log, sorted by the order's id."""
    first = {event.conversion_id: event for event in reversed(intakes)}
    return [first[conversion_id] for conversion_id in sorted(first)]


async def _write(db: Connection, candidates: list[_Settled]) -> list[_Settled]:
    """The orders that were new."""
    if not candidates:
        return []
    rows = await db.fetch(_CONVERSION, *zip(*map(_row, candidates), strict=True))
    new = {row["conversion_id"] for row in rows}
    return [settled for settled in candidates if settled.event.conversion_id in new]


async def _mark_duplicates(db: Connection, intakes: Iterable[Conversion], settled: Iterable[_Settled]) -> None:
    winners = {event.intake_id for event, _ in settled}
    losers = [event.intake_id for event in intakes if event.intake_id not in winners]
    if losers:
        await db.execute(_DUPLICATES, losers, Result.DUPLICATE)


async def _roll_up(db: Connection, settled: Iterable[_Settled], shard: int) -> None:
    """Add what was approved to the rollups, in the order of the rows' keys."""
    sums: dict[tuple[int, int, int, int, str], list[int]] = {}
    for event, decision in settled:
        if decision.status is Status.APPROVED:
            begins_ms = quarter(event.event_at_ms)
            key = (begins_ms, event.link_id, event.offer_id, event.partner_id, decision.currency)
            row = sums.setdefault(key, [0, 0, 0])
            row[0] += 1
            row[1] += event.amount_minor or 0
            row[2] += decision.payout_minor or 0
    if sums:
        keys = sorted(sums)
        quarters, *others = zip(*keys, strict=True)
        conversions, sales, payouts = zip(*(sums[key] for key in keys), strict=True)
        begins = [at(quarter_ms) for quarter_ms in quarters]
        await db.execute(_ROLLUP, begins, *others, shard, conversions, sales, payouts)


def _row(settled: _Settled) -> tuple[Any, ...]:
    event, decision = settled
    return (
        event.conversion_id, event.intake_id, event.click_uuid, event.link_id, event.offer_id, event.partner_id,
        event.advertiser_id, event.event, event.order_id or None, at(event.event_at_ms),
        at(uuid_ms(event.intake_id)), decision.status, decision.reason or None, event.amount_minor,
        event.currency, decision.payout_minor, decision.currency,
    )  # fmt: skip
