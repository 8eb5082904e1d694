"""Each intake once, each order once, money to the cent."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aggregator.conversions.settle import settle
from aggregator.db.connect import Connection, connect
from loadtests.faults.drift import drift, fetch, value
from loadtests.faults.journals import append, consume_all, conversion, new_segment, now_ms, settings, uuid7
from schemas.events import Conversion

_OFFER = """
WITH of AS (INSERT INTO advertiser (name, token_sha256) VALUES ('a', gen_random_uuid()::text::bytea) RETURNING id),
     made AS (INSERT INTO offer (advertiser_id, name, destination_url, currency)
              SELECT id, 'o', 'https://shop.example', 'EUR' FROM of RETURNING id, advertiser_id)
INSERT INTO offer_terms (offer_id, model, percent, currency) SELECT id, 'cps', 10, 'EUR' FROM made
"""


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Connection]:
    """With one advertiser (1) and one offer (1) that pays 10 percent."""
    connection = await connect(database_url, command_timeout_s=10)
    await connection.execute(_OFFER)
    yield connection
    await connection.close()


async def totals(db: Connection) -> tuple[int, int, int]:
    row = await db.fetchrow(
        "SELECT sum(conversions)::int, sum(sale_amount_minor)::int, sum(payout_minor)::int FROM conversion_rollup"
    )
    return tuple(row)


async def test_a_conversion_is_written_and_rolled_up(db: Connection) -> None:
    sale = conversion(amount_minor=4990)
    assert await settle(db, [sale], shard=3) == 1
    row = await db.fetchrow("SELECT * FROM conversion")
    assert (row["conversion_id"], row["intake_id"], row["click_id"]) == (
        sale.conversion_id, sale.intake_id, sale.click_uuid,
    )  # fmt: skip
    assert (row["status"], row["reason"], row["payout_minor"], row["currency"]) == ("approved", None, 499, "EUR")
    assert (row["sale_amount_minor"], row["sale_currency"], row["order_id"]) == (4990, "EUR", "o-1")
    assert await totals(db) == (1, 4990, 499)
    rollup = await db.fetchrow("SELECT quarter, shard FROM conversion_rollup")
    assert (int(rollup["quarter"].timestamp() * 1000), rollup["shard"]) == (sale.event_at_ms // 900_000 * 900_000, 3)


async def test_a_copy_of_an_intake_vanishes(db: Connection) -> None:
    sale = conversion()
    assert await settle(db, [sale, sale], shard=0) == 1
    assert await settle(db, [sale], shard=1) == 0
    assert await db.fetch("SELECT result FROM conversion_intake") == [("accepted",)]
    assert (await totals(db))[0] == 1


async def test_an_order_sent_again_is_a_duplicate_and_never_pays_twice(db: Connection) -> None:
    order = uuid7()
    first, again, later = (conversion(conversion_id=order, amount_minor=amount) for amount in (1000, 9000, 5000))
    assert await settle(db, [first, again], shard=0) == 1
    assert await settle(db, [later], shard=0) == 0
    results = {row["intake_id"]: row["result"] for row in await db.fetch("SELECT * FROM conversion_intake")}
    assert results == {first.intake_id: "accepted", again.intake_id: "duplicate", later.intake_id: "duplicate"}
    assert await totals(db) == (1, 1000, 100)


@pytest.mark.parametrize("seed", range(5))
async def test_the_first_in_the_order_of_the_log_wins(seed: int, db: Connection) -> None:
    order = uuid7()
    batch = [conversion(conversion_id=order, amount_minor=n) for n in range(1, 9)] * 2
    random.Random(seed).shuffle(batch)
    await settle(db, batch, shard=0)
    assert await db.fetchval("SELECT sale_amount_minor FROM conversion") == batch[0].amount_minor


async def test_what_is_pending_or_rejected_is_counted_and_pays_nothing(db: Connection) -> None:
    pending = conversion(currency="USD", amount_minor=700)
    rejected = conversion(event_at_ms=now_ms() + 40 * 86_400_000)
    assert await settle(db, [pending, rejected], shard=0) == 2
    rows = await db.fetch("SELECT status, reason, sale_amount_minor, sale_currency FROM conversion ORDER BY status")
    assert [tuple(row)[:2] for row in rows] == [("pending", "no_rate"), ("rejected", "after_window")]
    assert tuple(rows[0])[2:] == (700, "USD")
    rolled = await db.fetch(
        "SELECT currency, conversions, pending, rejected, sale_amount_minor, payout_minor FROM conversion_rollup"
        " ORDER BY pending"
    )
    assert [tuple(row) for row in rolled] == [("EUR", 0, 0, 1, 0, 0), ("EUR", 0, 1, 0, 0, 0)]
    assert await db.fetchval("SELECT count(*) FROM ledger_entry") == 0


async def test_terms_changed_later_do_not_change_the_past(db: Connection) -> None:
    await db.execute(
        "INSERT INTO offer_terms (offer_id, valid_from, model, amount_minor, currency)"
        " VALUES (1, now(), 'cpa', 1, 'EUR')"
    )
    before, after = conversion(click_uuid=uuid7(now_ms() - 60_000)), conversion(click_uuid=uuid7(now_ms() + 1_000))
    await settle(db, [before, after], shard=0)
    payouts = {row["conversion_id"]: row["payout_minor"] for row in await db.fetch("SELECT * FROM conversion")}
    assert payouts == {before.conversion_id: 499, after.conversion_id: 1}


async def test_parallel_posts_of_one_order_on_many_partitions_pay_once(db: Connection, database_url: str) -> None:
    orders = [uuid7() for _ in range(40)]
    others = [await connect(database_url, command_timeout_s=20) for _ in range(6)]

    async def settle_all(slot: int, other: Connection) -> int:
        batch = [conversion(conversion_id=order, amount_minor=1000) for order in orders]
        random.Random(slot).shuffle(batch)
        async with other.transaction():
            return await settle(other, batch, shard=slot)

    settled = await asyncio.gather(*(settle_all(slot, other) for slot, other in enumerate(others)))
    for other in others:
        await other.close()
    assert sum(settled) == 40
    assert await totals(db) == (40, 40_000, 4_000)
    assert await db.fetchval("SELECT count(*) FROM conversion_intake WHERE result = 'duplicate'") == 200


async def test_the_log_replayed_pays_to_the_cent(db: Connection, database_url: str, tmp_path: Path) -> None:
    dice = random.Random(11)
    sales = [conversion(amount_minor=dice.randrange(1, 100_000)) for _ in range(400)]
    duplicates = [conversion(conversion_id=sale.conversion_id, amount_minor=99) for sale in sales[:60]]
    append(new_segment(tmp_path), [*sales, *duplicates, *sales[100:200]])
    await consume_all(settings(database_url, tmp_path))
    assert (await drift(database_url, tmp_path)).drift == 0
    expected = sum((sale.amount_minor * 10 + 50) // 100 for sale in sales)
    assert await value(database_url, "SELECT sum(payout_minor) FROM conversion_rollup") == expected
    results = await fetch(database_url, "SELECT result, count(*) FROM conversion_intake GROUP BY 1 ORDER BY 1")
    assert [tuple(row) for row in results] == [("accepted", 400), ("duplicate", 60)]


async def test_money_needs_no_click_in_postgres(db: Connection) -> None:
    await settle(db, [conversion()], shard=0)
    assert await db.fetchval("SELECT count(*) FROM click") == 0
    assert await db.fetchval("SELECT status FROM conversion") == "approved"


async def test_a_page_makes_nobodys_customers_its_own(db: Connection) -> None:
    stolen = {"customer_id": "c-1", "partner_id": 66, "door": "pixel", "reason": "pixel"}
    page = conversion(order_id="forged", **stolen)
    order = conversion(**stolen)
    await settle(db, [page, order], shard=0)
    assert await db.fetchval("SELECT count(*) FROM customer") == 0
    server = conversion(conversion_id=order.conversion_id, customer_id="c-1", partner_id=7)
    later = conversion(customer_id="c-1", partner_id=8)
    await settle(db, [server], shard=0)
    await settle(db, [later], shard=0)
    assert await db.fetchval("SELECT partner_id FROM customer") == 7
    paid = await db.fetch("SELECT partner_id, status FROM conversion ORDER BY received_at, conversion_id")
    assert sorted(map(tuple, paid)) == [(7, "approved"), (7, "approved"), (66, "pending")]


async def test_a_page_and_its_server_in_one_batch_bind_by_the_server(db: Connection) -> None:
    page = conversion(customer_id="c-1", partner_id=66, door="pixel", reason="pixel")
    server = conversion(conversion_id=page.conversion_id, customer_id="c-1", partner_id=7)
    await settle(db, [page, server], shard=0)
    assert await db.fetchval("SELECT partner_id FROM customer") == 7


def by_two_names() -> tuple[Conversion, Conversion]:
    """One order, with clicks of both sides of a change of its offer's scope."""
    one, other = uuid7(), uuid7()
    return conversion(conversion_id=one, former_id=other), conversion(conversion_id=other, former_id=one)


async def test_an_order_of_two_names_is_one_in_a_batch(db: Connection) -> None:
    orders = [by_two_names() for _ in range(20)]
    events = [event for pair in orders for event in pair]
    random.Random(1).shuffle(events)
    assert await settle(db, [*events, conversion()], shard=0) == 21
    assert await db.fetchval("SELECT count(*) FROM conversion") == 21


async def test_an_order_of_two_names_is_one_whoever_is_first(db: Connection, database_url: str) -> None:
    other = await connect(database_url, command_timeout_s=20)
    orders = [by_two_names() for _ in range(40)]

    async def settle_all(by: Connection, names: int) -> None:
        for n in range(0, len(orders), 4):
            async with by.transaction():
                await settle(by, [pair[(names + m) % 2] for m, pair in enumerate(orders[n : n + 4])], shard=names)

    await asyncio.gather(settle_all(db, 0), settle_all(other, 1))
    await other.close()
    assert await db.fetchval("SELECT count(*) FROM conversion") == 40
    assert await db.fetchval("SELECT count(*) FROM conversion_intake WHERE result = 'duplicate'") == 40
    assert await totals(db) == (40, 40 * 4990, 40 * 499)


@pytest.mark.parametrize(("door", "status"), [("pixel", "rejected"), ("postback", "approved")])
@pytest.mark.parametrize("at_once", [True, False])
async def test_what_a_page_says_does_not_keep_a_click_alive(
    db: Connection, door: str, status: str, at_once: bool
) -> None:
    click = {"click_uuid": uuid7(now_ms() - 40 * 86_400_000)}
    within = conversion(now_ms() - 20 * 86_400_000, door=door, reason="pixel" if door == "pixel" else "", **click)
    after = conversion(order_id="o-2", **click)
    for batch in [[within, after]] if at_once else [[within], [after]]:
        await settle(db, batch, shard=0)
    found = await db.fetchval("SELECT status FROM conversion WHERE conversion_id = $1", after.conversion_id)
    assert found == status


async def test_a_page_whose_server_followed_keeps_its_click_alive(db: Connection) -> None:
    click = {"click_uuid": uuid7(now_ms() - 40 * 86_400_000)}
    page = conversion(now_ms() - 20 * 86_400_000, door="pixel", reason="pixel", **click)
    server = conversion(now_ms() - 20 * 86_400_000, conversion_id=page.conversion_id, **click)
    await settle(db, [page, server, conversion(order_id="o-2", **click)], shard=0)
    assert await db.fetch("SELECT status FROM conversion") == [("approved",)] * 2
