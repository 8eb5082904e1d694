"""Reports: what was asked for, out of one statement over the rows that `sources` names."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from aggregator.db.connect import Database, Row
from aggregator.db.instants import rfc3339
from aggregator.reports.asked import IDS, After, Asked, Scope, write_cursor
from aggregator.reports.buckets import TIMES, Bucket, buckets
from aggregator.reports.days import corrected
from aggregator.reports.figures import CLICKED, CONVERTED, COUNTS, DERIVED, RATIOS, made_of
from aggregator.reports.live import Counted, ahead
from aggregator.reports.sources import (
    Source,
    clicks_of,
    column,
    conversions_of,
    has_paid_clicks,
    needs_settled,
    rules,
)
from aggregator.reports.state import State
from schemas import limits

_DUPLICATES = """coalesce(sum(clicks - invalid_clicks - unique_clicks)
                          FILTER (WHERE quarter < (SELECT through FROM settling)), 0)"""
_CLICK_SUMS = {name: f"sum({name})" for name in CLICKED} | {"duplicate_clicks": _DUPLICATES}
_SALE_SUMS = {name: f"sum({name if name in COUNTS else f'{name}_minor'})" for name in CONVERTED}
# $1 and $2 the range, $3 the programme's currency, $4 the beginnings of the buckets. `time` is a bucket's number.
_ROWS = """
WITH clicked AS MATERIALIZED ({clicked}), converted AS MATERIALIZED ({converted}),
line AS ({line}), total AS ({total})
(SELECT false AS is_total, *, {sort} AS sorted FROM line WHERE {after} ORDER BY {order} {limit})
UNION ALL SELECT true, *, NULL::numeric FROM total {with_totals}
ORDER BY is_total, {order}
"""
_KEYS = "time, group_1, group_2"
_LINE = """
SELECT *, {derived} FROM (
    SELECT time, coalesce(group_1, {unknown_1}) AS group_1, coalesce(group_2, {unknown_2}) AS group_2,
           coalesce(currency, $3) COLLATE "C" AS currency, {clicks}, {sales},
           coalesce(clicks - invalid_clicks, 0) AS valid_clicks
    FROM ({clicked}) AS clicked FULL JOIN (
        SELECT *, row_number() OVER (PARTITION BY {keys} ORDER BY currency) AS place FROM ({converted}) AS sold
    ) AS converted USING ({keys}) {filled}
) AS sums
"""
_TOTAL_CLICKS = "SELECT 1 AS time, 0 AS group_1, 0 AS group_2, {sums} FROM clicked"
_TOTAL_SALES = "SELECT 1 AS time, 0 AS group_1, 0 AS group_2, currency, {sums} FROM converted GROUP BY currency"


@dataclass(frozen=True, slots=True)
class Report:
    """What was asked, the programme's currency, and whose rows may be seen: all that an answer depends on."""

    asked: Asked
    currency: str
    scope: Scope


async def report(db: Database, wanted: Report, state: State, counted: Counted | None = None) -> dict[str, Any]:
    """A report as the API answers it. `state` was read before, and `counted`, what edges have counted of late.

    One row per time, groups and currency, money in its minor units. Clicks have no currency: those of a group stand on
    one of its rows alone (the first currency in the alphabet, or the programme's when nothing was sold), so that a
    column's sum over all rows is right; ratios go by all clicks of the group. Rows by time alone are there for every
    time that has begun, others where something happened. `totals`: the same of the whole question, by currency.

    `provisional_from`: from then on events may be missing; None where the whole range is complete. `live_from`: from
    then on clicks are those that edges have counted, where these are more. `corrected_days`: those of the range that
    were settled, and of which something changed since. `paid_clicks`: whether payout and revenue have what clicks were
    paid. Raises Refused.
    """
    asked = wanted.asked
    sql, args = _statement(wanted, counted, limit=asked.limit + 1, with_totals=asked.totals)
    rows = await db.fetch(sql, *args)
    lines = [row for row in rows if not row["is_total"]]
    page, truncated = lines[: asked.limit], len(lines) > asked.limit
    cuts = _buckets(asked)
    answer = {
        "data": [_line(asked, cuts, row) for row in page],
        "complete_through": _shown(state.complete_through),
        "settled_through": _shown(state.settled_through),
        "provisional_from": _shown(_provisional_from(asked, state)),
        "timezone": asked.zone.key,
        "from": rfc3339(asked.starts, "seconds"),
        "to": rfc3339(asked.ends, "seconds"),
        "granularity": asked.granularity,
        "corrected_days": [day.isoformat() for day in await corrected(db, wanted.scope, asked.starts, asked.ends)],
        "paid_clicks": has_paid_clicks(asked),
        "truncated": truncated,
        "next_cursor": write_cursor(asked, _last(asked, cuts, page[-1])) if truncated else None,
    }
    if asked.live:
        answer["live_from"] = _shown(counted.since if counted else None)
    if asked.totals:
        answer["totals"] = [_figures(asked, row) for row in rows if row["is_total"]]
    return answer


async def lines(db: Database, wanted: Report) -> AsyncIterator[dict[str, Any]]:
    """All rows of the same report, however many, some hundred at a time; within a transaction. Raises Refused."""
    sql, args = _statement(wanted, None, limit=None, with_totals=False)
    cuts = _buckets(wanted.asked)
    async for row in db.cursor(sql, *args, prefetch=limits.STREAM_ROWS_AT_ONCE):
        yield _line(wanted.asked, cuts, row)


def columns(asked: Asked) -> tuple[str, ...]:
    """The names of a row's values, in their order."""
    time = () if asked.granularity == "total" else (asked.granularity,)
    return (*time, *asked.groups, *asked.metrics, "currency")


def _statement(
    wanted: Report, counted: Counted | None, *, limit: int | None, with_totals: bool
) -> tuple[str, list[Any]]:
    asked, cuts = wanted.asked, _buckets(wanted.asked)
    args: list[Any] = [asked.starts, asked.ends, wanted.currency, [one.starts for one in cuts]]
    clicked = _clicked(args, wanted, ahead(args, counted) if counted else clicks_of(asked))
    converted = _converted(args, wanted, conversions_of(asked, wanted.scope))
    sort, order = _sorted(asked)
    sql = _ROWS.format(
        clicked=clicked,
        converted=converted,
        line=_lines(asked, "TABLE clicked", "TABLE converted", _unknown(asked), _filled(args, asked, cuts)),
        total=_totals(asked),
        sort=sort,
        order=order,
        after=_after(args, asked, cuts),
        limit="" if limit is None else f"LIMIT {limit}",
        with_totals="" if with_totals else "WHERE false",
    )
    return sql, args


def _clicked(args: list[Any], wanted: Report, source: Source | None) -> str:
    if source is None:
        return f"SELECT 1 AS time, {_none(wanted.asked)}, {_zeros(CLICKED)} WHERE false"
    return f"SELECT {_by(wanted.asked, source)}, {_named(_CLICK_SUMS)} {_from(args, wanted, source)} GROUP BY 1, 2, 3"


def _converted(args: list[Any], wanted: Report, source: Source | None) -> str:
    """What has none of the asked figures makes no row."""
    if source is None:
        return f"SELECT 1 AS time, {_none(wanted.asked)}, ''::text AS currency, {_zeros(CONVERTED)} WHERE false"
    asked_sums = [_SALE_SUMS[name] for name in CONVERTED if name in made_of(wanted.asked.metrics)]
    return (
        f'SELECT {_by(wanted.asked, source)}, currency::text COLLATE "C" AS currency, {_named(_SALE_SUMS)}'
        f" {_from(args, wanted, source)} GROUP BY 1, 2, 3, 4"
        f" HAVING {' OR '.join(f'{one} <> 0' for one in asked_sums)}"
    )


def _from(args: list[Any], wanted: Report, source: Source) -> str:
    owner = "LEFT JOIN (SELECT id AS owned_id, advertiser_id FROM offer) AS owner ON owned_id = offer_id"
    joined = owner if "advertiser_id" in wanted.asked.groups else ""
    return f"FROM {source.rows} {joined} WHERE {rules(args, wanted.asked, wanted.scope, source)}"


def _by(asked: Asked, source: Source) -> str:
    """Days begin where we say, not by Postgres' own table of time zones."""
    groups = [_group(name, source) for name in asked.groups] + ["0"] * (limits.REPORT_GROUPS_MAX - len(asked.groups))
    named = ", ".join(f"{one} AS group_{n}" for n, one in enumerate(groups, 1))
    return f"width_bucket(quarter, $4::timestamptz[]) AS time, {named}"


def _group(name: str, source: Source) -> str:
    return f"coalesce({name}, 0)" if name in IDS else f'({column(name, source)})::text COLLATE "C"'


def _unknown(asked: Asked) -> tuple[str, str]:
    """What a row of zeros is of, as SQL of the type of each group."""
    kinds = ["0" if name in IDS else "''" for name in asked.groups] + ["0", "0"]
    return kinds[0], kinds[1]


def _none(asked: Asked) -> str:
    first, second = ("0" if one == "0" else "''::text COLLATE \"C\"" for one in _unknown(asked))
    return f"{first} AS group_1, {second} AS group_2"


def _zeros(names: tuple[str, ...]) -> str:
    return ", ".join(f"0::numeric AS {name}" for name in names)


def _named(sums: dict[str, str]) -> str:
    return ", ".join(f"({sum_})::numeric AS {name}" for name, sum_ in sums.items())


def _lines(asked: Asked, clicked: str, converted: str, unknown: tuple[str, str], filled: str) -> str:
    return _LINE.format(
        derived=", ".join(f"({one}) AS {name}" for name, one in DERIVED.items()),
        unknown_1=unknown[0],
        unknown_2=unknown[1],
        clicks=", ".join(f"CASE WHEN place > 1 THEN 0 ELSE coalesce({name}, 0) END AS {name}" for name in CLICKED),
        sales=", ".join(f"coalesce({name}, 0) AS {name}" for name in CONVERTED),
        clicked=clicked,
        converted=converted,
        keys=_KEYS,
        filled=filled,
    )


def _totals(asked: Asked) -> str:
    """One row for each currency, of the type of `line`."""
    clicks = ", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in CLICKED)
    sales = ", ".join(f"sum({name}) AS {name}" for name in CONVERTED)
    whole = _lines(asked, _TOTAL_CLICKS.format(sums=clicks), _TOTAL_SALES.format(sums=sales), ("0", "0"), "")
    first, second = _unknown(asked)
    rest = ", ".join(("currency", *CLICKED, *CONVERTED, "valid_clicks", *DERIVED))
    return f"SELECT time, {first} AS group_1, {second} AS group_2, {rest} FROM ({whole}) AS whole"  # noqa: S608 - our own names


def _filled(args: list[Any], asked: Asked, cuts: list[Bucket]) -> str:
    """Times at which nothing happened have rows, too, where there are no other groups and they have begun."""
    if asked.groups:
        return ""
    args.append(sum(one.starts < asked.begun for one in cuts))
    return f"FULL JOIN generate_series(1, ${len(args)}::int) AS begun (time) USING (time)"


def _sorted(asked: Asked) -> tuple[str, str]:
    """What rows are sorted by before time, groups and currency, and their whole order, as SQL."""
    if asked.sort is None:
        return "NULL::numeric", f"{_KEYS}, currency"
    name, descending = asked.sort
    sort = "time" if name in TIMES else name
    return f"{sort}::numeric", f"sorted {'DESC' if descending else 'ASC'} NULLS LAST, {_KEYS}, currency"


def _after(args: list[Any], asked: Asked, cuts: list[Bucket]) -> str:
    """What comes behind the last row of the page before, whose place in the order is given by its values."""
    if asked.after is None:
        return "true"
    number = bisect_right([one.starts for one in cuts], asked.after.starts)
    groups = [*asked.after.groups, *[0] * (limits.REPORT_GROUPS_MAX - len(asked.groups))]
    args += [number, *groups, asked.after.currency]
    first = len(args) - 3
    key = f"({_KEYS}, currency) > ({', '.join(f'${n}' for n in range(first, first + 4))})"
    if asked.sort is None:
        return key
    sort, descending = _sorted(asked)[0], asked.sort[1]
    last = str(number) if asked.sort[0] in TIMES else asked.after.value
    if last is None:
        return f"{sort} IS NULL AND {key}"
    args.append(Decimal(last))
    value = f"${len(args)}::numeric"
    return f"({sort} {'<' if descending else '>'} {value} OR {sort} IS NULL OR {sort} = {value} AND {key})"


def _last(asked: Asked, cuts: list[Bucket], row: Row) -> After:
    value = None if row["sorted"] is None else str(row["sorted"])
    if asked.sort and asked.sort[0] in TIMES:
        value = None
    groups = tuple(row[f"group_{n}"] for n in range(1, len(asked.groups) + 1))
    return After(value, cuts[row["time"] - 1].starts, groups, row["currency"])


def _line(asked: Asked, cuts: list[Bucket], row: Row) -> dict[str, Any]:
    time: dict[str, Any] = {} if asked.granularity == "total" else {asked.granularity: cuts[row["time"] - 1].label}
    groups = {name: row[f"group_{n}"] for n, name in enumerate(asked.groups, 1)}
    shown: dict[str, Any] = {name: None if value == "" else value for name, value in groups.items()}
    return {**time, **shown, **_figures(asked, row)}


def _figures(asked: Asked, row: Row) -> dict[str, Any]:
    return {name: _figure(name, row[name]) for name in asked.metrics} | {"currency": row["currency"]}


def _figure(name: str, value: Decimal | None) -> int | float | None:
    if value is None:
        return None
    return float(value) if name in RATIOS else int(value)


def _provisional_from(asked: Asked, state: State) -> datetime | None:
    if asked.date_basis == "ledger":
        through: datetime | None = state.booked_through
    else:
        through = state.settled_through if needs_settled(asked) else state.complete_through
        if state.pays_clicks and has_paid_clicks(asked):  # they are paid when their day is settled
            through = state.days_through
    if through is None:
        return asked.starts
    return None if through >= asked.ends else max(asked.starts, through)


def _buckets(asked: Asked) -> list[Bucket]:
    return buckets(asked.starts, asked.ends, asked.zone, asked.granularity)


def _shown(instant: datetime | None) -> str | None:
    return None if instant is None else rfc3339(instant)
