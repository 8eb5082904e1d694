"""How a report's time is cut: at the wall clock of the asked zone, never at Postgres' own table of time zones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from aggregator.db.instants import rfc3339

QUARTER = timedelta(minutes=15)
Granularity = Literal["quarter", "hour", "day", "week", "month", "total"]
TIMES: tuple[Granularity, ...] = ("quarter", "hour", "day", "week", "month")
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A part of a report's time, cut to the asked range: `starts` is in it, `ends` is not. `label`: the date that a
    day, a week (its Monday) or a month begins with, else the instant."""

    label: str
    starts: datetime
    ends: datetime


def buckets(starts: datetime, ends: datetime, zone: ZoneInfo, granularity: Granularity) -> list[Bucket]:
    """In order and without gaps. A day begins at its zone's midnight, so that one of 23 or 25 hours is whole."""
    if granularity == "total":
        return [Bucket("", starts, ends)]
    cuts = _hours(starts, ends, zone, granularity) if granularity in ("quarter", "hour") else None
    cuts = cuts or _dates(starts, ends, zone, granularity)
    begins = [(label, max(at, starts)) for label, at in cuts]
    ending = [at for _, at in begins[1:]] + [ends]
    # a day that a zone left out, when it crossed the date line, has no length
    return [Bucket(label, at, end) for (label, at), end in zip(begins, ending, strict=True) if at < end]


def midnight(day: date, zone: ZoneInfo) -> datetime:
    """The instant, in UTC, at which a day begins in a zone."""
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


def _hours(starts: datetime, ends: datetime, zone: ZoneInfo, granularity: Granularity) -> list[tuple[str, datetime]]:
    """Quarter hours, or hours of the wall clock: one begins wherever its hour or its distance to UTC changes."""
    cuts: list[tuple[str, datetime]] = []
    last = None
    for n in range((ends - starts) // QUARTER):
        at = starts + n * QUARTER
        local = at.astimezone(zone)
        key = n if granularity == "quarter" else (local.date(), local.hour, local.utcoffset())
        if key != last:
            cuts.append((rfc3339(at, "seconds"), at))
        last = key
    return cuts


def _dates(starts: datetime, ends: datetime, zone: ZoneInfo, granularity: Granularity) -> list[tuple[str, datetime]]:
    last = (ends - QUARTER).astimezone(zone).date()
    first = _begin(starts.astimezone(zone).date(), granularity)
    return [(day.isoformat(), midnight(day, zone)) for day in _following(first, last, granularity)]


def _begin(day: date, granularity: Granularity) -> date:
    """The first day of the week or month that a day lies in."""
    if granularity == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if granularity == "month" else day


def _following(day: date, last: date, granularity: Granularity) -> Iterator[date]:
    while day <= last:
        yield day
        days = {"day": 1, "week": 7}.get(granularity, 31)
        day = _begin(day + days * _DAY, granularity) if granularity == "month" else day + days * _DAY
