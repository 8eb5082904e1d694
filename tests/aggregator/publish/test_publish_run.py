import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from aggregator.db.connect import Connection
from aggregator.publish.agreement import check_eviction
from aggregator.publish.run import run
from deploy.run import servers
from loadtests.faults.proxy import FaultProxy, Mode
from schemas import links, redis_keys
from schemas.redis import Redis, RedisError, done, publishing

LINK = redis_keys.link("black")


@contextlib.asynccontextmanager
async def publisher(database_url: str, redis_url: str) -> AsyncIterator[None]:
    task = asyncio.create_task(run(database_url, redis_url))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(holds: Callable[[], Awaitable[Any]], within_s: float = 8) -> float:
    started = time.monotonic()
    while True:
        with contextlib.suppress(*RedisError):
            if await holds():
                return time.monotonic() - started
        assert time.monotonic() - started < within_s
        await asyncio.sleep(0.02)


async def complete(redis: Redis) -> bool:
    return bool(await done(redis.exists(redis_keys.COMPLETE)))


async def knows_changes(redis: Redis) -> bool:
    """Whether a beat has taken the outbox's counter along."""
    return int(await done(redis.hget(redis_keys.STATE, "changes")) or 0) > 0


async def link_in(redis: Redis) -> links.Link | None:
    value = await done(redis.get(LINK))
    return None if value is None else msgspec.json.decode(value, type=links.Link)


@pytest.fixture
async def published(database_url: str, redis_url: str, redis: Redis, rows: Any) -> AsyncIterator[Any]:
    async with publisher(database_url, redis_url):
        await until(lambda: complete(redis))
        yield rows


async def test_a_fresh_redis_is_filled_before_it_is_called_complete(published: Any, redis: Redis) -> None:
    wanted = (LINK, redis_keys.offer(published.offer_id), redis_keys.partner(published.partner_id))
    assert await done(redis.exists(*wanted, redis_keys.PROGRAMME)) == 4
    assert await link_in(redis) is not None


async def test_a_change_gets_from_postgres_to_redis_within_a_second(
    published: Any, redis: Redis, set_status: Any
) -> None:
    await set_status(published.link_id, "paused")

    async def paused() -> bool:
        link = await link_in(redis)
        return link is not None and link.status == "paused"

    assert await until(paused) < 1


async def test_the_stream_beats_each_second_with_the_sequence(published: Any, redis: Redis) -> None:
    async with redis.pubsub(ignore_subscribe_messages=True) as stream:
        await stream.subscribe(redis_keys.CHANGES)
        beats = []
        while len(beats) < 2:
            message = await stream.get_message(timeout=1.9)
            beats += [message["data"]] if message else []
    sequence = await done(redis.get(redis_keys.SEQUENCE))
    assert beats == [sequence + b" "] * 2


async def test_an_emptied_redis_fills_itself_and_its_sequence_jumps(published: Any, redis: Redis) -> None:
    before = int(await done(redis.get(redis_keys.SEQUENCE)))
    await done(redis.flushall())
    await until(lambda: complete(redis))
    assert await link_in(redis) is not None
    assert int(await done(redis.get(redis_keys.SEQUENCE))) > before + 1


async def test_a_lost_sequence_is_repaired(published: Any, redis: Redis) -> None:
    before = int(await done(redis.get(redis_keys.SEQUENCE)))
    await redis.set(redis_keys.SEQUENCE, 3)

    async def ahead() -> bool:
        return int(await done(redis.get(redis_keys.SEQUENCE))) > before

    await until(ahead)


async def test_a_change_made_while_redis_was_empty_and_no_publisher_ran_is_there_before_the_marker(
    database_url: str, redis_url: str, redis: Redis, rows: Any, set_status: Any
) -> None:
    async with publisher(database_url, redis_url):
        await until(lambda: complete(redis))
    await done(redis.delete(redis_keys.COMPLETE))
    await set_status(rows.link_id, "paused")
    async with publisher(database_url, redis_url):
        await until(lambda: complete(redis))
        link = await link_in(redis)
        assert link is not None
        assert link.status == "paused"


async def test_a_postgres_taken_back_raises_its_epoch_and_wins(
    database_url: str, redis_url: str, redis: Redis, db: Connection, rows: Any, set_status: Any
) -> None:
    async with publisher(database_url, redis_url):
        await until(lambda: complete(redis))
        await set_status(rows.link_id, "paused")
        await until(_status(redis, "paused"))
        await until(lambda: knows_changes(redis))
    first = (await link_in(redis)).v  # type: ignore[union-attr]
    # what a restore of last night's dump into the same cluster does
    await db.execute("UPDATE link SET status = 'active', version = 1 WHERE id = $1", rows.link_id)
    await db.execute("SELECT setval('outbox_id_seq', 1, false)")
    async with publisher(database_url, redis_url):
        await until(_status(redis, "active"))
    assert (await link_in(redis)).v == (first[0] + 1, 1)  # type: ignore[union-attr]


async def test_what_a_restored_postgres_does_not_know_is_taken_out(
    database_url: str, redis_url: str, redis: Redis, db: Connection, rows: Any
) -> None:
    async with publisher(database_url, redis_url):
        await until(lambda: complete(redis))
    await db.execute("DELETE FROM link")
    await db.execute("UPDATE publishing SET timeline = 99")
    await done(redis.delete(redis_keys.COMPLETE))
    async with publisher(database_url, redis_url):
        await until(lambda: complete(redis))
    assert await link_in(redis) is None


async def test_two_publishers_repair_an_emptied_redis_together(
    database_url: str, redis_url: str, redis: Redis, rows: Any
) -> None:
    async with publisher(database_url, redis_url), publisher(database_url, redis_url):
        await until(lambda: complete(redis))
        for _ in range(3):
            await done(redis.flushall())
            await until(lambda: complete(redis))
            assert await link_in(redis) is not None
        await asyncio.sleep(1.5)
        assert await complete(redis)


async def test_a_redis_restarted_empty_is_filled_again(database_url: str, tmp_path: Path, rows: Any) -> None:
    first = servers.start_valkey(tmp_path / "one")
    async with publisher(database_url, first.url), publishing(first.url) as redis:
        await until(lambda: complete(redis))
        servers.stop_valkey(first)
        for leftover in (tmp_path / "one").glob("appendonlydir/*"):
            leftover.unlink()
        second = servers.start_valkey(tmp_path / "one", first.port)
        took_s = await until(lambda: complete(redis), within_s=12)
        assert await link_in(redis) is not None
        assert took_s < 10
    servers.stop_valkey(second)


def proxied(url: str, proxy: FaultProxy) -> str:
    return re.sub(r"@[^/]+/", f"@127.0.0.1:{proxy.port}/", url)


def proxy_of(url: str) -> FaultProxy:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return FaultProxy(parts.hostname, parts.port)


@pytest.mark.parametrize("mode", ["refuse", "blackhole"])
async def test_beats_go_on_while_postgres_is_away_and_repair_waits_for_it(
    database_url: str, redis_url: str, redis: Redis, rows: Any, mode: Mode
) -> None:
    """Nothing can change meanwhile, so what edges hold stays fresh; an emptied Redis is not vouched for."""
    async with proxy_of(database_url) as proxy, publisher(proxied(database_url, proxy), redis_url):
        await until(lambda: complete(redis))
        proxy.mode = mode
        await asyncio.sleep(6)
        assert await complete(redis)
        await done(redis.flushall())
        await asyncio.sleep(1.5)
        assert not await complete(redis)
        proxy.mode = "pass"
        assert await until(lambda: complete(redis), within_s=12) < 10


@pytest.mark.parametrize("mode", ["refuse", "blackhole"])
async def test_a_change_made_while_redis_is_away_is_there_when_the_marker_is_back(
    database_url: str, redis_url: str, redis: Redis, rows: Any, set_status: Any, mode: Mode
) -> None:
    async with proxy_of(redis_url) as proxy, publisher(database_url, proxied(redis_url, proxy)):
        await until(lambda: complete(redis))
        proxy.mode = mode
        await until(_negated(lambda: complete(redis)), within_s=8)
        await set_status(rows.link_id, "paused")
        proxy.mode = "pass"
        assert await until(lambda: complete(redis), within_s=12) < 10
        link = await link_in(redis)
        assert link is not None
        assert link.status == "paused"


async def test_a_publisher_ends_quickly_though_postgres_and_redis_are_frozen(
    database_url: str, redis_url: str, redis: Redis, rows: Any
) -> None:
    async with proxy_of(redis_url) as near_redis, proxy_of(database_url) as near_postgres:
        urls = proxied(database_url, near_postgres), proxied(redis_url, near_redis)
        async with publisher(*urls):
            await until(lambda: complete(redis))
            near_redis.mode = near_postgres.mode = "blackhole"
            await asyncio.sleep(0.7)
            started = time.monotonic()
        assert time.monotonic() - started < 5


async def test_a_hundred_thousand_links_are_back_within_ten_seconds(
    database_url: str, redis_url: str, redis: Redis, db: Connection, rows: Any
) -> None:
    await db.execute(
        "INSERT INTO link (code, offer_id, partner_id) SELECT 'c' || n, $1, $2 FROM generate_series(1, 100000) n",
        rows.offer_id,
        rows.partner_id,
    )
    async with publisher(database_url, redis_url):
        took_s = await until(lambda: complete(redis), within_s=20)
    assert await done(redis.dbsize()) > 100_000
    assert took_s < 10


async def test_an_eviction_policy_that_drops_links_is_noticed(redis: Redis) -> None:
    assert await check_eviction(redis)
    await done(redis.config_set("maxmemory-policy", "allkeys-lru"))
    assert not await check_eviction(redis)
    await done(redis.config_set("maxmemory-policy", "noeviction"))


def _status(redis: Redis, status: str) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        link = await link_in(redis)
        return link is not None and link.status == status

    return holds


def _negated(holds: Callable[[], Awaitable[bool]]) -> Callable[[], Awaitable[bool]]:
    async def does_not() -> bool:
        return not await holds()

    return does_not
