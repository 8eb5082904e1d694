"""The edges that have registered in Redis, because the log could not hear of them."""

from __future__ import annotations

from typing import Annotated

import msgspec
import structlog

from aggregator.db.instants import LATEST_MS
from aggregator.flush import metrics
from aggregator.flush.batch import Begun
from schemas import redis, redis_keys
from schemas.redis import Redis, RedisError

log = structlog.get_logger()


class _Registration(msgspec.Struct):
    """What Postgres would refuse is refused here: there it would spoil each beat that it comes with."""

    edge: Annotated[str, msgspec.Meta(pattern=r"\A[^\x00]*\Z")]
    at_ms: Annotated[int, msgspec.Meta(ge=0, le=LATEST_MS)]


async def registered(client: Redis) -> list[Begun] | None:
    """All of them as they are now; None when that cannot be known."""
    try:
        held = await redis.done(client.hgetall(redis_keys.EDGES))
        return [_begun(incarnation.decode(), value) for incarnation, value in sorted(held.items())]
    except RedisError:
        metrics.COMPANY_UNKNOWN.inc()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        metrics.COMPANY_UNKNOWN.inc()
        log.error("registration_unreadable", error=repr(error))
    return None


def _begun(incarnation: str, value: bytes) -> Begun:
    found = msgspec.json.decode(value, type=_Registration)
    return Begun(incarnation, found.edge, found.at_ms)
