"""What reports add up: conversions by state and their money, by the quarter hour of the sale."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from aggregator.conversions.states import State
from aggregator.db.connect import Database
from aggregator.db.instants import at, quarter
from schemas.outcomes import Status

SUMS = (
    "conversions", "pending", "rejected", "reversed",
    "sale_amount_minor", "payout_minor", "payout_pending_minor", "payout_reversed_minor", "revenue_minor",
)  # fmt: skip
# Days that are settled are marked in the same statement: what they came to is compared again.
_ROLLUP = f"""
WITH marked AS (
    INSERT INTO stale_day (quarter)
    SELECT DISTINCT quarter FROM settling, unnest($1::timestamptz[]) AS quarter WHERE quarter < days_through
)
INSERT INTO conversion_rollup AS held
    (quarter, link_id, offer_id, partner_id, currency, shard, {", ".join(SUMS)})
SELECT quarter, link_id, offer_id, partner_id, currency, $6, {", ".join(SUMS)}
FROM unnest($1::timestamptz[], $2::int[], $3::int[], $4::int[], $5::text[],
            {", ".join(f"${n}::numeric[]" for n in range(7, 7 + len(SUMS)))})
    AS new (quarter, link_id, offer_id, partner_id, currency, {", ".join(SUMS)})
ON CONFLICT (quarter, link_id, offer_id, partner_id, currency, shard) DO UPDATE
    SET {", ".join(f"{name} = held.{name} + excluded.{name}" for name in SUMS)}
"""  # noqa: S608 - our own names
_COUNTED = {Status.APPROVED: 0, Status.PENDING: 1, Status.REJECTED: 2, Status.REVERSED: 3}
_SALE, _PAYOUT, _PENDING, _REVERSED, _REVENUE = range(4, 9)
_OWED = {Status.APPROVED: _PAYOUT, Status.PENDING: _PENDING, Status.REVERSED: _REVERSED}
Key = tuple[int, int, int, int, str]  # quarter hour (ms), link, offer, partner, currency


def counted(state: State) -> Iterator[tuple[Key, int, int]]:
    """What a conversion adds: to which row, which of its sums, how much. Money goes to its own currency's row, the
    count to the payout's."""
    of = (quarter(state.event_at_ms), state.link_id, state.offer_id, state.partner_id)
    yield (*of, state.currency), _COUNTED[state.status], 1
    if state.payout_minor and state.status in _OWED:
        yield (*of, state.currency), _OWED[state.status], state.payout_minor
    if state.status is Status.APPROVED:
        if state.sale_amount_minor:
            yield (*of, state.sale_currency), _SALE, state.sale_amount_minor
        if state.revenue_minor and state.revenue_currency:
            yield (*of, state.revenue_currency), _REVENUE, state.revenue_minor


async def roll_up(db: Database, moves: Iterable[tuple[State | None, State]], shard: int) -> None:
    """Add what these conversions, before and after, changed; in the order of the rows' keys. Marks what was settled
    without it."""
    sums: dict[Key, list[int]] = defaultdict(lambda: [0] * len(SUMS))
    for before, after in moves:
        for key, place, amount in counted(after):
            sums[key][place] += amount
        for key, place, amount in counted(before) if before else ():
            sums[key][place] -= amount
    keys = sorted(key for key, row in sums.items() if any(row))
    if keys:
        quarters, *others = zip(*keys, strict=True)
        columns = zip(*(sums[key] for key in keys), strict=True)
        await db.execute(_ROLLUP, [at(quarter_ms) for quarter_ms in quarters], *others, shard, *columns)
