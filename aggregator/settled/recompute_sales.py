"""Hold the rollup of conversions against the conversions themselves, quarter hour by quarter hour, and put it right."""

from __future__ import annotations

from datetime import datetime

from aggregator.conversions.rollup import SUMS
from aggregator.db.connect import Connection, Row
from aggregator.settled import quarters
from aggregator.settled.recompute import CORRECTIONS, Difference

_SOLD = """
SELECT date_bin('15 minutes', event_at, 'epoch') AS quarter FROM conversion WHERE event_at >= $1 AND event_at < $2
UNION SELECT quarter FROM conversion_rollup WHERE quarter >= $1 AND quarter < $2 ORDER BY quarter
"""
_KEY = "link_id, offer_id, partner_id, currency"
# Of each sum: what a conversion adds to it, and in which status.
_MADE_OF = {
    "conversions": ("one", "approved"), "pending": ("one", "pending"), "rejected": ("one", "rejected"),
    "reversed": ("one", "reversed"), "sale_amount_minor": ("sale", "approved"), "payout_minor": ("payout", "approved"),
    "payout_pending_minor": ("payout", "pending"), "payout_reversed_minor": ("payout", "reversed"),
    "revenue_minor": ("revenue", "approved"),
}  # fmt: skip
_RECOMPUTED = ", ".join(
    f"coalesce(sum({what}) FILTER (WHERE status = '{status}'), 0)::numeric AS {name}"
    for name, (what, status) in _MADE_OF.items()
)
# In one statement: a conversion and what it adds to the rollup are committed together, so that both are seen as they
# were at one moment, and their difference is the same whatever is being changed meanwhile.
_COMPARE = f"""
WITH sold AS (
    SELECT link_id, offer_id, partner_id, part.currency, status, one, payout, sale, revenue
    FROM conversion CROSS JOIN LATERAL (VALUES
        (conversion.currency, 1, payout_minor, 0::bigint, 0::bigint), (sale_currency, 0, 0, sale_amount_minor, 0),
        (revenue_currency, 0, 0, 0, revenue_minor)
    ) AS part (currency, one, payout, sale, revenue)
    WHERE event_at >= $1 AND event_at < $1::timestamptz + interval '15 minutes' AND part.currency IS NOT NULL
), recomputed AS (
    SELECT {_KEY}, {_RECOMPUTED} FROM sold GROUP BY {_KEY}
), stored AS (
    SELECT {_KEY}, {", ".join(f"sum({name})::numeric AS {name}" for name in SUMS)}
    FROM conversion_rollup WHERE quarter = $1 GROUP BY {_KEY}
), differing AS MATERIALIZED (
    SELECT {_KEY}, {", ".join(f"coalesce(stored.{name}, 0) AS stored_{name}" for name in SUMS)},
           {", ".join(f"coalesce(recomputed.{name}, 0) AS {name}" for name in SUMS)}
    FROM stored FULL JOIN recomputed USING ({_KEY})
    WHERE {" OR ".join(f"coalesce(stored.{name}, 0) <> coalesce(recomputed.{name}, 0)" for name in SUMS)}
){{corrected}}
SELECT * FROM differing ORDER BY {_KEY}
"""  # noqa: S608 - our own names
# Added, to rows that only this adds to: nobody is waited for.
_CORRECT = f""", corrected AS (
    INSERT INTO conversion_rollup AS held (quarter, {_KEY}, shard, {", ".join(SUMS)})
    SELECT $1, {_KEY}, {CORRECTIONS}, {", ".join(f"{name} - stored_{name}" for name in SUMS)} FROM differing
    ON CONFLICT (quarter, {_KEY}, shard) DO UPDATE
        SET {", ".join(f"{name} = held.{name} + excluded.{name}" for name in SUMS)}
)"""  # noqa: S608 - our own names
# Whoever goes by when a quarter hour was settled, and remembers what it came to, is to look at it again.
_TELL = """
INSERT INTO settled_quarter (quarter, recorded, reported, settled_at)
SELECT $1, 0, 0, clock_timestamp() FROM settling WHERE through > $1
ON CONFLICT (quarter) DO UPDATE SET settled_at = excluded.settled_at
"""


async def sold(db: Connection, starts: datetime, ends: datetime) -> list[datetime]:
    """The quarter hours of that time which have conversions, or are said to."""
    return [row["quarter"] for row in await db.fetch(_SOLD, starts, ends)]


async def recompute(db: Connection, begins: datetime, *, apply: bool) -> list[Difference]:
    """What a quarter hour's rollup of conversions would become; with `apply` it does. Nobody else recomputes or settles
    meanwhile, or both would put the same difference right. Raises what the database raises."""
    async with db.transaction():
        await db.execute(quarters.AWAIT_LOCK)
        rows = await db.fetch(_COMPARE.format(corrected=_CORRECT if apply else ""), begins)
        if apply and rows:
            await db.execute(_TELL, begins)
            await quarters.tell_day(db, begins)
    return [_difference(begins, row) for row in rows]


def _difference(begins: datetime, row: Row) -> Difference:
    key = row["link_id"], row["offer_id"], row["partner_id"], row["currency"]
    stored, recomputed = (tuple(int(row[f"{of}{name}"]) for name in SUMS) for of in ("stored_", ""))
    return Difference(begins, "conversion_rollup", key, SUMS, stored, recomputed)
