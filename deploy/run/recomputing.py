"""`clickdam recompute`: what rollups of clicks would be if they were made again, as a table."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.progress import track
from rich.table import Table

from aggregator.db.connect import connected
from aggregator.db.instants import rfc3339
from aggregator.settled.quarters import SESSION
from aggregator.settled.recompute import Difference, recompute, settled
from deploy.run.children import CannotStart
from schemas import limits

_COUNTED = "clicks, invalid, unique"


async def run(database_url: str, starts: str, ends: str, console: Console, *, apply: bool) -> int:
    """Recompute the quarter hours from `starts` to before `ends` and print what differs; answers how many rows do.
    Raises CannotStart for what is no time."""
    shown: list[Difference] = []
    count = 0
    opening = connected(database_url, command_timeout_s=limits.SETTLE_QUARTER_S, application_name="clickdam-recompute")
    async with opening as db:
        await db.execute(SESSION)
        zone = ZoneInfo(await db.fetchval("SELECT timezone FROM programme"))
        quarters = await settled(db, _instant(starts, zone), _instant(ends, zone))
        for quarter in track(quarters, "recomputing", console=console, transient=True, disable=not console.is_terminal):
            found = await recompute(db, quarter, apply=apply)
            count += len(found)
            shown += found[: limits.DIFFERENCES_SHOWN_MAX - len(shown)]
    _show(shown, console)
    done = ", put right" if apply and count else ""
    _say(console, f"{len(quarters):,} settled quarter hours looked at: {count:,} rows differ{done}")
    if count > len(shown):
        _say(console, f"the first {len(shown):,} are shown")
    return count


def _instant(text: str, zone: ZoneInfo) -> datetime:
    """A time; a day is its midnight in the programme's zone."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise CannotStart(f"{text!r} is neither a day (2026-11-27) nor a time (2026-11-27T10:15:00Z)") from None
    return instant if instant.tzinfo else instant.replace(tzinfo=zone)


def _show(differences: Iterable[Difference], console: Console) -> None:
    table = Table("quarter hour", "rollup", "of", f"stored ({_COUNTED})", f"by the clicks ({_COUNTED})")
    for one in differences:
        table.add_row(
            rfc3339(one.quarter, "seconds"), one.rollup, " ".join(str(part) or "-" for part in one.key),
            " ".join(map(str, one.stored)), " ".join(map(str, one.recomputed)),
        )  # fmt: skip
    if table.row_count:
        console.print(table, markup=False)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
