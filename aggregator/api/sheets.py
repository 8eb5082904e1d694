"""Sheets: rows as CSV or as JSON lines, cut out of a stream of bytes, read, and written. No I/O.

A bad row costs nobody else: what cannot be read is a record of its own, and the next line is a new one.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import orjson

from schemas import limits
from schemas.errors import Refused

Format = Literal["csv", "jsonl"]
CONTENT_TYPES: dict[str, Format] = {"text/csv": "csv", "application/x-ndjson": "jsonl"}
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_DELIMITERS = ",;\t"
_OPEN = "unexpected end of data"  # as csv says that a quote is open
_CR = "new-line character seen in unquoted field - do you need to open the file in universal-newline mode?"
_REASONS = {_OPEN: "a quote is not closed", _CR: "lines end with LF or CR LF, not with CR alone"}
# what a spreadsheet would take for a formula
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001


class Record(NamedTuple):
    """One row as it stands in the file, without its line end; `line` is the one it begins on, from 1."""

    line: int
    text: str


class Header(NamedTuple):
    """The names of a CSV file's columns, in lower case, and what stands between its cells."""

    names: tuple[str, ...]
    delimiter: str


@dataclass(slots=True)
class Cutter:
    """Cuts bytes into records as they come. A CSV record may span lines where a quote is open; one that is never
    closed, or a line of more than `limits.IMPORT_LINE_BYTES_MAX`, is a record that cannot be read."""

    format: Format
    _delimiter: str = ""  # known with the first line
    _line: int = 1
    _rest: bytes = b""
    _open: deque[Record] = field(default_factory=deque)  # the line that opened a quote, and those within it
    _open_size: int = 0

    def feed(self, data: bytes) -> Iterator[Record]:
        """The records that `data` completes. Raises Refused for a file in UTF-16."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[: limits.IMPORT_LINE_BYTES_MAX + 1]  # the rest of a line that is refused anyway
        for line in lines:
            yield from self._take(line)

    def end(self) -> Iterator[Record]:
        """What is left when the file has ended."""
        if self._rest:
            yield from self._take(self._rest)
        self._rest = b""
        while self._open:
            yield from self._give_up()

    def _take(self, line: bytes) -> Iterator[Record]:
        if self._line == 1:
            if line.startswith(_UTF_16):
                raise Refused("bad_value", "this file is in UTF-16: save it in UTF-8")
            line = line.removeprefix(_BOM)
        record = Record(self._line, line.removesuffix(b"\r").decode("utf-8", "surrogateescape"))
        self._line += 1
        if self._open:
            yield from self._go_on(record)
        elif record.text.strip():
            self._delimiter = self._delimiter or _delimiter(record.text)
            if self._opens_a_quote(record):
                self._hold(record)
            else:
                yield record

    def _go_on(self, record: Record) -> Iterator[Record]:
        """One more line while a quote is open: it reads as if it began with that quote, so each line is read once."""
        fault = _fault(f'"{record.text}', self._delimiter)
        self._hold(record)
        if fault is None:
            yield Record(self._open[0].line, "\n".join(one.text for one in self._open))
            self._open.clear()
            self._open_size = 0
        while self._open_size > limits.IMPORT_LINE_BYTES_MAX or (fault != _OPEN and len(self._open) > 1):
            yield from self._give_up()

    def _give_up(self) -> Iterator[Record]:
        """The line that opened the quote is a record alone; so are those after it, up to the next one that opens a
        quote, which those after that lie within as they lay within the former one."""
        yield self._let_go()
        while self._open and not self._opens_a_quote(self._open[0]):
            record = self._let_go()
            if record.text.strip():
                yield record

    def _opens_a_quote(self, record: Record) -> bool:
        return self.format == "csv" and _fault(record.text, self._delimiter) == _OPEN

    def _hold(self, record: Record) -> None:
        self._open.append(record)
        self._open_size += len(record.text) + 1

    def _let_go(self) -> Record:
        record = self._open.popleft()
        self._open_size -= len(record.text) + 1
        return record


def read_header(text: str) -> Header:
    """The first line of a CSV file; its cells are parted by commas, semicolons or tabs. Raises Refused for a name that
    is there twice."""
    _check_size(text)
    delimiter = _delimiter(text)
    names = tuple(cell.strip().lower() for cell in _cells(text, delimiter))
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise Refused("bad_value", f"the column {twice!a} is there twice", ascii(twice)[1:-1])
    return Header(names, delimiter)


def read_row(record: Record, header: Header | None) -> dict[str, Any]:
    """The fields of a record by name: text from CSV, which has a header, and values from a JSON line; parts of a field
    (`payout.model`) within it. Raises Refused."""
    _check_size(record.text)
    if "\0" in record.text or not _is_utf_8(record.text):
        raise Refused("bad_value", "this is not text in UTF-8")
    return _nested(_json(record.text) if header is None else _named(header, record.text))


def write_rows(
    rows: Iterable[Mapping[str, Any]], columns: tuple[str, ...], form: Format, *, safe: bool = False
) -> bytes:
    """Rows of a sheet, without a header. `safe` puts a quote before what a spreadsheet would take for a formula."""
    if form == "jsonl":
        return b"".join(orjson.dumps(_nested(row), option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_cell(row[name], safe=safe) for name in columns] for row in rows)
    return text.getvalue().encode()


def write_header(columns: tuple[str, ...], form: Format) -> bytes:
    """The first line of a sheet in CSV; JSON lines have none."""
    return ",".join(columns).encode() + b"\n" if form == "csv" else b""


def _check_size(text: str) -> None:
    if len(text) > limits.IMPORT_LINE_BYTES_MAX:
        raise Refused("too_large", f"a row has at most {limits.IMPORT_LINE_BYTES_MAX} bytes")


def _delimiter(header: str) -> str:
    return max(_DELIMITERS, key=header.count)


def _fault(text: str, delimiter: str) -> str | None:
    """What is wrong with a CSV record. Only what has a quote has to be parsed to know."""
    if '"' not in text:
        return None
    try:
        next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        return str(error)
    return None


def _cells(text: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        reason = _REASONS.get(str(error), str(error))
        raise Refused("bad_value", f"this row is no CSV: {reason}") from None


def _named(header: Header, text: str) -> dict[str, Any]:
    cells = _cells(text, header.delimiter)
    if len(cells) != len(header.names):
        raise Refused("bad_value", f"this row has {len(cells)} cells, the header {len(header.names)}")
    return dict(zip(header.names, cells, strict=True))


def _json(text: str) -> dict[str, Any]:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Refused("bad_json", f"this line is not JSON: {error.msg}") from None
    if not isinstance(found, dict):
        raise Refused("bad_json", "this line is no JSON object")
    return found


def _nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`{"payout.model": "cpa"}` -> `{"payout": {"model": "cpa"}}`; parts without a value are not there."""
    whole: dict[str, Any] = {}
    for name, value in fields.items():
        parent, _, part = name.partition(".")
        if not part:
            whole[name] = value
        elif value not in (None, "") and isinstance(whole.setdefault(parent, {}), dict):
            whole[parent][part] = value
    return whole


def _cell(value: Any, *, safe: bool) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return guarded(value) if safe else value


def guarded(text: str) -> str:
    """With a quote before what a spreadsheet would take for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _is_utf_8(text: str) -> bool:
    return not any("\ud800" <= one <= "\udfff" for one in text) if not text.isascii() else True
