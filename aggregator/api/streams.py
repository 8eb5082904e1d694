"""Rows as CSV (RFC 4180), sent while they are read: however many there are, a few hundred are held at a time."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson
import structlog
from aiohttp import web

from aggregator.api.calling import CALLER, VARY, Api, at_once
from aggregator.api.sheets import guarded
from aggregator.db.connect import Database, acquire_to_read
from aggregator.db.instants import rfc3339
from aggregator.reports.state import State
from schemas import limits
from schemas.errors import Refused

log = structlog.get_logger()

Row = Mapping[str, Any]
_CSV = "text/csv"


def wants_csv(request: web.Request) -> bool:
    """Whether the query says `format=csv`, or, where it names no format, `Accept` asks for CSV and not for JSON.
    Raises Refused."""
    forms = request.rel_url.query.getall("format", [])
    if len(forms) > 1 or not set(forms) <= {"csv", "json"}:
        raise Refused("bad_value", "format is csv or json", "format")
    accepted = request.headers.get("Accept", "")
    return forms == ["csv"] if forms else _CSV in accepted and "application/json" not in accepted


async def stream(
    api: Api, request: web.Request, name: str, columns: tuple[str, ...], rows: Callable[[Database], AsyncIterator[Row]]
) -> web.StreamResponse:
    """A file of CSV: `columns` of what `rows` reads, by a cursor of the connection that it is given, in the transaction
    that is open on it. What fails before the first rows are read is refused as ever; afterwards the connection to the
    reader is broken, so that what is cut never looks whole."""
    response = web.StreamResponse()
    try:
        with at_once(api, request[CALLER]), _one_more_stream(api):
            async with asyncio.timeout(limits.STREAM_S):
                response.headers.update(_headers(name, await api.versions.state()))
                await _send_all(api, request, response, columns, rows)
    except Exception as error:
        if not response.prepared:
            raise
        log.warning("stream_cut", what=name, error=type(error).__name__)
        if request.transport is not None:
            request.transport.abort()
    return response


async def _send_all(
    api: Api,
    request: web.Request,
    response: web.StreamResponse,
    columns: tuple[str, ...],
    rows: Callable[[Database], AsyncIterator[Row]],
) -> None:
    async with acquire_to_read(api.readers) as db, db.transaction(isolation="repeatable_read", readonly=True):
        batches = _batches(rows(db))
        first: list[Row] = await anext(batches, [])
        await response.prepare(request)
        await _send(response, _write([columns]) + _write(_cells(first, columns)))
        async for batch in batches:
            await _send(response, _write(_cells(batch, columns)))
    await response.write_eof()


async def _send(response: web.StreamResponse, data: bytes) -> None:
    """Raises TimeoutError when the reader takes nothing."""
    async with asyncio.timeout(limits.EXPORT_PAUSE_MAX_S):
        await response.write(data)


async def _batches(rows: AsyncIterator[Row]) -> AsyncIterator[list[Row]]:
    batch: list[Row] = []
    async for row in rows:
        batch.append(row)
        if len(batch) == limits.STREAM_ROWS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _write(lines: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerows(lines)
    return text.getvalue().encode("utf-8", "replace")


def _cells(rows: Iterable[Row], columns: tuple[str, ...]) -> Iterable[list[Any]]:
    return ([_cell(row[name]) for name in columns] for row in rows)


def _cell(value: Any) -> Any:
    """Text that came with a click may be anything; numbers are never formulas."""
    if isinstance(value, str):
        return guarded(value)
    return orjson.dumps(value).decode() if isinstance(value, (bool, dict, list)) else value


def _headers(name: str, state: State) -> dict[str, str]:
    """A file that has come to its end has all its rows: none is left out."""
    told = {
        "Content-Type": f"{_CSV}; charset=utf-8; header=present",
        "Content-Disposition": f'attachment; filename="{name}.csv"',
        "Cache-Control": "no-store",
        "Vary": VARY,
        "Clickdam-Truncated": "false",
    }
    times = {"Complete": state.complete_through, "Settled": state.settled_through}
    return told | {f"Clickdam-{what}-Through": rfc3339(at) for what, at in times.items() if at}


@contextmanager
def _one_more_stream(api: Api) -> Iterator[None]:
    """Raises Refused where so many are sent that reports would have no connection left."""
    if api.streams >= limits.STREAMS_AT_ONCE:
        raise Refused("unavailable", "as many files as may be are being sent now, please repeat the request")
    api.streams += 1
    try:
        yield
    finally:
        api.streams -= 1
