"""Whether this Redis holds what this Postgres says: who filled it, from which Postgres, and has either gone back.

`links:state` in Redis: `run_id` (of the server that was filled), `system_identifier` and `timeline` (of the Postgres
it was filled from), `epoch`, `changes` (how far the outbox's counter had come), `evicted` (how many keys this server
had evicted when the filling began), and `form` (of what it was filled with). A field `filling:<token>` is there while a
refill is under way, so that a Redis emptied meanwhile is noticed. `floor` is the epoch of the latest refill, from its
beginning: nothing older is written any more, not even where there is no value that could be newer.

A Redis that may evict is written to and beats, but nobody says of it that its set is whole.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

import structlog

from aggregator.db.connect import Database
from schemas import limits, redis_keys
from schemas.redis import Redis, done

log = structlog.get_logger()

KEEPS_ALL = "noeviction"  # the only policy with which Redis keeps what it was given
# Raised when there are new kinds of configs, or new fields: what an earlier version of us filled is then filled again,
# though it may run beside us and take from the outbox what it does not know.
FORM = 3

_FACTS = """
SELECT control.system_identifier::text AS system_identifier,
       ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int AS timeline,
       (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_id_seq) AS changes,
       publishing.epoch, publishing.system_identifier AS known_system, publishing.timeline AS known_timeline
FROM pg_control_system() AS control, publishing
"""
# At least the time in milliseconds: higher than any before it, even one that nobody remembers, because Postgres was
# taken back behind it and its Redis is lost, too.
_RAISE = """
UPDATE publishing
SET epoch = greatest(epoch + 1, $1::bigint + 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint),
    system_identifier = $2, timeline = $3
WHERE epoch = $4 RETURNING epoch
"""

_TOLD = """
local function told(section, name)
    return string.match(redis.call('INFO', section), name .. ':([%w-]+)')
end
"""
# One script, because a Redis could be emptied between a check and the marker that vouches for it.
_VOUCH = f"""{_TOLD}
local now = redis.call('TIME')
if now[1] + now[2] / 1e6 >= tonumber(ARGV[8]) then return nil end
local sequence = redis.call('GET', KEYS[2])
if not sequence or tonumber(sequence) < tonumber(ARGV[5]) then return nil end
local state = redis.call('HMGET', KEYS[1], 'run_id', 'system_identifier', 'timeline', 'epoch', 'changes', 'evicted',
    'form')
if tonumber(state[7] or '0') < {FORM} then return nil end
if state[1] ~= told('server', 'run_id') then return nil end
if state[2] ~= ARGV[1] or state[3] ~= ARGV[2] or state[4] ~= ARGV[3] then return nil end
local policy = told('memory', 'maxmemory_policy')
if policy ~= 'noeviction' then
    redis.call('DEL', KEYS[3])
elseif state[6] ~= told('stats', 'evicted_keys') then
    return nil
else
    redis.call('SET', KEYS[3], '1', 'EX', ARGV[6])
end
if tonumber(ARGV[4]) > tonumber(state[5]) then redis.call('HSET', KEYS[1], 'changes', ARGV[4]) end
redis.call('PUBLISH', ARGV[7], sequence .. ' ')
return {{sequence, policy}}
"""
_NOTE = """
local state = redis.call('HMGET', KEYS[1], 'epoch', 'changes')
if state[1] == ARGV[1] and tonumber(ARGV[2]) > tonumber(state[2]) then
    redis.call('HSET', KEYS[1], 'changes', ARGV[2])
end
"""
_BEGIN = f"""{_TOLD}
redis.call('HSET', KEYS[1], 'filling:' .. ARGV[1], told('stats', 'evicted_keys'))
local floor = tonumber(redis.call('HGET', KEYS[1], 'floor') or '0')
redis.call('HSET', KEYS[1], 'floor', math.max(floor, tonumber(ARGV[2])))
"""
# The sequence jumps to the time in milliseconds: higher than any before it, even one that was lost with its Redis, so
# that every edge sees a gap and asks again for all it holds.
_FILLED = f"""{_TOLD}
local evicted = redis.call('HGET', KEYS[1], 'filling:' .. ARGV[5])
if not evicted or tonumber(redis.call('HGET', KEYS[1], 'floor')) > tonumber(ARGV[3]) then return nil end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'run_id', told('server', 'run_id'), 'system_identifier', ARGV[1], 'timeline', ARGV[2],
    'epoch', ARGV[3], 'floor', ARGV[3], 'changes', ARGV[4], 'evicted', evicted, 'form', {FORM})
local sequence = math.max(tonumber(redis.call('GET', KEYS[2]) or '0') + 1, tonumber(ARGV[6]))
redis.call('SET', KEYS[2], string.format('%.0f', sequence))
return 1
"""


@dataclass(frozen=True, slots=True)
class Source:
    """The Postgres that configs come from. `changes` counts up with every entry of the outbox."""

    system_identifier: str
    timeline: int
    epoch: int
    changes: int

    def is_that_of(self, other: Source | None) -> bool:
        """The same Postgres in the same epoch, however far it has come."""
        return other is not None and self.fields[:3] == other.fields[:3]

    @property
    def fields(self) -> list[str | int]:
        return [self.system_identifier, self.timeline, self.epoch, self.changes]


async def settle_source(db: Database, redis: Redis, epoch_found: int = 0) -> Source:
    """What Postgres we have, its epoch raised if it is not the one, or is older than the one, that filled this Redis.

    `epoch_found` is an epoch met in a value. Raises DatabaseAway or RedisError.
    """
    while True:
        state = await _state(redis)  # before Postgres, whose counter may only be the later of the two
        facts = await db.fetchrow(_FACTS)
        assert facts is not None
        source = Source(facts["system_identifier"], facts["timeline"], facts["epoch"], facts["changes"])
        known = (facts["known_system"], facts["known_timeline"])
        epoch = max(epoch_found, int(state.get("epoch", 0)))
        if known == (source.system_identifier, source.timeline) and not _is_older(source, epoch, state):
            return source
        await _raise_epoch(db, source, epoch)


async def vouch(redis: Redis, source: Source, sequence: int, before: float) -> tuple[int, str] | None:
    """Beat on the stream and renew the marker, if this Redis still is the one filled from `source` and its sequence
    has not gone back. The sequence, and the policy of eviction, with which there is no marker unless it is
    `noeviction`; or None. Raises RedisError.

    `before` is a time of the Redis server: a frozen one must not renew its marker when it wakes to an old request.
    """
    answer = await done(
        redis.register_script(_VOUCH)(
            keys=[redis_keys.STATE, redis_keys.SEQUENCE, redis_keys.COMPLETE],
            args=[*source.fields, sequence, limits.COMPLETE_TTL_S, redis_keys.CHANGES, before],
        )
    )
    return None if answer is None else (int(answer[0]), answer[1].decode())


async def note(redis: Redis, epoch: int, changes: int) -> None:
    """Say in Redis how far the outbox's counter had come when what lay in it was written: a Postgres taken back behind
    it is found out even if it was the last that this one did. Raises RedisError."""
    await done(redis.register_script(_NOTE)(keys=[redis_keys.STATE], args=[epoch, changes]))


async def clock_offset_s(redis: Redis) -> float:
    """How far the Redis server's clock is ahead of our monotonic one. Raises RedisError."""
    now_s, now_us = await done(redis.time())
    return float(now_s + now_us / 1e6 - time.monotonic())


async def is_filled(redis: Redis, source: Source, sequence: int) -> bool:
    """Whether this very server was filled from `source`, with all that we know, and its sequence is not below the one
    last seen. Raises RedisError."""
    state, server = await _state(redis), await done(redis.info())
    expected = {
        "run_id": server["run_id"],
        "system_identifier": source.system_identifier,
        "timeline": source.timeline,
        "epoch": source.epoch,
    }
    if server["maxmemory_policy"] == KEEPS_ALL:  # else it would be filled again and again
        expected["evicted"] = server["evicted_keys"]
    if int(state.get("form", 0)) < FORM or any(state.get(name) != str(value) for name, value in expected.items()):
        return False
    return int(await done(redis.get(redis_keys.SEQUENCE)) or -1) >= sequence


async def begin_filling(redis: Redis, source: Source) -> str:
    """Leave a token in this Redis, for `end_filling`; nothing older than `source` is written from now on. Raises
    RedisError."""
    token = secrets.token_hex(8)
    await done(redis.register_script(_BEGIN)(keys=[redis_keys.STATE], args=[token, source.epoch]))
    return token


async def end_filling(redis: Redis, source: Source, token: str) -> bool:
    """Say that this Redis holds all of `source`. False when it was emptied, or filled by another, meanwhile."""
    answer = await done(
        redis.register_script(_FILLED)(
            keys=[redis_keys.STATE, redis_keys.SEQUENCE],
            args=[*source.fields, token, int(time.time() * 1000)],
        )
    )
    return answer is not None


def _is_older(source: Source, epoch: int, state: dict[str, str]) -> bool:
    """Whether Redis has seen a later state of this Postgres: a restore or a snapshot has taken Postgres back."""
    same = state.get("epoch") == str(source.epoch)
    return epoch > source.epoch or (same and int(state.get("changes", 0)) > source.changes)


async def _raise_epoch(db: Database, source: Source, epoch: int) -> None:
    raised = await db.fetchval(_RAISE, epoch, source.system_identifier, source.timeline, source.epoch)
    if raised is not None:  # else another publisher was first
        log.warning("epoch_raised", epoch=raised, timeline=source.timeline)


async def _state(redis: Redis) -> dict[str, str]:
    found = await done(redis.hgetall(redis_keys.STATE))
    return {name.decode(): value.decode() for name, value in found.items()}
