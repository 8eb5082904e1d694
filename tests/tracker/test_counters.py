"""Live counters: one pipeline per flush, and never counted twice when only the reply was lost."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from loadtests.faults.proxy import FaultProxy
from schemas import limits, redis_keys
from schemas.redis import Redis, counting, done, publishing
from tracker.counters import LiveCounters, counting_live

QUARTER = 1_795_399_200


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with publishing(redis_url) as client:
        await done(client.config_resetstat())
        yield client


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[FaultProxy]:
    parts = urlsplit(redis_url)
    async with FaultProxy(parts.hostname or "", parts.port or 0) as proxy:
        yield proxy


def through(proxy: FaultProxy, redis_url: str) -> str:
    parts = urlsplit(redis_url)
    return parts._replace(netloc=f":{parts.password}@127.0.0.1:{proxy.port}").geturl()


async def live(redis: Redis) -> dict[bytes, bytes]:
    return dict(await done(redis.hgetall(redis_keys.live(QUARTER))))


async def commands(redis: Redis) -> int:
    found = await done(redis.info("commandstats"))
    return int(found["cmdstat_hincrby"]["calls"])


def count(counters: LiveCounters, clicks: int) -> None:
    for n in range(clicks):
        counters.count_click(QUARTER * 1000 + n % 900_000, link_id=n % 3 + 1, partner_id=7)


async def test_counts_are_coalesced_by_quarter_hour_link_and_partner(redis: Redis) -> None:
    counters = LiveCounters()
    count(counters, 3000)
    counters.count_click((QUARTER + 900) * 1000, 1, 7)
    await counters.flush(redis)
    assert await live(redis) == {b"link:1": b"1000", b"link:2": b"1000", b"link:3": b"1000", b"partner:7": b"3000"}
    assert await commands(redis) == 6
    assert 0 < await done(redis.ttl(redis_keys.live(QUARTER))) <= limits.COUNTER_TTL_S
    assert await done(redis.hget(redis_keys.live(QUARTER + 900), "link:1")) == b"1"


async def test_a_flush_is_one_message_and_an_empty_one_is_none(redis_url: str, proxy: FaultProxy) -> None:
    counters = LiveCounters()
    async with counting(through(proxy, redis_url)) as redis:
        await done(redis.ping())
        proxy.mode = "blackhole"
        await counters.flush(redis)
        proxy.mode = "pass"
        count(counters, 3000)
        await counters.flush(redis)
    assert counters.dropped == 0


async def test_a_flush_whose_reply_was_lost_is_not_repeated(redis: Redis, redis_url: str, proxy: FaultProxy) -> None:
    counters = LiveCounters()
    async with counting(through(proxy, redis_url)) as client:
        await done(client.ping())
        proxy.drop_replies(1)
        count(counters, 300)
        await counters.flush(client)
        assert counters.dropped == 600
        assert (await live(redis))[b"partner:7"] == b"300"
        await counters.flush(client)
        count(counters, 30)
        await counters.flush(client)
    assert (await live(redis))[b"partner:7"] == b"330"
    assert await commands(redis) == 8


@pytest.mark.parametrize("forward", [True, False])
async def test_a_connection_cut_in_a_flush_counts_once_or_never(
    redis: Redis, redis_url: str, proxy: FaultProxy, forward: bool
) -> None:
    counters = LiveCounters()
    async with counting(through(proxy, redis_url)) as client:
        proxy.cut_on(b"HINCRBY", forward=forward)
        count(counters, 300)
        await counters.flush(client)
        count(counters, 30)
        await counters.flush(client)
    assert proxy.cuts == 1
    assert (await live(redis))[b"partner:7"] == (b"330" if forward else b"30")


async def test_what_is_held_while_redis_is_away_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COUNTER_KEYS_MAX", 10)
    counters = LiveCounters()
    for n in range(100):
        counters.count_click(QUARTER * 1000, link_id=n + 1, partner_id=7)
    assert len(counters._counts) == 10
    assert counters.dropped == 90


async def test_counts_arrive_by_themselves_and_the_rest_when_it_ends(redis: Redis, redis_url: str) -> None:
    async with counting_live(redis_url) as counters:
        count(counters, 300)
        async with asyncio.timeout(2):
            while not await live(redis):
                await asyncio.sleep(0.02)
        count(counters, 30)
    assert (await live(redis))[b"partner:7"] == b"330"


async def test_the_flusher_survives_a_redis_that_is_away_and_ends_in_bounded_time(
    redis: Redis, redis_url: str, proxy: FaultProxy
) -> None:
    async with counting_live(through(proxy, redis_url)) as counters:
        proxy.mode = "refuse"
        count(counters, 300)
        async with asyncio.timeout(3):
            while not counters.dropped:
                await asyncio.sleep(0.02)
        proxy.mode = "pass"
        count(counters, 30)
        async with asyncio.timeout(3):
            while not await live(redis):
                await asyncio.sleep(0.02)
        proxy.mode = "blackhole"
        count(counters, 3)
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 4 * limits.COUNTER_TIMEOUT_S
    assert (await live(redis))[b"partner:7"] == b"30"
