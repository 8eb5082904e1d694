"""`clickdam reconcile`: what edges have counted against what is in Postgres, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from rich.console import Console
from rich.table import Table

from deploy.run.http import Place, get

_SHOWN = ("received", "recorded", "spooled", "late", "lost", "uncounted", "refused", "rows", "imported", "unaccounted",
          "drift")  # fmt: skip


def run(place: Place, starts: str | None, ends: str | None, console: Console) -> bool:
    """Ask and print; whether there is no drift. Raises CannotStart."""
    asked = {name: text for name, text in (("from", starts), ("to", ends)) if text is not None}
    told = get(f"{place.api_url}/v1/reconciliation?{urlencode(asked)}", place.key)
    _show(told, console)
    return bool(told["drift"] == 0)


def _show(told: Mapping[str, Any], console: Console) -> None:
    """The hours in which anything happened, and what the complete ones come to."""
    table = Table(title=f"{told['from']} - {told['to']}", title_justify="left")
    for name in ("hour", "of", *_SHOWN):
        table.add_column(name, justify="left" if name in ("hour", "of") else "right")
    for hour in told["data"]:
        for cells in _rows(hour):
            table.add_row(*cells, style="bold red" if _is_off(hour) else None)
    console.print(table if table.row_count else "nothing happened in that time", markup=False)
    for line in _footer(told):
        console.print(line, markup=False, highlight=False)


def _rows(hour: Mapping[str, Any]) -> Iterable[list[str]]:
    when = hour["hour"] if hour["complete"] else f"{hour['hour']} (open)"
    for side in ("clicks", "conversions"):
        if hour[side]["received"] or hour[side]["rows"] or hour[side]["drift"]:
            yield [when, side, *(_cell(hour[side].get(name, "")) for name in _SHOWN)]


def _is_off(hour: Mapping[str, Any]) -> bool:
    return bool(hour["complete"] and (hour["clicks"]["drift"] or hour["conversions"]["drift"]))


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{reason} {count:,}" for reason, count in value.items())
    if isinstance(value, int):
        return f"{value:,}"
    return "?" if value is None else str(value)


def _footer(told: Mapping[str, Any]) -> Iterable[str]:
    through = told["complete_through"]
    yield f"complete through {through}" if through else "not known how far it is complete: an edge is not heard of"
    figures = ", ".join(f"{name} {told[name]:,}" for name in ("drift", "unaccounted", "imported"))
    yield f"{figures} in complete hours"
