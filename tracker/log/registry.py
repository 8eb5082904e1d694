"""Edges that the log could not hear of yet, in Redis for the aggregators to meet."""

from __future__ import annotations

from collections.abc import Collection

import orjson
import structlog

from schemas import redis_keys
from schemas.events import Beat
from schemas.redis import Redis, RedisError, done

log = structlog.get_logger()


class Registry:
    """What this process has registered in Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._there: set[str] = set()

    def over(self, incarnation: str) -> None:
        """An incarnation, perhaps of an earlier process, has closed: the next `hold` removes it."""
        self._there.add(incarnation)

    async def hold(self, opens: Collection[Beat]) -> bool:
        """Have these in Redis, and no other of ours. False where Redis does not answer: try again."""
        gone = self._there - {beat.incarnation for beat in opens}
        try:
            for beat in opens:
                value = orjson.dumps({"edge": beat.edge, "at_ms": beat.at_ms})
                await done(self._redis.hset(redis_keys.EDGES, beat.incarnation, value))
                self._there.add(beat.incarnation)
            if gone:
                await done(self._redis.hdel(redis_keys.EDGES, *gone))
        except RedisError as error:
            log.warning("registration_not_in_redis", error=type(error).__name__)
            return False
        self._there -= gone
        return True
