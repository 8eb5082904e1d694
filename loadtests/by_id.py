"""The comparison by id, in the database: every answered click is one row, every order one conversion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from loadtests.count import approved, payout_of
from loadtests.heard import Heard, uuid_of
from loadtests.programme import Programme
from loadtests.workload import Click, Order

_ROLLUP_IS_RAW = {
    "click_rollup": (
        "SELECT link_id, sum(clicks)::bigint, sum(invalid_clicks)::bigint FROM click_rollup"
        " WHERE link_id = ANY($1) GROUP BY 1",
        "SELECT link_id, count(*), count(*) FILTER (WHERE click_class IN (1, 2, 3)) FROM click"
        " WHERE link_id = ANY($1) GROUP BY 1",
    ),
    "conversion_rollup": (
        "SELECT link_id, sum(conversions)::bigint, sum(pending)::bigint, sum(sale_amount_minor)::bigint,"
        " sum(payout_minor)::bigint FROM conversion_rollup WHERE link_id = ANY($1) GROUP BY 1",
        "SELECT link_id, count(*) FILTER (WHERE status = 'approved'), count(*) FILTER (WHERE status = 'pending'),"
        " coalesce(sum(sale_amount_minor) FILTER (WHERE status = 'approved'), 0)::bigint,"
        " coalesce(sum(payout_minor) FILTER (WHERE status = 'approved'), 0)::bigint"
        " FROM conversion WHERE link_id = ANY($1) GROUP BY 1",
    ),
    "ledger": (
        "SELECT link_id, sum(amount_minor)::bigint FROM ledger_line JOIN ledger_entry ON id = entry_id"
        " JOIN conversion USING (conversion_id) WHERE link_id = ANY($1) AND account LIKE 'partner:%' GROUP BY 1",
        "SELECT link_id, sum(payout_minor)::bigint FROM conversion"
        " WHERE link_id = ANY($1) AND status = 'approved' GROUP BY 1",
    ),
}


@dataclass(slots=True)
class ById:
    """What the database holds of this replay: rows of clicks, those among them that no answer named, approved payout
    in minor units; and what is wrong with it."""

    rows: int
    extra: int
    payout: int
    wrong: list[str]


async def compare_by_id(
    database_url: str, planned: Sequence[Click], orders: Sequence[Order], heard: Heard, programme: Programme
) -> ById:
    """Clicks and conversions row by row against what was heard; rollups against the rows they are made from."""
    db = await asyncpg.connect(database_url)
    try:
        links = list(programme.link_ids)
        clicks = await db.fetch(
            "SELECT id, link_id, click_class, subs ->> 'sub1' AS sub1 FROM click WHERE link_id = ANY($1)", links
        )
        conversions = await db.fetch(
            "SELECT conversion_id, click_id, link_id, status, sale_amount_minor, payout_minor FROM conversion"
            " WHERE link_id = ANY($1)",
            links,
        )
        paid = sum(row["payout_minor"] for row in conversions if row["status"] == "approved")
        found = ById(len(clicks), 0, paid, [])
        _compare_clicks(found, clicks, planned, heard, programme)
        _compare_orders(found, conversions, orders, heard)
        for name, (rolled_up, raw) in _ROLLUP_IS_RAW.items():
            if {tuple(row) for row in await db.fetch(rolled_up, links)} != {
                tuple(row) for row in await db.fetch(raw, links)
            }:
                found.wrong.append(f"{name} is not the sum of its rows")
        return found
    finally:
        await db.close()


def _compare_clicks(
    found: ById, rows: list[asyncpg.Record], planned: Sequence[Click], heard: Heard, programme: Programme
) -> None:
    answered = {uuid_of(click_id): planned[number] for number, click_id in heard.settled.items() if click_id}
    answered = {uuid: click for uuid, click in answered.items() if click.link is not None}
    by_id = {UUID(int=row["id"].int): row for row in rows}
    found.extra = len(rows) - len(answered.keys() & by_id.keys())
    if len(by_id) != len(rows):
        found.wrong.append(f"{len(rows) - len(by_id)} ids stand in more than one row")
    if missing := answered.keys() - by_id.keys():
        found.wrong.append(f"{len(missing)} answered clicks have no row, {min(missing)} is one")
    for uuid, click in answered.items():
        row = by_id.get(uuid)
        if row is not None and not _as_sent(row, click, programme):
            found.wrong.append(f"click {click.number} was stored otherwise than sent: {dict(row)}")
    allowed = Counter(programme.link_ids[click.link] for click in heard.cut_off if click.link is not None)
    beyond = Counter(row["link_id"] for uuid, row in by_id.items() if uuid not in answered) - allowed
    if beyond:
        found.wrong.append(f"{beyond.total()} rows that nobody asked for, on {len(beyond)} links")


def _as_sent(row: asyncpg.Record, click: Click, programme: Programme) -> bool:
    link_id = programme.link_ids[click.link or 0]
    sub1 = row["sub1"] or None
    robot = int(click.kind == "crawler")
    same_sub1 = click.kind == "broken" or sub1 == click.sub1
    return bool(row["link_id"] == link_id and row["click_class"] == robot and same_sub1)


def _compare_orders(found: ById, rows: list[asyncpg.Record], orders: Sequence[Order], heard: Heard) -> None:
    by_id = {str(row["conversion_id"]): row for row in rows}
    if len(rows) != len(orders) or len(by_id) != len(rows):
        found.wrong.append(f"{len(rows)} conversions for {len(orders)} orders")
    for order in orders:
        row = by_id.get(heard.conversion_ids.get(order.number, ""))
        if row is None:
            found.wrong.append(f"order {order.number} has no row")
        elif problem := _order_problem(row, order, heard):
            found.wrong.append(f"order {order.number}: {problem}, {dict(row)}")


def _order_problem(row: asyncpg.Record, order: Order, heard: Heard) -> str:
    buyer = heard.buyers[order.number]
    earns = approved(order, buyer)
    if row["click_id"] != uuid_of(buyer.click_id):
        return "belongs to another click"
    if (row["status"] == "approved") != earns:
        return "should be approved" if earns else "should not be approved"
    if earns and row["payout_minor"] != payout_of(order, buyer.click.link or 0):
        return f"should pay {payout_of(order, buyer.click.link or 0)}"
    if row["sale_amount_minor"] != order.amount_minor and not order.pending:
        return f"should be worth {order.amount_minor}"
    return ""
