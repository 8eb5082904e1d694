"""`clickdam recompute`: what rollups would be if they were made again, as a table."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.progress import track
from rich.table import Table

from aggregator.db.connect import connected
from aggregator.db.instants import rfc3339
from aggregator.settled import recompute, recompute_sales
from aggregator.settled.quarters import SESSION
from aggregator.settled.recompute import Difference
from deploy.run.children import CannotStart
from schemas import limits


async def run(database_url: str, starts: str, ends: str, console: Console, *, apply: bool) -> int:
    """Recompute the quarter hours from `starts` to before `ends` and print what differs; answers how many rows do.
    Raises CannotStart for what is no time."""
    shown: list[Difference] = []
    count = 0
    opening = connected(database_url, command_timeout_s=limits.SETTLE_QUARTER_S, application_name="clickdam-recompute")
    async with opening as db:
        await db.execute(SESSION)
        zone = ZoneInfo(await db.fetchval("SELECT timezone FROM programme"))
        span = _instant(starts, zone), _instant(ends, zone)
        clicked, sold = await recompute.settled(db, *span), await recompute_sales.sold(db, *span)
        steps = [(recompute.recompute, one) for one in clicked] + [(recompute_sales.recompute, one) for one in sold]
        progress = track(steps, "recomputing", console=console, transient=True, disable=not console.is_terminal)
        for compare, quarter in progress:
            found = await compare(db, quarter, apply=apply)
            count += len(found)
            shown += found[: limits.DIFFERENCES_SHOWN_MAX - len(shown)]
    _show(shown, console)
    done = ", put right" if apply and count else ""
    looked_at = f"{len(clicked):,} settled quarter hours and {len(sold):,} with conversions looked at"
    _say(console, f"{looked_at}: {count:,} rows differ{done}")
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
    table = Table("quarter hour", "rollup", "of", "stored", "recomputed")
    for one in differences:
        table.add_row(
            rfc3339(one.quarter, "seconds"), one.rollup, " ".join(str(part) or "-" for part in one.key),
            *_differing(one),
        )  # fmt: skip
    if table.row_count:
        console.print(table, markup=False)


def _differing(one: Difference) -> tuple[str, str]:
    """The figures that are not the same, as they are stored and as they would be."""
    differ = [pair for pair in zip(one.figures, one.stored, one.recomputed, strict=True) if pair[1] != pair[2]]
    stored = ", ".join(f"{name} {was}" for name, was, _ in differ)
    return stored, ", ".join(f"{name} {is_now}" for name, _, is_now in differ)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
