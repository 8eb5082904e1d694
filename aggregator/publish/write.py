"""The one way a link config gets into Redis: in order of its version, and announced on the invalidation stream."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import msgspec

from aggregator.publish import metrics
from schemas import limits, links, redis_keys
from schemas.redis import Redis, done

# An older version never replaces a newer one; a value that is there already is not announced again. Numbers are
# printed by hand because Lua would write a large sequence as 1e+15. The version comes first in what we write; to parse
# all of it takes three times as long, in which Redis answers nobody.
_WRITE = """
local written, epoch_found = 0, 0

local function version(value)
    local epoch, counter = string.match(value, '^{"v":%[(%d+),(%d+)%]')
    if epoch then return tonumber(epoch), tonumber(counter) end
    local ok, config = pcall(cjson.decode, value)
    if not ok or type(config) ~= 'table' or type(config.v) ~= 'table' then return 0, 0 end
    return tonumber(config.v[1]) or 0, tonumber(config.v[2]) or 0
end

local floor = tonumber(redis.call('HGET', KEYS[2], 'floor') or '0')
if floor > version(ARGV[3]) then return {0, floor} end
for i = 3, #KEYS do
    local value = ARGV[i]
    local stored = redis.call('GET', KEYS[i])
    local newer = true
    if stored then
        local epoch, counter = version(value)
        local stored_epoch, stored_counter = version(stored)
        if stored_epoch > epoch and stored_epoch > epoch_found then epoch_found = stored_epoch end
        newer = stored ~= value and (epoch > stored_epoch or (epoch == stored_epoch and counter >= stored_counter))
    end
    if newer then
        redis.call('SET', KEYS[i], value)
        written = written + 1
        if ARGV[2] == 'announce' then
            local sequence = redis.call('INCR', KEYS[1])
            redis.call('PUBLISH', ARGV[1], string.format('%.0f', sequence) .. ' ' .. KEYS[i])
        end
    end
end
return {written, epoch_found}
"""


class EpochBehind(Exception):
    """Redis was, or is being, filled by a later epoch than ours: this Postgres is a restored one and has to raise its
    epoch, or what we hold was read before that."""

    def __init__(self, epoch: int) -> None:
        super().__init__(epoch)
        self.epoch = epoch


async def write(redis: Redis, configs: Mapping[str, links.Config], *, announce: bool = True) -> int:
    """Write configs by key and answer how many were new to Redis. Raises EpochBehind, or one of `RedisError`.

    `announce=False` is for a refill, after which a jump of the sequence voids what edges hold.
    """
    items = iter(configs.items())
    written = 0
    while portion := dict(islice(items, limits.WRITE_AT_ONCE)):
        written += await _write_portion(redis, portion, announce)
    metrics.VALUES_WRITTEN.inc(written)
    return written


async def _write_portion(redis: Redis, configs: Mapping[str, links.Config], announce: bool) -> int:
    written, epoch_found = await done(
        redis.register_script(_WRITE)(
            keys=[redis_keys.SEQUENCE, redis_keys.STATE, *configs],
            args=[
                redis_keys.CHANGES,
                "announce" if announce else "quietly",
                *(msgspec.json.encode(config) for config in configs.values()),
            ],
        )
    )
    if epoch_found:
        raise EpochBehind(epoch_found)
    return int(written)
