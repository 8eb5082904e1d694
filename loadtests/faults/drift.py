"""What the log says against what Postgres holds, told apart by id.

Written without the product's reader, decoder and rollups: it reads the segments and the JSON by itself.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg


@dataclass(frozen=True, slots=True)
class Figures:
    """Counts of ids; `drift` is the number of things that are not as the log says."""

    in_log: int
    in_postgres: int
    missing: int
    foreign: int
    rollup_rows_wrong: int
    orders_in_log: int
    orders_in_postgres: int
    orders_wrong: int
    order_rollup_rows_wrong: int
    ledger_wrong: int

    @property
    def drift(self) -> int:
        clicks = self.missing + self.foreign + self.rollup_rows_wrong
        return clicks + self.orders_wrong + self.order_rollup_rows_wrong + self.ledger_wrong


async def drift(database_url: str, folder: Path, *, dead: Iterable[UUID] = ()) -> Figures:
    """Compare a journal by id. `dead` are ids that must be in no table and no rollup."""
    return await compare(database_url, chain.from_iterable(map(_lines, sorted(folder.glob("edge-*/*.journal")))), dead)


async def compare(database_url: str, of: Iterable[bytes], dead: Iterable[UUID] = ()) -> Figures:
    """The same for the lines of any log."""
    lines = [_parsed(line) for line in of]
    clicks = {UUID(line["id"]): line for line in lines if line.get("kind") == "click"}
    for uuid in dead:
        clicks.pop(uuid, None)
    rows = {row["id"] for row in await fetch(database_url, "SELECT id FROM click")}
    orders = {UUID(line["conversion_id"]) for line in lines if line.get("kind") == "conversion" and _makes_order(line)}
    order_rows = {row["conversion_id"] for row in await fetch(database_url, "SELECT conversion_id FROM conversion")}
    figures = Figures(
        in_log=len(clicks), in_postgres=len(rows), missing=len(clicks.keys() - rows),
        foreign=len(rows - clicks.keys()), rollup_rows_wrong=await _rollup_rows_wrong(database_url, clicks.values()),
        orders_in_log=len(orders), orders_in_postgres=len(order_rows), orders_wrong=len(orders ^ order_rows),
        order_rollup_rows_wrong=await order_rollup_rows_wrong(database_url),
        ledger_wrong=await ledger_wrong(database_url),
    )  # fmt: skip
    print(figures, "drift", figures.drift)
    return figures


def _makes_order(line: dict[str, Any]) -> bool:
    """A status that takes an order back, a refund, or what remains only changes one."""
    changes = {"refund_minor", "remaining_minor"} & line.keys()
    return not changes and line.get("status", "") not in ("rejected", "reversed")


async def _rollup_rows_wrong(database_url: str, of: Iterable[dict[str, Any]]) -> int:
    expected: Counter[tuple[int, int, str, str]] = Counter()
    invalid: Counter[tuple[int, int, str, str]] = Counter()
    for line in of:
        quarter_s = int(line["id"].replace("-", "")[:12], 16) // 1000 // 900 * 900
        key = (quarter_s, line["link_id"], line.get("country", ""), line.get("device", ""))
        if line["click_class"] != 4:
            expected[key] += 1
            invalid[key] += line["click_class"] in (1, 2, 3)
    found = await fetch(
        database_url,
        """SELECT extract(epoch FROM quarter)::bigint, link_id, country, device, sum(clicks), sum(invalid_clicks)
           FROM click_rollup GROUP BY 1, 2, 3, 4""",
    )
    held = {tuple(row)[:4]: (int(row[4]), int(row[5])) for row in found}
    wanted = {key: (count, invalid[key]) for key, count in expected.items()}
    return sum(held.get(key) != wanted.get(key) for key in held.keys() | wanted.keys())


# What conversions add to the rollups: counts and payout by the payout's currency, amounts and revenue by theirs.
_ORDER_ROLLUPS_WRONG = """
WITH part AS (
    SELECT *, date_bin('15 minutes', event_at, '2000-01-01Z') AS quarter FROM conversion
), raw AS (
    SELECT quarter, link_id, offer_id, partner_id, currency,
           sum((status = 'approved')::int) AS orders, sum((status = 'pending')::int) AS pending,
           sum((status = 'rejected')::int) AS rejected, sum((status = 'reversed')::int) AS reversed,
           sum(payout_minor) FILTER (WHERE status = 'approved') AS payout,
           sum(payout_minor) FILTER (WHERE status = 'pending') AS payout_pending,
           sum(payout_minor) FILTER (WHERE status = 'reversed') AS payout_reversed, NULL AS sale, NULL AS revenue
    FROM part GROUP BY 1, 2, 3, 4, 5
    UNION ALL
    SELECT quarter, link_id, offer_id, partner_id, sale_currency, 0, 0, 0, 0, 0, 0, 0, sum(sale_amount_minor), 0
    FROM part WHERE status = 'approved' AND sale_amount_minor <> 0 GROUP BY 1, 2, 3, 4, 5
    UNION ALL
    SELECT quarter, link_id, offer_id, partner_id, revenue_currency, 0, 0, 0, 0, 0, 0, 0, 0, sum(revenue_minor)
    FROM part WHERE status = 'approved' AND revenue_minor <> 0 GROUP BY 1, 2, 3, 4, 5
), wanted AS (
    SELECT quarter, link_id, offer_id, partner_id, currency, sum(orders)::numeric, sum(pending)::numeric,
           sum(rejected)::numeric, sum(reversed)::numeric, coalesce(sum(payout), 0)::numeric,
           coalesce(sum(payout_pending), 0)::numeric, coalesce(sum(payout_reversed), 0)::numeric,
           coalesce(sum(sale), 0)::numeric, coalesce(sum(revenue), 0)::numeric
    FROM raw GROUP BY 1, 2, 3, 4, 5
), rolled AS (
    SELECT quarter, link_id, offer_id, partner_id, currency, sum(conversions)::numeric, sum(pending)::numeric,
           sum(rejected)::numeric, sum(reversed)::numeric, sum(payout_minor)::numeric,
           sum(payout_pending_minor)::numeric, sum(payout_reversed_minor)::numeric, sum(sale_amount_minor)::numeric,
           sum(revenue_minor)::numeric
    FROM conversion_rollup GROUP BY 1, 2, 3, 4, 5
    HAVING greatest(abs(sum(conversions)), abs(sum(pending)), abs(sum(rejected)), abs(sum(reversed)),
                    abs(sum(payout_minor)), abs(sum(payout_pending_minor)), abs(sum(payout_reversed_minor)),
                    abs(sum(sale_amount_minor)), abs(sum(revenue_minor))) > 0
)
(TABLE wanted EXCEPT TABLE rolled) UNION ALL (TABLE rolled EXCEPT TABLE wanted)
"""
# Conversions that the ledger does not hold at what they pay while they are approved, and entries that do not balance.
_LEDGER_WRONG = """
WITH booked AS (
    SELECT conversion_id, currency, sum(amount_minor) FILTER (WHERE account LIKE 'partner:%') AS payout,
           -sum(amount_minor) FILTER (WHERE account LIKE 'advertiser:%') AS revenue
    FROM ledger_line JOIN ledger_entry ON id = entry_id WHERE conversion_id IS NOT NULL GROUP BY 1, 2
), owed AS (
    SELECT conversion_id, currency, sum(payout) AS payout, sum(revenue) AS revenue FROM (
        SELECT conversion_id, currency, payout_minor AS payout, 0 AS revenue FROM conversion WHERE status = 'approved'
        UNION ALL
        SELECT conversion_id, revenue_currency, 0, revenue_minor FROM conversion
        WHERE status = 'approved' AND revenue_currency IS NOT NULL) AS side GROUP BY 1, 2
)
SELECT conversion_id::text FROM booked FULL JOIN owed USING (conversion_id, currency)
WHERE coalesce(booked.payout, 0) <> coalesce(owed.payout, 0) OR coalesce(booked.revenue, 0) <> coalesce(owed.revenue, 0)
UNION ALL
SELECT entry_id::text FROM ledger_line GROUP BY entry_id, currency HAVING sum(amount_minor) <> 0
"""


async def order_rollup_rows_wrong(database_url: str) -> int:
    return len(await fetch(database_url, _ORDER_ROLLUPS_WRONG))


async def ledger_wrong(database_url: str) -> int:
    """Conversions and entries of the ledger that do not agree."""
    return len(await fetch(database_url, _LEDGER_WRONG))


async def fetch(database_url: str, query: str, *args: Any) -> list[asyncpg.Record]:
    """The rows of one query, over a connection of its own."""
    connection = await asyncpg.connect(database_url)
    try:
        return await connection.fetch(query, *args)
    finally:
        await connection.close()


async def value(database_url: str, query: str, *args: Any) -> Any:
    """The first column of the first row, None if there is no row."""
    rows = await fetch(database_url, query, *args)
    return rows[0][0] if rows else None


def _lines(path: Path) -> list[bytes]:
    with closing(sqlite3.connect(path)) as db:
        bodies = [row[0] for row in db.execute("SELECT body FROM batch ORDER BY id")]
    return [line for one in bodies for line in one.split(b"\n")]


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
