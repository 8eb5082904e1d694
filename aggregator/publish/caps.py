"""What Postgres has counted against click caps, told to Redis: so that the edges know it after Redis was lost, and a
cap that is set in the middle of its period counts all of it.

`settled` in a cap's hash only grows, and never is more than the valid clicks there were, so any number of settlers may
run. What lies more than two hours back is summed once a day; each round then reads only the latest rollups.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

import asyncpg
import structlog

from aggregator.db.connect import Connection, Database, DatabaseAway, connected
from schemas import limits, redis_keys
from schemas.periods import begins_s
from schemas.redis import Redis, RedisError, done, publishing

log = structlog.get_logger()

_ALIVE = """
SELECT cap.id, coalesce(offer_id, 0) AS offer_id, coalesce(partner_id, 0) AS partner_id, period,
       coalesce(offer.timezone, programme.timezone) AS timezone
FROM programme, cap LEFT JOIN offer ON offer.id = offer_id LEFT JOIN partner ON partner.id = partner_id
WHERE kind = 'clicks' AND coalesce(offer.status, 'active') = 'active' AND coalesce(partner.status, 'active') = 'active'
"""
# One statement for each kind of scope, so that each has its index: (offer_id, quarter) or (partner_id, quarter).
_SUM = """
SELECT cap.id, valid
FROM unnest($1::int[], $2::int[], $3::int[], $4::bigint[], $5::bigint[])
    AS cap (id, offer_id, partner_id, since, until),
LATERAL (
    SELECT sum(clicks - invalid_clicks)::bigint AS valid FROM click_rollup AS held
    WHERE {scope} AND quarter >= to_timestamp(since) AND quarter < to_timestamp(until)
) AS counted
WHERE valid > 0
"""
_SCOPES = {
    (True, False): _SUM.format(scope="held.offer_id = cap.offer_id"),
    (False, True): _SUM.format(scope="held.partner_id = cap.partner_id"),
    (True, True): _SUM.format(scope="held.offer_id = cap.offer_id AND held.partner_id = cap.partner_id"),
}
_QUARTER_S = 900  # every period begins with a quarter hour, so that what lies in this one belongs to the present one
_RAISE = """
for i, key in ipairs(KEYS) do
    if tonumber(ARGV[i + 1]) > tonumber(redis.call('HGET', key, 'settled') or '0') then
        redis.call('HSET', key, 'settled', ARGV[i + 1])
    end
    redis.call('EXPIRE', key, ARGV[1])
end
"""


@dataclass(frozen=True, slots=True)
class Scope:
    """A cap in its present period. `offer_id` or `partner_id` is 0 where it is on all of them."""

    cap_id: int
    offer_id: int
    partner_id: int
    begins_s: int

    @property
    def key(self) -> str:
        return redis_keys.cap(self.cap_id, self.begins_s)


@dataclass(frozen=True, slots=True)
class _Past:
    """Valid clicks of a scope before `until_s`, summed at `summed_s`."""

    clicks: int
    until_s: int
    summed_s: float


@dataclass(slots=True)
class Settled:
    """What a settler remembers: the past of each scope, and what it wrote to a Redis that has its token."""

    past: dict[Scope, _Past] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    token: str = field(default_factory=lambda: secrets.token_hex(8))


async def settle(database_url: str, redis_url: str) -> None:
    """Settle caps until cancelled. Postgres or Redis being away is waited for."""
    async with publishing(redis_url) as redis:
        while True:
            try:
                async with connected(
                    database_url, command_timeout_s=limits.SETTLE_STATEMENT_S, application_name="clickdam-settler"
                ) as db:
                    await _settle_for_ever(db, redis)
            except (asyncpg.PostgresError, *DatabaseAway, *RedisError) as error:
                log.warning("settler_waits", error=type(error).__name__, message=str(error))
            await asyncio.sleep(limits.DATABASE_RETRY_MAX_S)


async def _settle_for_ever(db: Connection, redis: Redis) -> None:
    settled = Settled()
    while True:
        began = time.monotonic()
        await settle_once(db, redis, settled, time.time())
        took_s = time.monotonic() - began
        await asyncio.sleep(max(limits.SETTLE_CAPS_S, took_s / limits.SETTLE_SHARE))


async def settle_once(db: Database, redis: Redis, settled: Settled, now_s: float) -> None:
    """Raise `settled` of every cap that is alive to what Postgres has. Raises DatabaseAway or RedisError."""
    scopes = await _alive(db, now_s)
    await _sum_past(db, settled, scopes, now_s)
    until_s = int(now_s) // _QUARTER_S * _QUARTER_S + _QUARTER_S
    latest = await _sums(db, [(scope, settled.past[scope].until_s, until_s) for scope in scopes])
    totals = {scope.key: settled.past[scope].clicks + latest.get(scope.cap_id, 0) for scope in scopes}
    await _raise(redis, settled, totals)


async def _alive(db: Database, now_s: float) -> list[Scope]:
    now_ms = int(now_s * 1000)
    return [
        Scope(row["id"], row["offer_id"], row["partner_id"], begins_s(row["period"], row["timezone"], now_ms))
        for row in await db.fetch(_ALIVE)
    ]


async def _sum_past(db: Database, settled: Settled, scopes: list[Scope], now_s: float) -> None:
    """What lies before the latest whole hours: all of it once a day, else what was added to it since."""
    until_s = int((now_s - limits.SETTLE_LATEST_S) // 3600 * 3600)
    settled.past = {scope: settled.past[scope] for scope in scopes if _is_good(settled.past.get(scope), now_s)}
    wanted = []
    for scope in scopes:
        past = settled.past.setdefault(scope, _Past(0, scope.begins_s, now_s))
        if past.until_s < until_s:
            wanted.append((scope, past.until_s, until_s))
    sums = await _sums(db, wanted)
    for scope, _, until in wanted:
        past = settled.past[scope]
        settled.past[scope] = _Past(past.clicks + sums.get(scope.cap_id, 0), until, past.summed_s)


def _is_good(past: _Past | None, now_s: float) -> bool:
    return past is not None and now_s - past.summed_s < limits.SETTLE_AGAIN_S


async def _sums(db: Database, wanted: list[tuple[Scope, int, int]]) -> dict[int, int]:
    """Valid clicks by cap, of those that have any: from `since` until before `until`, in s since 1970."""
    found: dict[int, int] = {}
    for (by_offer, by_partner), statement in _SCOPES.items():
        asked = iter(
            one for one in wanted if (bool(one[0].offer_id), bool(one[0].partner_id)) == (by_offer, by_partner)
        )
        while some := list(islice(asked, limits.SETTLE_BATCH)):
            rows = await db.fetch(statement, *_columns(some))
            found |= {row["id"]: row["valid"] for row in rows}
    return found


def _columns(wanted: Iterable[tuple[Scope, int, int]]) -> list[list[int]]:
    rows = [(scope.cap_id, scope.offer_id, scope.partner_id, since, until) for scope, since, until in wanted]
    return [list(column) for column in zip(*rows, strict=True)]


async def _raise(redis: Redis, settled: Settled, totals: Mapping[str, int]) -> None:
    """Write what has changed; all of it, when Redis has lost our token or it has expired."""
    marker = redis_keys.settler(settled.token)
    if not await done(redis.exists(marker)):
        settled.written = {}
        await done(redis.set(marker, 1, ex=limits.COUNTER_TTL_S // 4))
    changed = iter((key, total) for key, total in totals.items() if total > settled.written.get(key, 0))
    script = redis.register_script(_RAISE)
    while some := dict(islice(changed, limits.SETTLE_BATCH)):
        await done(script(keys=list(some), args=[limits.COUNTER_TTL_S, *some.values()]))
    settled.written = dict(totals)
