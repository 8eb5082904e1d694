"""Rates by day, and what waits for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from aggregator.conversions.rates import Rates, read_rates, waiting
from aggregator.db.connect import Connection, connect

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
        "sale_amount_minor": 1000, "sale_currency": "USD", "currency": "EUR",
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
    assert list(await waiting(db, 10)) == [plain]
    await store(db, "USD", "JPY", "150")
    assert list(await waiting(db, 10)) == [plain, with_revenue]
    await store(db, "USD", "GBP", "0.75")  # the offer's currency, which its bound is in
    assert list(await waiting(db, 10)) == [plain, with_revenue, overridden]
    assert list(await waiting(db, 1, plain)) == [with_revenue]
