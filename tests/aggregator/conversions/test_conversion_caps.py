"""Caps on conversions and money: never over, however many count at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from aggregator.conversions.caps import Approval, take
from aggregator.db.connect import Connection, connect
from loadtests.faults.journals import uuid7

AT_MS = 1_790_000_000_000
DAY_MS = 86_400_000
_PROGRAMME = """
INSERT INTO advertiser (name, token_sha256) VALUES ('a', '1');
INSERT INTO partner (name) VALUES ('p'), ('q'), ('r');
INSERT INTO offer (advertiser_id, name, destination_url, currency, timezone) VALUES
    (1, 'o', 'https://shop.example', 'EUR', NULL), (1, 'berlin', 'https://shop.example', 'EUR', 'Europe/Berlin');
"""


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Connection]:
    """An advertiser with two offers, the second in Berlin, and three partners; caps are the test's."""
    connection = await connect(database_url, command_timeout_s=20)
    await connection.execute(_PROGRAMME)
    yield connection
    await connection.close()


async def cap(db: Connection, amount: int, **fields: Any) -> int:
    """A cap of `amount` conversions on offer 1, unless something else is said."""
    wanted = {"offer_id": 1, "kind": "conversions", "period": "total"} | fields
    columns, places = ", ".join(wanted), ", ".join(f"${n}" for n in range(2, len(wanted) + 2))
    return await db.fetchval(
        f"INSERT INTO cap (amount, {columns}) VALUES ($1, {places}) RETURNING id", amount, *wanted.values()
    )


def approval(payout_minor: int = 100, **fields: Any) -> Approval:
    wanted = {"id": uuid7(), "offer_id": 1, "partner_id": 1, "event_at_ms": AT_MS, "currency": "EUR"} | fields
    return Approval(payout_minor=payout_minor, **wanted)


async def taken(db: Connection, *approvals: Approval) -> list[str]:
    """What becomes of each, in a transaction of its own."""
    async with db.transaction():
        over = await take(db, approvals)
    return [over.get(one.id, "taken") for one in approvals]


async def used(db: Connection) -> list[int]:
    return [row["used"] for row in await db.fetch("SELECT used FROM cap_use ORDER BY cap_id, begins")]


async def test_what_would_go_over_stays_out_and_what_still_fits_goes_in(db: Connection) -> None:
    await cap(db, 250, kind="payout", currency="EUR")
    assert await taken(db, *map(approval, (100, 100, 100, 40, 11, 10))) == [
        "taken", "taken", "pending", "taken", "pending", "taken",
    ]  # fmt: skip
    assert await used(db) == [250]
    assert await taken(db, approval(0), approval(1)) == ["taken", "pending"]


async def test_a_cap_says_itself_what_becomes_of_what_is_over(db: Connection) -> None:
    await cap(db, 1, over_cap_status="rejected")
    assert await taken(db, approval(), approval()) == ["taken", "rejected"]


async def test_caps_of_the_offer_the_partner_and_both_hold_together(db: Connection) -> None:
    """One that is over for any of them takes nothing of the others."""
    await cap(db, 3)
    await cap(db, 2, offer_id=None, partner_id=1)
    await cap(db, 1, offer_id=2, partner_id=1)
    await cap(db, 0, kind="clicks")
    first = [approval(offer_id=2), approval(offer_id=2), approval(), approval(), approval(partner_id=2)]
    assert await taken(db, *first) == ["taken", "pending", "taken", "pending", "taken"]
    assert await used(db) == [2, 2, 1]
    assert await taken(db, *(approval(partner_id=n, offer_id=n) for n in (2, 2, 2))) == ["taken"] * 3
    assert await taken(db, approval(partner_id=3), approval(partner_id=3)) == ["taken", "pending"]


async def test_what_is_added_to_a_conversion_takes_money_alone(db: Connection) -> None:
    await cap(db, 1)
    await cap(db, 150, kind="revenue", currency="EUR")
    money = {"revenue_minor": 100, "revenue_currency": "EUR"}
    assert await taken(db, approval(**money), approval(conversions=0, **money)) == ["taken", "pending"]
    assert await taken(db, approval(conversions=0, revenue_minor=50, revenue_currency="EUR")) == ["taken"]
    assert await used(db) == [1, 150]


async def test_nothing_is_locked_where_there_is_no_cap(db: Connection) -> None:
    await cap(db, 0, offer_id=2)
    assert await taken(db, approval()) == ["taken"]
    assert await taken(db) == []
    assert await used(db) == []


async def test_money_of_another_currency_counts_at_its_days_rate_and_without_one_is_over(db: Connection) -> None:
    await cap(db, 250, kind="payout", currency="EUR")
    await db.execute("INSERT INTO rate VALUES ('JPY', 'EUR', to_timestamp($1)::date, 0.01)", AT_MS // 1000)
    yen = [approval(150, currency="JPY"), approval(101, currency="JPY"), approval(100, currency="JPY")]
    assert await taken(db, *yen) == ["taken", "pending", "taken"]  # 1.50 and 1.00
    assert await used(db) == [250]
    assert await taken(db, approval(0, currency="JPY", event_at_ms=AT_MS + DAY_MS)) == ["taken"]
    await db.execute("UPDATE cap SET amount = 1000000")
    assert await taken(db, approval(1, currency="JPY", event_at_ms=AT_MS + DAY_MS)) == ["pending"]


def berlin(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Berlin")).timestamp() * 1000)


DAYS = [
    ("2026-10-25T00:00", "2026-10-25T23:59", 1),  # 25 hours
    ("2026-10-24T23:59", "2026-10-25T00:00", 2),
    ("2026-03-29T00:00", "2026-03-29T23:59", 1),  # 23 hours
    ("2026-03-29T23:59", "2026-03-30T00:00", 2),
]


@pytest.mark.parametrize("offer_id", [1, 2])
async def test_a_day_is_that_of_the_offers_zone_also_when_the_clocks_change(db: Connection, offer_id: int) -> None:
    await db.execute(
        "UPDATE programme SET timezone = CASE $1::int WHEN 1 THEN 'Europe/Berlin' ELSE 'Asia/Tokyo' END", offer_id
    )
    await cap(db, 1, offer_id=offer_id, period="day")
    for first, second, days in DAYS:
        both = [approval(offer_id=offer_id, event_at_ms=berlin(text)) for text in (first, second)]
        await db.execute("DELETE FROM cap_use")
        assert await taken(db, *both) == ["taken", "taken" if days == 2 else "pending"]
        assert len(await used(db)) == days


async def test_a_partners_own_cap_goes_by_the_programmes_zone(db: Connection) -> None:
    await db.execute("UPDATE programme SET timezone = 'Asia/Kathmandu'")
    await cap(db, 1, offer_id=None, partner_id=1, period="hour")
    begins = 1_790_000_100_000  # 20:00 in Kathmandu, a quarter past in most other places
    both = [approval(offer_id=n, event_at_ms=begins - n + 1) for n in (1, 2)]
    assert await taken(db, *both) == ["taken", "taken"]


async def test_four_aggregators_at_once_never_go_over(db: Connection, database_url: str) -> None:
    """Each in batches, with money that does not divide the cap; what was refused would not have fitted."""
    amounts = {"payout": 100_000, "conversions": 700}
    await cap(db, amounts["payout"], kind="payout", currency="EUR", period="month")
    await cap(db, amounts["conversions"], offer_id=None, partner_id=1, period="day")
    dice = random.Random(7)
    wanted = [approval(dice.randrange(1, 400), event_at_ms=AT_MS + dice.randrange(3) * DAY_MS) for _ in range(1200)]
    others = [await connect(database_url, command_timeout_s=20) for _ in range(4)]

    async def take_share(slot: int, other: Connection) -> dict[UUID, str]:
        mine, found = wanted[slot::4], {}
        for begins in range(0, len(mine), 25):
            batch = mine[begins : begins + 25]
            found |= dict(zip((one.id for one in batch), await taken(other, *batch), strict=True))
        return found

    answers = await asyncio.gather(*(take_share(slot, other) for slot, other in enumerate(others)))
    for other in others:
        await other.close()
    came = {name: how for answer in answers for name, how in answer.items()}
    approved = [one for one in wanted if came[one.id] == "taken"]
    paid = sum(one.payout_minor for one in approved)
    assert paid == (await used(db))[0] <= amounts["payout"]
    assert sum((await used(db))[1:]) == len(approved)
    assert min(one.payout_minor for one in wanted if came[one.id] != "taken") > amounts["payout"] - paid
