"""The clients of Redis: who waits for it can be told to stop, and waits in bounded time."""

import asyncio
import random
import time
from urllib.parse import urlsplit

import pytest

from loadtests.faults.proxy import FaultProxy
from schemas import limits, redis
from schemas.redis import RedisError, counting, done, listening, publishing, reading


async def test_a_task_that_is_told_to_end_ends_whatever_it_waits_for(redis_url: str) -> None:
    """A lost cancellation would hold up an exit for ever."""
    rng = random.Random(5)
    async with publishing(redis_url) as client:
        await done(client.set("a", "1"))

        async def use_it() -> None:
            while True:
                assert await done(client.get("a")) == b"1"
                pipeline = client.pipeline(transaction=False)
                assert await pipeline.get("a").get("b").execute() == [b"1", None]

        for _ in range(300):
            task = asyncio.create_task(use_it())
            await asyncio.sleep(rng.random() * 0.003)
            task.cancel()
            found, _ = await asyncio.wait([task], timeout=2)
            assert found, "the cancellation was lost"
            assert task.cancelled()
        assert await done(client.get("a")) == b"1"  # no answer meant for somebody else is left on a connection


@pytest.mark.parametrize(("client", "most_s"), [(reading, limits.READ_TIMEOUT_S), (counting, limits.COUNTER_TIMEOUT_S)])
@pytest.mark.parametrize("mode", ["refuse", "reset", "blackhole"])
async def test_a_redis_that_is_away_is_not_waited_for_longer_than_said(
    redis_url: str, client: object, most_s: float, mode: str
) -> None:
    parts = urlsplit(redis_url)
    async with FaultProxy(parts.hostname or "", parts.port or 0) as proxy:
        url = parts._replace(netloc=f":{parts.password}@127.0.0.1:{proxy.port}").geturl()
        async with client(url) as found:  # type: ignore[operator]
            await done(found.ping())
            proxy.mode = mode  # type: ignore[assignment]
            for _ in range(2):  # on the connection that was open, and on a new one
                began = time.monotonic()
                with pytest.raises(RedisError):
                    await done(found.get("a"))
                assert time.monotonic() - began < 3 * most_s + 0.05
            proxy.mode = "pass"
            assert await done(found.get("a")) is None


async def test_a_command_is_sent_once_however_it_fails(redis_url: str) -> None:
    parts = urlsplit(redis_url)
    async with FaultProxy(parts.hostname or "", parts.port or 0) as proxy, publishing(redis_url) as direct:
        url = parts._replace(netloc=f":{parts.password}@127.0.0.1:{proxy.port}").geturl()
        async with reading(url) as client:
            await done(client.ping())
            proxy.drop_replies(1)
            with pytest.raises(RedisError):
                await done(client.incr("n"))
            proxy.cut_on(b"INCR", forward=True)
            with pytest.raises(RedisError):
                await done(client.incr("n"))
        assert await done(direct.get("n")) == b"2"


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_every_connection_can_be_cancelled_and_none_retries(scheme: str) -> None:
    for client in (reading, counting, publishing, listening):
        pool = client(f"{scheme}://127.0.0.1:1/0").connection_pool
        assert issubclass(pool.connection_class, redis._Cancellable)
        connection = pool.make_connection()
        assert connection.retry.get_retries() == 0
        assert connection.socket_timeout
        assert (scheme == "rediss") == isinstance(connection, redis.SSLConnection)
