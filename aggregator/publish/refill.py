"""The whole set of link configs into Redis, after Redis was emptied or Postgres replaced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection

import asyncpg
import structlog

from aggregator.db.connect import Database
from aggregator.publish import metrics
from aggregator.publish.agreement import Source, begin_filling, end_filling
from aggregator.publish.denormalise import SELECT, Kind, current, entries
from aggregator.publish.write import write
from schemas import limits, links
from schemas.redis import Redis, done

log = structlog.get_logger()

_AFTER_ALL = 2**31  # higher than any id
_KINDS = frozenset(kind.encode() for kind in links.KEY_KINDS)
_USED = """
SELECT link_id FROM click_rollup WHERE quarter >= now() - make_interval(secs => $1) AND link_id > 0
GROUP BY 1 ORDER BY sum(clicks) DESC LIMIT $2
"""
# Of a value that is no config of ours nothing is known: it stays.
_SWEEP = """
local swept = 0
for _, key in ipairs(KEYS) do
    local epoch = string.match(redis.call('GET', key) or '', '^{"v":%[(%d+),')
    if epoch and tonumber(epoch) < tonumber(ARGV[1]) then swept = swept + redis.call('DEL', key) end
end
return swept
"""


async def refill(db: Database, redis: Redis, source: Source) -> bool:
    """Write everything that a click needs before links, then the links, those in use first, at a pace that leaves Redis
    to the edges; then take out what an earlier epoch left behind.

    False when Redis was emptied or filled by another publisher meanwhile. Changes made meanwhile go through the
    outbox: the newer version wins. Raises EpochBehind, DatabaseAway or RedisError.
    """
    started = time.monotonic()
    token = await begin_filling(redis, source)
    try:
        held_some = await _holds_some(redis)
        written = await _write_all(db, redis, source.epoch)
        swept = await _sweep(redis, source.epoch) if held_some else 0
        whole = await end_filling(redis, source, token)
    finally:
        metrics.REFILLING.set(0)
    took_s = time.monotonic() - started
    metrics.REFILLS.labels(str(whole).lower()).inc()
    metrics.REFILL_SECONDS.set(took_s)
    log.info("redis_refilled", whole=whole, written=written, swept=swept, duration_s=round(took_s, 3))
    return whole


async def _write_all(db: Database, redis: Redis, epoch: int) -> int:
    started, looked_at, written = time.monotonic(), 0, 0
    async for configs in _everything(db, epoch):
        written += await write(redis, configs, announce=False)
        looked_at += len(configs)
        metrics.REFILLING.set(looked_at)
        await asyncio.sleep(started + looked_at / limits.REFILL_VALUES_PER_S - time.monotonic())
    return written


async def _everything(db: Database, epoch: int) -> AsyncIterator[dict[str, links.Config]]:
    used = await _used_lately(db)
    for kind in SELECT:
        if kind == "link":
            for n in range(0, len(used), limits.REFILL_BATCH):
                yield await current(db, kind, used[n : n + limits.REFILL_BATCH], epoch)
        async for configs in _latest_first(db, kind, epoch, frozenset(used) if kind == "link" else ()):
            yield configs


async def _used_lately(db: Database) -> list[int]:
    """The links that were clicked in the last hours, most used first; none where finding them takes too long."""
    try:
        rows = await db.fetch(
            _USED, limits.REFILL_USED_WITHIN_S, limits.L1_ENTRIES_MAX, timeout=limits.REFILL_USED_QUERY_S
        )
    except (TimeoutError, asyncpg.QueryCanceledError):
        log.warning("links_in_use_not_known")
        return []
    return [row["link_id"] for row in rows]


async def _latest_first(
    db: Database, kind: Kind, epoch: int, but: Collection[int]
) -> AsyncIterator[dict[str, links.Config]]:
    before = _AFTER_ALL
    while rows := await db.fetch(
        f"{SELECT[kind]} WHERE {kind}.id < $1::bigint ORDER BY {kind}.id DESC LIMIT $2", before, limits.REFILL_BATCH
    ):
        before = rows[-1]["id"]
        yield entries(kind, (row for row in rows if row["id"] not in but), epoch)


async def _holds_some(redis: Redis) -> bool:
    """Whether there are configs in this Redis: quickly seen in a full one, and in one with little else in it."""
    async for keys in _ours(redis):
        if keys:
            return True
    return False


async def _sweep(redis: Redis, epoch: int) -> int:
    """A restored Postgres may not know what a later one published: values below our epoch are nobody's."""
    swept, remove = 0, redis.register_script(_SWEEP)
    async for keys in _ours(redis):
        swept += int(await done(remove(keys=keys, args=[epoch]))) if keys else 0
    return swept


async def _ours(redis: Redis) -> AsyncIterator[list[bytes]]:
    """The keys of configs, some at a time."""
    cursor = 0
    while True:
        cursor, keys = await done(redis.scan(cursor, count=limits.WRITE_AT_ONCE))
        yield [key for key in keys if key.partition(b":")[0] in _KINDS]
        if cursor == 0:
            return
