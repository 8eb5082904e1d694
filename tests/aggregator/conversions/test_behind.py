"""What becomes of conversions once they are settled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aggregator.conversions import behind, ledger
from aggregator.conversions.behind import Places, work_once
from aggregator.conversions.settle import settle
from aggregator.db.connect import Connection, connect
from aggregator.db.instants import at
from loadtests.faults.journals import append, click, consume_all, conversion, new_segment, now_ms, settings, uuid7
from schemas import limits
from schemas.events import NO_CLICK, Conversion

DAY_MS = 86_400_000
_PROGRAMME = """
INSERT INTO advertiser (name, token_sha256) VALUES ('a', '1');
INSERT INTO partner (name) VALUES ('p'), ('q');
INSERT INTO offer (advertiser_id, name, destination_url, currency) VALUES (1, 'o', 'https://shop.example', 'EUR');
INSERT INTO offer_terms (offer_id, model, percent, currency) VALUES (1, 'cps', 10, 'EUR');
"""


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Connection]:
    """An advertiser, an offer that pays 10 percent, two partners. At the end the ledger is in order."""
    connection = await connect(database_url, command_timeout_s=20)
    await connection.execute(_PROGRAMME)
    yield connection
    assert await ledger.check(connection) == []
    await connection.close()


def sale(**fields: Any) -> Conversion:
    return conversion(**({"amount_minor": 1000, "order_id": ""} | fields))


def bare(**fields: Any) -> Conversion:
    """A sale without a click of ours."""
    nobody = {"click_uuid": NO_CLICK, "link_id": 0, "offer_id": 0, "partner_id": 0, "currency": ""}
    return sale(**nobody | fields)


async def settled(db: Connection, *of: Conversion) -> None:
    async with db.transaction():
        await settle(db, of, shard=0)


async def work(db: Connection, at_ms: int | None = None) -> None:
    """Everything that there is to do at a time."""
    places = Places()
    while await work_once(db, places, at_ms or now_ms()):
        pass


async def row(db: Connection, of: Conversion) -> dict[str, Any]:
    found = await db.fetchrow("SELECT * FROM conversion WHERE conversion_id = $1", of.conversion_id)
    assert found is not None
    return dict(found)


async def status(db: Connection, of: Conversion) -> tuple[str, str | None]:
    found = await row(db, of)
    return found["status"], found["reason"]


async def rollup(db: Connection) -> list[tuple[int, ...]]:
    """By offer and partner: approved, pending, payout; what adds up to nothing left out."""
    rows = await db.fetch(
        """SELECT offer_id, partner_id, sum(conversions)::int, sum(pending)::int, sum(payout_minor)::int
           FROM conversion_rollup GROUP BY 1, 2 ORDER BY 1, 2"""
    )
    return [tuple(one) for one in rows if any(tuple(one)[2:])]


# ------------------------------------------------------------------------------------------------------------ clicks


async def test_a_conversion_that_came_before_its_click_gets_what_it_has_from_it(
    db: Connection, database_url: str, tmp_path: Path
) -> None:
    told = {"country": "DE", "device": "phone", "source_id": "s", "click_ref": "r", "subs": {"sub1": "x"}}
    clicked = click(now_ms() - 5000, **told)
    early, other = sale(click_uuid=clicked.id), sale()
    await settled(db, early, other)
    await work(db)
    before = await row(db, early)
    assert not before["click_seen"]
    append(new_segment(tmp_path), [clicked])
    await consume_all(settings(database_url, tmp_path))
    await work(db)
    found = await row(db, early)
    assert {name: found[name] for name in told} == told
    assert [found["click_seen"], (await row(db, other))["click_seen"]] == [True, False]
    assert (found["status"], found["payout_minor"], found["version"]) == ("approved", 100, 1)
    assert found["changed_at"] > before["changed_at"]  # whoever follows changes, or remembers reports, is told


async def test_what_is_complete_without_its_click_will_never_have_one(db: Connection) -> None:
    """Nor has a conversion by a coupon."""
    await db.execute("INSERT INTO coupon (code, advertiser_id, offer_id, partner_id) VALUES ('X', 1, 1, 2)")
    before, after = sale(click_uuid=uuid7(now_ms() - 60_000)), sale(click_uuid=uuid7(now_ms() - 1000))
    by_coupon = bare(coupon_code="X", order_id="o")
    await settled(db, before, after, by_coupon)
    through = at(now_ms() - 30_000)
    await db.execute("INSERT INTO edge (incarnation, name, closed_at) VALUES ('i', 'e', $1)", through)
    await work(db)
    assert [(await row(db, one))["click_seen"] for one in (before, after, by_coupon)] == [True, False, True]


async def test_every_conversion_of_a_cold_start_gets_its_click_batch_by_batch(
    db: Connection, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also behind more than a batch of those whose clicks have not come."""
    monkeypatch.setattr(limits, "BEHIND_BATCH", 50)
    clicked = [click(now_ms() - n, country="SE") for n in range(300)]
    append(new_segment(tmp_path), clicked)
    await consume_all(settings(database_url, tmp_path))
    missing = [sale() for _ in range(120)]
    await settled(db, *missing, *(sale(click_uuid=one.id) for one in clicked))
    await work(db)
    assert await db.fetchval("SELECT count(*) FROM conversion WHERE click_seen AND country = 'SE'") == 300
    assert await db.fetchval("SELECT count(*) FROM conversion WHERE NOT click_seen") == 120


# ------------------------------------------------------------------------------------------------------------ parked


async def imported(db: Connection, *names: str, at_ms: int | None = None, partner_id: int = 2) -> None:
    when = now_ms() - 60_000 if at_ms is None else at_ms
    for name in names:
        await db.execute(
            "INSERT INTO imported_click VALUES (1, $1, $2, 7, 1, $3, $4, $5)",
            name, uuid7(when), partner_id, at(when), {"sub1": name},
        )  # fmt: skip


async def test_a_parked_conversion_is_paid_once_its_click_is_known(db: Connection) -> None:
    await imported(db, "known")
    at_once, parked, late = bare(foreign_click="known"), bare(foreign_click="abc"), bare(foreign_click="old")
    await settled(db, at_once, parked, late)
    assert await status(db, at_once) == ("approved", None)
    assert await status(db, parked) == await status(db, late) == ("pending", "unknown_click")
    await work(db)
    assert await status(db, parked) == ("pending", "unknown_click")
    await imported(db, "abc")
    await imported(db, "old", at_ms=now_ms() - 40 * DAY_MS)
    await work(db)
    assert await status(db, parked) == ("approved", None)
    assert await status(db, late) == ("rejected", "after_window")
    found = await row(db, parked)
    assert (found["partner_id"], found["link_id"], found["offer_id"], found["payout_minor"]) == (2, 7, 1, 100)
    assert (found["subs"], found["click_seen"]) == ({"sub1": "abc"}, True)
    assert await ledger.balance(db, "partner:2") == {"EUR": 200}
    assert await rollup(db) == [(1, 2, 2, 0, 200)]
    change = await db.fetchrow("SELECT * FROM conversion_change WHERE conversion_id = $1", parked.conversion_id)
    assert change is not None
    assert (change["actor"], change["from_status"], change["to_status"]) == ("auto", "pending", "approved")


async def test_a_parked_conversion_of_a_page_makes_nobodys_customers_its_own(db: Connection) -> None:
    page = bare(foreign_click="abc", customer_id="c-1", door="pixel", reason="pixel")
    await settled(db, page)
    await imported(db, "abc")
    await work(db)
    assert await status(db, page) == ("pending", "pixel")
    assert await db.fetchval("SELECT count(*) FROM customer") == 0


async def test_a_parked_conversion_in_another_currency_is_paid_at_its_days_rate(db: Connection) -> None:
    parked = bare(foreign_click="a", currency="USD")
    await db.execute("INSERT INTO rate VALUES ('USD', 'EUR', $1, 0.5)", at(parked.event_at_ms).date())
    await settled(db, parked)
    await imported(db, "a")
    await work(db)
    await work(db)
    found = await row(db, parked)
    assert (found["status"], found["payout_minor"], found["currency"]) == ("approved", 50, "EUR")


async def test_an_offers_bound_holds_also_where_no_door_could_know_the_offer(db: Connection) -> None:
    """By a coupon, by an imported click, in another currency, and by what is added later."""
    await db.execute("UPDATE offer SET amount_max_minor = 1000; UPDATE advertiser SET duplicates = 'increment'")
    await db.execute("INSERT INTO coupon (code, advertiser_id, offer_id, partner_id) VALUES ('X', 1, 1, 2)")
    by_coupon, by_click = (
        bare(coupon_code="X", order_id="o", amount_minor=1001),
        bare(foreign_click="a", amount_minor=1001),
    )
    in_dollars, grows = sale(currency="USD", amount_minor=2001), sale(amount_minor=600, event_id="1")
    await db.execute("INSERT INTO rate VALUES ('USD', 'EUR', $1, 0.5)", at(in_dollars.event_at_ms).date())
    more = sale(conversion_id=grows.conversion_id, amount_minor=600, event_id="2")
    good = bare(coupon_code="X", order_id="p", amount_minor=1000), sale(currency="USD", amount_minor=2000)
    await settled(db, by_coupon, by_click, in_dollars, *good)
    await settled(db, grows, more)
    await imported(db, "a")
    await work(db)
    assert {await status(db, one) for one in (by_coupon, by_click, in_dollars, grows)} == {("pending", "above_bound")}
    assert {await status(db, one) for one in good} == {("approved", None)}


async def test_a_sale_of_a_customer_that_comes_before_the_one_that_won_it_is_its_partners(db: Connection) -> None:
    first_ms = now_ms() - 50_000
    renewal = bare(customer_id="c", order_id="2")
    await settled(db, renewal)
    assert await status(db, renewal) == ("pending", "unknown_click")
    won = sale(customer_id="c", partner_id=2, event_at_ms=first_ms, click_uuid=uuid7(first_ms - 5000))
    await settled(db, won)
    await work(db)
    assert await status(db, renewal) == ("approved", None)
    found = await row(db, renewal)
    assert (found["partner_id"], found["click_id"]) == (2, won.click_uuid)
    assert await ledger.balance(db, "partner:2") == {"EUR": 200}


async def test_a_customers_renewals_are_paid_for_so_many_months(db: Connection) -> None:
    """By the terms of the click that won it, whoever else the customer comes by."""
    await db.execute("UPDATE offer SET max_duration_months = 12")
    began_ms = now_ms() - 400 * DAY_MS
    months = [began_ms + 30 * DAY_MS * n for n in range(14)]
    clicked = uuid7(began_ms - 60_000)
    sales = [bare(customer_id="c", order_id=str(n), event_at_ms=when) for n, when in enumerate(months)]
    sales[0] = sale(customer_id="c", partner_id=2, click_uuid=clicked, event_at_ms=began_ms)
    sales[3] = sale(customer_id="c", partner_id=1, click_uuid=uuid7(months[3] - 5000), event_at_ms=months[3])
    await db.execute(
        "INSERT INTO offer_terms (offer_id, model, percent, currency, valid_from) VALUES (1, 'cps', 50, 'EUR', $1)",
        at(began_ms),
    )
    for one in sales:
        await settled(db, one)
    assert [await status(db, one) for one in sales] == [("approved", None)] * 13 + [("rejected", "after_duration")]
    assert await ledger.balance(db, "partner:2") == {"EUR": 1300}
    assert await ledger.balance(db, "partner:1") == {}


async def test_parked_conversions_are_looked_through_also_where_most_stay_parked(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BEHIND_BATCH", 20)
    sales = [bare(foreign_click=f"f{n}") for n in range(100)]
    await settled(db, *sales)
    await imported(db, *(f"f{n}" for n in range(0, 100, 7)))
    await work(db)
    assert await db.fetchval("SELECT count(*) FROM conversion WHERE status = 'approved'") == 15
    assert await rollup(db) == [(0, 0, 0, 85, 0), (1, 2, 15, 0, 1500)]


async def test_a_plan_that_was_made_while_a_table_was_empty_does_not_read_all_of_it_later(db: Connection) -> None:
    """A connection keeps its plans, and Postgres counts the rows of a table that has grown a minute later."""
    await db.execute("VACUUM ANALYZE")
    await db.execute(behind._SESSION)
    plan = await db.fetch(f"EXPLAIN {behind._PARKED}", at(0), NO_CLICK, 1000)
    assert not [line[0] for line in plan if "Seq Scan" in line[0]], plan


# -------------------------------------------------------------------------------------------------- time, rates, races


async def test_what_only_awaits_approval_is_approved_when_its_days_are_over(db: Connection) -> None:
    await db.execute("UPDATE offer SET default_status = 'pending', auto_approve_days = 7")
    awaited, said = sale(), sale(status="pending")
    doubted, flagged = sale(reason="ambiguous_amount", amount_minor=None), sale(click_class=1)
    await settled(db, awaited, said, doubted, flagged)
    now = now_ms()
    await work(db, now + 7 * DAY_MS - 60_000)
    assert await db.fetchval("SELECT count(*) FROM conversion WHERE status = 'pending'") == 4
    await work(db, now + 7 * DAY_MS + 60_000)
    assert [(await status(db, one))[0] for one in (awaited, said)] == ["approved", "approved"]
    assert [await status(db, one) for one in (doubted, flagged)] == [
        ("pending", "ambiguous_amount"), ("pending", "flagged_click"),
    ]  # fmt: skip
    changes = await db.fetch("SELECT actor, to_status FROM conversion_change")
    assert [tuple(one) for one in changes] == [("auto", "approved")] * 2
    assert await ledger.balance(db, "partner:1") == {"EUR": 200}


async def test_an_offer_without_a_number_of_days_waits_for_a_person_and_caps_hold_for_time_too(db: Connection) -> None:
    await db.execute("UPDATE offer SET default_status = 'pending'")
    both = sale(), sale()
    await settled(db, *both)
    await work(db, now_ms() + 900 * DAY_MS)
    assert [(await status(db, one)) for one in both] == [("pending", "awaits_approval")] * 2
    await db.execute("UPDATE offer SET auto_approve_days = 0")
    await db.execute("INSERT INTO cap (offer_id, kind, period, amount) VALUES (1, 'conversions', 'total', 1)")
    await work(db, now_ms() + 1000)
    assert sorted([await status(db, one) for one in both]) == [("approved", None), ("pending", "over_cap")]


async def test_what_waited_for_a_rate_is_paid_when_there_is_one(db: Connection) -> None:
    dollars = [sale(currency="USD") for _ in range(3)]
    yesterday = sale(currency="USD", event_at_ms=now_ms() - 20_000)
    await settled(db, *dollars, yesterday)
    assert {await status(db, one) for one in dollars} == {("pending", "no_rate")}
    await work(db)
    await db.execute("INSERT INTO rate VALUES ('USD', 'EUR', $1, 0.5)", at(dollars[0].event_at_ms).date())
    await work(db)
    assert {await status(db, one) for one in dollars} == {("approved", None)}
    assert (await ledger.balance(db, "partner:1"))["EUR"] >= 150


async def test_a_refund_whose_order_came_beside_it_is_applied(db: Connection, database_url: str) -> None:
    """Two aggregators, neither of which has seen the other's."""
    order = sale()
    refund = sale(conversion_id=order.conversion_id, refund_minor=400, amount_minor=None, event_id="r1")
    other = await connect(database_url, command_timeout_s=20)
    beside = other.transaction()
    await beside.start()
    await settle(other, [refund], shard=1)
    await settled(db, order)
    await beside.commit()
    await other.close()
    assert (await row(db, order))["payout_minor"] == 100
    await work(db)
    await work(db)
    assert (await row(db, order))["payout_minor"] == 60
    assert await db.fetchval("SELECT count(*) FROM conversion_intake WHERE result = 'waiting'") == 0


# ------------------------------------------------------------------------------------------------------ many at once


async def test_four_aggregators_beside_each_other_and_a_consumer_do_everything_once(
    db: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BEHIND_BATCH", 25)
    await db.execute("UPDATE offer SET default_status = 'pending', auto_approve_days = 0")
    parked = [bare(foreign_click=f"f{n}", customer_id=f"c{n % 9}") for n in range(150)]
    await settled(db, *parked)
    await imported(db, *(f"f{n}" for n in range(150)))
    fresh = [sale(customer_id=f"c{n % 9}", partner_id=2) for n in range(200)]
    others = [await connect(database_url, command_timeout_s=20) for _ in range(5)]

    async def consume(other: Connection, sales: list[Conversion]) -> None:
        for begins in range(0, len(sales), 20):
            await settled(other, *sales[begins : begins + 20])

    await asyncio.gather(*(work(other, now_ms() + 60_000) for other in others[:4]), consume(others[4], fresh))
    for other in others:
        await other.close()
    await work(db, now_ms() + 60_000)
    assert await db.fetchval("SELECT count(*) FROM conversion WHERE status = 'approved'") == 350
    assert await ledger.balance(db, "partner:2") == {"EUR": 35_000}
    assert await db.fetchval("SELECT count(*) FROM ledger_entry") == 350
    assert await rollup(db) == [(1, 2, 350, 0, 35_000)]


async def test_a_customers_sales_are_one_partners_whichever_aggregators_meet_them(
    db: Connection, database_url: str
) -> None:
    """Each of four is given sales of every customer, of the same moment, by clicks of two partners, in an order of its
    own."""
    sold_ms = now_ms()
    others = [await connect(database_url, command_timeout_s=20) for _ in range(4)]

    async def consume(slot: int, other: Connection) -> None:
        sales = [sale(customer_id=f"c{n}", partner_id=1 + (n + slot) % 2, event_at_ms=sold_ms) for n in range(40)]
        for begins in range(0, 40, 10):
            await settled(other, *sales[begins : begins + 10][:: 1 if slot % 2 else -1])

    await asyncio.gather(*(consume(slot, other) for slot, other in enumerate(others)))
    for other in others:
        await other.close()
    rows = await db.fetch("SELECT customer_id, count(DISTINCT partner_id), count(*) FROM conversion GROUP BY 1")
    assert {tuple(one)[1:] for one in rows} == {(1, 4)}
    assert await db.fetchval(
        "SELECT count(*) FROM conversion JOIN customer USING (advertiser_id, customer_id, partner_id)"
    ) == 160  # fmt: skip
    assert sum([(await ledger.balance(db, f"partner:{n}"))["EUR"] for n in (1, 2)]) == 16_000


async def test_a_job_that_another_has_in_hand_is_left_to_it_and_one_that_fails_stops_no_other(
    db: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await db.execute("UPDATE offer SET default_status = 'pending', auto_approve_days = 0")
    await settled(db, one := sale())
    other = await connect(database_url, command_timeout_s=20)
    held = other.transaction()
    await held.start()
    assert await other.fetchval(behind._LOCK, "overdue")
    await work(db, now_ms() + 60_000)
    assert await status(db, one) == ("pending", "awaits_approval")
    await held.rollback()
    await other.close()

    async def broken(*_: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setitem(behind.JOBS, "waiting", broken)
    await work(db, now_ms() + 60_000)
    assert await status(db, one) == ("approved", None)


async def test_the_task_of_an_aggregator_goes_on_by_itself(db: Connection, database_url: str, tmp_path: Path) -> None:
    await settled(db, parked := bare(foreign_click="abc"))
    task = asyncio.create_task(behind.run(settings(database_url, tmp_path)))
    await imported(db, "abc")
    try:
        async with asyncio.timeout(30):
            while await status(db, parked) != ("approved", None):
                await asyncio.sleep(0.05)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_cannot_be_approved_by_itself_keeps_nobody_else_waiting(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its offer allows less by now than when it came."""
    monkeypatch.setattr(limits, "BEHIND_BATCH", 3)
    await db.execute("UPDATE offer SET default_status = 'pending', auto_approve_days = 1")
    large, small = [sale() for _ in range(4)], sale(amount_minor=300)
    await settled(db, *large, small)
    await db.execute("UPDATE offer SET amount_max_minor = 500")
    async with asyncio.timeout(30):
        await work(db, now_ms() + DAY_MS + 1000)
    assert await status(db, small) == ("approved", None)
    assert {await status(db, one) for one in large} == {("pending", "above_bound")}
