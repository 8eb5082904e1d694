"""How many calls a key may make: so many in a minute, which begins with the first call in it. The counts lie in Redis,
so that all processes of the API share them.

Like the recorder's group commit: one round trip is under way, and all calls that come meanwhile share the next one. A
call waits for its count for a moment only. While Redis is away nobody waits, and calls are not limited.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import structlog

from schemas import limits, redis_keys
from schemas.redis import Redis, RedisError, counting, done

log = structlog.get_logger()

# What each key has used, and what is left of its minute. A count without an end would refuse for ever.
_SPEND = """
local spent = {}
for i, key in ipairs(KEYS) do
    local used, left_ms = redis.call('INCRBY', key, ARGV[i + 1]), redis.call('PTTL', key)
    if left_ms < 0 then
        left_ms = tonumber(ARGV[1])
        redis.call('PEXPIRE', key, left_ms)
    end
    spent[i] = {used, left_ms}
end
return spent
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
class _Round:
    """The calls of one round trip, by key; then what each key had used after it and the ms left, None without Redis."""

    calls: Counter[int] = field(default_factory=Counter)
    spent: asyncio.Future[dict[int, tuple[int, int]] | None] = field(default_factory=asyncio.Future)


class Rates:
    """Counts calls by key."""

    def __init__(self, redis: Redis, window_s: float = limits.RATE_WINDOW_S) -> None:
        self._spend = redis.register_script(_SPEND)
        self._window_ms = round(window_s * 1000)
        self._next = _Round()
        self._rounds: asyncio.Task[None] | None = None
        self._is_away = False

    async def spend(self, key_id: int, limit: int) -> Spent | None:
        """Count a call; None when Redis does not say at once. Never raises."""
        joined = self._next
        joined.calls[key_id] += 1
        place = joined.calls[key_id]
        if self._rounds is None or self._rounds.done():
            self._rounds = asyncio.create_task(self._go_round(), name="rates")
        if not self._is_away:
            await asyncio.wait((joined.spent,), timeout=limits.RATE_TIMEOUT_S)
        if not joined.spent.done():
            self._tell(away=True, error="TimeoutError")
            return None
        spent = joined.spent.result()
        if spent is None:
            return None
        used, left_ms = spent[key_id]
        return Spent(limit, used - joined.calls[key_id] + place, math.ceil(left_ms / 1000))

    async def close(self) -> None:
        if self._rounds is not None:
            self._rounds.cancel()
            await asyncio.wait((self._rounds,))

    async def _go_round(self) -> None:
        while self._next.calls:
            under_way, self._next = self._next, _Round()
            under_way.spent.set_result(await self._count(under_way.calls))

    async def _count(self, calls: Counter[int]) -> dict[int, tuple[int, int]] | None:
        try:
            found = await done(
                self._spend(keys=[redis_keys.rate(key_id) for key_id in calls], args=[self._window_ms, *calls.values()])
            )
        except RedisError as error:
            self._tell(away=True, error=type(error).__name__)
            return None
        self._tell(away=False)
        return {key_id: (int(used), int(left_ms)) for key_id, (used, left_ms) in zip(calls, found, strict=True)}

    def _tell(self, *, away: bool, error: str | None = None) -> None:
        """Once, when it begins and when it ends."""
        if away != self._is_away:
            self._is_away = away
            log.warning("rate_limits_off" if away else "rate_limits_on", error=error)


@contextlib.asynccontextmanager
async def counting_calls(redis_url: str) -> AsyncIterator[Rates]:
    async with counting(redis_url) as redis:
        rates = Rates(redis)
        try:
            yield rates
        finally:
            await rates.close()
