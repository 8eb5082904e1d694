"""Which clicks of a quarter hour are unique: the first valid one of each visitor, for an offer and a partner, on a day
of the programme. Who was found to be the first stays it, even if an earlier click comes later."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from aggregator.db.connect import Connection
from aggregator.db.instants import QUARTER_MS, at
from schemas.outcomes import ClickClass

# A quarter hour lies within one day, in whatever zone. A visitor that is not ours to read has no first click.
_DAY = "SELECT ($1::timestamptz AT TIME ZONE timezone)::date FROM programme"
_VISITOR = "CASE WHEN click.visitor ~ '^[0-9a-f]{16}$' THEN ('x' || click.visitor)::bit(64)::bigint END"
_FIND = f"""
INSERT INTO first_click (day, partner_id, offer_id, visitor, click_id)
SELECT DISTINCT ON (partner_id, offer_id, visitor) $3::date, partner_id, offer_id, visitor, id
FROM (SELECT id, partner_id, offer_id, {_VISITOR} AS visitor FROM click
      WHERE id >= $1 AND id < $2 AND click_class = {ClickClass.NORMAL:d}) AS valid
WHERE visitor IS NOT NULL
ORDER BY partner_id, offer_id, visitor, id
ON CONFLICT DO NOTHING
"""  # noqa: S608
_READ = f"""
CREATE TEMP TABLE quarter_click ON COMMIT DROP AS
SELECT click.link_id, click.offer_id, click.partner_id, click.click_class, coalesce(click.country, '') AS country,
    coalesce(click.device, '') AS device, click.os, click.browser, click.source_id, click.subs,
    first_click.click_id IS NOT NULL AS is_unique
FROM click LEFT JOIN first_click ON day = $3::date AND first_click.partner_id = click.partner_id
    AND first_click.offer_id = click.offer_id AND first_click.visitor = {_VISITOR} AND click_id = click.id
WHERE click.id >= $1 AND click.id < $2
"""  # noqa: S608
# In the order of the flush, which adds to the same rows: else each could wait for the other.
_HOLD = """
SELECT FROM click_rollup WHERE quarter = $1
ORDER BY link_id, offer_id, partner_id, country COLLATE "C", device COLLATE "C", shard FOR NO KEY UPDATE
"""
# A key's clicks lie in the shards of several partitions; its uniques are said once.
_WRITE = """
WITH counted AS (
    SELECT link_id, offer_id, partner_id, country, device, count(*) AS uniques
    FROM quarter_click WHERE is_unique GROUP BY link_id, offer_id, partner_id, country, device
), wanted AS (
    SELECT link_id, offer_id, partner_id, country, device, shard, CASE WHEN shard = min(shard) OVER (
        PARTITION BY link_id, offer_id, partner_id, country, device) THEN coalesce(uniques, 0) ELSE 0 END AS uniques
    FROM click_rollup LEFT JOIN counted USING (link_id, offer_id, partner_id, country, device) WHERE quarter = $1
)
UPDATE click_rollup AS held SET unique_clicks = wanted.uniques FROM wanted
WHERE held.quarter = $1 AND (held.link_id, held.offer_id, held.partner_id, held.country, held.device, held.shard)
    = (wanted.link_id, wanted.offer_id, wanted.partner_id, wanted.country, wanted.device, wanted.shard)
  AND held.unique_clicks <> wanted.uniques
"""


async def read(db: Connection, quarter_ms: int) -> int:
    """Find the first clicks of a quarter hour, and lay out all of its clicks for `write` and `details.write`, in a
    table that goes with the transaction. Answers how many clicks there are, of every class."""
    day = await db.fetchval(_DAY, at(quarter_ms))
    span = first_id(quarter_ms), first_id(quarter_ms + QUARTER_MS), day
    await db.execute(_FIND, *span)
    done = await db.execute(_READ, *span)
    return int(done.rpartition(" ")[2])


async def write(db: Connection, begins: datetime) -> None:
    """Say in the rollup what was read. Whoever adds clicks to the same rows meanwhile waits for the end."""
    await db.execute(_HOLD, begins)
    await db.execute(_WRITE, begins)


def first_id(at_ms: int) -> UUID:
    """Sorts before any click's id of that time, and after those of earlier times."""
    return UUID(int=at_ms << 80)
