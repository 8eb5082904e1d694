"""The edges that have registered in Redis, because the log could not hear of them."""

from __future__ import annotations

import msgspec
import structlog

from aggregator.flush.batch import Begun
from schemas import redis, redis_keys
from schemas.redis import Redis, RedisError

log = structlog.get_logger()


class _Registration(msgspec.Struct):
    edge: str
    at_ms: int


async def registered(client: Redis) -> list[Begun] | None:
    """All of them as they are now; None when that cannot be known."""
    try:
        held = await redis.done(client.hgetall(redis_keys.EDGES))
        return [_begun(incarnation.decode(), value) for incarnation, value in sorted(held.items())]
    except (*RedisError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("registrations_not_known", error=type(error).__name__)
        return None


def _begun(incarnation: str, value: bytes) -> Begun:
    found = msgspec.json.decode(value, type=_Registration)
    return Begun(incarnation, found.edge, found.at_ms)
