"""Settle quarter hours whose clicks are all there: which of them are unique, and what they come to by their details.

One transaction for each quarter hour, done by whoever of the aggregators has the lock, the oldest first. Settled again
it comes to the same, and that is how clicks get in that came later than `complete_through` could know of.
"""

from __future__ import annotations

from datetime import datetime

from prometheus_client import Counter

from aggregator.db.connect import Connection
from aggregator.db.instants import QUARTER_MS, at, quarter, to_ms
from aggregator.settled import details, uniques
from schemas import limits
from schemas.click_id import uuid_ms

_SETTLED = Counter("clickdam_settled_quarters", "Quarter hours that were settled, those settled anew included")
# A frozen process must not keep its job. And a plan made while tables were empty would read all of them when they are
# not: each statement is planned for its quarter hour, and goes by indexes.
SESSION = f"""
SELECT set_config('idle_in_transaction_session_timeout', '{limits.BEHIND_IDLE_S}s', false),
       set_config('statement_timeout', '{limits.SETTLE_QUARTER_S}s', false),
       set_config('enable_seqscan', 'off', false), set_config('jit', 'off', false),
       set_config('plan_cache_mode', 'force_custom_plan', false),
       set_config('work_mem', '{limits.SETTLE_MEMORY_MB}MB', false)
"""
LOCK = "SELECT pg_try_advisory_xact_lock(hashtext('settled'), hashtext('quarters'))"
AWAIT_LOCK = "SELECT pg_advisory_xact_lock(hashtext('settled'), hashtext('quarters'))"
_PLACE = """
SELECT CASE WHEN isfinite(through) THEN through END AS through, complete_through FROM settling, complete_through
"""
_NEXT = "SELECT id FROM click WHERE id >= $1 AND id < $2 ORDER BY id LIMIT 1"
_EMPTY = """
INSERT INTO settled_quarter (quarter, recorded, reported)
SELECT empty, 0, 0 FROM generate_series($1::timestamptz, $2::timestamptz - interval '15 minutes', '15 minutes') AS empty
ON CONFLICT DO NOTHING
"""
_TELL_DAY = "INSERT INTO stale_day (quarter) SELECT $1::timestamptz FROM settling WHERE days_through > $1"
_MOVE = "UPDATE settling SET through = $1 WHERE through < $1"
_STALE = "SELECT min(quarter) FROM stale_quarter"
_TAKE = "DELETE FROM stale_quarter WHERE quarter = $1"
_REPORTED = "SELECT coalesce(sum(clicks), 0)::bigint FROM click_rollup WHERE quarter = $1"
# Clicks that are gone with their day were recorded all the same. The time is that of writing, not of the transaction's
# beginning, so that it grows from one settling to the next: what is remembered of a range goes by the latest.
_WRITE = """
INSERT INTO settled_quarter AS held (quarter, recorded, reported, settled_at) VALUES ($1, $2, $3, clock_timestamp())
ON CONFLICT (quarter) DO UPDATE SET recorded = greatest(held.recorded, excluded.recorded),
    reported = excluded.reported, settled_at = excluded.settled_at, checked = false
"""
_RECHECK = """
WITH due AS MATERIALIZED (
    SELECT quarter, reported FROM settled_quarter WHERE NOT checked AND settled_at < $1 ORDER BY settled_at LIMIT $2
), marked AS (
    INSERT INTO stale_quarter (quarter) SELECT quarter FROM due
    WHERE reported <> (SELECT coalesce(sum(clicks), 0) FROM click_rollup WHERE click_rollup.quarter = due.quarter)
)
UPDATE settled_quarter SET checked = true FROM due WHERE settled_quarter.quarter = due.quarter
"""


async def settle_once(db: Connection, now_ms: int) -> bool:
    """Settle one quarter hour: the next one that is complete, else one that clicks have come to since. Is there more to
    do? False also where another aggregator is at it. Raises one of DatabaseAway."""
    async with db.transaction():
        if not await db.fetchval(LOCK):
            return False
        await db.execute(_RECHECK, at(now_ms - int(limits.SETTLE_RECHECK_S * 1000)), limits.SETTLE_RECHECK_BATCH)
        quarter_ms = await _next(db)
        if quarter_ms is None:
            quarter_ms = await _stale(db)
        if quarter_ms is None:
            return False
        await settle(db, quarter_ms)
    _SETTLED.inc()
    return True


async def _next(db: Connection) -> int | None:
    """The next quarter hour that is complete and has clicks; those before it are settled, for they have none."""
    place = await db.fetchrow(_PLACE)
    if place is None or place["complete_through"] is None:
        return None
    begins_ms = to_ms(place["through"]) if place["through"] else 0
    ends_ms = quarter(to_ms(place["complete_through"]))
    if begins_ms >= ends_ms:
        return None
    first = await db.fetchval(_NEXT, uniques.first_id(begins_ms), uniques.first_id(ends_ms))
    reached_ms = quarter(uuid_ms(first)) if first else ends_ms
    if begins_ms:  # before the first click of all there is nothing to settle: a programme may bring its past yet
        await db.execute(_EMPTY, at(begins_ms), at(reached_ms))
        await db.execute(_MOVE, at(reached_ms))
    return reached_ms if first else None


async def _stale(db: Connection) -> int | None:
    marked = await db.fetchval(_STALE)
    return to_ms(marked) if marked else None


async def settle(db: Connection, quarter_ms: int) -> None:
    """Settle a quarter hour, in a transaction of whoever has the job's lock. Marks are taken and clicks counted before
    the clicks are read: what is committed in between is marked again, or found to be more than was counted."""
    begins = at(quarter_ms)
    await db.execute(_TAKE, begins)
    reported = await db.fetchval(_REPORTED, begins)
    recorded = await uniques.read(db, quarter_ms)
    if recorded:
        await details.write(db, begins)
        await uniques.write(db, begins)
    await db.execute(_WRITE, begins, recorded, reported)
    await db.execute(_MOVE, at(quarter_ms + QUARTER_MS))
    await tell_day(db, begins)


async def tell_day(db: Connection, begins: datetime) -> None:
    """Have the day of a quarter hour compared with what was settled, if it was, because something may have changed."""
    await db.execute(_TELL_DAY, begins)
