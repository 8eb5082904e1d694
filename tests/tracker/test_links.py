"""The link cache in front of a real Redis: fresh while the stream is whole, and honest about what it cannot tell."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from loadtests.faults import edges
from loadtests.faults.edges import Filled
from loadtests.faults.proxy import FaultProxy
from schemas import limits, redis_keys
from schemas.links import Link, Offer
from schemas.redis import done
from tracker.links import LinkCache, NotReady, caching_links

DEMO = redis_keys.link("demo")


@asynccontextmanager
async def followed(redis_url: str) -> AsyncIterator[LinkCache]:
    async with caching_links(redis_url) as cache:
        await until(lambda: cache.stream_healthy)
        yield cache


@pytest.fixture
async def cache(redis_url: str, publisher: Filled, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LinkCache]:
    """One that no busy machine makes give up on Redis."""
    monkeypatch.setattr(limits, "READ_TIMEOUT_S", 5.0)
    async with followed(redis_url) as cache:
        yield cache


async def until(holds: Callable[[], bool], within_s: float = 5.0) -> float:
    """Wait until something holds; how long it took."""
    began = time.monotonic()
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.005)
    return time.monotonic() - began


async def until_it_finds(find: Callable[[], Awaitable[bool]], within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while not await find():
            await asyncio.sleep(0.01)


def paused() -> Link:
    return edges.link(status="paused")


async def test_a_code_leads_to_its_link_offer_and_partner(cache: LinkCache) -> None:
    found = await cache.find("demo")
    assert found.link
    assert found.offer
    assert found.partner
    assert (found.link.id, found.offer.id, found.partner.id) == (1, 1, 1)
    assert found.programme.timezone == "Europe/Berlin"


async def test_what_is_held_and_fresh_is_not_asked_for_again(cache: LinkCache) -> None:
    await cache.find("demo")
    fetches = cache.tier.fetches
    for _ in range(100):
        await cache.find("demo")
    assert cache.tier.fetches == fetches


async def test_a_change_is_seen_within_a_second_also_by_a_link_that_was_idle(
    cache: LinkCache, publisher: Filled
) -> None:
    async def is_paused() -> bool:
        link = (await cache.find("demo")).link
        return link is not None and link.status == "paused"

    assert not await is_paused()
    await publisher.change(DEMO, paused())
    await until_it_finds(is_paused, 1.0)


async def test_an_offers_pause_is_one_write_for_all_of_its_links(cache: LinkCache, publisher: Filled) -> None:
    await cache.find("demo")
    await publisher.change(redis_keys.offer(1), edges.offer(status="paused"))

    async def is_paused() -> bool:
        offer = (await cache.find("demo")).offer
        return offer is not None and offer.status == "paused"

    await until_it_finds(is_paused, 1.0)


async def test_a_change_whose_message_was_lost_is_noticed_by_the_gap(cache: LinkCache, publisher: Filled) -> None:
    await cache.find("demo")
    await publisher.change(DEMO, paused(), tell=False)
    await until(lambda: cache.tier.fresh(DEMO) is None, 2.0)
    assert cache.stream_healthy
    found = await cache.find("demo")
    assert found.link
    assert found.link.status == "paused"


async def test_a_sequence_that_went_back_is_a_gap_too(cache: LinkCache, publisher: Filled) -> None:
    await done(publisher.redis.set(redis_keys.SEQUENCE, 500))
    await asyncio.sleep(0.3)
    await cache.find("demo")
    await done(publisher.redis.set(redis_keys.SEQUENCE, 3))
    await until(lambda: cache.tier.fresh(DEMO) is None, 2.0)


@pytest.mark.parametrize("nonsense", [b"hello", b"", b"\xff\xfe", b"1.5 link:demo"])
async def test_a_message_that_is_not_the_publishers_is_a_gap_and_not_the_end(
    cache: LinkCache, publisher: Filled, nonsense: bytes
) -> None:
    await cache.find("demo")
    await done(publisher.redis.publish(redis_keys.CHANGES, nonsense))
    await until(lambda: cache.tier.fresh(DEMO) is None, 2.0)
    await until(lambda: cache.stream_healthy, 2.0)
    await cache.find("demo")
    await publisher.change(DEMO, paused())
    await until(lambda: cache.tier.fresh(DEMO) is None, 1.0)


async def test_silence_makes_all_stale_and_what_is_fetched_then_is_good_for_three_seconds(
    redis_url: str, publisher: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STREAM_SILENCE_S", 0.5)
    monkeypatch.setattr(limits, "STREAM_BEAT_S", 0.1)
    async with followed(redis_url) as cache:
        await cache.find("demo")
        publisher.beating = False
        await until(lambda: not cache.stream_healthy, 2.0)
        assert cache.tier.fresh(DEMO) is None
        await cache.find("demo")
        assert cache.tier.fresh(DEMO)
        assert cache.tier._entries[DEMO].expires - time.monotonic() <= limits.L1_BROKEN_S
        publisher.beating = True
        await until(lambda: cache.stream_healthy, 2.0)
        assert cache.tier.fresh(DEMO) is None
        await cache.find("demo")
        assert cache.tier._entries[DEMO].expires - time.monotonic() > limits.L1_BROKEN_S


async def test_an_unknown_code_is_surely_unknown_only_while_the_set_is_whole(
    publisher: Filled, cache: LinkCache
) -> None:
    assert (await cache.find("unknown")).link is None
    publisher.beating = False
    await done(publisher.redis.delete(redis_keys.COMPLETE))
    with pytest.raises(NotReady):
        await cache.find("another")


async def test_an_unknown_code_is_remembered_for_a_quarter_second_and_not_longer(
    cache: LinkCache, publisher: Filled
) -> None:
    await cache.find("new")
    fetches = cache.tier.fetches
    assert (await cache.find("new")).link is None
    assert cache.tier.fetches == fetches
    await publisher.write({redis_keys.link("new"): edges.link("new")})
    await asyncio.sleep(limits.NEGATIVE_S)
    assert (await cache.find("new")).link is not None


async def test_a_created_link_is_live_as_soon_as_it_was_told(cache: LinkCache, publisher: Filled) -> None:
    assert (await cache.find("new")).link is None
    await publisher.change(redis_keys.link("new"), edges.link("new"))

    async def is_there() -> bool:
        return (await cache.find("new")).link is not None

    await until_it_finds(is_there, 0.2)


async def test_an_emptied_redis_takes_no_warm_link_away(cache: LinkCache, publisher: Filled) -> None:
    await cache.find("demo")
    publisher.beating = False
    await done(publisher.redis.flushall())
    cache.tier.void_all()
    assert isinstance((await cache.find("demo")).offer, Offer)
    with pytest.raises(NotReady):
        await cache.find("cold")


async def test_a_redis_restored_from_a_backup_takes_no_warm_link_back_before_it_is_whole(
    cache: LinkCache, publisher: Filled
) -> None:
    await publisher.change(DEMO, edges.link(v=(2, 7), status="paused"))
    await until_it_finds(lambda: _is(cache, "paused"), 1.0)
    publisher.beating = False
    await done(publisher.redis.delete(redis_keys.COMPLETE))
    await publisher.change(DEMO, edges.link(v=(2, 3), status="active"))
    await until(lambda: cache.tier.fresh(DEMO) is None, 2.0)
    assert await _is(cache, "paused")
    await publisher.change(DEMO, edges.link(v=(2, 8), status="archived"))
    await until_it_finds(lambda: _is(cache, "archived"), 1.0)
    await publisher.write({DEMO: edges.link(v=(2, 3), status="active")})
    publisher.beating = True  # whatever lies there is vouched for now
    await until_it_finds(lambda: _is(cache, "active"), 4.0)


async def _is(cache: LinkCache, status: str) -> bool:
    link = (await cache.find("demo")).link
    return link is not None and link.status == status


async def test_one_value_that_is_none_does_not_spoil_the_others_of_its_fetch(
    cache: LinkCache, publisher: Filled
) -> None:
    await done(publisher.redis.set(redis_keys.link("broken"), b"{}"))
    cache.tier.void_all()
    found = await asyncio.gather(*(cache.find(code) for code in ("broken", "demo", "paused")), return_exceptions=True)
    assert isinstance(found[0], NotReady)
    assert not any(isinstance(each, BaseException) for each in found[1:])


async def test_with_redis_dead_or_frozen_a_warm_link_is_found_and_a_cold_one_is_not_waited_for(
    redis_url: str, publisher: Filled
) -> None:
    parts = urlsplit(redis_url)
    async with FaultProxy(parts.hostname or "", parts.port or 0) as proxy:
        url = parts._replace(netloc=f":{parts.password}@127.0.0.1:{proxy.port}").geturl()
        async with followed(url) as cache:
            await cache.find("demo")
            for mode in ("refuse", "blackhole", "reset"):
                proxy.mode = mode  # type: ignore[assignment]
                cache.tier.void_all()
                began = time.monotonic()
                assert (await cache.find("demo")).link
                with pytest.raises(NotReady):
                    await cache.find("cold")
                assert time.monotonic() - began < 20 * limits.READ_TIMEOUT_S
                proxy.mode = "pass"
                await until(lambda: cache.stream_healthy, 5.0)
