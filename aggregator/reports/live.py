"""Clicks as edges have counted them, in quarter hours that are not complete yet, for whoever wants to see them at once.

Display values: what lies in Redis is never more than there were clicks, and less whenever a count was lost on its way.
Of a quarter hour and a link, or a partner, the greater of that and of what Postgres has is shown; never their sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from aggregator.db.connect import Database
from aggregator.db.instants import at, quarter, to_ms
from aggregator.reports.asked import Asked, Scope
from aggregator.reports.buckets import QUARTER
from aggregator.reports.sources import Source
from aggregator.reports.state import State
from schemas import limits, redis_keys
from schemas.redis import Redis, RedisError, done

log = structlog.get_logger()

# $1 and $2: the links and partners that are asked for, null for all; $3: how many. A total is that of the partners.
_IDS = {
    "link": """
        SELECT id FROM link WHERE ($1::int[] IS NULL OR id = ANY($1)) AND ($2::int[] IS NULL OR partner_id = ANY($2))
        ORDER BY id DESC LIMIT $3""",
    "partner": """
        SELECT id FROM partner WHERE $1::int[] IS NULL AND ($2::int[] IS NULL OR id = ANY($2))
        ORDER BY id DESC LIMIT $3""",
}
# Beside the rows of Postgres, all of one moment, one more for what is ahead of them.
_AHEAD = """(
    SELECT quarter, link_id, partner_id, clicks, invalid_clicks, unique_clicks FROM click_rollup
    UNION ALL
    SELECT live.quarter, {owners}, live.clicks - coalesce(told.clicks, 0), 0, 0
    FROM unnest({quarters}::timestamptz[], {ids}::int[], {clicks}::bigint[]) AS live (quarter, id, clicks) {joined}
    LEFT JOIN (
        SELECT quarter, {kind}_id AS id, sum(clicks)::bigint AS clicks FROM click_rollup
        WHERE quarter >= {first} AND {kind}_id = ANY({ids}) GROUP BY 1, 2
    ) AS told USING (quarter, id)
    WHERE live.clicks > coalesce(told.clicks, 0)
) AS held"""
_OWNERS = {"link": ("link.id, link.partner_id", "JOIN link USING (id)"), "partner": ("NULL::int, live.id", "")}


@dataclass(frozen=True, slots=True)
class Counted:
    """What edges have counted from `since` on, by link or by partner (`kind`): begin of a quarter hour, id, clicks."""

    kind: str
    since: datetime
    rows: list[tuple[datetime, int, int]]


async def read_live(
    db: Database, redis: Redis, asked: Asked, scope: Scope, state: State, now: datetime
) -> Counted | None:
    """What was counted of the time that is asked for and not complete yet, the latest quarter hours of it. None where
    there is no such time, or Redis is away."""
    begins = open_quarters(asked, state, now)
    if not begins:
        return None
    kind = "link" if "link_id" in asked.names else "partner"
    ids = await _ids(db, asked, scope, kind)
    try:
        rows = [row for one in begins for row in await _read(redis, one, kind, ids)]
    except RedisError as error:
        log.warning("live_not_read", error=type(error).__name__)
        return None
    return Counted(kind, begins[0], rows)


def open_quarters(asked: Asked, state: State, now: datetime) -> list[datetime]:
    """The begins of the quarter hours that have begun and are not complete, in their order."""
    latest = min(asked.ends - QUARTER, at(quarter(to_ms(now))))
    through = asked.starts if state.complete_through is None else at(quarter(to_ms(state.complete_through)))
    first = max(asked.starts, through, latest - (limits.LIVE_QUARTERS_MAX - 1) * QUARTER)
    return [first + n * QUARTER for n in range((latest - first) // QUARTER + 1)]


def ahead(args: list[Any], counted: Counted) -> Source:
    """The clicks of Postgres with what edges have counted beyond them; its values go to `args`."""
    owners, joined = _OWNERS[counted.kind]
    columns = [[row[n] for row in counted.rows] for n in range(3)]
    first = len(args) + 1
    args += [*columns, counted.since]
    quarters, ids, clicks, since = (f"${first + n}" for n in range(4))
    return Source(
        _AHEAD.format(
            kind=counted.kind, owners=owners, joined=joined, quarters=quarters, ids=ids, clicks=clicks, first=since
        )
    )


async def _ids(db: Database, asked: Asked, scope: Scope, kind: str) -> list[int]:
    """The ids whose counters are looked at; whose rows may be seen is held against them again later."""
    wanted = {one.name: list(one.values) for one in asked.filters if not one.excluded}
    partners = wanted.get("partner_id") if scope.partner_id is None else [scope.partner_id]
    rows = await db.fetch(_IDS[kind], wanted.get("link_id"), partners, limits.LIVE_IDS_MAX)
    return [row["id"] for row in rows]


async def _read(redis: Redis, begins: datetime, kind: str, ids: list[int]) -> list[tuple[datetime, int, int]]:
    key = redis_keys.live(to_ms(begins) // 1000)
    found = []
    for n in range(0, len(ids), limits.LIVE_FIELDS_AT_ONCE):
        part = ids[n : n + limits.LIVE_FIELDS_AT_ONCE]
        counts = await done(redis.hmget(key, [f"{kind}:{one}" for one in part]))
        found += [(begins, one, int(count)) for one, count in zip(part, counts, strict=True) if count is not None]
    return found
