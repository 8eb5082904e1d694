"""Reports out of the rollups; clicks themselves are never scanned."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from aggregator.db.connect import Database, Row
from aggregator.reports.asked import Asked, Bucket, Group, buckets, write_cursor

# $1 to $3 the buckets, $4 the programme's currency, $5 the limit, then what the scope needs
_REPORT = """
WITH bucket AS (SELECT * FROM unnest($1::date[], $2::timestamptz[], $3::timestamptz[]) AS bucket (day, starts, ends)),
clicked AS (
    SELECT {group} AS "group", sum(clicks) AS clicks, sum(invalid_clicks) AS invalid_clicks
    FROM bucket JOIN click_rollup ON quarter >= starts AND quarter < ends WHERE {scope} GROUP BY {group}
), converted AS (
    SELECT {group} AS "group", currency::text AS currency, sum(conversions) AS conversions,
           sum(sale_amount_minor) AS sale_amount, sum(payout_minor) AS payout,
           row_number() OVER (PARTITION BY {group} ORDER BY currency::text COLLATE "C") AS place
    FROM bucket JOIN conversion_rollup ON quarter >= starts AND quarter < ends WHERE {scope} GROUP BY {group}, currency
), line AS (
    SELECT "group", coalesce(currency, $4) COLLATE "C" AS currency,
           CASE WHEN place > 1 THEN 0 ELSE coalesce(clicks, 0) END AS clicks,
           CASE WHEN place > 1 THEN 0 ELSE coalesce(invalid_clicks, 0) END AS invalid_clicks,
           coalesce(conversions, 0) AS conversions, coalesce(sale_amount, 0) AS sale_amount,
           coalesce(payout, 0) AS payout
    FROM clicked FULL JOIN converted USING ("group")
)
SELECT "group", currency, clicks, invalid_clicks, conversions, sale_amount, payout
FROM line WHERE {after} ORDER BY "group", currency LIMIT $5
"""
_COMPLETE_THROUGH = """
SELECT CASE WHEN NOT EXISTS (SELECT FROM edge) THEN NULL
            WHEN NOT EXISTS (SELECT FROM edge WHERE closed_at IS NULL) THEN now()
            ELSE (SELECT nullif(complete_through, '-infinity') FROM complete_through) END
"""
_GROUP = {"day": "day", "link": "link_id"}


async def report(db: Database, asked: Asked, currency: str, partner_id: int | None) -> dict[str, Any]:
    """A report as the API answers it; with `partner_id`, of that partner's links alone.

    One row per group and currency, money in its minor units. Clicks have no currency: those of a group stand on one
    of its rows alone (the first currency in the alphabet, or the programme's `currency` when nothing was sold), so
    that a column's sum over all rows is right. Groups where nothing happened have no row.

    `complete_through`: all that edges received before it is in the figures; None while an edge that may have more is
    not heard of, or none ever was.
    """
    async with db.transaction(isolation="repeatable_read", readonly=True):
        complete_through = await db.fetchval(_COMPLETE_THROUGH)
        rows = await _lines(db, asked, currency, partner_id)
    page = rows[: asked.limit]
    truncated = len(rows) > asked.limit
    return {
        "data": [_line(asked, row) for row in page],
        "complete_through": complete_through and _rfc3339(complete_through, "milliseconds"),
        "timezone": asked.zone.key,
        "from": _rfc3339(asked.starts),
        "to": _rfc3339(asked.ends),
        "truncated": truncated,
        "next_cursor": write_cursor(page[-1]["group"], page[-1]["currency"]) if truncated else None,
    }


async def _lines(db: Database, asked: Asked, currency: str, partner_id: int | None) -> list[Row]:
    spans = buckets(asked) if asked.group_by == "day" else [Bucket(date.min, asked.starts, asked.ends)]
    args: list[Any] = [
        [span.day for span in spans],
        [span.starts for span in spans],
        [span.ends for span in spans],
        currency,
        asked.limit + 1,
    ]
    sql = _REPORT.format(
        group=_GROUP[asked.group_by], scope=_scope(args, asked.link_id, partner_id), after=_after(args, asked.after)
    )
    return await db.fetch(sql, *args)


def _scope(args: list[Any], link_id: int | None, partner_id: int | None) -> str:
    """Which links count, as SQL; its values go to `args`."""
    rules = ["true"]
    if link_id is not None:
        args.append(link_id)
        rules.append(f"link_id = ${len(args)}")
    if partner_id is not None:
        args.append(partner_id)
        rules.append(f"link_id IN (SELECT id FROM link WHERE partner_id = ${len(args)})")  # noqa: S608 - a number
    return " AND ".join(rules)


def _after(args: list[Any], after: tuple[Group, str] | None) -> str:
    if after is None:
        return "true"
    args.extend(after)
    return f'("group", currency) > (${len(args) - 1}, ${len(args)})'


def _line(asked: Asked, row: Row) -> dict[str, Any]:
    group = row["group"]
    named = {"day": group.isoformat()} if asked.group_by == "day" else {"link_id": group}
    return named | {metric: int(row[metric]) for metric in asked.metrics} | {"currency": row["currency"]}


def _rfc3339(instant: datetime, timespec: str = "seconds") -> str:
    return instant.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
