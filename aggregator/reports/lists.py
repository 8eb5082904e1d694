"""Lists of single rows, page by page: clicks, conversions, the lines of an account.

A page goes by a key (keyset pagination) whose values stay, so that rows that come meanwhile shift nothing: what is on a
page is on no other, and nothing between two pages is passed over. It reads at most `limits.LIST_ROWS_READ` rows,
however few of them are wanted: such a page may have fewer rows than it could, or none, and the next goes on from there.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from aggregator.db.connect import Database, Row
from aggregator.db.instants import EPOCH
from aggregator.reports.asked import DEFAULT_DAYS, is_whole, number, read_time, word
from aggregator.reports.state import FINISHED
from schemas import limits, money
from schemas.errors import Refused
from schemas.outcomes import ClickClass, Status

Given = Mapping[str, str]  # the parameters of a query
Rule = tuple[str, Any]  # SQL with {} where its value goes
Key = tuple[Any, ...]

_ID_MAX = 2**31 - 1
_ENTRY_MAX = 2**63 - 1
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_MS = timedelta(milliseconds=1)
_MICROSECOND = timedelta(microseconds=1)


class Filter(NamedTuple):
    """How a parameter's text is read, and what it says of rows: by an index (`near`), or looked up in each (`each`)."""

    read: Callable[[str, str], Any]
    near: str = ""
    each: str = ""


class Order(NamedTuple):
    """What a list goes by: columns that name a row together, their texts in a cursor, and the way back."""

    name: str
    columns: tuple[str, ...]
    write: tuple[Callable[[Any], str], ...]
    read: tuple[Callable[[str], Any], ...]
    descending: bool = True


@dataclass(frozen=True, slots=True)
class Wanted:
    """Rows of a table (or a join) for which all rules hold: those after a key, in order. `columns` may look up more
    about each of a page's rows, as `page`."""

    source: str
    order: Order
    near: tuple[Rule, ...]
    each: tuple[Rule, ...]
    limit: int
    after: Key | None
    columns: str = "*"


class Page(NamedTuple):
    """Rows, and the cursor of the next page, if there may be more."""

    rows: list[Row]
    next_cursor: str | None


async def page(db: Database, wanted: Wanted) -> Page:
    args: list[Any] = []
    sql = _shown(wanted, f"{_looked(args, wanted)} LIMIT {wanted.limit + 1}")
    async with db.transaction(isolation="repeatable_read", readonly=True):
        rows = await db.fetch(sql, *args)
        last = rows[wanted.limit - 1] if len(rows) > wanted.limit else await _last_read(db, wanted)
    return Page(rows[: wanted.limit], None if last is None else _write_cursor(wanted.order, last))


async def every(db: Database, wanted: Wanted) -> AsyncIterator[Row]:
    """All rows, whatever the limit, by a cursor; belongs into a transaction."""
    args: list[Any] = []
    sql = _shown(wanted, _all_of(args, wanted, (*wanted.near, *wanted.each)))
    async for row in db.cursor(sql, *args, prefetch=limits.STREAM_ROWS_AT_ONCE):
        yield row


def read_clicks(given: Given, scope: Sequence[Rule], zone: ZoneInfo, now: datetime) -> Wanted:
    """The latest clicks first, those of the last week unless a time or a click is named. Raises Refused."""
    starts, ends = read_span(given, zone)
    if starts is None and "click_id" not in given:
        starts = (ends or now) - timedelta(days=DEFAULT_DAYS)
    span = [("id >= {}", _first_id(starts))] if starts else []
    span += [("id < {}", _first_id(ends))] if ends else []
    near, each = rules_of(CLICK_FILTERS, given)
    return _wanted("click", _BY_CLICK, given, (*scope, *near, *span), each, _CLICK)


def read_conversions(given: Given, scope: Sequence[Rule], zone: ZoneInfo) -> Wanted:
    """The latest conversions first, by `date_basis`. Raises Refused."""
    order = _basis(given)
    near, each = rules_of(CONVERSION_FILTERS, given)
    span = _span_rules(order.columns[0], read_span(given, zone))
    return _wanted("conversion", order, given, (*scope, *near, *span), each)


def read_changed_conversions(given: Given, scope: Sequence[Rule], zone: ZoneInfo, through: datetime) -> Wanted:
    """Conversions that changed since `updated_since` and before `through`, in the order in which they did. Raises
    Refused."""
    near, each = rules_of(CONVERSION_FILTERS, given)
    each += _span_rules(_basis(given).columns[0], read_span(given, zone))
    changed = [("changed_at >= {}", read_time("updated_since", given["updated_since"], zone))]
    changed += [("changed_at < {}", through)]
    return _wanted("conversion", _BY_CHANGE, given, (*scope, *near, *changed), each)


def read_ledger(given: Given, account: str, zone: ZoneInfo) -> Wanted:
    """The lines of an account, the latest booked first. Raises Refused."""
    _, each = rules_of(LEDGER_FILTERS, given)
    each += _span_rules("at", read_span(given, zone))
    lines = "ledger_line JOIN ledger_entry ON id = entry_id"
    return _wanted(lines, _BY_ENTRY, given, (("account = {}", account),), each)


def of_days(lines: str, given: Given, near: Iterable[Rule], each: Iterable[Rule]) -> Wanted:
    """Lines of settled days, in the order of their days. Raises Refused."""
    return _wanted(lines, _BY_DAY, given, near, each)


async def changes_through(db: Database) -> datetime:
    """A time before which no change of a conversion can turn up any more, in whole milliseconds. To be read before the
    changes are: what commits in between is in them."""
    through: datetime = await db.fetchval(_CHANGES_THROUGH, limits.TRANSACTION_S)
    return through


def _read_limit(given: Given) -> int:
    return number("limit", given.get("limit", str(limits.PAGE_ROWS_DEFAULT)), limits.PAGE_ROWS_MAX)


def read_span(given: Given, zone: ZoneInfo) -> tuple[datetime | None, datetime | None]:
    """`from` and `to`; a date is midnight in the zone. Raises Refused."""
    starts, ends = (read_time(name, given[name], zone) if name in given else None for name in ("from", "to"))
    if starts is not None and ends is not None and ends <= starts:
        raise Refused("bad_value", "to must be after from, and is not itself included", "to")
    return starts, ends


def rules_of(filters: Mapping[str, Filter], given: Given) -> tuple[list[Rule], list[Rule]]:
    """What the query says of rows, as rules that an index serves and rules that it does not. Raises Refused."""
    asked = {name: one.read(name, given[name]) for name, one in filters.items() if name in given}
    return (
        [(filters[name].near, value) for name, value in asked.items() if filters[name].near],
        [(filters[name].each, value) for name, value in asked.items() if filters[name].each],
    )


def _write_cursor(order: Order, row: Row) -> str:
    """Where the next page goes on: `event_at.1764201600000000.<uuid>`."""
    texts = [write(row[name]) for name, write in zip(order.columns, order.write, strict=True)]
    return ".".join([order.name, *texts])


def _read_cursor(order: Order, given: Given) -> Key | None:
    """Raises Refused for a cursor of another list, or of none."""
    if "cursor" not in given:
        return None
    name, *texts = given["cursor"].split(".")
    try:
        if name != order.name:
            raise ValueError(name)
        return tuple(read(text) for read, text in zip(order.read, texts, strict=True))
    except (ValueError, OverflowError):
        raise Refused("bad_cursor", "this cursor is not one of this list's", "cursor") from None


def one_of(*names: str) -> Callable[[str, str], str]:
    """What reads a word of a closed list."""

    def read(name: str, text: str) -> str:
        if text not in names:
            raise Refused("bad_value", f"{name} is one of {', '.join(names)}", name)
        return text

    return read


def _yes(name: str, text: str) -> bool:
    return one_of("1")(name, text) == "1"


def _row_id(name: str, text: str) -> int:
    return number(name, text, _ID_MAX)


def _uuid(name: str, text: str) -> UUID:
    try:
        return _known_uuid(text.lower())
    except ValueError:
        raise Refused("bad_value", f"{name} is a UUID, as an answer had it", name) from None


def _class(name: str, text: str) -> int:
    return int(ClickClass[one_of(*CLASSES)(name, text).upper()])


def _instant(text: str) -> datetime:
    if not is_whole(text, _ENTRY_MAX, 0):
        raise ValueError(text)
    return EPOCH + int(text) * _MICROSECOND


def _micros(instant: datetime) -> str:
    return str((instant - EPOCH) // _MICROSECOND)


def _entry_id(text: str) -> int:
    if not is_whole(text, _ENTRY_MAX):
        raise ValueError(text)
    return int(text)


def _whole(text: str) -> int:
    if not is_whole(text, _ID_MAX, 0):
        raise ValueError(text)
    return int(text)


def _known_uuid(text: str) -> UUID:
    if not _UUID.fullmatch(text):
        raise ValueError(text)
    return UUID(text)


def _currency(text: str) -> str:
    if text not in money.EXPONENT:
        raise ValueError(text)
    return text


def _currency_or_none(text: str) -> str:
    return text and _currency(text)


def _by_time(column: str, *, descending: bool = True) -> Order:
    return Order(column, (column, "conversion_id"), (_micros, str), (_instant, _known_uuid), descending)


CLASSES = tuple(one.name.lower() for one in ClickClass if one is not ClickClass.UNCOUNTED)
_SUBS = {f"sub{n}": Filter(word, each=f"subs ->> 'sub{n}' = {{}}") for n in range(1, 11)}
_OF_ALL = {name: Filter(word, each=f"{name} = {{}}") for name in ("country", "device", "source_id", "click_ref")}
CLICK_FILTERS: dict[str, Filter] = {
    # no index knows links or offers; a link's clicks are those of its partner
    "link_id": Filter(_row_id, "partner_id = (SELECT partner_id FROM link WHERE id = {})", "link_id = {}"),
    "offer_id": Filter(_row_id, each="offer_id = {}"),
    "partner_id": Filter(_row_id, near="partner_id = {}"),
    "advertiser_id": Filter(_row_id, each="offer_id = ANY (ARRAY(SELECT id FROM offer WHERE advertiser_id = {}))"),
    "click_id": Filter(_uuid, near="id = {}"),
    "os": Filter(word, each="os = {}"),
    "browser": Filter(word, each="browser = {}"),
    "class": Filter(_class, each="click_class = {}"),
    "reason": Filter(word, each="reason = {}"),
    **_OF_ALL,
    **_SUBS,
}
CONVERSION_FILTERS: dict[str, Filter] = {
    **{name: Filter(_row_id, near=f"{name} = {{}}") for name in ("link_id", "offer_id", "partner_id", "advertiser_id")},
    "order_id": Filter(word, near="order_id = {}"),
    "click_id": Filter(_uuid, near="click_id = {}"),
    "status": Filter(one_of(*Status), each="status = {}"),
    "event": Filter(word, each="event = {}"),
    "reason": Filter(word, each="reason = {}"),
    **_OF_ALL,
    **_SUBS,
}
LEDGER_FILTERS: dict[str, Filter] = {
    "kind": Filter(
        one_of("accrual", "reversal", "refund", "chargeback", "change", "adjustment", "clicks"), each="kind = {}"
    ),
    "currency": Filter(word, each="currency = {}"),
    "offer_id": Filter(_row_id, each="offer_id = {}"),
}
DAY_FILTERS: dict[str, Filter] = {
    **{name: Filter(_row_id, near=f"{name} = {{}}") for name in ("partner_id", "offer_id")},
    "corrections": Filter(_yes, near="(version > 1) = {}"),
}

_BY_CLICK = Order("id", ("id",), (str,), (_known_uuid,))
_BY_ENTRY = Order("entry", ("entry_id", "currency"), (str, str), (_entry_id, _currency))
_BY_DAY = Order(
    "day", ("day", "partner_id", "offer_id", "currency", "version"), (str, str, str, str, str),
    (date.fromisoformat, _whole, _whole, _currency_or_none, _whole), descending=False,
)  # fmt: skip
_BY_CHANGE = _by_time("changed_at", descending=False)
_BY_DATE = {"conversion": _by_time("event_at"), "click": _by_time("clicked_at")}
# A click is unique if it is the first of its visitor, null as long as its quarter hour is not settled. The day is the
# programme's, so it is one of three of UTC's; the click's id says the rest.
_CLICK = """
page.*, uuid_extract_timestamp(page.id) AS clicked_at,
CASE WHEN page.click_class <> 0 THEN false
     WHEN uuid_extract_timestamp(page.id) >= (SELECT through FROM settling)
          OR EXISTS (SELECT FROM stale_quarter
                     WHERE quarter = date_bin('15 minutes', uuid_extract_timestamp(page.id), 'epoch')) THEN NULL
     WHEN page.visitor IS NULL OR page.visitor !~ '^[0-9a-f]{16}$' THEN false
     ELSE EXISTS (SELECT FROM first_click
                  WHERE day = ANY (ARRAY(SELECT (uuid_extract_timestamp(page.id) AT TIME ZONE 'UTC')::date + apart
                                         FROM generate_series(-1, 1) AS apart))
                    AND partner_id = page.partner_id AND offer_id = page.offer_id
                    AND visitor = ('x' || page.visitor)::bit(64)::bigint AND click_id = page.id)
END AS "unique"
"""
# As answers have it: in whole milliseconds.
_CHANGES_THROUGH = f"SELECT date_trunc('milliseconds', {FINISHED})"


def _wanted(
    source: str, order: Order, given: Given, near: Iterable[Rule], each: Iterable[Rule], columns: str = "*"
) -> Wanted:
    return Wanted(source, order, tuple(near), tuple(each), _read_limit(given), _read_cursor(order, given), columns)


def _basis(given: Given) -> Order:
    return _BY_DATE[one_of(*_BY_DATE)("date_basis", given.get("date_basis", "conversion"))]


def _shown(wanted: Wanted, sql: str) -> str:
    return f"SELECT {wanted.columns} FROM ({sql}) AS page {_order_by(wanted.order)}"  # noqa: S608 - our own names


def _looked(args: list[Any], wanted: Wanted) -> str:
    """The rows for which all rules hold among those that a page may read; the values go to `args`."""
    nearest = _nearest(args, wanted)
    if not wanted.each:
        return nearest
    looked = f"({nearest} LIMIT {limits.LIST_ROWS_READ}) AS looked"
    return f"SELECT * FROM {looked} WHERE {_all(args, wanted.each)} {_order_by(wanted.order)}"  # noqa: S608


async def _last_read(db: Database, wanted: Wanted) -> Row | None:
    """The last row that a page with few rows looked at, if it did not look at all."""
    if not wanted.each:
        return None
    args: list[Any] = []
    return await db.fetchrow(f"{_nearest(args, wanted)} OFFSET {limits.LIST_ROWS_READ - 1} LIMIT 1", *args)


def _nearest(args: list[Any], wanted: Wanted) -> str:
    return _all_of(args, wanted, [*wanted.near, *_after(wanted)])


def _all_of(args: list[Any], wanted: Wanted, rules: Iterable[Rule]) -> str:
    return f"SELECT * FROM {wanted.source} WHERE {_all(args, rules)} {_order_by(wanted.order)}"  # noqa: S608


def _after(wanted: Wanted) -> list[Rule]:
    """Rules for what comes after a key. The first column's own is what an index goes by."""
    if wanted.after is None:
        return []
    columns, sign = wanted.order.columns, "<" if wanted.order.descending else ">"
    if len(columns) == 1:
        return [(f"{columns[0]} {sign} {{}}", wanted.after[0])]
    return [(f"{columns[0]} {sign}= {{}}", wanted.after[0]), (f"({', '.join(columns)}) {sign} {{}}", wanted.after)]


def _all(args: list[Any], rules: Iterable[Rule]) -> str:
    texts = []
    for sql, value in rules:
        values = value if isinstance(value, tuple) else (value,)
        places = [f"${n}" for n in range(len(args) + 1, len(args) + len(values) + 1)]
        args.extend(values)
        texts.append(sql.format(places[0] if len(places) == 1 else f"({', '.join(places)})"))
    return " AND ".join(texts) or "true"


def _order_by(order: Order) -> str:
    direction = "DESC" if order.descending else "ASC"
    return "ORDER BY " + ", ".join(f"{name} {direction}" for name in order.columns)


def _span_rules(column: str, span: tuple[datetime | None, datetime | None]) -> list[Rule]:
    rules: list[Rule] = [(f"{column} >= {{}}", span[0]), (f"{column} < {{}}", span[1])]
    return [rule for rule in rules if rule[1] is not None]


def _first_id(instant: datetime) -> UUID:
    """Before all click ids of that time or later, after all earlier ones."""
    ms = -((EPOCH - instant.astimezone(UTC)) // _MS)
    return UUID(int=ms << 80)
