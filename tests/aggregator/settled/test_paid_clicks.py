"""Unique, valid clicks are paid once, by the terms of their time, when their day is settled and as more are found."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from typing import Any

import pytest
from msgspec.structs import replace

from aggregator.conversions import ledger
from aggregator.db.connect import Connection, connect
from aggregator.db.instants import at, rfc3339
from aggregator.flush.session import Session
from aggregator.reports.asked import Scope, read
from aggregator.reports.report import Report, report
from aggregator.reports.state import read_state
from aggregator.settled import days, quarters
from loadtests.faults.journals import now_ms
from schemas.outcomes import ClickClass
from tests.aggregator.settled.test_days import (
    BEGINS_MS,
    DAY,
    HOUR_MS,
    LATER_MS,
    NOW_MS,
    all_settled,
    sell,
    settled_day,
    totals,
)
from tests.aggregator.settled.test_quarters import DAY_MS, complete, flush, visit

ALL = Scope()
Owed = dict[tuple[str, str], int]  # by account and currency


@pytest.fixture(autouse=True)
async def offers(db: Connection) -> None:
    """Two offers of an advertiser, each of which pays clicks from the beginning: 1 3 cents EUR and brings in 5, 2 7
    EUR; sales pay 1.00 EUR beside them."""
    await db.execute(
        """ALTER TABLE ledger_entry DISABLE TRIGGER USER; ALTER TABLE ledger_line DISABLE TRIGGER USER;
           TRUNCATE advertiser, partner, conversion, conversion_intake, ledger_entry, paid_clicks
           RESTART IDENTITY CASCADE;
           ALTER TABLE ledger_entry ENABLE TRIGGER USER; ALTER TABLE ledger_line ENABLE TRIGGER USER;
           INSERT INTO advertiser (name, token_sha256) VALUES ('a', 'x');
           INSERT INTO partner (name) VALUES ('p'), ('q'), ('r');
           INSERT INTO offer (advertiser_id, name, destination_url, currency)
           VALUES (1, 'clicks', 'https://shop.example', 'EUR'), (1, 'more', 'https://shop.example', 'EUR')"""
    )
    await terms(db, 1, 3)
    await terms(db, 1, 5, side="revenue")
    await terms(db, 2, 7)
    await terms(db, 1, 100, model="cpa", event="sale")


async def terms(db: Connection, offer_id: int, amount_minor: int | None, from_ms: int = 0, **fields: Any) -> None:
    row = {"model": "cpc", "currency": "EUR", "offer_id": offer_id, "amount_minor": amount_minor} | fields
    row["valid_from"] = at(from_ms)
    places = ", ".join(f"${n}" for n in range(1, len(row) + 1))
    await db.execute(f"INSERT INTO offer_terms ({', '.join(row)}) VALUES ({places})", *row.values())


async def owed(db: Connection) -> Owed:
    rows = await db.fetch("SELECT account, currency, sum(amount_minor)::int FROM ledger_line GROUP BY 1, 2")
    assert await ledger.check(db) == []
    return {(row[0], row[1]): row[2] for row in rows if row[2]}


async def test_unique_valid_clicks_are_paid_when_their_day_is_settled(db: Connection, session: Session) -> None:
    odd = [ClickClass.FLAGGED, ClickClass.OVER_CAP, ClickClass.FALLBACK, ClickClass.TEST, ClickClass.UNCOUNTED]
    await flush(
        session, *(visit(BEGINS_MS + n, 5, click_class=kind) for n, kind in enumerate(odd)),
        *(visit(BEGINS_MS + n * HOUR_MS, n % 3) for n in range(20)), visit(BEGINS_MS, 7, offer_id=2, partner_id=2),
        visit(BEGINS_MS + 2 * DAY_MS, 1),
    )  # fmt: skip
    await complete(db, NOW_MS)
    assert await owed(db) == {}
    assert await all_settled(db) == 1
    expected = {
        ("partner:1", "EUR"): 9, ("partner:2", "EUR"): 7, ("advertiser:1", "EUR"): -15, ("programme", "EUR"): -1,
    }  # fmt: skip
    assert await owed(db) == expected
    rows = await db.fetch("SELECT kind, day, partner_id, offer_id, actor, once FROM ledger_entry ORDER BY partner_id")
    assert [tuple(row) for row in rows] == [
        ("clicks", DAY, n, n, "auto", f"clicks:{DAY}:{n}:{n}:1") for n in (1, 2)
    ]  # fmt: skip
    assert (await totals(db, 1))[1, 1, "EUR"] == {"payout_minor": 9, "revenue_minor": 15}
    assert await ledger.balance(db, "partner:1") == {"EUR": 9}
    assert await all_settled(db, LATER_MS) == 0
    assert await owed(db) == expected


async def test_sales_are_paid_beside_clicks_and_by_terms_of_clicks_alone_with_nothing(
    db: Connection, session: Session
) -> None:
    await flush(session, visit(BEGINS_MS))
    await sell(db, BEGINS_MS)
    await sell(db, BEGINS_MS, offer_id=2)
    await settled_day(db)
    rows = await db.fetch("SELECT offer_id, status, payout_minor, reason FROM conversion ORDER BY offer_id")
    assert [tuple(row) for row in rows] == [(1, "approved", 100, None), (2, "approved", 0, None)]
    assert (await owed(db))["partner:1", "EUR"] == 103
    found = (await totals(db, 1))[1, 1, "EUR"]
    assert (found["payout_minor"], found["revenue_minor"], found["conversions"]) == (103, 5, 1)


async def test_clicks_that_come_later_are_paid_by_later_versions(db: Connection, session: Session) -> None:
    await flush(session, visit(BEGINS_MS))
    await settled_day(db)
    for n in (1, 2):
        await flush(
            session, visit(BEGINS_MS + n, n), visit(BEGINS_MS + n, n, offer_id=2, partner_id=3), visit(BEGINS_MS)
        )
        assert await all_settled(db, LATER_MS) == 1
    assert await owed(db) == {
        ("partner:1", "EUR"): 9, ("partner:3", "EUR"): 14, ("advertiser:1", "EUR"): -15, ("programme", "EUR"): -8,
    }  # fmt: skip
    assert await db.fetchval("SELECT count(*) FROM ledger_entry") == 5
    assert (await totals(db, 3))[1, 1, "EUR"] == {"payout_minor": 9, "revenue_minor": 15}


async def test_the_terms_of_each_clicks_own_time_count(db: Connection, session: Session) -> None:
    """To the millisecond, and those of a partner before everybody's."""
    turn_ms = BEGINS_MS + 7 * HOUR_MS + 1234
    await terms(db, 1, 11, turn_ms, currency="USD")
    await terms(db, 1, None, turn_ms + 1000, model="none", partner_id=2)
    await terms(db, 1, 50, BEGINS_MS, partner_id=2)
    await terms(db, 2, 100, turn_ms, model="cpa")
    at_ms = [turn_ms - 1, turn_ms, turn_ms + 999, turn_ms + 1000]
    for partner_id in (1, 2):
        await flush(session, *(visit(one, n, partner_id=partner_id) for n, one in enumerate(at_ms)))
    await flush(session, *(visit(one, n, offer_id=2, partner_id=3) for n, one in enumerate(at_ms)))
    await settled_day(db)
    found = await owed(db)
    assert {key: amount for key, amount in found.items() if key[0].startswith("partner")} == {
        ("partner:1", "EUR"): 3, ("partner:1", "USD"): 33, ("partner:2", "EUR"): 150, ("partner:2", "USD"): 11,
        ("partner:3", "EUR"): 7,
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- reports


async def asked(db: Connection, scope: Scope = ALL, role: str = "admin", **params: str) -> dict[str, Any]:
    span = {"from": DAY.isoformat(), "to": at(BEGINS_MS + DAY_MS).date().isoformat()}
    wanted = read(list((span | params).items()), "Europe/Berlin", at(now_ms()), role)
    return await report(db, Report(wanted, "EUR", scope), await read_state(db))


@pytest.fixture
async def a_day(db: Connection, session: Session) -> None:
    """In Berlin, with clicks that are paid and sales, one of them without a click that is paid."""
    await db.execute("UPDATE programme SET timezone = 'Europe/Berlin'")
    await terms(db, 1, 11, BEGINS_MS + HOUR_MS, currency="USD")
    for offer_id, partner_id in ((1, 1), (1, 2), (2, 2)):
        clicks = [visit(BEGINS_MS - HOUR_MS + n * 2 * HOUR_MS, n % 9) for n in range(12)]
        await flush(session, *(replace(one, offer_id=offer_id, partner_id=partner_id) for one in clicks))
    await sell(db, BEGINS_MS)
    await sell(db, BEGINS_MS, partner_id=3)
    await complete(db, NOW_MS)
    await all_settled(db, LATER_MS)


@pytest.mark.usefixtures("a_day")
async def test_a_report_by_partner_and_offer_is_what_was_settled(db: Connection) -> None:
    found = await asked(db, group_by="partner,offer", metrics="clicks,unique_clicks,conversions,payout,revenue")
    lines: dict[tuple[Any, ...], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for (partner_id, offer_id, currency), figures in (await totals(db, 1)).items():
        key = (partner_id, offer_id)
        for name in ("clicks", "unique_clicks"):
            lines[key][name] += figures.get(name, 0)
        for name in ("conversions", "payout_minor", "revenue_minor"):
            lines[*key, currency][name] += figures.get(name, 0)
    for row in found["data"]:
        money = lines.pop((row["partner_id"], row["offer_id"], row["currency"]))
        assert [row["conversions"], row["payout"], row["revenue"]] == list(money.values())
    clicked = [sum(row[name] for row in found["data"]) for name in ("clicks", "unique_clicks")]
    assert clicked == [sum(one[name] for one in lines.values()) for name in ("clicks", "unique_clicks")] != [0, 0]
    assert not any(sum(one[name] for one in lines.values()) for name in ("payout_minor", "revenue_minor"))
    assert found["paid_clicks"] is True


@pytest.mark.usefixtures("a_day")
async def test_only_a_question_by_days_partners_and_offers_has_what_clicks_were_paid(db: Connection) -> None:
    """And it says whether it does."""
    paid = await db.fetchval("SELECT sum(amount_minor)::int FROM paid_clicks WHERE side = 'payout' AND day = $1", DAY)
    sold, found = 200, {}
    for name, params in {
        "day": {"group_by": "day"}, "month": {"granularity": "month"}, "total": {"granularity": "total"},
        "offer": {"group_by": "offer"}, "advertiser": {"group_by": "day,advertiser"},
        "currency": {"currency": "EUR,USD"},
        "hour": {"group_by": "hour"}, "link": {"group_by": "link"}, "click": {"date_basis": "click"},
        "event": {"group_by": "event"}, "zone": {"timezone": "UTC"}, "part": {"to": rfc3339(at(BEGINS_MS + DAY_MS))},
    }.items():  # fmt: skip
        answer = await asked(db, ALL, "admin", metrics="payout", totals="1", **params)
        found[name] = (answer["paid_clicks"], sum(row["payout"] for row in answer["totals"]))
    carried = ("day", "month", "total", "offer", "advertiser", "currency")
    assert found == {name: (name in carried, sold + paid * (name in carried)) for name in found}
    assert (await asked(db, metrics="clicks,conversions"))["paid_clicks"] is None


@pytest.mark.usefixtures("a_day")
async def test_a_partner_and_an_advertiser_are_told_of_their_own(db: Connection) -> None:
    sums = "SELECT sum(amount_minor)::int FROM paid_clicks WHERE side = $1 AND day = $2"
    own = await db.fetchval(f"{sums} AND partner_id = 2", "payout", DAY)
    answer = await asked(db, Scope(partner_id=2), "partner", metrics="payout", totals="1")
    assert sum(row["payout"] for row in answer["totals"]) == own > 0
    answer = await asked(db, Scope(advertiser_id=1), "advertiser", metrics="revenue", totals="1")
    assert sum(row["revenue"] for row in answer["totals"]) == await db.fetchval(sums, "revenue", DAY) > 0
    answer = await asked(db, Scope(advertiser_id=9), "advertiser", metrics="revenue", totals="1")
    assert not [row for row in answer["data"] if row["revenue"]]


async def test_what_clicks_are_paid_is_provisional_until_their_day_is_settled(db: Connection, session: Session) -> None:
    await flush(session, visit(BEGINS_MS))
    await complete(db, BEGINS_MS + DAY_MS + HOUR_MS)
    await all_settled(db)
    zone = {"from": f"{DAY}T00:00:00Z", "to": f"{at(BEGINS_MS + DAY_MS).date()}T00:00:00Z"}
    told = []
    for metrics in ("clicks", "payout"):
        wanted = read([*zone.items(), ("metrics", metrics)], "UTC", at(now_ms()), "admin")
        told.append(await report(db, Report(wanted, "EUR", ALL), await read_state(db)))
    assert [one["provisional_from"] for one in told] == [None, rfc3339(at(BEGINS_MS))]
    await complete(db, BEGINS_MS + 2 * DAY_MS)
    await all_settled(db)
    again = await report(db, Report(wanted, "EUR", ALL), await read_state(db))
    assert (again["provisional_from"], again["data"][0]["payout"]) == (None, 3)


# --------------------------------------------------------------------------------------------------------- once, always


async def test_what_was_paid_stays_when_the_clicks_are_no_longer_kept(db: Connection, session: Session) -> None:
    await flush(session, *(visit(BEGINS_MS, n) for n in range(4)))
    await settled_day(db)
    await db.execute("DELETE FROM first_click")
    await db.execute("UPDATE click_rollup SET unique_clicks = 3")
    await db.execute("INSERT INTO stale_day (quarter) VALUES ($1)", at(BEGINS_MS))
    assert await all_settled(db, LATER_MS) == 1
    assert (await owed(db))["partner:1", "EUR"] == 12


async def test_whatever_dies_and_however_many_work_each_click_is_paid_once(
    db: Connection, session: Session, shared_database_url: str
) -> None:
    chance = random.Random(4)
    visitors: dict[tuple[int, int], set[tuple[int, int]]] = defaultdict(set)
    await complete(db, NOW_MS)
    for _ in range(4):
        clicks = []
        for _ in range(40):
            ago, visitor = chance.randrange(4), chance.randrange(9)
            partner_id, offer_id = chance.randrange(1, 4), chance.randrange(1, 3)
            at_ms = BEGINS_MS - ago * DAY_MS + chance.randrange(DAY_MS)
            clicks.append(visit(at_ms, visitor, partner_id=partner_id, offer_id=offer_id))
            visitors[partner_id, offer_id].add((ago, visitor))
        await flush(session, *clicks)
        await interrupted(db, shared_database_url)
    await all_settled(db, LATER_MS)
    expected: Owed = defaultdict(int)
    for (partner_id, offer_id), unique in visitors.items():
        expected[f"partner:{partner_id}", "EUR"] += len(unique) * (3 if offer_id == 1 else 7)
        expected["advertiser:1", "EUR"] -= len(unique) * 5 * (offer_id == 1)
    expected["programme", "EUR"] = -sum(expected.values())
    assert await owed(db) == expected


async def interrupted(db: Connection, url: str) -> None:
    """Two settle at once, and one of them is cut off at some moment."""
    while await quarters.settle_once(db, now_ms()):
        pass
    others = [await connect(url, command_timeout_s=20) for _ in range(2)]

    async def work(connection: Connection) -> None:
        while await days.settle_once(connection, now_ms() + LATER_MS):
            pass

    working = [asyncio.create_task(work(one)) for one in others]
    await asyncio.sleep(random.random() / 50)
    others[0].terminate()
    await asyncio.gather(*working, return_exceptions=True)
    await others[1].close()
