"""Rates by day, and what waits for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from aggregator.conversions import change, ledger
from aggregator.conversions.rates import Rates, read_rates, waiting
from aggregator.conversions.settle import settle
from aggregator.db.connect import Connection, connect
from aggregator.db.instants import to_ms
from loadtests.faults.journals import conversion

DAY = date(2026, 11, 23)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Connection]:
    connection = await connect(database_url, command_timeout_s=10)
    await connection.execute("""
        INSERT INTO advertiser (name, token_sha256) VALUES ('a', 'x');
        INSERT INTO offer (advertiser_id, name, destination_url, currency)
        VALUES (1, 'o', 'https://shop.example', 'GBP')""")
    yield connection
    await connection.close()


async def store(db: Connection, currency: str, in_currency: str, rate: str, day: date = DAY) -> None:
    await db.execute("INSERT INTO rate VALUES ($1, $2, $3, $4)", currency, in_currency, day, Decimal(rate))


async def pend(db: Connection, number: int, **fields: Any) -> UUID:
    """A conversion that waits for a rate: 10 USD, to be paid in EUR."""
    columns = {
        "conversion_id": UUID(int=number), "intake_id": UUID(int=number), "link_id": 1, "offer_id": 1, "partner_id": 1,
        "advertiser_id": 1, "event": "sale", "event_at": datetime(2026, 11, 23, 23, 59, 59, tzinfo=UTC),
        "received_at": datetime(2026, 11, 24, tzinfo=UTC), "status": "pending", "reason": "no_rate",
        "sale_amount_minor": 1000, "sale_currency": "USD", "currency": "EUR", "booked_payout_minor": 0,
    } | fields  # fmt: skip
    places = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
    await db.execute(f"INSERT INTO conversion ({', '.join(columns)}) VALUES ({places})", *columns.values())
    return UUID(int=number)


async def test_rates_are_read_of_the_days_and_currencies_asked_for(db: Connection) -> None:
    await store(db, "USD", "EUR", "0.9")
    await store(db, "USD", "EUR", "0.8", date(2026, 11, 22))
    await store(db, "EUR", "JPY", "160.123456789")
    rates = await read_rates(db, {"USD", "EUR"}, {DAY})
    assert rates == Rates({("USD", "EUR", DAY): Decimal("0.9")})
    assert rates.convert(1000, "USD", "EUR", DAY) == 900
    assert rates.convert(900, "EUR", "USD", DAY) == 1000
    assert rates.convert(1000, "USD", "EUR", date(2026, 11, 22)) is None
    assert rates.convert(1000, "USD", "JPY", DAY) is None  # no rate is made of two others
    assert await read_rates(db, {"EUR"}, {DAY}) == Rates()


async def test_a_conversion_waits_until_all_its_rates_of_its_day_are_there(db: Connection) -> None:
    plain = await pend(db, 1)
    with_revenue = await pend(db, 2, revenue_currency="JPY")
    overridden = await pend(db, 3, payout_override_minor=5)
    await pend(db, 4, reason="flagged_click")
    await pend(db, 5, status="approved")
    await store(db, "USD", "EUR", "0.9", date(2026, 11, 24))  # the day after
    assert list(await waiting(db, 10)) == []
    await store(db, "EUR", "USD", "1.1")  # the other way round will do
    assert list(await waiting(db, 10)) == [plain, overridden]  # what senders may not say needs no rate
    await store(db, "USD", "JPY", "150")
    await db.execute("UPDATE offer SET payout_override_max_minor = 100")
    assert list(await waiting(db, 10)) == [plain, with_revenue]
    await store(db, "USD", "GBP", "0.75")  # the offer's currency, which its bound is in
    assert list(await waiting(db, 10)) == [plain, with_revenue, overridden]
    assert list(await waiting(db, 1, plain)) == [with_revenue]


async def test_a_sale_in_another_currency_is_paid_as_soon_as_its_day_has_a_rate(db: Connection) -> None:
    await db.execute("""
        INSERT INTO partner (name) VALUES ('p');
        INSERT INTO offer_terms (offer_id, model, percent, amount_minor, currency, side)
        VALUES (1, 'cps', 10, NULL, 'EUR', 'payout'), (1, 'cpa', NULL, 250, 'GBP', 'revenue')""")
    at_ms = to_ms(datetime(2026, 11, 23, 12, tzinfo=UTC))
    sale = conversion(at_ms, amount_minor=4990, currency="USD")
    async with db.transaction():
        await settle(db, [sale], 0)
    await store(db, "USD", "EUR", "0.9")
    assert list(await waiting(db, 10)) == []  # the revenue's rate is still missing
    await store(db, "GBP", "USD", "1.25")
    ids = await waiting(db, 10)
    assert list(ids) == [sale.conversion_id]
    async with db.transaction():
        await change.reprice(db, ids)
    row = await db.fetchrow("SELECT status, reason, payout_minor, currency, revenue_minor FROM conversion")
    assert row is not None
    assert tuple(row) == ("approved", None, 449, "EUR", 250)
    assert await ledger.balance(db, ledger.partner(1)) == {"EUR": 449}
    assert await ledger.balance(db, ledger.advertiser(1)) == {"GBP": -250}
    assert list(await waiting(db, 10)) == []
    # a rate that is put right changes nothing that was paid
    await db.execute("UPDATE rate SET rate = 9")
    async with db.transaction():
        await settle(db, [conversion(at_ms, amount_minor=4990, currency="USD", conversion_id=sale.conversion_id)], 0)
    assert await ledger.balance(db, ledger.partner(1)) == {"EUR": 449}
    assert await ledger.check(db) == []
