"""What the clicks of a quarter hour come to by one more of their fields: system, browser, source and sub ids."""

from __future__ import annotations

from datetime import datetime

from aggregator.db.connect import Connection
from schemas import limits
from schemas.outcomes import INVALID, ClickClass

OTHER = "(other)"
_FIELDS = {name: name for name in ("os", "browser", "source_id")} | {
    f"sub{n}": f"subs ->> 'sub{n}'" for n in range(1, 11)
}
_UNREPORTED = [ClickClass.TEST, ClickClass.UNCOUNTED]
_CLEAR = "DELETE FROM detail_rollup WHERE quarter = $1"
# The values that are kept are those with most clicks of a partner, so that its reports by a field agree for all offers.
_WRITE = f"""
WITH said AS MATERIALIZED (
    SELECT partner_id, offer_id, name, left(value, $2) AS value, count(*) AS clicks,
        count(*) FILTER (WHERE click_class = ANY($4::smallint[])) AS invalid,
        count(*) FILTER (WHERE is_unique) AS uniques
    FROM quarter_click, LATERAL (VALUES {", ".join(f"('{name}', {value})" for name, value in _FIELDS.items())})
        AS detail (name, value)
    WHERE value <> '' AND click_class <> ALL($5::smallint[])
    GROUP BY partner_id, offer_id, name, left(value, $2)
), ranked AS (
    SELECT partner_id, name, value, row_number() OVER (
        PARTITION BY partner_id, name ORDER BY sum(clicks) DESC, value COLLATE "C") <= $3 AS is_kept
    FROM said GROUP BY partner_id, name, value
)
INSERT INTO detail_rollup (partner_id, name, quarter, offer_id, value, clicks, invalid_clicks, unique_clicks)
SELECT partner_id, name, $1, offer_id, kept, sum(clicks), sum(invalid), sum(uniques)
FROM said JOIN ranked USING (partner_id, name, value),
    LATERAL (SELECT CASE WHEN is_kept THEN value ELSE $6 END) AS shown (kept)
GROUP BY partner_id, name, offer_id, kept
"""  # noqa: S608


async def write(db: Connection, begins: datetime) -> None:
    """Count what `uniques.read` has laid out, in place of what was counted before."""
    await db.execute(_CLEAR, begins)
    classes = [*map(int, INVALID)], [*map(int, _UNREPORTED)]
    await db.execute(_WRITE, begins, limits.VALUE_MAX, limits.DETAIL_VALUES_MAX, *classes, OTHER)
