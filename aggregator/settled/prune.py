"""What was settled goes with the clicks that it was made of."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

from aggregator.db.connect import Connection
from aggregator.db.instants import at
from schemas import limits

_BY = {"first_click": "day", "detail_rollup": "quarter", "settled_quarter": "quarter"}


async def prune_once(db: Connection, now_ms: int, keep_days: int) -> bool:
    """Remove a batch of the rows that are more than `keep_days` before today; are there more? A day later than their
    clicks, because the programme's day may begin before that of the partitions (UTC)."""
    day = at(now_ms).date() - timedelta(days=keep_days + 1)
    before = {"day": day, "quarter": datetime.combine(day, time(), UTC)}
    counts = [await _prune(db, table, column, before[column]) for table, column in _BY.items()]
    return max(counts) == limits.SETTLED_PRUNE_BATCH


async def _prune(db: Connection, table: str, column: str, before: object) -> int:
    old = f"SELECT ctid FROM {table} WHERE {column} < $1 LIMIT $2"  # noqa: S608
    done = await db.execute(
        f"DELETE FROM {table} WHERE ctid = ANY(ARRAY({old}))",  # noqa: S608
        before, limits.SETTLED_PRUNE_BATCH,
    )  # fmt: skip
    return int(done.rpartition(" ")[2])
