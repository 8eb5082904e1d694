"""Hold the rollups of clicks against the clicks themselves, quarter hour by quarter hour, and put them right."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, time
from typing import NamedTuple

from aggregator.db import partitions
from aggregator.db.connect import Connection
from aggregator.db.instants import QUARTER_MS, to_ms
from aggregator.settled import quarters, uniques
from schemas.outcomes import INVALID, ClickClass

Counts = tuple[int, ...]
FIGURES = ("clicks", "invalid_clicks", "unique_clicks")
_NOTHING = (0, 0, 0)
CORRECTIONS = -2  # the shard of what is added and taken away here, which no partition has
_SETTLED = "SELECT quarter FROM settled_quarter WHERE quarter >= $1 AND quarter < $2 ORDER BY quarter"
_KEY = "link_id, offer_id, partner_id, country, device"
_SUMS = "sum(clicks)::bigint, sum(invalid_clicks)::bigint, sum(unique_clicks)::bigint"
_READ = {
    "click_rollup": f"SELECT {_KEY}, {_SUMS} FROM click_rollup WHERE quarter = $1 GROUP BY {_KEY}",  # noqa: S608
    "detail_rollup": f"""
        SELECT partner_id, name, value, offer_id, {_SUMS} FROM detail_rollup WHERE quarter = $1
        GROUP BY partner_id, name, value, offer_id""",  # noqa: S608
}
# Differences are added, in one statement: what a batch adds at the same time is neither lost nor counted twice.
_CORRECT = f"""
WITH told AS (
    SELECT link_id, offer_id, partner_id, coalesce(country, '') AS country, coalesce(device, '') AS device,
        count(*) AS clicks, count(*) FILTER (WHERE click_class = ANY($4::smallint[])) AS invalid_clicks
    FROM click WHERE id >= $2 AND id < $3 AND click_class <> ALL($5::smallint[]) GROUP BY 1, 2, 3, 4, 5
    UNION ALL SELECT {_KEY}, -clicks, -invalid_clicks FROM click_rollup WHERE quarter = $1
)
INSERT INTO click_rollup AS held (quarter, {_KEY}, shard, clicks, invalid_clicks)
SELECT $1, {_KEY}, {CORRECTIONS}, sum(clicks), sum(invalid_clicks) FROM told GROUP BY {_KEY}
HAVING sum(clicks) <> 0 OR sum(invalid_clicks) <> 0
ORDER BY link_id, offer_id, partner_id, country COLLATE "C", device COLLATE "C"
ON CONFLICT (quarter, {_KEY}, shard) DO UPDATE
    SET clicks = held.clicks + excluded.clicks, invalid_clicks = held.invalid_clicks + excluded.invalid_clicks
"""  # noqa: S608
_CLASSES = [*map(int, INVALID)], [int(ClickClass.TEST), int(ClickClass.UNCOUNTED)]


class Difference(NamedTuple):
    """A row of a rollup, its shards together, that is not what the rows it counts come to. `key` is what it counts,
    `figures` are the names of what is `stored` and of what is `recomputed`."""

    quarter: datetime
    rollup: str
    key: tuple[object, ...]
    figures: tuple[str, ...]
    stored: Counts
    recomputed: Counts


async def settled(db: Connection, starts: datetime, ends: datetime) -> list[datetime]:
    """The quarter hours of that time which are settled, and whose clicks are still kept."""
    kept = [datetime.combine(day, time(), UTC) for day in await partitions.existing(db)]
    if not kept:
        return []
    return [row["quarter"] for row in await db.fetch(_SETTLED, max(starts, min(kept)), ends)]


async def recompute(db: Connection, begins: datetime, *, apply: bool) -> list[Difference]:
    """What the rollups of a settled quarter hour's clicks would become. With `apply` they do; else it is done and taken
    back, so that both ways tell the same. Nothing is settled meanwhile. Raises what the database raises."""
    transaction = db.transaction()
    await transaction.start()
    try:
        await db.execute(quarters.AWAIT_LOCK)
        stored = await _read(db, begins)
        at_ms = to_ms(begins)
        await db.execute(_CORRECT, begins, uniques.first_id(at_ms), uniques.first_id(at_ms + QUARTER_MS), *_CLASSES)
        await quarters.settle(db, at_ms)
        differences = [*_differences(begins, stored, await _read(db, begins))]
    except BaseException:
        await transaction.rollback()
        raise
    await (transaction.commit() if apply else transaction.rollback())
    return differences


Rows = dict[tuple[str, tuple[object, ...]], Counts]


async def _read(db: Connection, begins: datetime) -> Rows:
    return {
        (rollup, tuple(row)[:-3]): tuple(row)[-3:]
        for rollup, query in _READ.items()
        for row in await db.fetch(query, begins)
    }


def _differences(begins: datetime, stored: Rows, recomputed: Rows) -> Iterator[Difference]:
    for rollup, key in sorted(stored.keys() | recomputed.keys(), key=repr):
        was, is_now = stored.get((rollup, key), _NOTHING), recomputed.get((rollup, key), _NOTHING)
        if was != is_now:
            yield Difference(begins, rollup, key, FIGURES, was, is_now)
