"""What changes an order that is there: by its sender, after the fact, under a cap, under a former name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from aggregator.conversions import change, ledger
from aggregator.conversions.settle import settle
from aggregator.db.connect import Connection, connect
from aggregator.flush.session import open_session
from loadtests.faults.drift import order_rollup_rows_wrong
from loadtests.faults.journals import conversion, now_ms, settings, uuid7
from schemas import limits
from schemas.events import Conversion
from schemas.outcomes import Status

_OFFER = """
WITH of AS (INSERT INTO advertiser (name, token_sha256, duplicates) VALUES ('a', gen_random_uuid()::text::bytea, $1)
            RETURNING id),
     made AS (INSERT INTO offer (advertiser_id, name, destination_url, currency)
              SELECT id, 'o', 'https://shop.example', 'EUR' FROM of RETURNING id, advertiser_id)
INSERT INTO offer_terms (offer_id, side, model, percent, currency, tiers)
SELECT id, side, 'cps', 10, 'EUR', '[{"from": 100, "percent": "12"}]' FROM made, unnest('{payout,revenue}'::text[]) side
"""


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Connection]:
    """With an advertiser for whom further posts are increments (1) and an offer (1): 10 percent to the partner, and as
    much to the programme."""
    connection = await connect(database_url, command_timeout_s=10)
    await connection.execute(_OFFER, "increment")
    yield connection
    assert await ledger.check(connection) == []
    assert await order_rollup_rows_wrong(database_url) == 0
    await connection.close()


class Orders:
    """One order, and what is said of it."""

    def __init__(self, db: Connection) -> None:
        self.db = db
        self.id = uuid7()

    def event(self, amount: int | None = None, **fields: Any) -> Conversion:
        return conversion(conversion_id=self.id, amount_minor=amount, **fields)

    async def say(self, amount: int | None = None, **fields: Any) -> tuple[str, str | None]:
        """The intake's result and reason."""
        event = self.event(amount, **fields)
        await settle(self.db, [event], shard=0)
        row = await self.db.fetchrow(
            "SELECT result, reason FROM conversion_intake WHERE intake_id = $1", event.intake_id
        )
        return row["result"], row["reason"]

    async def stands(self) -> tuple[Any, ...]:
        row = await self.db.fetchrow(
            "SELECT status, reason, sale_amount_minor, booked_payout_minor FROM conversion WHERE conversion_id = $1",
            self.id,
        )
        return tuple(row)

    async def kinds(self) -> list[str]:
        rows = await self.db.fetch("SELECT kind FROM ledger_entry WHERE conversion_id = $1 ORDER BY id", self.id)
        return [row["kind"] for row in rows]


@pytest.fixture
def order(db: Connection) -> Orders:
    return Orders(db)


async def test_a_retried_refund_refunds_once_and_each_step_is_one_entry(order: Orders) -> None:
    await order.say(1000)
    assert await order.say(refund_minor=300, event_id="r1") == ("changed", None)
    assert await order.say(refund_minor=300, event_id="r1") == ("duplicate", None)
    assert await order.say(500, event_id="i1") == ("changed", None)
    assert await order.say(500, event_id="i1") == ("duplicate", None)
    assert await order.stands() == ("approved", None, 1200, 120)
    assert await order.say(remaining_minor=0) == ("changed", None)
    assert await order.stands() == ("reversed", None, 0, 0)
    assert await order.kinds() == ["accrual", "refund", "change", "refund"]
    assert await ledger.balance(order.db, "partner:1") == {"EUR": 0}


async def test_a_chargeback_is_called_one(order: Orders) -> None:
    await order.say(1000)
    assert await order.say(status="reversed", original_status="Chargeback") == ("changed", None)
    assert await order.say(status="reversed", original_status="Chargeback") == ("duplicate", None)
    assert await order.kinds() == ["accrual", "chargeback"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"refund_minor": 5}, "event_id_missing"),
        ({"refund_minor": 5, "event_id": "r", "currency": "USD"}, "currency_differs"),
        ({"remaining_minor": 5, "currency": "USD"}, "currency_differs"),
        ({"amount": 5, "event_id": "i", "currency": "USD"}, "currency_differs"),
        ({"status": "reversed", "advertiser_id": 2}, "not_your_click"),
        ({"amount": 5, "event_id": "i", "advertiser_id": 2}, "not_your_click"),
    ],
)
async def test_what_cannot_be_meant_for_an_order_leaves_it_alone(
    order: Orders, said: dict[str, Any], reason: str
) -> None:
    await order.say(1000)
    before = await order.stands()
    assert await order.say(**said) == ("rejected", reason)
    assert await order.stands() == before
    kept = await order.db.fetchval("SELECT event ->> 'kind' FROM conversion_intake WHERE result = 'rejected'")
    assert kept == "conversion", "it can be run again"


async def test_a_change_waits_for_its_order_and_a_post_that_says_nothing_new_is_a_duplicate(order: Orders) -> None:
    assert await order.say(status="reversed") == ("waiting", None)
    assert await order.say(1000) == ("accepted", None)
    assert await order.stands() == ("reversed", None, 1000, 0)
    assert await order.say(1000, status="approved") == ("duplicate", "not_allowed")
    rows = await order.db.fetch("SELECT result, event FROM conversion_intake ORDER BY intake_id")
    assert [tuple(row) for row in rows] == [("changed", None), ("accepted", None), ("duplicate", None)]


async def test_an_increment_that_would_go_over_a_cap_is_refused_and_the_rest_of_its_batch_is_not(order: Orders) -> None:
    await order.db.execute(
        "INSERT INTO cap (offer_id, kind, period, amount, currency) VALUES (1, 'payout', 'day', 110, 'EUR')"
    )
    await order.say(1000)
    await settle(
        order.db,
        [order.event(500, event_id="i1"), order.event(refund_minor=100, event_id="r1"), order.event(90, event_id="i2")],
        shard=0,
    )
    assert await order.stands() == ("approved", None, 900, 90)
    rejected = await order.db.fetch("SELECT reason FROM conversion_intake WHERE result = 'rejected'")
    assert [row["reason"] for row in rejected] == ["over_cap", "over_cap"]
    other = Orders(order.db)
    await other.say(200)
    assert await other.stands() == ("pending", "over_cap", 200, 0)
    (changed,) = await change.approve(order.db, [other.id], "admin:1", "for all that")
    assert changed.refused is not None
    assert changed.refused.code == "over_cap"


async def test_an_order_is_found_under_its_former_name(order: Orders) -> None:
    await order.say(1000)
    renamed = conversion(former_id=order.id, amount_minor=1000)
    assert await settle(order.db, [renamed], shard=0) == 0
    assert await order.db.fetchval("SELECT count(*) FROM conversion") == 1


async def test_what_an_offer_allows_later_does_not_take_back_what_was_approved(order: Orders) -> None:
    await order.say(1000)
    await order.db.execute("UPDATE offer SET amount_max_minor = 500")
    await order.say(refund_minor=100, event_id="r1")
    assert await order.stands() == ("approved", None, 900, 90)
    await order.say(100, event_id="i1")
    assert await order.stands() == ("pending", "above_bound", 1000, 0)


async def test_a_person_says_only_what_the_status_allows(order: Orders) -> None:
    allowed: dict[str, set[str]] = {}
    for status, said in (("approved", ""), ("pending", "pending"), ("rejected", "pending"), ("reversed", "")):
        for name, act in (("approve", change.approve), ("reject", change.reject), ("reverse", change.reverse)):
            one = Orders(order.db)
            await one.say(1000, status=said)
            if status == "rejected":
                await change.reject(order.db, [one.id], "admin:1", None)
            if status == "reversed":
                await change.reverse(order.db, [one.id], "admin:1", None)
            (changed,) = await act(order.db, [one.id], "admin:2", "looked at")
            if changed.refused is None:
                allowed.setdefault(status, set()).add(f"{name} -> {changed.status}")
    assert allowed == {
        "approved": {"reject -> reversed", "reverse -> reversed"},
        "pending": {"approve -> approved", "reject -> rejected", "reverse -> rejected"},
    }


async def test_every_change_says_who_made_it(order: Orders) -> None:
    await order.say(1000, status="pending")
    await change.approve(order.db, [order.id], "admin:3", "looks right")
    await order.say(refund_minor=1000, event_id="r")
    rows = await order.db.fetch(
        "SELECT actor, from_status, to_status, reason, payout_minor FROM conversion_change ORDER BY id"
    )
    assert [tuple(row) for row in rows] == [
        ("admin:3", "pending", "approved", "looks right", 100), ("sender", "approved", "reversed", None, 0),
    ]  # fmt: skip


async def test_what_a_person_approved_of_a_page_no_page_raises(order: Orders) -> None:
    await order.db.execute("UPDATE advertiser SET duplicates = 'update'")
    page = {"door": "pixel", "reason": "pixel"}
    await order.say(900, **page)
    assert await order.say(1000, **page) == ("changed", None)
    await change.approve(order.db, [order.id], "admin:3", "looks right")
    for door in (page, {}):
        assert await order.say(9_000_000, **door) == ("duplicate", None)
    assert await order.stands() == ("approved", None, 1000, 100)


async def test_what_a_person_rejected_of_a_page_is_paid_when_its_server_tells_of_it(order: Orders) -> None:
    """Else anybody who guesses order ids on a page could keep sales from ever being paid."""
    page = {"door": "pixel", "reason": "pixel"}
    await order.say(900, **page)
    await change.reject(order.db, [order.id], "admin:3", "not ours")
    assert await order.stands() == ("rejected", "said_rejected", 900, 0)
    assert await order.say(900, **page) == ("duplicate", None)
    assert await order.say(1000, partner_id=8) == ("changed", None)
    assert await order.stands() == ("approved", None, 1000, 100)
    await change.reject(order.db, [order.id], "admin:3", "returned")
    assert (await order.stands())[0] == "reversed", "what the server said is rejected for good"


async def test_what_cannot_be_priced_cannot_be_approved(order: Orders) -> None:
    await order.say(None)
    (changed,) = await change.approve(order.db, [order.id], "admin:1", None)
    assert (changed.status, changed.refused and changed.refused.code) == (Status.PENDING, "conflict")


async def test_an_adjustment_has_two_sides(db: Connection) -> None:
    async with db.transaction():
        await change.adjust(db, 7, -250, "EUR", "a bonus taken back", "admin:1", "2026-11")
    assert await ledger.balance(db, "partner:7") == {"EUR": -250}
    assert await ledger.balance(db, "programme") == {"EUR": 250}


@pytest.mark.parametrize("table", ["ledger_entry", "ledger_line"])
@pytest.mark.parametrize("said", ["DELETE FROM {}", "UPDATE {} SET {}", "TRUNCATE {} CASCADE"])
async def test_the_ledger_is_only_added_to(order: Orders, table: str, said: str) -> None:
    await order.say(1000)
    column = "actor = ''" if table == "ledger_entry" else "amount_minor = 0"
    with pytest.raises(asyncpg.RaiseError, match="only added to"):
        await order.db.execute(said.format(table, column))


@pytest.mark.parametrize(
    ("damage", "seen"),
    [
        ("INSERT INTO ledger_line SELECT min(id), 'partner:9', 1, 'EUR' FROM ledger_entry", "does not sum to zero"),
        ("INSERT INTO ledger_entry (kind, actor) VALUES ('change', 'x')", "has no lines"),
        ("UPDATE conversion SET payout_minor = 99", "pays 99 and has 100 booked"),
        ("UPDATE conversion SET status = 'pending'", "is pending"),
        ("UPDATE conversion SET revenue_minor = 99", "is approved"),
        (
            "UPDATE conversion SET revenue_minor = 99, booked_revenue_minor = 99, revenue_currency = 'USD'",
            "has -99 booked for advertiser:1 USD, in the ledger None",
        ),
        ("UPDATE conversion SET partner_id = 2", "has 100 booked for partner:2 EUR, in the ledger None"),
    ],
)
async def test_the_check_of_the_ledger_sees_what_is_wrong(order: Orders, damage: str, seen: str) -> None:
    await order.say(1000)
    transaction = order.db.transaction()
    await transaction.start()
    await order.db.execute(damage)
    assert any(seen in line for line in await ledger.check(order.db)), await ledger.check(order.db)
    await transaction.rollback()


async def test_a_consumer_settles_by_terms_with_tiers(db: Connection, database_url: str, tmp_path: Any) -> None:
    async with open_session(settings(database_url, tmp_path)) as session:
        assert await settle(session.db, [conversion(adv={"adv1": "x"})], shard=0) == 1


STATEMENTS = """
SELECT sum(calls)::int FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND query NOT LIKE '%pg_stat_statements%'
"""


async def test_changes_cost_the_same_statements_whatever_their_number(db: Connection) -> None:
    """New, changed twice, increased, posted again, waiting and refused ones, all in one batch."""
    await db.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")

    def events(ids: list[UUID]) -> list[Conversion]:
        return [
            one
            for uuid in ids
            for one in (
                conversion(conversion_id=uuid, refund_minor=5, event_id="r", amount_minor=None),
                conversion(conversion_id=uuid, amount_minor=7, event_id="i"),
                conversion(conversion_id=uuid, status="reversed", amount_minor=None),
                conversion(conversion_id=uuid, amount_minor=7),
                conversion(conversion_id=uuid7(), status="reversed"),
                conversion(conversion_id=uuid, refund_minor=5, amount_minor=None),
                conversion(order_id=str(uuid7())),
            )
        ]

    counts = []
    for number in (2, 100, 2, 100):
        ids = [uuid7() for _ in range(number)]
        await settle(db, [conversion(conversion_id=uuid) for uuid in ids], shard=0)
        before = await db.fetchval(STATEMENTS)
        await settle(db, events(ids), shard=0)
        counts.append(await db.fetchval(STATEMENTS) - before)
    print(f"statements of a batch that changes 2 and 100 orders: {counts}")
    assert counts[2] == counts[3]


async def test_what_a_person_has_approved_is_not_raised_beyond_its_bound_without_another(order: Orders) -> None:
    """An advertiser may approve what waits for it; its next post must not take the operator's bound away."""
    await order.db.execute("UPDATE offer SET default_status = 'pending', amount_max_minor = 2000")
    await order.say(1000)
    for actor in ("advertiser:1", "admin:1"):
        assert (await change.approve(order.db, [order.id], actor, None))[0].refused is None
        assert (await order.stands())[0] == "approved"
        assert await order.say(500, event_id=f"little {actor}") == ("changed", None)
        if actor == "advertiser:1":
            assert await order.stands() == ("approved", None, 1500, 150)
            assert await order.say(1_000_000, event_id="much") == ("changed", None)
        assert (await order.stands())[:2] == ("pending", "above_bound")


async def test_amounts_beyond_all_measure_stop_nobody(order: Orders) -> None:
    """Each may be sent; were there so many that a column overflowed, whatever is worked on beside them would wait."""
    most = 10**15
    await order.say(1000)
    for n in range(3):
        assert await order.say(most, event_id=f"i{n}", payout_minor=most, revenue_minor=most)
    assert (await order.stands())[:3] == ("approved", None, most + 1000)
    for n in range(3):
        await order.say(refund_minor=most, event_id=f"r{n}")
    assert await order.stands() == ("reversed", None, 0, 0)
    assert await order.db.fetchval("SELECT refunds_minor FROM conversion") == 2 * most
    await order.db.execute("UPDATE conversion_rollup SET sale_amount_minor = sale_amount_minor + 9223372036854775807")
    await settle(order.db, [conversion(conversion_id=uuid7(), amount_minor=most)], shard=0)
    await order.db.execute("UPDATE conversion_rollup SET sale_amount_minor = sale_amount_minor - 9223372036854775807")


async def test_what_a_cap_holds_back_of_a_new_order_is_told_as_well(order: Orders) -> None:
    await order.db.execute("INSERT INTO cap (offer_id, kind, period, amount) VALUES (1, 'conversions', 'day', 0)")
    await settle(order.db, [order.event(1000, status="pending"), order.event(status="approved")], shard=0)
    assert (await order.stands())[:2] == ("pending", "over_cap")
    changes = await order.db.fetch("SELECT from_status, to_status, actor FROM conversion_change ORDER BY id")
    assert changes == [("pending", "approved", "sender"), ("approved", "pending", "caps")]


async def test_an_order_that_somebody_else_made_meanwhile_is_priced_at_the_rate_of_its_own_day(
    order: Orders, database_url: str
) -> None:
    await order.db.execute("""
        INSERT INTO rate (currency, in_currency, day, rate)
        SELECT 'USD', 'EUR', now()::date - days, 0.9 FROM generate_series(0, 9) AS days""")
    now = now_ms()
    fields = {"currency": "USD", "click_uuid": uuid7(now - 4 * 86_400_000)}
    other = await connect(database_url, command_timeout_s=20)
    async with order.db.transaction():
        first = order.event(1000, event_at_ms=now - 3 * 86_400_000, status="pending", **fields)
        await settle(order.db, [first], shard=0)
        second = asyncio.create_task(settle(other, [order.event(1000, status="approved", **fields)], shard=1))
        while not await order.db.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.01)
    await second
    await other.close()
    assert await order.stands() == ("approved", None, 1000, 90)


async def test_an_approved_order_does_not_pass_a_full_cap_by_being_pending_between(order: Orders) -> None:
    await order.db.execute("UPDATE advertiser SET duplicates = 'update'")
    await order.db.execute("UPDATE offer SET amount_max_minor = 5000")
    await order.db.execute(
        "INSERT INTO cap (offer_id, kind, period, amount, currency) VALUES (1, 'payout', 'day', 100, 'EUR')"
    )
    await order.say(1000)
    later = sorted(uuid7() for _ in range(2))
    events = [order.event(amount, intake_id=uuid) for amount, uuid in zip((9000, 3000), later, strict=True)]
    await settle(order.db, events, shard=0)
    assert (await order.stands())[3] <= 100


async def test_postgres_hears_now_and_then_from_who_decides_many_orders(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often they are decided: at first, once they are locked, with what waited for them."""
    monkeypatch.setattr(limits, "FOLDED_AT_ONCE", 10)
    orders = [Orders(db) for _ in range(30)]
    others = [Orders(db) for _ in range(30)]
    heard: list[str] = []
    words = []
    for of, fields in (
        (orders, {"amount": 1000}), (orders, {"status": "rejected"}),
        (others, {"status": "rejected"}), (others, {"amount": 1000}),
    ):  # fmt: skip
        heard.clear()
        with db.query_logger(lambda record: heard.append(record.query)):
            await settle(db, [order.event(**fields) for order in of], shard=0)
        words.append(heard.count("SELECT"))
    assert words == [3, 6, 3, 6]
