"""Rows of the control tables as the API shows, lists and changes them: versions, cursors, filters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from aiohttp import web

from aggregator.api.calling import ID_MAX, Api, answer, parameters, path_id
from aggregator.api.writing import Change
from aggregator.db.connect import Database, Row, acquire
from aggregator.db.instants import rfc3339
from aggregator.publish.denormalise import Kind
from aggregator.reports.asked import is_whole, number, word
from schemas import limits
from schemas.errors import Refused

Filters = Mapping[str, type[str] | type[int]]
Shown = dict[str, Any]  # a row as JSON


def shown(row: Row | Mapping[str, Any], columns: tuple[str, ...]) -> Shown:
    """These columns of a row, as JSON takes them."""
    return {name: _json(row[name]) for name in columns}


async def show(
    api: Api, request: web.Request, table: str, columns: tuple[str, ...], told: Callable[[Shown], Shown] = dict
) -> web.Response:
    """The answer to a GET by the `{id}` of its path, with the row's version as ETag. `told` is what is said of a row
    instead of its columns."""
    async with acquire(api.pool) as db:
        row = await one(db, table, path_id(request, _noun(table)))
    return answer(told(shown(row, columns)), version=row["version"])


async def listing(
    api: Api,
    request: web.Request,
    table: str,
    columns: tuple[str, ...],
    filters: Filters,
    told: Callable[[Shown], Shown] = dict,
    **fixed: Any,
) -> web.Response:
    """The answer to a GET of a list: `page`, with what `told` says of each row."""
    async with acquire(api.pool) as db:
        found = await page(db, table, columns, filters, request, **fixed)
    return answer(found | {"data": [told(row) for row in found["data"]]})


async def one(db: Database, table: str, row_id: int, *, locked: bool = False) -> Row:
    """The row with this id, of a table or of a query that is named like one. Raises Refused("not_found")."""
    lock = " FOR NO KEY UPDATE" if locked else ""
    row = await db.fetchrow(f"SELECT * FROM {table} WHERE id = $1{lock}", row_id)  # noqa: S608 - our own names
    if row is None:
        raise Refused("not_found", f"there is no such {_noun(table)}")
    return row


async def touch(change: Change, kind: Kind, row_id: int) -> None:
    """A new version of a row whose config has something from another table, such as a block or a cap; the row stays
    locked, so what hangs on it can be counted. Raises Refused naming `{kind}_id`."""
    touched = await change.db.fetchval(f"UPDATE {kind} SET version = version + 1 WHERE id = $1 RETURNING id", row_id)  # noqa: S608
    if touched is None:
        raise Refused("bad_value", f"there is no such {kind}", f"{kind}_id")
    await change.tell_redis(kind, row_id)


async def update(
    db: Database, table: str, row_id: int, changes: Mapping[str, Any], request: web.Request | None
) -> tuple[Row, Row]:
    """Change columns of a row and bump its version; the row before and after, the same where nothing changes.

    Raises Refused("not_found"), or Refused("precondition_failed") where `If-Match` names another version.
    """
    before = await one(db, table, row_id, locked=True)
    check_version(request, before["version"])
    changed = {name: value for name, value in changes.items() if before[name] != value}
    if not changed:
        return before, before
    sets = ", ".join(f"{name} = ${n}" for n, name in enumerate(changed, 2))
    after = await db.fetchrow(
        f"UPDATE {table} SET {sets}, version = version + 1 WHERE id = $1 RETURNING *",  # noqa: S608
        row_id, *changed.values(),
    )  # fmt: skip
    assert after is not None
    return before, after


async def create(change: Change, kind: Kind, values: Mapping[str, Any], columns: tuple[str, ...]) -> Row:
    """Insert a row that edges know: queued for Redis, in the audit, and the answer."""
    names, places = ", ".join(values), ", ".join(f"${n}" for n in range(1, len(values) + 1))
    row = await change.db.fetchrow(f"INSERT INTO {kind} ({names}) VALUES ({places}) RETURNING *", *values.values())  # noqa: S608
    assert row is not None
    await change.tell_redis(kind, row["id"])
    await change.record(f"create_{kind}", f"{kind}:{row['id']}", after=shown(row, columns))
    change.answers(shown(row, columns), 201, row["version"])
    return row


async def alter(
    change: Change, kind: Kind, row_id: int, values: Mapping[str, Any], columns: tuple[str, ...], request: web.Request
) -> Row:
    """`update` a row that edges know: queued for Redis, in the audit if it changed, and the answer."""
    before, after = await update(change.db, kind, row_id, values, request)
    await change.tell_redis(kind, row_id)
    action = "archive" if values.get("status") == "archived" else "change"
    await answer_change(change, f"{action}_{kind}", f"{kind}:{row_id}", before, after, columns)
    return after


async def answer_change(
    change: Change, action: str, subject: str, before: Row, after: Row, columns: tuple[str, ...]
) -> None:
    """The row as it is now is the answer; both states are in the audit, if they are two."""
    if after["version"] != before["version"]:
        await change.record(action, subject, before=shown(before, columns), after=shown(after, columns))
    change.answers(shown(after, columns), version=after["version"])


def check_version(request: web.Request | None, version: int) -> None:
    """`If-Match: "7"` wants version 7; without it, or with `*`, any will do."""
    wanted = request.headers.get("If-Match", "*") if request else "*"
    if wanted != "*" and f'"{version}"' not in [tag.strip() for tag in wanted.split(",")]:
        raise Refused("precondition_failed", f'this has changed meanwhile: it is version "{version}" now', "If-Match")


async def page(
    db: Database, table: str, columns: tuple[str, ...], filters: Filters, request: web.Request, **fixed: Any
) -> dict[str, Any]:
    """A list, by id, as `{data, truncated, next_cursor}`: filters by equality, archived ones only when asked for.

    `fixed` are columns whose values the caller does not choose. Raises Refused naming the parameter.
    """
    given = parameters(request, (*filters, "limit", "cursor"))
    limit = number("limit", given.get("limit", str(limits.PAGE_ROWS_DEFAULT)), limits.PAGE_ROWS_MAX)
    wanted = {
        name: number(name, given[name], ID_MAX) if kind is int else word(name, given[name])
        for name, kind in filters.items()
        if name in given
    } | fixed
    rules = [f"{name} = ${n}" for n, name in enumerate(wanted, 3)]
    if "status" in filters and "status" not in wanted:
        rules.append("status <> 'archived'")
    rows = await db.fetch(
        f"SELECT * FROM {table} WHERE {' AND '.join(['id > $1', *rules])} ORDER BY id LIMIT $2",  # noqa: S608
        _cursor(given), limit + 1, *wanted.values(),
    )  # fmt: skip
    truncated = len(rows) > limit
    return {
        "data": [shown(row, columns) for row in rows[:limit]],
        "truncated": truncated,
        "next_cursor": str(rows[limit - 1]["id"]) if truncated else None,
    }


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        return rfc3339(value)
    return str(value) if isinstance(value, UUID) else value


def _noun(table: str) -> str:
    """What a row is called: `offer` of `(SELECT ...) AS offer`."""
    return table.rpartition(" AS ")[2].removeprefix("api_")


def _cursor(given: Mapping[str, str]) -> int:
    text = given.get("cursor", "0")
    if not is_whole(text, ID_MAX, 0):
        raise Refused("bad_cursor", "this cursor is not one of this list's", "cursor")
    return int(text)
