"""`clickdam links import FILE` and its like: a file of rows sent to the API piece by piece, so that a long one may be
stopped and begun again at any time."""

from __future__ import annotations

import csv
import hashlib
import json
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from aggregator.api import sheets
from aggregator.api.sheets import Cutter, Format, Header, Record
from deploy.run.children import CannotStart
from deploy.run.http import Place, patient
from schemas import limits
from schemas.errors import Refused

_FORMATS: dict[str, Format] = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_TYPES = {form: kind for kind, form in sheets.CONTENT_TYPES.items()}
_READ_BYTES = 1 << 18
_ERRORS_SHOWN = 5
# what names a row, and the columns that tell it from another's
_NAMES = {
    "external_id": ("external_id",),
    "code": ("code", "domain", "domain_id", "offer_id", "offer_external_id"),  # a coupon's, at its offer
    "click_id": ("click_id",),
    "conversion_id": ("conversion_id",),
    "order_id": ("order_id", "event", "advertiser_id", "advertiser_external_id", "conversion_id"),
}


class Error(NamedTuple):
    """A row that was refused: where it is in the file, and why."""

    record: Record
    field: str | None
    message: str


class _Refused(CannotStart):
    """The API has said no to the file, as it stands, or to the key."""


@dataclass(slots=True)
class File:
    """A file to be imported. `head` is its first line, if it is CSV."""

    path: Path
    format: Format
    digest: str
    head: Record | None = None
    header: Header | None = None


@dataclass(slots=True)
class Done:
    """What became of the rows so far."""

    counts: Counter[str] = field(default_factory=Counter)
    line: int = 0


def run(kind: str, path: Path, place: Place, console: Console, *, dry_run: bool) -> bool:
    """Import a file and say what came of it; answers whether every row is as it says. Raises CannotStart."""
    file, done, started = _open(path), Done(), time.monotonic()
    try:
        with ExitStack() as stack:
            errors = _ErrorFile(file, stack, console)
            _send_all(kind, file, place, console, done, errors, dry_run=dry_run)
    except KeyboardInterrupt:
        console.print(_how_to_go_on(file, done), markup=False, highlight=False, soft_wrap=True)
        raise
    except OSError as error:
        raise CannotStart(
            f"cannot read {path}, or write beside it: {error.strerror}\n{_how_to_go_on(file, done)}"
        ) from None
    except CannotStart as reason:
        if isinstance(reason, _Refused) and done.line == 0:
            raise
        raise CannotStart(f"{reason}\n{_how_to_go_on(file, done)}") from None
    _tell(file, done, time.monotonic() - started, errors, console, dry_run=dry_run)
    return done.counts["failed"] == 0


def _open(path: Path) -> File:
    form = _FORMATS.get(path.suffix.lower())
    if form is None:
        raise CannotStart(f"{path}: the name of the file tells what is in it: {', '.join(_FORMATS)}")
    try:
        with path.open("rb") as opened:
            file = File(path, form, hashlib.file_digest(opened, "sha256").hexdigest())
        file.head = next(_records(file), None) if form == "csv" else None
        file.header = sheets.read_header(file.head.text) if file.head else None
    except OSError as error:
        raise CannotStart(f"cannot read {path}: {error.strerror}") from None
    except Refused as refusal:
        raise CannotStart(f"{path}: {refusal.message}") from None
    if form == "csv" and file.head is None:
        raise CannotStart(f"{path} is empty: its first line names the columns")
    return file


def _records(file: File) -> Iterator[Record]:
    cutter = Cutter(file.format)
    with file.path.open("rb") as opened:
        while data := opened.read(_READ_BYTES):
            yield from cutter.feed(data)
    yield from cutter.end()


def _send_all(
    kind: str, file: File, place: Place, console: Console, done: Done, errors: _ErrorFile, *, dry_run: bool
) -> None:
    run_id = secrets.token_hex(4)  # a piece that is sent twice in one run counts once; another run looks anew
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        shown = progress.add_task(file.path.name, total=file.path.stat().st_size, told="")
        started = time.monotonic()
        for number, piece in enumerate(_pieces(file, done, errors)):
            key = f"{file.digest[:32]}-{run_id}-{number}"
            answer = _send(kind, file, place, piece, {} if dry_run else {"Idempotency-Key": key}, dry_run=dry_run)
            _count(done, errors, piece, answer)
            _advance(progress, shown, piece, done, time.monotonic() - started)


def _pieces(file: File, done: Done, errors: _ErrorFile) -> Iterator[list[Record]]:
    """The rows, as many at once as a batch has; those that name what an earlier one has named stay here."""
    piece: list[Record] = []
    seen: set[int] = set()
    for record in _records(file):
        if record == file.head:
            continue
        refusal = _refusal(record, file.header, seen)
        if refusal is not None:
            done.counts["rows"] += 1
            done.counts["failed"] += 1
            errors.add(Error(record, refusal.field, refusal.message))
            continue
        piece.append(record)
        if len(piece) == limits.IMPORT_BATCH_ROWS:
            yield piece
            piece = []
    if piece:
        yield piece


def _refusal(record: Record, header: Header | None, seen: set[int]) -> Refused | None:
    """Why a row need not be sent: it cannot be read, or it names what an earlier one has named. `seen` has hashes: two
    names of a million have the same one once in 40 million files."""
    try:
        row = sheets.read_row(record, header)
    except Refused as refusal:
        return refusal
    for name, parts in _NAMES.items():
        named = hash((name, *(str(row.get(part)) for part in parts)))
        if row.get(name) and named in seen:
            return Refused("conflict", f"an earlier row has the {name} {row[name]} already", name)
        seen.add(named)
    return None


def _send(
    kind: str, file: File, place: Place, piece: list[Record], headers: dict[str, str], *, dry_run: bool
) -> dict[str, Any]:
    head = [file.head] if file.head else []
    body = "".join(f"{record.text}\n" for record in (*head, *piece)).encode("utf-8", "surrogateescape")
    url = f"{place.api_url}/v1/{kind}/import{'?dry_run=1' if dry_run else ''}"
    answered = patient(url, place.key, body, headers | {"Content-Type": _TYPES[file.format]}, limits.IMPORT_RETRY_S)
    if answered.status != 200:
        raise _Refused(f"{file.path}: {answered.why}")
    told = answered.told
    if "errors" not in told:
        raise _Refused(f"{place.api_url} answers, but not as the API does")
    return told


def _count(done: Done, errors: _ErrorFile, piece: list[Record], answer: dict[str, Any]) -> None:
    done.counts.update({name: answer[name] for name in ("rows", "created", "updated", "unchanged", "failed")})
    done.line = piece[-1].line
    for error in answer["errors"]:
        errors.add(Error(piece[error["row"] - 1], error["field"], error["message"]))


def _advance(progress: Progress, shown: TaskID, piece: list[Record], done: Done, took_s: float) -> None:
    size_bytes = sum(len(record.text) + 1 for record in piece)
    rate = done.counts["rows"] / max(took_s, 0.001)
    progress.update(shown, advance=size_bytes, told=f"{done.counts['rows']:,} rows, {rate:,.0f}/s")


class _ErrorFile:
    """Beside the file: the rows that were refused, as they were, each with its line and the reason, so that they can be
    put right and imported from there. There is none when every row is good."""

    def __init__(self, file: File, stack: ExitStack, console: Console) -> None:
        self.path = file.path.with_name(f"{file.path.name}.errors{file.path.suffix}")
        self._file, self._stack, self._console = file, stack, console
        self._to: IO[str] | None = None
        self.count = 0
        self.path.unlink(missing_ok=True)

    def add(self, error: Error) -> None:
        if self._to is None:
            self._to = self._stack.enter_context(self.path.open("w", encoding="utf-8", errors="surrogateescape"))
            if self._file.head and self._file.header:
                print(f"{self._cells('error_line', 'error')}{self._own(self._file.head)}", file=self._to)
        said = error.field is None or error.message.startswith(error.field)
        why = error.message if said else f"{error.field}: {error.message}"
        print(self._line(error.record, why), file=self._to)
        self.count += 1
        if self.count <= _ERRORS_SHOWN:
            where = f"{self._file.path}:{error.record.line}"
            self._console.print(f"{where}: {why}", markup=False, highlight=False, soft_wrap=True)

    def _line(self, record: Record, why: str) -> str:
        if self._file.format == "csv":
            return f"{self._cells(str(record.line), why)}{self._own(record)}"
        rest = record.text.lstrip()
        told = f'"error_line": {record.line}, "error": {json.dumps(why)}'
        return f"{{{told}, {rest[1:]}" if rest.startswith("{") and rest != "{}" else rest

    def _own(self, record: Record) -> str:
        """A row without what an earlier file of errors put before it."""
        header = self._file.header
        if header is None or header.names[:2] != ("error_line", "error"):
            return record.text
        try:
            _, _, *cells = next(csv.reader([record.text], delimiter=header.delimiter, strict=True))
        except (csv.Error, ValueError):
            return record.text
        return self._cells(*cells)[: -len(header.delimiter)]

    def _cells(self, *cells: str) -> str:
        delimiter = self._file.header.delimiter if self._file.header else ","
        return "".join('"{}"{}'.format(cell.replace('"', '""'), delimiter) for cell in cells)


def _tell(file: File, done: Done, took_s: float, errors: _ErrorFile, console: Console, *, dry_run: bool) -> None:
    counts = done.counts
    parts = ", ".join(f"{counts[name]:,} {name}" for name in ("created", "updated", "unchanged", "failed"))
    rate = f"{took_s:.1f} s, {counts['rows'] / max(took_s, 0.001):,.0f} rows/s"
    lines = [f"{file.path}: {counts['rows']:,} rows: {parts} ({rate})"]
    if dry_run:
        lines.append("a dry run: nothing was changed")
    if errors.count:
        lines.append(f"the rows that failed are in {errors.path}, each with its reason: correct and import that file")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _how_to_go_on(file: File, done: Done) -> str:
    if done.line == 0:
        return f"{file.path}: nothing is known to be done; the same command begins again"
    return f"{file.path} is done up to line {done.line}: the same command goes on, and finds that part unchanged"
