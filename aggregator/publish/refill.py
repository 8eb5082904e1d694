"""The whole set of link configs into Redis, after Redis was emptied or Postgres replaced."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import structlog

from aggregator.db.connect import Database
from aggregator.publish.agreement import Source, begin_filling, end_filling
from aggregator.publish.denormalise import SELECT, entry
from aggregator.publish.write import write
from schemas import limits, links, redis_keys
from schemas.redis import Redis, done

log = structlog.get_logger()

_AFTER_ALL = 2**31  # higher than any id
_SWEEP = """
local swept = 0
for _, key in ipairs(KEYS) do
    local ok, config = pcall(cjson.decode, redis.call('GET', key) or '')
    if ok and type(config) == 'table' and type(config.v) == 'table' and tonumber(config.v[1]) < tonumber(ARGV[1]) then
        swept = swept + redis.call('DEL', key)
    end
end
return swept
"""


async def refill(db: Database, redis: Redis, source: Source) -> bool:
    """Write everything, the latest rows first, batch by batch; then take out what an earlier epoch left behind.

    False when Redis was emptied or filled by another publisher meanwhile. Changes made meanwhile go through the
    outbox: the newer version wins. Raises EpochBehind, DatabaseAway or RedisError.
    """
    started, written = time.monotonic(), 0
    token = await begin_filling(redis)
    async for configs in _everything(db, source.epoch):
        written += await write(redis, configs, announce=False)
    swept = await _sweep(redis, source.epoch) if await _holds_more_than(redis, written) else 0
    whole = await end_filling(redis, source, token)
    log.info(
        "redis_refilled", whole=whole, written=written, swept=swept, duration_s=round(time.monotonic() - started, 3)
    )
    return whole


async def _everything(db: Database, epoch: int) -> AsyncIterator[dict[str, links.Config]]:
    for kind in SELECT:
        before = _AFTER_ALL
        while rows := await db.fetch(
            f"{SELECT[kind]} WHERE {kind}.id < $1::bigint ORDER BY {kind}.id DESC LIMIT $2", before, limits.REFILL_BATCH
        ):
            before = rows[-1]["id"]
            yield dict(entry(kind, row, epoch) for row in rows)


async def _holds_more_than(redis: Redis, written: int) -> bool:
    """Whether there was anything in this Redis before: a look at every key is worth a second."""
    keys = await done(redis.dbsize())
    ours = await done(redis.exists(redis_keys.STATE, redis_keys.SEQUENCE, redis_keys.COMPLETE))
    return bool(keys > written + ours)


async def _sweep(redis: Redis, epoch: int) -> int:
    """A restored Postgres may not know what a later one published: values below our epoch are nobody's."""
    swept, cursor, remove = 0, 0, redis.register_script(_SWEEP)
    while True:
        cursor, keys = await done(redis.scan(cursor, count=limits.REFILL_BATCH))
        ours = [key for key in keys if key.partition(b":")[0].decode() in links.KEY_KINDS]
        swept += int(await done(remove(keys=ours, args=[epoch]))) if ours else 0
        if cursor == 0:
            return swept
