"""`POST /v1/{advertisers|partners|offers|links}/import`: a file of rows, read as it comes, carried out batch by batch.

Each batch is a transaction of its own, so a file of any length holds no locks for long; each row has a name of its own
(its external id, or its code), so a file that is sent again finds done what was done. With an `Idempotency-Key` each
batch is kept under it with its number: a repeated request gets the same figures.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from aggregator.api import idempotency, sheets
from aggregator.api.batches import Outcome, carry_out
from aggregator.api.calling import CALLER, Api, Caller, answer, flag
from aggregator.api.destinations import own_urls
from aggregator.api.idempotency import Answer, Asked, Replayed
from aggregator.api.imported import SHEETS, Sheet, read_wanted
from aggregator.api.sheets import Cutter, Header, Record
from aggregator.api.writing import transaction
from aggregator.db.connect import Pooled, acquire
from schemas import limits
from schemas.errors import Refused


class Row(Protocol):
    """A row that was read: its number in the file, from 1, and what tells it apart, by field."""

    row: int

    def named(self) -> list[tuple[str, tuple[Any, ...]]]: ...


class Kind(NamedTuple):
    """One kind of files. `check_columns` refuses a CSV file with a column that nobody would read; `read` makes a row of
    its number and fields, which are cells of text where the file is CSV, given the URLs that nothing may lead back to;
    `carry_out` does what a batch of rows says, in a transaction, for whoever calls, told where it came from."""

    check_columns: Callable[[tuple[str, ...]], None]
    read: Callable[[int, dict[str, Any], bool, tuple[str, ...]], Row]
    carry_out: Callable[[Pooled, list[Any], Caller, str], Awaitable[Outcome]]


@dataclass(slots=True)
class _Upload:
    """A file under way: what has come of it, what it amounts to."""

    request: web.Request
    kind: Kind
    cutter: Cutter
    dry_run: bool
    own: tuple[str, ...]
    said: Any  # a running SHA-256 of the request and all rows so far
    header: Header | None = None
    waiting: list[Record] = field(default_factory=list)
    size_bytes: int = 0
    ended: bool = False
    seen: dict[tuple[Any, ...], int] = field(default_factory=dict)  # row numbers by what names a row
    rows: int = 0
    outcome: Outcome = field(default_factory=Outcome)


def into(name: str) -> Callable[[Api, web.Request], Awaitable[web.Response]]:
    """The handler that imports rows of a table."""
    return importing(_kind(SHEETS[name]))


def importing(kind: Kind) -> Callable[[Api, web.Request], Awaitable[web.Response]]:
    """The handler that imports files of one kind."""

    async def post(api: Api, request: web.Request) -> web.Response:
        """A file as `text/csv` or `application/x-ndjson`, `?dry_run=1` -> `{rows, created, updated, unchanged, failed,
        errors: [{row, field, code, message}], truncated, dry_run}`."""
        upload = await _begin(api, request, kind)
        try:
            while batch := await _next_batch(api, upload):
                await _take(api, upload, batch)
        except Refused as refusal:
            raise _after(upload, refusal) from refusal.__cause__
        return answer(_told(upload))

    return post


def _kind(sheet: Sheet) -> Kind:
    async def carry(db: Pooled, rows: list[Any], caller: Caller, source: str) -> Outcome:
        return await carry_out(db, sheet, rows, caller.actor, source)

    return Kind(
        sheet.check_columns,
        lambda row, fields, is_text, own: read_wanted(sheet, row, fields, own, is_text=is_text),
        carry,
    )


async def _begin(api: Api, request: web.Request, kind: Kind) -> _Upload:
    form = sheets.CONTENT_TYPES.get(request.content_type)
    if form is None:
        raise Refused("unsupported_media_type", f"send {' or '.join(sheets.CONTENT_TYPES)}", "Content-Type")
    if (request.content_length or 0) > limits.IMPORT_BYTES_MAX:
        raise _too_large()
    dry_run = flag(request, "dry_run")
    async with acquire(api.pool) as db:
        own = await own_urls(db, api.public_url)
    said = hashlib.sha256(f"{request.method} {request.path_qs} {form}\n".encode("utf-8", "surrogateescape"))
    upload = _Upload(request, kind, Cutter(form), dry_run, own, said)
    if form == "csv":
        await _read_header(upload)
    return upload


async def _read_header(upload: _Upload) -> None:
    await _receive(upload, 1)
    if not upload.waiting:
        raise Refused("bad_value", "this file is empty: its first line names the columns")
    text = upload.waiting.pop(0).text
    upload.header = sheets.read_header(text)
    upload.kind.check_columns(upload.header.names)
    upload.said.update(f"{text}\n".encode("utf-8", "surrogateescape"))


async def _next_batch(api: Api, upload: _Upload) -> list[Record]:
    if api.draining:
        raise Refused("unavailable", "the API is about to stop, please repeat the request")
    await _receive(upload, limits.IMPORT_BATCH_ROWS + 1)  # one more, to know which batch is the last
    batch = upload.waiting[: limits.IMPORT_BATCH_ROWS]
    del upload.waiting[: limits.IMPORT_BATCH_ROWS]
    return batch


async def _receive(upload: _Upload, records: int) -> None:
    """Wait until so many records are there, or the file has ended. Raises Refused."""
    try:
        async with asyncio.timeout(limits.SLOW_BODY_S):
            while len(upload.waiting) < records and not upload.ended:
                data = await upload.request.content.readany()
                upload.size_bytes += len(data)
                if upload.size_bytes > limits.IMPORT_BYTES_MAX:
                    raise _too_large()
                upload.ended = not data
                upload.waiting.extend(upload.cutter.feed(data) if data else upload.cutter.end())
    except TimeoutError:
        raise Refused("bad_request", "the file did not arrive in time") from None
    except (HttpProcessingError, web.RequestPayloadError, ConnectionError, ValueError) as error:
        raise Refused("bad_request", f"the file cannot be read: {type(error).__name__}") from None


async def _take(api: Api, upload: _Upload, batch: list[Record]) -> None:
    """Carry out a batch, or find that it was. What its rows are is judged before a connection is taken, and all imports
    together take one: they would only wait for each other on it, and leave none to anybody else."""
    first = upload.rows + 1
    if upload.rows + len(batch) > limits.IMPORT_ROWS_MAX:
        raise Refused("too_large", f"an import has at most {limits.IMPORT_ROWS_MAX} rows: send the rest in another")
    for record in batch:
        upload.said.update(f"{record.text}\n".encode("utf-8", "surrogateescape"))
    asked = _asked(upload, first)
    wanted, refused = _read(upload, batch, first)
    async with idempotency.in_turn(api, asked), api.importing, acquire(api.pool) as db:
        try:
            outcome = await _carry_out(db, upload, wanted, refused, asked)
        except Replayed as former:
            outcome = _outcome(former.answer.body)
    upload.rows += len(batch)
    _add(upload.outcome, outcome)


async def _carry_out(
    db: Pooled, upload: _Upload, wanted: list[Row], refused: list[tuple[int, Refused]], asked: Asked | None
) -> Outcome:
    async with transaction(db, undone=upload.dry_run):
        if asked:
            await idempotency.begin(db, asked, secrets.token_bytes(32))
        source = f"import {asked.key if asked else 'sha256:' + upload.said.hexdigest()[:32]}"
        outcome = await upload.kind.carry_out(db, wanted, upload.request[CALLER], source)
        outcome.errors = sorted([*refused, *outcome.errors], key=lambda error: error[0])
        if asked:
            await idempotency.finish(db, asked, Answer(_kept(outcome)))
    return outcome


def _asked(upload: _Upload, first: int) -> Asked | None:
    """A batch under its request's key; a repetition has to say all that came before, and whether more comes, too."""
    key = idempotency.key_of(upload.request)
    if key is None or upload.dry_run:
        return None
    said = upload.said.copy()
    said.update(b"end" if upload.ended and not upload.waiting else b"more")
    return Asked(upload.request[CALLER].key_id, f"{key}/{first}", said.digest())


def _read(upload: _Upload, batch: Iterable[Record], first: int) -> tuple[list[Row], list[tuple[int, Refused]]]:
    wanted: list[Row] = []
    refused: list[tuple[int, Refused]] = []
    for row, record in enumerate(batch, first):
        try:
            fields = sheets.read_row(record, upload.header)
            read = upload.kind.read(row, fields, upload.header is not None, upload.own)
            _check_once(upload, read)
            wanted.append(read)
        except Refused as refusal:
            refused.append((row, refusal))
    return wanted, refused


def _check_once(upload: _Upload, wanted: Row) -> None:
    """Raises Refused for what an earlier row of the file has named already."""
    for field_name, named in wanted.named():
        before = upload.seen.setdefault((field_name, *named), wanted.row)
        if before != wanted.row:
            raise Refused("conflict", f"row {before} has this {field_name} already", field_name)


def _add(total: Outcome, outcome: Outcome) -> None:
    total.created += outcome.created
    total.updated += outcome.updated
    total.unchanged += outcome.unchanged
    total.errors += outcome.errors


def _told(upload: _Upload) -> dict[str, Any]:
    errors = upload.outcome.errors
    return _counts(upload.outcome) | {
        "rows": upload.rows,
        "failed": len(errors),
        "errors": [_shown(*error) for error in errors[: limits.IMPORT_ERRORS_MAX]],
        "truncated": len(errors) > limits.IMPORT_ERRORS_MAX,
        "dry_run": upload.dry_run,
    }


def _counts(outcome: Outcome) -> dict[str, Any]:
    return {"created": outcome.created, "updated": outcome.updated, "unchanged": outcome.unchanged}


def _kept(outcome: Outcome) -> dict[str, Any]:
    return _counts(outcome) | {"errors": [_shown(*error) for error in outcome.errors]}


def _outcome(kept: dict[str, Any]) -> Outcome:
    errors = [(one["row"], Refused(one["code"], one["message"], one["field"])) for one in kept["errors"]]
    return Outcome(kept["created"], kept["updated"], kept["unchanged"], errors)


def _shown(row: int, refusal: Refused) -> dict[str, Any]:
    return {"row": row, "field": refusal.field, "code": refusal.code, "message": refusal.message}


def _after(upload: _Upload, refusal: Refused) -> Refused:
    """The refusal of a file, some of whose rows may be carried out already."""
    if upload.rows == 0 or upload.dry_run:
        return refusal
    return Refused(refusal.code, f"{refusal.message}; rows 1 to {upload.rows} are carried out", refusal.field)


def _too_large() -> Refused:
    return Refused("too_large", f"an import has at most {limits.IMPORT_BYTES_MAX} bytes: send it in parts")
