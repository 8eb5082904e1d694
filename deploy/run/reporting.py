"""`clickdam report`: a report of the API as a table on the screen, or as the API answers it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import orjson
from rich.console import Console
from rich.table import Table

from aggregator.reports.figures import METRICS, MONEY
from deploy.run.http import Place, fetching, get
from schemas.money import EXPONENT

_MONEY = frozenset({*MONEY, "profit", "epc", "aov"})
_FIGURES = frozenset(METRICS)
_NOTHING = "-"


def run(place: Place, question: Mapping[str, str | None], form: str, console: Console) -> None:
    """Ask and print; `question` are parameters of `GET /v1/reports`, those that are None left out, and `form` is table,
    json or csv. Raises CannotStart."""
    asked = {name: value for name, value in question.items() if value is not None}
    if form == "csv":
        _copy_csv(place, asked)
        return
    if form == "json":
        print(orjson.dumps(get(_url(place, asked), place.key), option=orjson.OPT_INDENT_2).decode())
    else:
        show(get(_url(place, {**asked, "totals": "1"}), place.key), console)


def _url(place: Place, asked: Mapping[str, str]) -> str:
    return f"{place.api_url}/v1/reports{'?' if asked else ''}{urlencode(asked)}"


def _copy_csv(place: Place, asked: Mapping[str, str]) -> None:
    """As it comes: it may be long."""
    with fetching(_url(place, {**asked, "format": "csv"}), place.key, "text/csv") as answer:
        shutil.copyfileobj(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def show(answer: Mapping[str, Any], console: Console) -> None:
    """Print a report's answer: its rows, what they come to, and how far it is complete."""
    rows = answer["data"]
    names = list(rows[0] if rows else ())
    table = Table(title=f"{answer['from']} - {answer['to']}, {answer['timezone']}", title_justify="left")
    for name in names:
        table.add_column(name, justify="right" if name in _FIGURES else "left")
    for row in rows:
        table.add_row(*(_cell(name, row[name], row) for name in names), end_section=row is rows[-1])
    for row in answer["totals"] if len(rows) > 1 else ():
        table.add_row(*_total(names, row), style="bold")
    console.print(table if rows else "nothing happened in that time", markup=False)
    for line in _footer(answer):
        console.print(line, markup=False, highlight=False)


def _total(names: Sequence[str], row: Mapping[str, Any]) -> list[str]:
    cells = [_cell(name, row[name], row) if name in row else "" for name in names]
    return [cells[0] or "total", *cells[1:]]


def _cell(name: str, value: Any, row: Mapping[str, Any]) -> str:
    """A value as people write it: money in major units, rates in percent."""
    if value is None:
        return _NOTHING
    if name in _MONEY:
        exponent = EXPONENT[row["currency"]]
        return f"{Decimal(str(value)).scaleb(-exponent):,.{exponent + (name == 'epc') * 2}f}"
    if name == "cr":
        return f"{Decimal(str(value)) * 100:.2f} %"
    return f"{value:,}" if name in _FIGURES else str(value)


def _footer(answer: Mapping[str, Any]) -> list[str]:
    through = answer["complete_through"]
    lines = [f"complete through {through}" if through else "not known how far it is complete: an edge is not heard of"]
    if provisional := answer.get("provisional_from"):
        lines.append(f"provisional from {provisional}")
    if answer["truncated"]:
        lines.append("there are more rows: --csv has all of them")
    return lines
