"""Reports out of the rollups; clicks themselves are never scanned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aggregator.db.connect import Database, Row
from aggregator.db.instants import rfc3339
from aggregator.reports.asked import Asked, Group, buckets, write_cursor

# $1 and $2 the range, $3 the programme's currency, $4 the limit, then what group, scope and cursor need
_REPORT = """
WITH clicked AS (
    SELECT {group} AS "group", sum(clicks) AS clicks, sum(invalid_clicks) AS invalid_clicks
    FROM click_rollup WHERE quarter >= $1 AND quarter < $2 {scope} GROUP BY 1
), converted AS (
    SELECT *, row_number() OVER (PARTITION BY "group" ORDER BY currency) AS place
    FROM (
        SELECT {group} AS "group", currency::text COLLATE "C" AS currency, sum(conversions) AS conversions,
               sum(sale_amount_minor) AS sale_amount, sum(payout_minor) AS payout
        FROM conversion_rollup WHERE quarter >= $1 AND quarter < $2 {scope} GROUP BY 1, 2
        HAVING (sum(conversions), sum(sale_amount_minor), sum(payout_minor)) <> (0, 0, 0)
    ) AS sold
), line AS (
    SELECT "group", coalesce(currency, $3) COLLATE "C" AS currency,
           CASE WHEN place > 1 THEN 0 ELSE coalesce(clicks, 0) END AS clicks,
           CASE WHEN place > 1 THEN 0 ELSE coalesce(invalid_clicks, 0) END AS invalid_clicks,
           coalesce(conversions, 0) AS conversions, coalesce(sale_amount, 0) AS sale_amount,
           coalesce(payout, 0) AS payout
    FROM clicked FULL JOIN converted USING ("group")
)
SELECT "group", currency, clicks, invalid_clicks, conversions, sale_amount, payout
FROM line WHERE {after} ORDER BY "group", currency LIMIT $4
"""


@dataclass(frozen=True, slots=True)
class Report:
    """What was asked, the programme's currency, and whose rows may be seen: of all, or of one partner."""

    asked: Asked
    currency: str
    partner_id: int | None


async def report(db: Database, wanted: Report) -> dict[str, Any]:
    """A report as the API answers it.

    One row per group and currency, money in its minor units. Clicks have no currency: those of a group stand on one
    of its rows alone (the first currency in the alphabet, or the programme's when nothing was sold), so
    that a column's sum over all rows is right. Groups where nothing happened have no row.

    `complete_through`: all that edges received before it is in the figures; None while an edge that may have more is
    not heard of, or none ever was.
    """
    asked = wanted.asked
    async with db.transaction(isolation="repeatable_read", readonly=True):
        complete_through = await db.fetchval("SELECT complete_through FROM complete_through")
        rows = await _lines(db, wanted)
    page = rows[: asked.limit]
    truncated = len(rows) > asked.limit
    return {
        "data": [_line(asked, row) for row in page],
        "complete_through": complete_through and rfc3339(complete_through),
        "timezone": asked.zone.key,
        "from": rfc3339(asked.starts, "seconds"),
        "to": rfc3339(asked.ends, "seconds"),
        "truncated": truncated,
        "next_cursor": write_cursor(page[-1]["group"], page[-1]["currency"]) if truncated else None,
    }


async def _lines(db: Database, wanted: Report) -> list[Row]:
    asked = wanted.asked
    args: list[Any] = [asked.starts, asked.ends, wanted.currency, asked.limit + 1]
    sql = _REPORT.format(
        group=_group(args, asked), scope=_scope(args, asked.link_id, wanted.partner_id), after=_after(args, asked.after)
    )
    return await db.fetch(sql, *args)


def _group(args: list[Any], asked: Asked) -> str:
    """What rows are grouped by, as SQL. Days begin where we say, not by Postgres' own table of time zones."""
    if asked.group_by == "link":
        return "link_id"
    days = buckets(asked)
    args += [[day.day for day in days], [day.starts for day in days]]
    return f"(${len(args) - 1}::date[])[width_bucket(quarter, ${len(args)}::timestamptz[])]"


def _scope(args: list[Any], link_id: int | None, partner_id: int | None) -> str:
    """Which clicks and sales count, as SQL; its values go to `args`."""
    rules = [""]
    if link_id is not None:
        args.append(link_id)
        rules.append(f"link_id = ${len(args)}")
    if partner_id is not None:
        args.append(partner_id)
        rules.append(f"partner_id = ${len(args)}")
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
