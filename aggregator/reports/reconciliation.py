"""What edges have counted against what is in Postgres, hour by hour of the events: clicks, and intakes of conversions.

An edge counts each request once, by its outcome. What it calls recorded or spooled is in the log, or will be, so it has
to be a row here: whatever is missing is drift. What it calls late or lost may be in the log all the same (the write was
under way when the answer was given, or failed after the log had it): such rows are neither missed nor too many, unless
the edge has said later what became of them. Rows beyond that were counted by nobody. They are `unaccounted` where an
edge that was killed may have taken them after its last beat, `imported` in an hour in which no edge counted any,
else drift with a minus.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from aggregator.db import partitions
from aggregator.db.connect import Database
from aggregator.db.instants import rfc3339, to_ms
from schemas import limits
from schemas.outcomes import CLOSED, Outcome, late

HOUR = timedelta(hours=1)
_CONVERSION, _INTAKE = "conversion_", "conversion_intake_"  # how edges name the counters of what is posted
_REFUSED = "refused_"
_WRITTEN = (Outcome.RECORDED, Outcome.SPOOLED, Outcome.LATE, Outcome.LOST)

_STATE = """
SELECT (SELECT complete_through FROM complete_through), nullif(through, '-infinity') FROM settling
"""
_COUNTERS = """
SELECT hour, outcome, sum(count)::bigint AS count FROM edge_counter WHERE hour >= $1 AND hour < $2
GROUP BY hour, outcome
"""
# From the last hour that it was heard of itself to the time when its end was: it may have taken more than it counted.
# Its last word is counted, not looked for by EXISTS, whose join would hold all edges against all of their last words.
_KILLED = f"""
SELECT coalesce(last, date_bin('1 hour', registered_at, 'epoch')) AS since, until
FROM edge, LATERAL (SELECT max(hour) AS last FROM edge_counter WHERE incarnation = edge.incarnation) AS counted,
    LATERAL (SELECT greatest(heard_at, closing_to, closed_at) AS until) AS heard
WHERE until >= $1 AND coalesce(last, registered_at) < $2
  AND (SELECT count(*) FROM edge_counter AS word
       WHERE word.incarnation = edge.incarnation AND word.hour = last AND word.outcome = '{CLOSED}') = 0
"""  # noqa: S608
_ROWS = """
SELECT hour, (SELECT count(*) FROM {table} WHERE {id} >= first AND {id} < next) AS count
FROM unnest($1::timestamptz[], $2::uuid[], $3::uuid[]) AS asked (hour, first, next)
"""
_OF_CLICKS, _OF_INTAKES = _ROWS.format(table="click", id="id"), _ROWS.format(table="conversion_intake", id="intake_id")
# Rows that were counted when their quarter hours were settled; `is_stale` where more have come since.
_SETTLED = """
SELECT date_bin('1 hour', quarter, 'epoch') AS hour, sum(recorded)::bigint AS count,
       bool_or(EXISTS (SELECT FROM stale_quarter WHERE stale_quarter.quarter = settled_quarter.quarter)) AS is_stale
FROM settled_quarter WHERE quarter >= $1 AND quarter < $2 GROUP BY 1
"""

Counts = Mapping[str, int]  # by outcome
ByHour = Mapping[datetime, int]
NONE: Counts = {}


class State(NamedTuple):
    complete_through: datetime | None
    settled_through: datetime | None


class Killed(NamedTuple):
    """An edge that ended without a last word, or has not ended: what it took in this time may not all be counted."""

    since: datetime
    until: datetime


class Told(NamedTuple):
    """What edges have said of a time, and the intakes that are in Postgres."""

    counters: Mapping[datetime, Counts]
    killed: list[Killed]
    intakes: ByHour


async def reconciliation(db: Database, starts: datetime, ends: datetime) -> dict[str, Any]:
    """The answer of `GET /v1/reconciliation` for whole hours. Rows are counted; those of clicks that are gone with
    their day were, when they were settled."""
    async with db.transaction(isolation="repeatable_read", readonly=True):
        state = await _state(db)
        clicks = await _clicks(db, starts, ends)
        told = await _told(db, starts, ends)
    hours = [_hour(at, told, clicks.get(at), state) for at in _hours(starts, ends)]
    return {
        "from": rfc3339(starts, "seconds"),
        "to": rfc3339(ends, "seconds"),
        "complete_through": state.complete_through and rfc3339(state.complete_through),
        **{name: _sum(hours, name) for name in ("drift", "unaccounted", "imported")},
        "data": hours,
    }


async def drift_of_settled(db: Database) -> int:
    """By how many events the last settled hours are off, in sum, as far as they were counted when they were settled: so
    no click is read for it."""
    async with db.transaction(isolation="repeatable_read", readonly=True):
        state = await _state(db)
        if state.settled_through is None or state.complete_through is None:
            return 0
        ends = floor(min(state.settled_through, state.complete_through))
        starts = ends - timedelta(hours=limits.DRIFT_HOURS)
        settled = await _settled(db, starts, ends)
        told = await _told(db, starts, ends)
    return _sum([_hour(at, told, count, state) for at, (count, is_stale) in settled.items() if not is_stale], "drift")


def floor(instant: datetime) -> datetime:
    """The beginning of the hour (UTC)."""
    return instant.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def balance(
    counts: Counts, prefixes: Collection[str], rows: int | None, *, was_killed: bool
) -> Mapping[str, int | None]:
    """What was to be written of one kind of event, its rows, and what the difference comes to; None where it cannot be
    told, because the rows are gone."""
    said: dict[str, int] = {of: _of(counts, prefixes, of) for of in _WRITTEN}
    in_time = said[Outcome.RECORDED] + said[Outcome.SPOOLED]
    least = in_time + _of(counts, prefixes, late(Outcome.RECORDED)) + _of(counts, prefixes, late(Outcome.SPOOLED))
    most = in_time + said[Outcome.LATE] + said[Outcome.LOST]
    if rows is None and least:
        return said | {"rows": None, "imported": 0, "unaccounted": 0, "drift": None}
    missing, beyond = max(0, least - (rows or 0)), max(0, (rows or 0) - most)
    imported = 0 if most or was_killed else beyond
    unaccounted = beyond if was_killed else 0
    drift = missing - (beyond - imported - unaccounted)
    return said | {"rows": rows or 0, "imported": imported, "unaccounted": unaccounted, "drift": drift}


def _hour(at: datetime, told: Told, clicks: int | None, state: State) -> dict[str, Any]:
    counts = told.counters.get(at, NONE)
    was_killed = any(floor(one.since) <= at <= one.until for one in told.killed)
    return {
        "hour": rfc3339(at, "seconds"),
        "complete": state.complete_through is not None and at + HOUR <= state.complete_through,
        "clicks": _clicks_of(counts, clicks, was_killed=was_killed),
        "conversions": _conversions_of(counts, told.intakes.get(at, 0), was_killed=was_killed),
    }


def _clicks_of(counts: Counts, rows: int | None, *, was_killed: bool) -> dict[str, Any]:
    """Each request at a link ended in one of these outcomes."""
    refused = _refused(counts, _REFUSED)
    uncounted = counts.get(Outcome.UNCOUNTED, 0)
    ended = sum(counts.get(of, 0) for of in _WRITTEN)
    return {
        "received": ended + uncounted + sum(refused.values()),
        "uncounted": uncounted, "refused": refused, **balance(counts, ("",), rows, was_killed=was_killed),
    }  # fmt: skip


def _conversions_of(counts: Counts, rows: int, *, was_killed: bool) -> dict[str, Any]:
    """Each post was accepted, a test, or refused. Refused ones are written too, where it is known who sent them: so
    what was to be written is not what was accepted."""
    refused = _refused(counts, f"{_CONVERSION}{_REFUSED}")
    accepted = _of(counts, (_CONVERSION,), Outcome.RECORDED) + _of(counts, (_CONVERSION,), Outcome.SPOOLED)
    test = counts.get(f"{_CONVERSION}test", 0)
    return {
        "received": accepted + test + sum(refused.values()),
        "accepted": accepted, "test_posts": test, "refused": refused,
        **balance(counts, (_CONVERSION, _INTAKE), rows, was_killed=was_killed),
    }  # fmt: skip


def _of(counts: Counts, prefixes: Iterable[str], outcome: str) -> int:
    return sum(counts.get(f"{prefix}{outcome}", 0) for prefix in prefixes)


def _refused(counts: Counts, prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): n for name, n in sorted(counts.items()) if name.startswith(prefix)}


def _sum(hours: Iterable[Mapping[str, Any]], name: str) -> int:
    """Of complete hours; what is missing does not make up for what is too much."""
    sides = [hour[side] for hour in hours if hour["complete"] for side in ("clicks", "conversions")]
    return sum(abs(side[name] or 0) for side in sides)


async def _state(db: Database) -> State:
    row = await db.fetchrow(_STATE)
    return State(*row) if row else State(None, None)


async def _told(db: Database, starts: datetime, ends: datetime) -> Told:
    counters: dict[datetime, dict[str, int]] = {}
    for row in await db.fetch(_COUNTERS, starts, ends):
        counters.setdefault(row["hour"], {})[row["outcome"]] = row["count"]
    killed = [Killed(row["since"], row["until"]) for row in await db.fetch(_KILLED, starts, ends)]
    return Told(counters, killed, await _counted(db, _OF_INTAKES, _hours(starts, ends)))


async def _clicks(db: Database, starts: datetime, ends: datetime) -> dict[datetime, int]:
    """Without the hours of which nothing is known any more."""
    days = await partitions.existing(db)
    there = [at for at in _hours(starts, ends) if at.date() in days]
    gone = {at: count for at, (count, _) in (await _settled(db, starts, ends)).items()}
    return gone | await _counted(db, _OF_CLICKS, there)


async def _settled(db: Database, starts: datetime, ends: datetime) -> dict[datetime, tuple[int, bool]]:
    return {row["hour"]: (row["count"], row["is_stale"]) for row in await db.fetch(_SETTLED, starts, ends)}


async def _counted(db: Database, sql: str, hours: list[datetime]) -> dict[datetime, int]:
    if not hours:
        return {}
    rows = await db.fetch(sql, hours, [_first_id(at) for at in hours], [_first_id(at + HOUR) for at in hours])
    return {row["hour"]: row["count"] for row in rows}


def _hours(starts: datetime, ends: datetime) -> list[datetime]:
    return [starts + n * HOUR for n in range((ends - starts) // HOUR)]


def _first_id(at: datetime) -> UUID:
    """Sorts before any UUIDv7 of that time, and after those of earlier times."""
    return UUID(int=to_ms(at) << 80)
