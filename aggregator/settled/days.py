"""Settle days: what each came to for partners and offers, and what came of it later as further versions.

A day of the programme is settled when all is here that edges received up to a day after it ended. One transaction for
each day, done by whoever of the aggregators has the lock, the oldest first. Whatever changes a settled day later marks
it; it is then compared with its last version, and what differs is the next one. Compared again nothing differs.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from prometheus_client import Counter

from aggregator.db.connect import Connection
from aggregator.db.instants import EPOCH, at
from aggregator.settled import paid_clicks, quarters
from schemas import limits

_VERSIONS = Counter("clickdam_settled_day_versions", "Versions of settled days that were written, the first included")
_DAY = timedelta(days=1)
_PLACE = """
SELECT timezone, CASE WHEN isfinite(days_through) THEN days_through END AS days_through,
       least(through, complete_through - make_interval(secs => $1)) AS due
FROM settling, complete_through, programme WHERE isfinite(through) AND isfinite(complete_through)
"""
_FIRST = """
least((SELECT min(quarter) FROM click_rollup WHERE quarter >= $1),
      (SELECT min(quarter) FROM conversion_rollup WHERE quarter >= $1)) AS quarter
"""
_NEXT = f"SELECT {_FIRST}, (SELECT max(day) FROM settled_day) AS last_day"  # noqa: S608 - our own names
# Where it was is marked, for who is changing what is passed over now, and cannot know that it is.
_MOVE = """
WITH marked AS (
    INSERT INTO stale_day (quarter) SELECT greatest(days_through, 'epoch') FROM settling WHERE days_through < $1
)
UPDATE settling SET days_through = $1 WHERE days_through < $1
"""
_STALE = "SELECT quarter FROM stale_day WHERE marked_at < $1 ORDER BY marked_at LIMIT 1"
_TAKE = "DELETE FROM stale_day WHERE quarter >= $1 AND quarter < $2"
_MARK = "INSERT INTO stale_day (quarter) VALUES ($1)"
_HELD = "SELECT * FROM settled_day WHERE starts_at <= $1 ORDER BY starts_at DESC LIMIT 1"
_AROUND = """
SELECT (SELECT max(ends_at) FROM settled_day WHERE ends_at <= $1) AS after,
       least((SELECT min(starts_at) FROM settled_day WHERE starts_at > $1), days_through) AS before,
       timezone
FROM settling, programme
"""
_FOUND = f"SELECT {_FIRST}"
_ADD = """
INSERT INTO settled_day AS held VALUES ($1, $2, $3) ON CONFLICT (day) DO UPDATE
    SET starts_at = least(held.starts_at, excluded.starts_at), ends_at = greatest(held.ends_at, excluded.ends_at)
RETURNING *
"""
_FOLLOWING = "SELECT coalesce(max(version), 0) + 1 FROM settled_version WHERE day = $1"
_CLICKS = ("clicks", "invalid_clicks", "unique_clicks")
_SALES = (
    "conversions", "pending", "rejected", "reversed", "sale_amount_minor", "revenue_minor", "payout_minor",
    "payout_pending_minor", "payout_reversed_minor",
)  # fmt: skip
FIGURES = (*_CLICKS, *_SALES)
_KEY = "partner_id, offer_id, currency"


def _sums(names: tuple[str, ...]) -> str:
    """Each of the figures, zero of those that are not among these."""
    return ", ".join(f"coalesce(sum({name}), 0)" if name in names else "0" for name in FIGURES)


def _each(expression: str) -> str:
    return ", ".join(expression.format(name) for name in FIGURES)


_PAID = ", ".join(
    f"coalesce(sum(amount_minor) FILTER (WHERE side = '{name.removesuffix('_minor')}'), 0)"
    if name in ("payout_minor", "revenue_minor")
    else "0"
    for name in FIGURES
)
# $1 the day, $2 and $3 its beginning and end. What there is no more stands there as zeros.
_VERSION = f"""
WITH part ({_KEY}, {_each("{}")}) AS (
    SELECT partner_id, offer_id, '', {_sums(_CLICKS)} FROM click_rollup
    WHERE quarter >= $2 AND quarter < $3 GROUP BY partner_id, offer_id
    UNION ALL
    SELECT partner_id, offer_id, currency::text, {_sums(_SALES)} FROM conversion_rollup
    WHERE quarter >= $2 AND quarter < $3 GROUP BY partner_id, offer_id, currency
    UNION ALL
    SELECT partner_id, offer_id, currency::text, {_PAID} FROM paid_clicks WHERE day = $1
    GROUP BY partner_id, offer_id, currency
), told AS (
    SELECT {_KEY}, {_each("sum({0}) AS {0}")} FROM part GROUP BY {_KEY}
), held AS (
    SELECT DISTINCT ON ({_KEY}) * FROM settled_total WHERE day = $1 ORDER BY {_KEY}, version DESC
), changed AS (
    SELECT {_KEY}, {_each("coalesce(told.{0}, 0) AS {0}")} FROM told FULL JOIN held USING ({_KEY})
    WHERE ({_each("coalesce(told.{}, 0)")}) <> ({_each("coalesce(held.{}, 0)")})
), added AS (
    INSERT INTO settled_version (day, version)
    SELECT $1, coalesce(max(version), 0) + 1 FROM settled_version WHERE day = $1
    HAVING max(version) IS NULL OR EXISTS (SELECT FROM changed) RETURNING version
), written AS (
    INSERT INTO settled_total (day, version, {_KEY}, {_each("{}")})
    SELECT $1, version, {_KEY}, {_each("{}")} FROM changed, added
)
SELECT version FROM added
"""  # noqa: S608 - our own names


class Day(NamedTuple):
    """A day of the programme: `ends_at` is not in it."""

    day: date
    starts_at: datetime
    ends_at: datetime


async def settle_once(db: Connection, now_ms: int) -> bool:
    """Settle the next day that is due, else compare one that was marked long enough ago. Is there more to do? False
    also where another aggregator is at it. Raises one of DatabaseAway."""
    async with db.transaction():
        if not await db.fetchval(quarters.LOCK):
            return False
        following = await _next(db)
        day = following or await _stale(db, now_ms)
        if day is None:
            return False
        added = await _compare(db, day)
        if following:
            await db.execute(_MOVE, day.ends_at)
            await db.execute(_MARK, day.starts_at)  # as the days that are passed over before it
    _VERSIONS.inc(added)
    return True


async def _next(db: Connection) -> Day | None:
    """The next day with anything in it that can be settled; those before it are, for there is nothing in them."""
    place = await db.fetchrow(_PLACE, limits.DAY_SETTLES_S)
    if place is None:
        return None
    zone, through = ZoneInfo(place["timezone"]), place["days_through"]
    due = _midnight(place["due"].astimezone(zone).date(), zone)
    if through is not None and through >= due:
        return None
    found = await db.fetchrow(_NEXT, through or EPOCH)
    assert found is not None
    if found["quarter"] is None or found["quarter"] >= due:
        if through is not None:  # before anything was settled, a programme may bring its past yet
            await db.execute(_MOVE, due)
        return None
    day = _following(found["quarter"], zone, through, found["last_day"])
    return day if day.ends_at <= due else None


def _following(quarter: datetime, zone: ZoneInfo, through: datetime | None, last_day: date | None) -> Day:
    """The day of a quarter hour. It begins where the last one ended, wherever midnight was then: after a change of the
    programme's zone one day is longer or shorter."""
    day = quarter.astimezone(zone).date()
    if through is None:
        return Day(day, _midnight(day, zone), _midnight(day + _DAY, zone))
    if last_day is not None and day <= last_day:
        day, starts_at = last_day + _DAY, through
    else:
        starts_at = max(through, _midnight(day, zone))
    return Day(day, starts_at, _midnight(day + _DAY, zone))


async def _stale(db: Connection, now_ms: int) -> Day | None:
    """A day that was marked long enough ago: the changes of some time are one version."""
    marked_before = at(now_ms - int(limits.DAY_CORRECT_S * 1000))
    while (quarter := await db.fetchval(_STALE, marked_before)) is not None:
        held = await db.fetchrow(_HELD, quarter)
        day = Day(*held) if held is not None and quarter < held["ends_at"] else await _between(db, quarter)
        if day is not None:
            return day
    return None


async def _between(db: Connection, quarter: datetime) -> Day | None:
    """The next day from a quarter hour on that had nothing in it when it was passed over, and has now; between those
    beside it. None where all have nothing up to the next settled one. Marks are taken before it is looked; what comes
    after that day is looked at later."""
    around = await db.fetchrow(_AROUND, quarter)
    assert around is not None
    await db.execute(_TAKE, quarter, around["before"])
    found = await db.fetchval(_FOUND, quarter)
    if found is None or found >= around["before"]:
        return None
    zone = ZoneInfo(around["timezone"])
    day = found.astimezone(zone).date()
    starts_at, ends_at = _midnight(day, zone), min(_midnight(day + _DAY, zone), around["before"])
    if ends_at < around["before"]:
        await db.execute(_MARK, ends_at)
    return Day(day, max(starts_at, around["after"]) if around["after"] else starts_at, ends_at)


async def _compare(db: Connection, day: Day) -> int:
    """Book what clicks are paid, and write what a day came to, as far as its last version does not say so; how many
    versions that adds. Marks are taken before: what is committed in between is marked again."""
    held = await db.fetchrow(_ADD, *day)
    assert held is not None
    day = Day(*held)
    await db.execute(_TAKE, day.starts_at, day.ends_at)
    await paid_clicks.book(db, *day, await db.fetchval(_FOLLOWING, day.day))
    return 0 if await db.fetchval(_VERSION, *day) is None else 1


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
