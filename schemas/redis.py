"""The only door to Redis: one client per purpose, each with its own limits. Retries are off everywhere, because a
repeated command counts twice when only the reply was lost."""

import asyncio
from collections.abc import Awaitable
from typing import Any, cast

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from schemas import limits

__all__ = ["PubSub", "Redis", "RedisError", "counting", "done", "listening", "publishing", "reading"]

RedisError = (exceptions.RedisError, OSError, TimeoutError)


def reading(url: str) -> Redis:
    """For the request path: waits 100 ms at most for a connection and for an answer."""
    return _client(url, limits.READ_TIMEOUT_S, limits.READ_POOL_MAX)


def counting(url: str) -> Redis:
    """For one task that nobody waits for, such as the flusher of live counters: it alone uses the one connection."""
    return _client(url, limits.COUNTER_TIMEOUT_S, 1)


def publishing(url: str) -> Redis:
    """For the publisher and the API."""
    return _client(url, limits.PUBLISH_TIMEOUT_S, 4)


def listening(url: str) -> Redis:
    """For the invalidation stream; reading it times out by itself, so the caller bounds each wait."""
    return _client(url, limits.STREAM_SILENCE_S, 2)


def _client(url: str, timeout_s: float, connections_max: int) -> Redis:
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections_max,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
    )
    pool.connection_class = _CANCELLABLE[pool.connection_class]
    return Redis.from_pool(pool)  # closing the client then closes its connections


class _Cancellable(Connection):
    """A connection whose user can be cancelled. redis-py sends under `asyncio.wait_for`, which before Python 3.12
    loses a cancellation that comes when the sending is done: a task that was told to end then goes on for ever."""

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        timeout_s, self.socket_timeout = self.socket_timeout, None
        try:
            async with asyncio.timeout(timeout_s):
                await super().send_packed_command(command, check_health)
        except TimeoutError:
            raise exceptions.TimeoutError("Timeout writing to socket") from None
        finally:
            self.socket_timeout = timeout_s


class _CancellableSSL(_Cancellable, SSLConnection):
    """The same for rediss://."""


_CANCELLABLE: dict[type, type[Connection]] = {Connection: _Cancellable, SSLConnection: _CancellableSSL}


async def done(answer: Any) -> Any:
    """Await a command; redis-py types its answers as either awaited or not."""
    return await cast(Awaitable[Any], answer)
