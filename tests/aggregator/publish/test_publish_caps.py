"""The settler: what Postgres counted against caps, told to Redis, for every scope and calendar, again after a loss."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

import pytest

from aggregator.db.connect import Connection
from aggregator.publish.caps import Settled, settle, settle_once
from schemas import limits, redis_keys
from schemas.periods import begins_s
from schemas.redis import Redis, done

from .conftest import Rows

NOW_S = int(datetime(2026, 11, 27, 12, 7, tzinfo=UTC).timestamp())
HOUR_S, DAY_S = 3600, 86_400
SetCap = Callable[..., Coroutine[Any, Any, int]]


@pytest.fixture
async def set_cap(db: Connection) -> SetCap:
    await db.execute("UPDATE programme SET timezone = 'Europe/Berlin'")

    async def insert(period: str, offer_id: int | None = None, partner_id: int | None = None) -> int:
        found: int = await db.fetchval(
            "INSERT INTO cap (offer_id, partner_id, kind, period, amount) VALUES ($1, $2, 'clicks', $3, 9)"
            " RETURNING id",
            offer_id, partner_id, period,
        )  # fmt: skip
        return found

    return insert


async def roll_up(
    db: Connection, at_s: int, clicks: int, invalid: int = 0, offer_id: int = 1, partner_id: int = 1, shard: int = 0
) -> None:
    await db.execute(
        "INSERT INTO click_rollup AS held (quarter, link_id, offer_id, partner_id, country, device, shard, clicks,"
        " invalid_clicks) VALUES (to_timestamp($1), 1, $2, $3, 'DE', 'mobile', $4, $5, $6)"
        " ON CONFLICT (quarter, link_id, offer_id, partner_id, country, device, shard)"
        " DO UPDATE SET clicks = held.clicks + excluded.clicks",
        at_s // 900 * 900, offer_id, partner_id, shard, clicks, invalid,
    )  # fmt: skip


async def settled(redis: Redis, cap_id: int, period: Any, zone: str = "Europe/Berlin", at_s: int = NOW_S) -> int:
    return int(await done(redis.hget(redis_keys.cap(cap_id, begins_s(period, zone, at_s * 1000)), "settled")) or 0)


async def test_valid_clicks_of_the_present_period_are_told_for_each_scope(
    db: Connection, redis: Redis, rows: Rows, set_cap: SetCap
) -> None:
    offer, partner = rows.offer_id, rows.partner_id
    caps = {
        "offer": await set_cap("day", offer),
        "partner": await set_cap("day", partner_id=partner),
        "both": await set_cap("day", offer, partner),
    }
    await roll_up(db, NOW_S, 10, 3, offer, partner)
    await roll_up(db, NOW_S - 4 * HOUR_S, 100, 0, offer, partner, shard=1)
    await roll_up(db, NOW_S, 1000, 0, offer, partner + 1)
    await roll_up(db, NOW_S, 10_000, 0, offer + 1, partner)
    await roll_up(db, NOW_S - DAY_S, 99_999, 0, offer, partner)
    await settle_once(db, redis, Settled(), NOW_S)
    found = {scope: await settled(redis, cap_id, "day") for scope, cap_id in caps.items()}
    assert found == {"offer": 1107, "partner": 10_107, "both": 107}
    assert await done(redis.ttl(redis_keys.cap(caps["offer"], begins_s("day", "Europe/Berlin", NOW_S * 1000)))) > 0


@pytest.mark.parametrize(
    ("period", "counted"), [("hour", 1), ("day", 11), ("week", 111), ("month", 1111), ("total", 11_111)]
)
async def test_each_period_holds_what_lies_in_it(
    db: Connection, redis: Redis, rows: Rows, set_cap: SetCap, period: str, counted: int
) -> None:
    cap_id = await set_cap(period, rows.offer_id)
    for back_s, clicks in ((0, 1), (3 * HOUR_S, 10), (3 * DAY_S, 100), (20 * DAY_S, 1000), (400 * DAY_S, 10_000)):
        await roll_up(db, NOW_S - back_s, clicks, 0, rows.offer_id)
    await roll_up(db, NOW_S + 900, 77, 0, rows.offer_id)  # by an edge whose clock is ahead: may be of the next period
    await settle_once(db, redis, Settled(), NOW_S)
    assert await settled(redis, cap_id, period) == counted


async def test_a_period_is_that_of_the_offers_calendar_and_begins_anew(
    db: Connection, redis: Redis, rows: Rows, set_cap: SetCap
) -> None:
    """In Kathmandu the day ends at 18:15 UTC."""
    await db.execute("UPDATE offer SET timezone = 'Asia/Kathmandu'")
    cap_id, ends_s, remembered = await set_cap("day", rows.offer_id), NOW_S // DAY_S * DAY_S + 65_700, Settled()
    await roll_up(db, ends_s - 900, 5, 0, rows.offer_id)
    await settle_once(db, redis, remembered, ends_s - 1)
    await roll_up(db, ends_s, 7, 0, rows.offer_id)
    await settle_once(db, redis, remembered, ends_s)
    assert await settled(redis, cap_id, "day", "Asia/Kathmandu", ends_s - 1) == 5
    assert await settled(redis, cap_id, "day", "Asia/Kathmandu", ends_s) == 7
    assert len(remembered.past) == 1


async def test_it_goes_on_from_what_it_summed_and_misses_nothing_for_longer_than_a_day(
    db: Connection, redis: Redis, rows: Rows, set_cap: SetCap
) -> None:
    cap_id, remembered, expected = await set_cap("total", rows.offer_id), Settled(), 0
    for round_number in range(30):
        now_s = NOW_S + round_number * 1100
        await roll_up(db, now_s, 10, 0, rows.offer_id)
        expected += 10
        await settle_once(db, redis, remembered, now_s)
        assert await settled(redis, cap_id, "total") == expected
    await roll_up(db, NOW_S - DAY_S, 5, 0, rows.offer_id)  # from a spool that was found late
    await settle_once(db, redis, remembered, now_s)
    assert await settled(redis, cap_id, "total") == expected
    await settle_once(db, redis, remembered, now_s + limits.SETTLE_AGAIN_S)
    assert await settled(redis, cap_id, "total") == expected + 5


async def test_what_is_settled_only_grows_and_is_told_again_to_a_redis_that_lost_it(
    db: Connection, redis: Redis, rows: Rows, set_cap: SetCap
) -> None:
    cap_id, one, other = await set_cap("day", rows.offer_id), Settled(), Settled()
    await roll_up(db, NOW_S, 10, 0, rows.offer_id)
    await settle_once(db, redis, one, NOW_S)
    key = redis_keys.cap(cap_id, begins_s("day", "Europe/Berlin", NOW_S * 1000))
    await done(redis.hset(key, mapping={"settled": 50, "counted": 60}))
    await settle_once(db, redis, other, NOW_S)
    assert await done(redis.hgetall(key)) == {b"settled": b"50", b"counted": b"60"}
    await done(redis.flushall())
    await settle_once(db, redis, one, NOW_S)
    assert await done(redis.hgetall(key)) == {b"settled": b"10"}


async def test_a_cap_of_what_is_stopped_and_one_on_money_are_not_told(
    db: Connection, redis: Redis, rows: Rows, set_cap: SetCap
) -> None:
    await set_cap("day", rows.offer_id)
    await set_cap("day", partner_id=rows.partner_id)
    await roll_up(db, NOW_S, 10, 0, rows.offer_id, rows.partner_id)
    await db.execute("UPDATE cap SET kind = 'conversions' WHERE partner_id IS NOT NULL")
    await db.execute("UPDATE offer SET status = 'paused'")
    await settle_once(db, redis, Settled(), NOW_S)
    assert await done(redis.keys("cap:*")) == []


async def test_two_settle_side_by_side_by_themselves(
    db: Connection, redis: Redis, rows: Rows, set_cap: SetCap, database_url: str, redis_url: str
) -> None:
    cap_id = await set_cap("total", rows.offer_id)
    await roll_up(db, int(time.time()) - DAY_S, 10, 0, rows.offer_id)
    running = [asyncio.create_task(settle(database_url, redis_url)) for _ in range(2)]
    try:
        async with asyncio.timeout(10):
            while await settled(redis, cap_id, "total") != 10:
                await asyncio.sleep(0.02)
            await done(redis.flushall())
            while await settled(redis, cap_id, "total") != 10:
                await asyncio.sleep(0.02)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
