"""Live counters: coalesced in memory, sent to Redis in one pipeline every 200 ms. Display values and hints.

Clicks that count against caps go with them, and the answers say how much of each cap all edges have used.

Handlers touch only memory. One task owns the connection and never retries: a lost reply must not count twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator

import msgspec
import structlog

from schemas import limits, redis_keys
from schemas.redis import Redis, RedisError, counting
from tracker.background import running
from tracker.caps import COUNT, CapTotals

log = structlog.get_logger()
_QUARTER_MS = 900_000


# KEYS: the hash of a quarter hour. ARGV: time to live, then in JSON the fields, each with what it grows by. Sending a
# command for each field was a sixth of all that an edge did for clicks on a thousand links, and each as an argument a
# fortieth, in stalls of 5 ms.
GROW = """
local grown = cjson.decode(ARGV[2])
for i = 1, #grown, 2 do redis.call('HINCRBY', KEYS[1], grown[i], grown[i + 1]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
"""


class LiveCounters:
    """Clicks by (quarter, link, partner) since the last flush, and those against caps."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, int, int], int] = {}
        self.caps = CapTotals()
        self.dropped = 0

    def count_click(self, at_ms: int, link_id: int, partner_id: int) -> None:
        """One recorded click of a partner, on a stored link unless `link_id` is 0."""
        key = (at_ms // _QUARTER_MS * 900, link_id, partner_id)
        n = self._counts.get(key, 0)
        if n or len(self._counts) < limits.COUNTER_KEYS_MAX:
            self._counts[key] = n + 1
        else:
            self.dropped += 1

    async def flush(self, redis: Redis) -> None:
        """Send what was counted. Display values of a failed flush are not repeated: they may have landed."""
        counts, self._counts = _by_field(self._counts), {}
        batch = self.caps.batch()
        if not counts and not batch:
            return
        pipeline = redis.pipeline(transaction=False)
        if batch:
            pipeline.eval(COUNT, len(batch.keys), *batch.keys, *batch.arguments)
        for quarter_s, grown in _pieces(counts):
            pipeline.eval(GROW, 1, redis_keys.live(quarter_s), limits.COUNTER_TTL_S, msgspec.json.encode(grown))
        try:
            answers = await pipeline.execute()
        except RedisError as error:
            self.dropped += sum(counts.values())
            log.warning("live_counters_dropped", counts=len(counts), error=type(error).__name__)
        else:
            if batch:
                self.caps.answered(answers[0])


def _pieces(counts: dict[tuple[int, str], int]) -> Iterator[tuple[int, list[str | int]]]:
    """Fields, each with what it grows by, of one quarter hour at a time, as many as one script takes."""
    by_quarter: dict[int, list[str | int]] = defaultdict(list)
    for (quarter_s, field), n in counts.items():
        by_quarter[quarter_s] += (field, n)
    for quarter_s, grown in by_quarter.items():
        for at in range(0, len(grown), 2 * limits.COUNTERS_SENT_MAX):
            yield quarter_s, grown[at : at + 2 * limits.COUNTERS_SENT_MAX]


def _by_field(clicks: dict[tuple[int, int, int], int]) -> dict[tuple[int, str], int]:
    """What each field of each quarter hour's hash grows by."""
    found: dict[tuple[int, str], int] = defaultdict(int)
    for (quarter_s, link_id, partner_id), n in clicks.items():
        if link_id:
            found[quarter_s, f"link:{link_id}"] += n
        found[quarter_s, f"partner:{partner_id}"] += n
    return found


@contextlib.asynccontextmanager
async def counting_live(redis_url: str) -> AsyncIterator[LiveCounters]:
    """Live counters with their flusher running; on leaving, one last flush."""
    counters = LiveCounters()
    async with counting(redis_url) as redis:
        try:
            async with running("live-counters", _flush_for_ever(counters, redis)):
                yield counters
        finally:
            await counters.flush(redis)


async def _flush_for_ever(counters: LiveCounters, redis: Redis) -> None:
    while True:
        await asyncio.sleep(limits.FLUSH_EVERY_S)
        await counters.flush(redis)
