"""What a report was asked for: the query's parameters, read and judged. No I/O."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from schemas import limits, money
from schemas.errors import Refused

METRICS = ("clicks", "invalid_clicks", "conversions", "sale_amount", "payout")
DEFAULT_METRICS = ("clicks", "conversions", "sale_amount", "payout")
DEFAULT_DAYS = 7
PARAMETERS = frozenset("from to timezone group_by metrics link_id limit cursor".split())
QUARTER = timedelta(minutes=15)
EARLIEST, LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)

GroupBy = Literal["day", "link"]
Group = date | int
_GROUP_BY: dict[str, GroupBy] = {"day": "day", "link": "link"}
_ID_MAX = 2**31 - 1
_DIGITS_MAX = 19  # of an int8
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
# a `+` that was not percent-encoded arrives as a space
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?)(?:([Zz])|([+ -])(\d\d:\d\d))", re.ASCII)


@dataclass(frozen=True, slots=True)
class Bucket:
    """One group in time: a day of the asked zone, cut to the asked range. `starts` is in it, `ends` is not."""

    day: date
    starts: datetime
    ends: datetime


@dataclass(frozen=True, slots=True)
class Asked:
    """A report to be made. `after` is the last row of the page before."""

    starts: datetime
    ends: datetime
    zone: ZoneInfo
    group_by: GroupBy
    metrics: tuple[str, ...]
    link_id: int | None
    limit: int
    after: tuple[Group, str] | None


def read(params: Sequence[tuple[str, str]], programme_zone: str, now: datetime) -> Asked:
    """Read the parameters of a query, of which each may come once. Raises Refused naming the one to blame."""
    given = by_name(params, PARAMETERS)
    zone = read_zone(given.get("timezone", programme_zone))
    starts, ends = _range(given, zone, now)
    group_by = _group_by(given.get("group_by", "day"))
    return Asked(
        starts=starts,
        ends=ends,
        zone=zone,
        group_by=group_by,
        metrics=_metrics(given["metrics"]) if "metrics" in given else DEFAULT_METRICS,
        link_id=number("link_id", given["link_id"], _ID_MAX) if "link_id" in given else None,
        limit=number("limit", given.get("limit", str(limits.REPORT_ROWS_MAX)), limits.REPORT_ROWS_MAX),
        after=read_cursor(group_by, given["cursor"]) if "cursor" in given else None,
    )


def buckets(asked: Asked) -> list[Bucket]:
    """The days of a report. Each begins at its zone's midnight, so that one of 23 or 25 hours is whole."""
    first = asked.starts.astimezone(asked.zone).date()
    last = (asked.ends - QUARTER).astimezone(asked.zone).date()
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    return [
        Bucket(
            day,
            max(asked.starts, midnight(day, asked.zone)),
            min(asked.ends, midnight(day + timedelta(days=1), asked.zone)),
        )
        for day in days
    ]


def midnight(day: date, zone: ZoneInfo) -> datetime:
    """The instant, in UTC, at which a day begins in a zone."""
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


def read_zone(name: str) -> ZoneInfo:
    if name not in _zones():
        raise Refused("bad_value", f"{_shown(name)} is not an IANA time zone", "timezone")
    return ZoneInfo(name)


def write_cursor(group: Group, currency: str) -> str:
    """Where the next page goes on."""
    text = json.dumps([group.isoformat() if isinstance(group, date) else group, currency])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(group_by: GroupBy, cursor: str) -> tuple[Group, str]:
    try:
        group, currency = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True))
        if currency not in money.EXPONENT:
            raise ValueError(currency)
        return _read_group(group_by, group), currency
    except (ValueError, TypeError, RecursionError, Refused):
        raise Refused("bad_cursor", "this cursor is not one of this report's", "cursor") from None


def _read_group(group_by: GroupBy, group: Any) -> Group:
    return date.fromisoformat(group) if group_by == "day" else number("cursor", str(group), _ID_MAX, 0)


def by_name(params: Sequence[tuple[str, str]], known: frozenset[str]) -> dict[str, str]:
    """The parameters of a query, of which each may come once. Raises Refused naming the one to blame."""
    given: dict[str, str] = {}
    for name, value in params:
        if name not in known:
            raise Refused("bad_value", f"there is no parameter {_shown(name)}", _shown(name)[1:-1])
        if name in given:
            raise Refused("bad_value", f"{name} is given more than once", name)
        given[name] = value
    return given


def _range(given: dict[str, str], zone: ZoneInfo, now: datetime) -> tuple[datetime, datetime]:
    tomorrow = now.astimezone(zone).date() + timedelta(days=1)
    ends = _quarter("to", given["to"], zone) if "to" in given else midnight(tomorrow, zone)
    if "from" in given:
        starts = _quarter("from", given["from"], zone)
    else:
        starts = (ends.astimezone(zone) - timedelta(days=DEFAULT_DAYS)).astimezone(UTC)
    if ends <= starts:
        raise Refused("bad_value", "to must be after from, and is not itself included", "to")
    if ends - starts > timedelta(days=limits.REPORT_DAYS_MAX, hours=1):  # an hour, for the end of summer time
        raise Refused("bad_value", f"a report spans at most {limits.REPORT_DAYS_MAX} days", "to")
    return starts, ends


def _quarter(name: str, text: str, zone: ZoneInfo) -> datetime:
    instant = read_time(name, text, zone)
    if (instant - EARLIEST) % QUARTER:
        raise Refused("bad_value", f"{name} must lie on a quarter of an hour", name)
    return instant


def read_time(name: str, text: str, zone: ZoneInfo) -> datetime:
    """A time of a query; a date is midnight in `zone`. Raises Refused naming the parameter."""
    try:
        instant = _parse(text, zone)
    except (ValueError, OverflowError):
        raise Refused(
            "bad_value", f"{name} must be a date (2026-11-27) or an RFC 3339 time (2026-11-27T00:00:00Z)", name
        ) from None
    if not EARLIEST <= instant <= LATEST:
        raise Refused("bad_value", f"{name} must lie between {EARLIEST.year} and {LATEST.year}", name)
    return instant


def _parse(text: str, zone: ZoneInfo) -> datetime:
    if _DATE.fullmatch(text):
        return midnight(date.fromisoformat(text), zone)
    found = _TIME.fullmatch(text)
    if not found:
        raise ValueError(text)
    day, time, utc, sign, offset = found.groups()
    zone_text = "+00:00" if utc else ("-" if sign == "-" else "+") + offset
    return datetime.fromisoformat(f"{day}T{time}{zone_text}").astimezone(UTC)


def _group_by(text: str) -> GroupBy:
    if text not in _GROUP_BY:
        raise Refused("bad_value", "group_by must be day or link", "group_by")
    return _GROUP_BY[text]


def _metrics(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in METRICS:
            raise Refused("bad_value", f"there is no metric {_shown(name)}, only {', '.join(METRICS)}", "metrics")
    if len(set(names)) < len(names):
        raise Refused("bad_value", "a metric is given more than once", "metrics")
    return names


def number(name: str, text: str, most: int, least: int = 1) -> int:
    """Raises Refused naming the parameter."""
    if not is_whole(text, most, least):
        raise Refused("bad_value", f"{name} must be a whole number from {least} to {most}", name)
    return int(text)


def is_whole(text: str, most: int, least: int = 1) -> bool:
    """Whether this is a number in digits, and not too long to be read at all."""
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX and least <= int(text) <= most


def word(name: str, text: str) -> str:
    """A text to be found in the database. Raises Refused naming the parameter for one that Postgres could not take."""
    if "\0" in text:
        raise Refused("bad_value", f"{name} has a control character", name)
    return text


def _shown(text: str) -> str:
    return ascii(text[:64])


@cache
def _zones() -> frozenset[str]:
    # on another machine these two are other zones, or none
    return frozenset(available_timezones() - {"localtime", "Factory"})
