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

    @property
    def drift(self) -> int:
        return self.missing + self.foreign + self.rollup_rows_wrong + self.orders_wrong + self.order_rollup_rows_wrong


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
    orders = {UUID(line["conversion_id"]) for line in lines if line.get("kind") == "conversion"}
    order_rows = {row["conversion_id"] for row in await fetch(database_url, "SELECT conversion_id FROM conversion")}
    figures = Figures(
        in_log=len(clicks), in_postgres=len(rows), missing=len(clicks.keys() - rows),
        foreign=len(rows - clicks.keys()), rollup_rows_wrong=await _rollup_rows_wrong(database_url, clicks.values()),
        orders_in_log=len(orders), orders_in_postgres=len(order_rows), orders_wrong=len(orders ^ order_rows),
        order_rollup_rows_wrong=await order_rollup_rows_wrong(database_url),
    )  # fmt: skip
    print(figures, "drift", figures.drift)
    return figures


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


async def order_rollup_rows_wrong(database_url: str) -> int:
    wrong = await fetch(
        database_url,
        """WITH raw AS (
               SELECT date_bin('15 minutes', event_at, '2000-01-01Z') AS quarter, link_id, currency, count(*) AS orders,
                      coalesce(sum(sale_amount_minor), 0) AS sale, sum(payout_minor) AS payout
               FROM conversion WHERE status = 'approved' GROUP BY 1, 2, 3),
           rolled AS (
               SELECT quarter, link_id, currency, sum(conversions) AS orders, sum(sale_amount_minor) AS sale,
                      sum(payout_minor) AS payout
               FROM conversion_rollup GROUP BY 1, 2, 3)
           (TABLE raw EXCEPT TABLE rolled) UNION ALL (TABLE rolled EXCEPT TABLE raw)""",
    )
    return len(wrong)


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
