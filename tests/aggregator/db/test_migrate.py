import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from aggregator.conversions import change, ledger
from aggregator.conversions.behind import Places, reprice
from aggregator.db.connect import connect
from aggregator.db.migrate import Migration, MigrationChanged, apply, migrate, migrations
from loadtests.faults.drift import order_rollup_rows_wrong

# An order of each kind that 0004 knew, named by a hash of its order id.
_SOLD_BEFORE = """
INSERT INTO conversion (conversion_id, intake_id, click_id, link_id, offer_id, partner_id, advertiser_id, event,
    order_id, event_at, received_at, status, reason, sale_amount_minor, sale_currency, payout_minor, currency)
SELECT md5(order_id)::uuid, gen_random_uuid(), gen_random_uuid(), 1, offer_id, 1, 1, 'sale',
    order_id, '2026-11-20 12:14:59.999Z', '2026-11-20 12:15Z', status, reason, amount, sold_in, payout, 'EUR'
FROM (VALUES
    ('paid', 1, 'approved', NULL, 4990, 'EUR', 500),
    ('share', 2, 'approved', NULL, 995, 'EUR', 100),
    ('nothing', 2, 'approved', NULL, 0, 'EUR', 0),
    ('flagged', 1, 'pending', 'flagged_click', 4990, 'EUR', 500),
    ('missing', 2, 'pending', 'amount_missing', NULL, 'EUR', NULL),
    ('unclear', 2, 'pending', 'ambiguous_amount', NULL, 'EUR', NULL),
    ('foreign', 2, 'pending', 'no_rate', 1000, 'USD', NULL),
    ('late', 1, 'rejected', 'after_window', 4990, 'EUR', NULL)
) AS sold (order_id, offer_id, status, reason, amount, sold_in, payout)
"""
_BEFORE_MONEY = f"""
INSERT INTO advertiser (name, token_sha256) VALUES ('a', 'x');
INSERT INTO partner (name) VALUES ('p');
INSERT INTO offer (advertiser_id, name, destination_url, currency)
VALUES (1, 'fixed', 'https://shop.example', 'EUR'), (1, 'share', 'https://shop.example', 'EUR');
INSERT INTO offer_terms (offer_id, model, amount_minor, percent, currency)
VALUES (1, 'cpa', 500, NULL, 'EUR'), (2, 'cps', NULL, 10, 'EUR');
{_SOLD_BEFORE};
INSERT INTO conversion_rollup (quarter, link_id, offer_id, partner_id, currency, shard, conversions, sale_amount_minor,
    payout_minor)
SELECT '2026-11-20 12:00Z', 1, offer_id, 1, 'EUR', 2, count(*), sum(sale_amount_minor), sum(payout_minor)
FROM conversion WHERE status = 'approved' GROUP BY offer_id
"""


@pytest.fixture
async def empty_database_url(postgres_url: str) -> AsyncIterator[str]:
    name, admin = f"empty_{uuid4().hex}", await asyncpg.connect(postgres_url)
    await admin.execute(f"CREATE DATABASE {name}")
    yield postgres_url.rpartition("/")[0] + f"/{name}"
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


async def test_three_processes_that_migrate_at_once_apply_each_file_once(empty_database_url: str) -> None:
    applied = await asyncio.gather(*(migrate(empty_database_url) for _ in range(3)))
    assert sorted(name for names in applied for name in names) == [one.name for one in migrations()]
    assert await migrate(empty_database_url) == []


async def test_a_file_that_changed_after_it_was_applied_is_refused_by_name(empty_database_url: str) -> None:
    db = await connect(empty_database_url, command_timeout_s=5)
    assert await apply(db, [Migration("0001_one.sql", "CREATE TABLE one ()")]) == ["0001_one.sql"]
    with pytest.raises(MigrationChanged, match=r"0001_one\.sql"):
        await apply(db, [Migration("0001_one.sql", "CREATE TABLE two ()")])
    await db.close()


async def test_a_file_that_fails_leaves_nothing_and_those_before_it_stay(empty_database_url: str) -> None:
    db = await connect(empty_database_url, command_timeout_s=5)
    bad = [Migration("1.sql", "CREATE TABLE one ()"), Migration("2.sql", "CREATE TABLE two (); SELECT 1 / 0")]
    with pytest.raises(asyncpg.DivisionByZeroError):
        await apply(db, bad)
    assert await db.fetchval("SELECT array_agg(name) FROM schema_migration") == ["1.sql"]
    assert await db.fetchval("SELECT to_regclass('two')") is None
    await db.close()


async def test_what_was_sold_before_there_was_a_ledger_is_in_it_and_goes_on(empty_database_url: str) -> None:
    db = await connect(empty_database_url, command_timeout_s=10)
    await apply(db, [one for one in migrations() if one.name < "0005"])
    await db.execute(_BEFORE_MONEY)
    await migrate(empty_database_url)
    id_of = {row["order_id"]: row["conversion_id"] for row in await db.fetch("TABLE conversion")}

    async def holds(owed_minor: int) -> None:
        assert await ledger.check(db) == []
        assert await ledger.balance(db, "partner:1") == {"EUR": owed_minor}
        assert await order_rollup_rows_wrong(empty_database_url) == 0

    await holds(500 + 100)
    await db.execute("INSERT INTO rate VALUES ('USD', 'EUR', '2026-11-20', 0.9)")
    async with db.transaction():
        assert (await reprice(db, Places(), 0)).done == 1
        await change.approve(db, [id_of["flagged"]], "admin:1", "looked at")
        await change.reverse(db, [id_of["paid"]], "admin:1", "sent back")
        await change.refund(db, id_of["share"], "admin:1", "a part", refund_minor=100, event_id="r-1")
        await change.reject(db, [id_of["unclear"]], "admin:1", "no sale")
    await holds(90 + 500 + 90)
    left = await db.fetch(
        "SELECT order_id, status, reason, held, doubt FROM conversion WHERE status <> 'approved' ORDER BY 1"
    )
    assert [tuple(row) for row in left] == [
        ("late", "rejected", "after_window", "after_window", ""),
        ("missing", "pending", "amount_missing", "", ""),  # until there is one
        ("paid", "reversed", None, "", ""),
        ("unclear", "rejected", "said_rejected", "", "ambiguous_amount"),
    ]
    await db.close()


async def test_an_aggregator_that_knows_of_no_ledger_writes_no_conversions(empty_database_url: str) -> None:
    """One that still runs while the next version is started: it fails, is replaced, and what it read is read again."""
    await migrate(empty_database_url)
    db = await connect(empty_database_url, command_timeout_s=10)
    with pytest.raises(asyncpg.NotNullViolationError):
        await db.execute(_SOLD_BEFORE)
    await db.close()
