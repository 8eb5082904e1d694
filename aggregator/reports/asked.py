"""What a report was asked for: the query's parameters or body, read and judged. No I/O."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, available_timezones

import msgspec

from aggregator.reports.buckets import QUARTER, TIMES, Granularity, buckets, midnight
from aggregator.reports.figures import BOOKED, DEFAULT, HIDDEN, METRICS, needs_clicks
from schemas import limits, money
from schemas.errors import Refused
from schemas.outcomes import Status

DETAILS = ("os", "browser", "source_id", *(f"sub{n}" for n in range(1, 11)))
SALE_ONLY = frozenset({"event", "status", "currency"})  # what clicks do not have
# What rows may be grouped by, as it is asked for, and the column that says it.
GROUPS = {
    "link": "link_id", "offer": "offer_id", "partner": "partner_id", "advertiser": "advertiser_id",
    "country": "country", "device": "device", "source": "source_id",
    **{name: name for name in DETAILS if name != "source_id"}, "event": "event", "status": "status",
}  # fmt: skip
IDS = frozenset({"link_id", "offer_id", "partner_id", "advertiser_id"})
FILTERS = (*GROUPS.values(), "currency")
DATE_BASES = ("conversion", "click", "ledger")
LIVE = frozenset({"link_id", "partner_id"})  # what edges count by
BOOKED_BY = frozenset({"partner_id", "offer_id", "advertiser_id", "event", "currency"})  # what the ledger knows
DEFAULT_DAYS = 7
PARAMETERS = frozenset(
    "from to timezone granularity group_by metrics date_basis sort limit cursor totals live".split()
) | frozenset(FILTERS)  # fmt: skip
EARLIEST, LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)

_HIDDEN_NAMES = {
    "admin": frozenset[str](),
    "partner": frozenset({"advertiser_id"}),
    "advertiser": frozenset({"link_id", *DETAILS}),  # what a partner knows its visitors by
}
_GRANULARITIES: dict[str, Granularity] = {name: name for name in (*TIMES, "total")}
_DEVICES = frozenset("desktop mobile other robot tablet".split())
_ID_MAX = 2**31 - 1
_DIGITS_MAX = 19  # of an int8
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
# a `+` that was not percent-encoded arrives as a space
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?)(?:([Zz])|([+ -])(\d\d:\d\d))", re.ASCII)


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose rows may be seen: a partner's, an advertiser's, or all."""

    partner_id: int | None = None
    advertiser_id: int | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """Rows of these values only, or, `excluded`, of none of them."""

    name: str
    values: tuple[str | int, ...]
    excluded: bool


class After(NamedTuple):
    """The last row of the page before: what it was sorted by, if not by time and groups alone, the beginning of its
    time, its groups' values, its currency."""

    value: str | None
    starts: datetime
    groups: tuple[str | int, ...]
    currency: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A report to be made. From `begun` on, where the first bucket begins that lies ahead, there are no rows of zeros
    yet. `groups` are columns; `sort` is a metric or the granularity, and whether the highest is first. `live`: of time
    that is not complete yet, what edges have counted may be shown. `whole_days`: its times are made of days of
    the programme."""

    starts: datetime
    ends: datetime
    begun: datetime
    zone: ZoneInfo
    granularity: Granularity
    groups: tuple[str, ...]
    metrics: tuple[str, ...]
    filters: tuple[Filter, ...]
    date_basis: str
    sort: tuple[str, bool] | None
    limit: int
    after: After | None
    totals: bool
    live: bool
    whole_days: bool

    @property
    def names(self) -> frozenset[str]:
        """All that it asks of a click or a conversion."""
        return frozenset(self.groups) | {one.name for one in self.filters}


class QueryBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/reports/query`: the words of the GET; here a value may begin with `-` or have a comma."""

    from_: str | None = msgspec.field(default=None, name="from")
    to: str | None = None
    timezone: str | None = None
    granularity: str | None = None
    group_by: list[str] | None = None
    metrics: list[str] | None = None
    filters: dict[str, list[str | int]] = {}
    exclusions: dict[str, list[str | int]] = {}
    date_basis: str = "conversion"
    sort: str | None = None
    limit: int = limits.REPORT_ROWS_MAX
    cursor: str | None = None
    totals: bool = False
    live: bool = False


def read(params: Sequence[tuple[str, str]], programme_zone: str, now: datetime, role: str) -> Asked:
    """Read the parameters of a query, of which each may come once. Raises Refused naming the one to blame."""
    given = by_name(params, PARAMETERS)
    included, excluded = _in_and_not_in({name: given[name] for name in FILTERS if name in given})
    body = QueryBody(
        from_=given.get("from"),
        to=given.get("to"),
        timezone=given.get("timezone"),
        granularity=given.get("granularity"),
        group_by=given["group_by"].split(",") if "group_by" in given else None,
        metrics=given["metrics"].split(",") if "metrics" in given else None,
        filters=included,
        exclusions=excluded,
        date_basis=given.get("date_basis", "conversion"),
        sort=given.get("sort"),
        limit=number("limit", given.get("limit", str(limits.REPORT_ROWS_MAX)), limits.REPORT_ROWS_MAX),
        cursor=given.get("cursor"),
        totals=_flag("totals", given.get("totals", "0")),
        live=_flag("live", given.get("live", "0")),
    )
    return read_query(body, programme_zone, now, role)


def read_query(body: QueryBody, programme_zone: str, now: datetime, role: str) -> Asked:
    """The same of a body. Raises Refused naming the field to blame, with `forbidden` for what is not for this role."""
    zone = read_zone(programme_zone if body.timezone is None else body.timezone)
    starts, ends = _range(body, zone, now)
    granularity, groups = _grouping(body)
    filters = _filters(body)
    _check_names(groups, filters, role)
    date_basis = _one_of("date_basis", body.date_basis, DATE_BASES)
    asked_metrics = ["clicks"] if body.live and body.metrics is None else body.metrics
    metrics = _metrics(asked_metrics, groups, filters, role, date_basis)
    if body.live:
        _check_live(metrics, groups, filters, role)
    sort = None if body.sort is None else _sort(body.sort, metrics, granularity)
    cuts = _cuts(starts, ends, zone, granularity)
    return Asked(
        starts=starts,
        ends=ends,
        begun=next((one.starts for one in cuts if one.starts > now), ends),
        zone=zone,
        granularity=granularity,
        groups=groups,
        metrics=metrics,
        filters=filters,
        date_basis=date_basis,
        sort=sort,
        limit=number("limit", str(body.limit), limits.REPORT_ROWS_MAX),
        after=None if body.cursor is None else read_cursor(_order(granularity, groups, sort), body.cursor),
        totals=body.totals,
        live=body.live,
        whole_days=zone.key == programme_zone and granularity not in ("quarter", "hour") and _days(starts, ends, zone),
    )


def read_zone(name: str) -> ZoneInfo:
    if name not in _zones():
        raise Refused("bad_value", f"{_shown(name)} is not an IANA time zone", "timezone")
    return ZoneInfo(name)


def write_cursor(asked: Asked, after: After) -> str:
    """Where the next page of a report goes on."""
    order = _order(asked.granularity, asked.groups, asked.sort)
    text = json.dumps([order, after.value, after.starts.isoformat(), after.groups, after.currency])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(order: str, cursor: str) -> After:
    try:
        written = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True))
        of, value, starts, values, currency = written
        if of != order or currency not in money.EXPONENT:
            raise ValueError(of)
        groups = order.split(",")[1:-1]
        kept = tuple(_cursor_value(name, one) for name, one in zip(groups, values, strict=True))
        return After(_cursor_number(value), _aware(starts), kept, currency)
    except (ValueError, TypeError, RecursionError, InvalidOperation, Refused):
        raise Refused("bad_cursor", "this cursor is not one of this report's", "cursor") from None


def _order(granularity: Granularity, groups: tuple[str, ...], sort: tuple[str, bool] | None) -> str:
    """What the rows of a report are in the order of, in one line; a cursor is good for no other."""
    return ",".join([granularity, *groups, "" if sort is None else f"{'-' if sort[1] else ''}{sort[0]}"])


def _cursor_value(name: str, value: Any) -> str | int:
    if name in IDS:
        return number("cursor", str(value), _ID_MAX, 0)
    if not isinstance(value, str):
        raise TypeError(value)
    return _text("cursor", value)


def _cursor_number(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > limits.VALUE_MAX or not Decimal(value).is_finite():
        raise ValueError(value)
    return value


def _aware(text: Any) -> datetime:
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None or not EARLIEST <= instant <= LATEST:
        raise ValueError(text)
    return instant.astimezone(UTC)


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


def _flag(name: str, text: str) -> bool:
    return _one_of(name, text, ("0", "1")) == "1"


def _one_of(name: str, text: str, known: Sequence[str]) -> str:
    if text not in known:
        raise Refused("bad_value", f"{name} must be one of {', '.join(known)}", name)
    return text


def _in_and_not_in(given: Mapping[str, str]) -> tuple[dict[str, list[str | int]], dict[str, list[str | int]]]:
    """`US,DE` is in, `-US,-DE` not in. Raises Refused naming the parameter that says both."""
    sides: tuple[dict[str, list[str | int]], dict[str, list[str | int]]] = ({}, {})
    for name, text in given.items():
        values = text.split(",")
        excluded = [value.startswith("-") for value in values]
        if any(excluded) != all(excluded):
            raise Refused("bad_value", f"{name}: all values are to be left out (-), or none", name)
        sides[excluded[0]][name] = [value[excluded[0] :] for value in values]
    return sides


def _filters(body: QueryBody) -> tuple[Filter, ...]:
    return tuple(
        Filter(name, _filter_values(name, values), excluded)
        for side, excluded in ((body.filters, False), (body.exclusions, True))
        for name, values in sorted(side.items())
    )


def _filter_values(name: str, values: Sequence[str | int]) -> tuple[str | int, ...]:
    """In one order, so that the same question is the same one. Raises Refused naming the filter."""
    if name not in FILTERS:
        raise Refused("bad_value", f"there is no filter {_shown(name)}, only {', '.join(FILTERS)}", _shown(name)[1:-1])
    if not 1 <= len(values) <= limits.FILTER_VALUES_MAX:
        raise Refused("bad_value", f"{name} takes 1 to {limits.FILTER_VALUES_MAX} values", name)
    if name in IDS:
        return tuple(sorted({number(name, str(value), _ID_MAX) for value in values}))
    read_value = _READ.get(name, _text)
    return tuple(sorted({read_value(name, str(value)) for value in values}))


def _text(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused("bad_value", f"{name} is not Unicode text", name) from None
    if len(text) > limits.VALUE_MAX:
        raise Refused("bad_value", f"{name} has at most {limits.VALUE_MAX} characters", name)
    return word(name, text)


def _filled(name: str, text: str) -> str:
    if not text:
        raise Refused("bad_value", f"{name} has an empty value", name)
    return _text(name, text)


def _country(name: str, text: str) -> str:
    if not re.fullmatch(r"[A-Za-z]{2}", text, re.ASCII):
        raise Refused("bad_value", f"{name} must be ISO 3166 codes of two letters, such as DE", name)
    return text.upper()


def _currency(name: str, text: str) -> str:
    if text not in money.EXPONENT:
        raise Refused("bad_value", f"{name} must be ISO 4217 codes, such as EUR", name)
    return text


_READ: dict[str, Callable[[str, str], str]] = {
    "country": _country,
    "device": lambda name, text: _one_of(name, text, sorted(_DEVICES)),
    "status": lambda name, text: _one_of(name, text, list(Status)),
    "currency": _currency,
    "event": _filled,
    **dict.fromkeys(DETAILS, _filled),
}


def _range(body: QueryBody, zone: ZoneInfo, now: datetime) -> tuple[datetime, datetime]:
    tomorrow = now.astimezone(zone).date() + timedelta(days=1)
    ends = midnight(tomorrow, zone) if body.to is None else _quarter("to", body.to, zone)
    if body.from_ is None:
        starts = (ends.astimezone(zone) - timedelta(days=DEFAULT_DAYS)).astimezone(UTC)
    else:
        starts = _quarter("from", body.from_, zone)
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
        return midnight(datetime.fromisoformat(text).date(), zone)
    found = _TIME.fullmatch(text)
    if not found:
        raise ValueError(text)
    day, time, utc, sign, offset = found.groups()
    zone_text = "+00:00" if utc else ("-" if sign == "-" else "+") + offset
    return datetime.fromisoformat(f"{day}T{time}{zone_text}").astimezone(UTC)


def _grouping(body: QueryBody) -> tuple[Granularity, tuple[str, ...]]:
    """How time is cut, and the columns that rows are grouped by. A time word in `group_by` is a granularity."""
    words = body.group_by
    for one in words or ():
        if one not in GROUPS and one not in TIMES:
            raise Refused("bad_value", f"group_by is of {', '.join((*TIMES, *GROUPS))}, not {_shown(one)}", "group_by")
    times = [one for one in words or () if one in TIMES]
    groups = tuple(GROUPS[one] for one in words or () if one in GROUPS)
    if len(times) > 1 or len(groups) > limits.REPORT_GROUPS_MAX or len(set(groups)) < len(groups):
        raise Refused("bad_value", f"group_by is one time and {limits.REPORT_GROUPS_MAX} others at most", "group_by")
    if body.granularity is None:
        return _GRANULARITIES[times[0] if times else "day" if words is None else "total"], groups
    if times not in ([], [body.granularity]):
        raise Refused("bad_value", "granularity and group_by name different times", "granularity")
    return _GRANULARITIES[_one_of("granularity", body.granularity, list(_GRANULARITIES))], groups


def _days(starts: datetime, ends: datetime, zone: ZoneInfo) -> bool:
    return all(midnight(at.astimezone(zone).date(), zone) == at for at in (starts, ends))


def _cuts(starts: datetime, ends: datetime, zone: ZoneInfo, granularity: Granularity) -> list[Any]:
    if granularity == "quarter" and (ends - starts) // QUARTER > limits.REPORT_BUCKETS_MAX:
        days = limits.REPORT_BUCKETS_MAX * QUARTER // timedelta(days=1)
        raise Refused("bad_value", f"quarter hours of at most {days} days; ask for hours", "granularity")
    return buckets(starts, ends, zone, granularity)


def _check_names(groups: Sequence[str], filters: Sequence[Filter], role: str) -> None:
    """Raises Refused("forbidden") for what this role may not group or filter by."""
    for name in groups:
        if name in _HIDDEN_NAMES[role]:
            raise Refused("forbidden", f"{name} is not shown to a key with the role {role}", "group_by")
    for one in filters:
        if one.name in _HIDDEN_NAMES[role]:
            raise Refused("forbidden", f"{one.name} is not shown to a key with the role {role}", one.name)


def _metrics(
    asked: Sequence[str] | None, groups: Sequence[str], filters: Sequence[Filter], role: str, date_basis: str
) -> tuple[str, ...]:
    without_clicks = sorted(SALE_ONLY & ({*groups} | {one.name for one in filters}))
    if date_basis == "ledger":
        _check_booked(asked or (), groups, filters)
    if asked is None:
        usual = DEFAULT[role] if date_basis != "ledger" else [name for name in BOOKED if name not in HIDDEN[role]]
        return tuple(name for name in usual if not (without_clicks and needs_clicks(name)))
    for name in asked:
        if name not in METRICS:
            raise Refused("bad_value", f"there is no metric {_shown(name)}, only {', '.join(METRICS)}", "metrics")
        if name in HIDDEN[role]:
            raise Refused("forbidden", f"{name} is not shown to a key with the role {role}", "metrics")
        if without_clicks and needs_clicks(name):
            raise Refused("bad_value", f"clicks have no {without_clicks[0]}: leave {name} out", "metrics")
    if not asked or len(set(asked)) < len(asked):
        raise Refused("bad_value", "name one or more metrics, each once", "metrics")
    return tuple(asked)


def _check_booked(metrics: Sequence[str], groups: Sequence[str], filters: Sequence[Filter]) -> None:
    """Raises Refused naming what the ledger does not know, and what it does."""
    wanted = [("group_by", name) for name in groups] + [(one.name, one.name) for one in filters]
    for field, name in wanted:
        if name not in BOOKED_BY:
            sentence = "date_basis=ledger goes by partner, offer, advertiser, event and currency"
            raise Refused("bad_value", f"{sentence}, not by {name}", field)
    for name in metrics:
        if name in METRICS and name not in BOOKED:
            raise Refused("bad_value", f"date_basis=ledger has {', '.join(BOOKED)}: leave {name} out", "metrics")


def _check_live(metrics: Sequence[str], groups: Sequence[str], filters: Sequence[Filter], role: str) -> None:
    """Raises Refused where it is not clicks alone that are asked for, or by more than edges count by."""
    if role == "advertiser":
        raise Refused("forbidden", "live is not for a key with the role advertiser", "live")
    if metrics != ("clicks",) or not LIVE.issuperset([*groups, *(one.name for one in filters)]):
        raise Refused("bad_value", "live is for clicks alone, in total or by link or partner", "live")


def _sort(text: str, metrics: Sequence[str], granularity: Granularity) -> tuple[str, bool]:
    name = text.removeprefix("-")
    known = [*metrics, *(() if granularity == "total" else (granularity,))]
    return _one_of("sort", name, known), text.startswith("-")


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
