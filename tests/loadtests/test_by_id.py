"""The comparison by id finds what it is there to find: every way in which a row can be wrong is seen."""

import time
from collections.abc import AsyncIterator

import asyncpg
import pytest

from aggregator.db.partitions import keep_once
from loadtests import workload
from loadtests.by_id import ById, compare_by_id
from loadtests.count import approved, payout_of
from loadtests.heard import Buyer, Heard, uuid_of
from loadtests.programme import Programme
from loadtests.workload import Click, Order
from schemas.click_id import ClickKey, mint, uuid7_bytes

LINKS = 4
PROGRAMME = Programme("token", ("a", "b", "c"), tuple(range(101, 101 + LINKS)), tuple("abcd"))
PLANNED = list(workload.clicks(1, PROGRAMME.codes, 300))
ORDERS, _ = workload.purchases(1, PLANNED, 40, 5, "run")


@pytest.fixture(scope="module")
def heard() -> Heard:
    now_ms = int(time.time() * 1_000)
    heard = Heard()
    for click in PLANNED:
        uuid = uuid7_bytes(now_ms, click.number.to_bytes(10, "big"))
        redirected = click.link is not None and click.method == "GET"
        heard.settled[click.number] = mint(ClickKey(1, b"k" * 16), uuid, 1, 1, 1, 0) if redirected else None
    for order in ORDERS:
        heard.buyers[order.number] = Buyer(PLANNED[order.click], heard.settled[order.click] or "", "")
        heard.conversion_ids[order.number] = f"00000000-0000-8000-8000-{order.number:012}"
    return heard


@pytest.fixture
async def db(database_url: str, heard: Heard) -> AsyncIterator[asyncpg.Connection]:
    """Everything as it was heard."""
    await keep_once(database_url, 400)
    db = await asyncpg.connect(database_url)
    clicks = [click for click in PLANNED if heard.settled[click.number]]
    await db.executemany(
        "INSERT INTO click (id, link_id, offer_id, partner_id, click_class, subs) VALUES ($1, $2, 1, 1, $3,"
        " jsonb_strip_nulls(jsonb_build_object('sub1', $4::text)))",
        [_click_row(click, heard) for click in clicks],
    )
    await db.executemany(
        "INSERT INTO conversion (conversion_id, intake_id, click_id, link_id, offer_id, partner_id, advertiser_id,"
        " event, order_id, event_at, received_at, status, reason, sale_amount_minor, sale_currency, payout_minor,"
        " booked_payout_minor, currency)"
        " VALUES ($1, $1, $2, $3, 1, 1, 1, 'sale', '', now(), now(), $4, '', $5, 'EUR', $6, 0, 'EUR')",
        [_conversion_row(order, heard) for order in ORDERS],
    )
    await db.execute(
        "INSERT INTO click_rollup SELECT '2026-11-23', link_id, '', '', 0, count(*), count(*) FILTER"
        " (WHERE click_class = 1) FROM click GROUP BY link_id"
    )
    await db.execute(
        "INSERT INTO conversion_rollup (quarter, link_id, currency, shard, conversions, pending, sale_amount_minor,"
        " payout_minor) SELECT '2026-11-23', link_id, 'EUR', 0, count(*) FILTER (WHERE status = 'approved'),"
        " count(*) FILTER (WHERE status = 'pending'),"
        " coalesce(sum(sale_amount_minor) FILTER (WHERE status = 'approved'), 0),"
        " coalesce(sum(payout_minor), 0) FROM conversion GROUP BY 2"
    )
    await db.execute(BOOK.format("status = 'approved'"))
    yield db
    await db.close()


BOOK = """
WITH entry AS (
    INSERT INTO ledger_entry (kind, conversion_id, actor) SELECT 'accrual', conversion_id, 'sender' FROM conversion
    WHERE {} RETURNING id, conversion_id
)
INSERT INTO ledger_line SELECT id, 'partner:1', payout_minor, currency FROM entry JOIN conversion USING (conversion_id)
"""


def _click_row(click: Click, heard: Heard) -> tuple[object, ...]:
    link_id = PROGRAMME.link_ids[click.link or 0]
    return uuid_of(heard.settled[click.number] or ""), link_id, int(click.kind == "crawler"), click.sub1


def _conversion_row(order: Order, heard: Heard) -> tuple[object, ...]:
    buyer = heard.buyers[order.number]
    earns, link = approved(order, buyer), buyer.click.link or 0
    status, payout = ("approved", payout_of(order, link)) if earns else ("pending", None)
    click = uuid_of(buyer.click_id)
    return (
        heard.conversion_ids[order.number], click, PROGRAMME.link_ids[link], status, order.amount_minor, payout
    )  # fmt: skip


async def _compare(database_url: str, heard: Heard) -> ById:
    return await compare_by_id(database_url, PLANNED, ORDERS, heard, PROGRAMME)


async def test_what_is_as_it_was_heard_is_right(database_url: str, db: asyncpg.Connection, heard: Heard) -> None:
    found = await _compare(database_url, heard)
    assert found.wrong == []
    assert found.rows == sum(click_id is not None for click_id in heard.settled.values())


FIRST = "(SELECT min(id::text)::uuid FROM click WHERE click_class = 0)"
SALE = "(SELECT min(conversion_id::text)::uuid FROM conversion WHERE status = 'approved')"


@pytest.mark.parametrize(
    ("damage", "seen"),
    [
        (f"DELETE FROM click WHERE id = {FIRST}", "1 answered clicks have no row"),
        (
            "INSERT INTO click (id, link_id, offer_id, partner_id, click_class)"
            f" SELECT overlay(id::text placing 'ffff' from 33)::uuid, link_id, 1, 1, 0 FROM click WHERE id = {FIRST}",
            "1 rows that nobody asked for",
        ),
        (f"UPDATE click SET link_id = 205 - link_id WHERE id = {FIRST}", "was stored otherwise than sent"),
        (f"UPDATE click SET click_class = 1 WHERE id = {FIRST}", "was stored otherwise than sent"),
        (f'UPDATE click SET subs = \'{{"sub1": "?"}}\' WHERE id = {FIRST}', "was stored otherwise than sent"),
        ("UPDATE click_rollup SET clicks = clicks + 1 WHERE link_id = 101", "click_rollup is not the sum"),
        ("UPDATE conversion_rollup SET payout_minor = payout_minor - 1", "conversion_rollup is not the sum"),
        (BOOK.format(f"conversion_id = {SALE}"), "ledger is not the sum"),
        (f"DELETE FROM conversion WHERE conversion_id = {SALE}", "39 conversions for 40 orders"),
        (f"UPDATE conversion SET payout_minor = payout_minor + 1 WHERE conversion_id = {SALE}", "should pay"),
        (f"UPDATE conversion SET status = 'pending' WHERE conversion_id = {SALE}", "should be approved"),
        (f"UPDATE conversion SET click_id = gen_random_uuid() WHERE conversion_id = {SALE}", "another click"),
    ],
)
async def test_a_damaged_row_is_seen(
    database_url: str, db: asyncpg.Connection, heard: Heard, damage: str, seen: str
) -> None:
    await db.execute(damage)
    assert any(seen in line for line in (await _compare(database_url, heard)).wrong)
