"""How many calls a key may make: so many in a minute, which begins with the first call in it. The counts lie in Redis,
so that all processes of the API share them; while it is away, calls are not limited."""

from __future__ import annotations

import math
from dataclasses import dataclass

import structlog

from schemas import limits, redis_keys
from schemas.redis import Redis, RedisError, done

log = structlog.get_logger()

# One round trip for the count and what is left of its minute; a count without an end would refuse for ever.
_SPEND = """
local used, left_ms = redis.call('INCR', KEYS[1]), redis.call('PTTL', KEYS[1])
if left_ms < 0 then
    left_ms = tonumber(ARGV[1])
    redis.call('PEXPIRE', KEYS[1], left_ms)
end
return {used, left_ms}
"""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a key has used of its minute, this call included; `reset_s` until the next one."""

    limit: int
    used: int
    reset_s: int

    @property
    def is_too_much(self) -> bool:
        return self.used > self.limit

    @property
    def headers(self) -> dict[str, str]:
        told = {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(max(0, self.limit - self.used)),
            "X-RateLimit-Reset": str(self.reset_s),
        }
        return told | ({"Retry-After": str(self.reset_s)} if self.is_too_much else {})


@dataclass(slots=True)
class Rates:
    """Counts calls by key."""

    redis: Redis
    window_s: float = limits.RATE_WINDOW_S
    away: bool = False

    async def spend(self, key_id: int, limit: int) -> Spent | None:
        """Count a call; None when Redis does not answer at once. Never raises."""
        try:
            used, left_ms = await done(
                self.redis.register_script(_SPEND)(keys=[redis_keys.rate(key_id)], args=[round(self.window_s * 1000)])
            )
        except RedisError as error:
            self._tell(away=True, error=type(error).__name__)
            return None
        self._tell(away=False)
        return Spent(limit, int(used), math.ceil(int(left_ms) / 1000))

    def _tell(self, *, away: bool, error: str | None = None) -> None:
        """Once, when it begins and when it ends."""
        if away != self.away:
            self.away = away
            log.warning("rate_limits_off" if away else "rate_limits_on", error=error)
