"""`clickdam bench`: in each round every contender in turn, there and back again; then the count, then the table."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import psutil
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from loadtests.bench import rows, systems, verdict, wrk
from loadtests.bench.contenders import BARE, CEILING, CONTENDERS, Contender
from loadtests.bench.systems import Running, Systems
from loadtests.bench.verdict import Asked, Line, Run

WARM_UP_S = 1
DURABLE = frozenset({"journal", "kafka"})
NAMES = [one.name for one in CONTENDERS]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options of the command. The bare server and the ceiling are always among `only`."""

    rounds: int
    seconds: int
    connections: tuple[int, ...]
    only: tuple[str, ...]

    @property
    def contenders(self) -> list[Contender]:
        return [one for one in CONTENDERS if not self.only or one.name in (CEILING, BARE, *self.only)]


@dataclass(slots=True)
class Found:
    """Everything a bench found out."""

    runs: list[Run] = field(default_factory=list)
    asked: dict[str, Asked] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, dict[str, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    applied_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


def main(wanted: Wanted, json_file: Path | None) -> int:
    """Measure, print, write. Returns 1 when an answer was wrong or a click is not exactly one row. Raises
    CannotStart."""
    wrk.check_possible()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was started is stopped
    console, began = Console(width=150), datetime.now(UTC)
    folder, cores = Path(tempfile.mkdtemp(prefix="clickdam-bench-")), os.sched_getaffinity(0)
    folder.chmod(0o711)  # as root, Postgres runs as another user and must get through
    try:
        with Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        ) as progress:
            found = uvloop.run(bench(folder, wanted, progress))
    finally:
        os.sched_setaffinity(0, cores)
        shutil.rmtree(folder, ignore_errors=True)
    show(found, console)
    if json_file:
        json_file.write_bytes(orjson.dumps(as_json(found, wanted, began), option=orjson.OPT_INDENT_2) + b"\n")
    return 1 if found.wrong else 0


async def bench(folder: Path, wanted: Wanted, progress: Progress) -> Found:
    """Raises CannotStart."""
    found = Found()
    starting = progress.add_task("starting", total=1)
    async with systems.running(folder, wanted.contenders) as started:
        progress.advance(starting)
        os.sched_setaffinity(0, {wrk.CORE})
        down = started.missing
        found.missing = {one.name: down[one.system] for one in wanted.contenders if one.system in down}
        there = [one for one in wanted.contenders if one.system in started.up]
        await _rounds(found, started, there, wanted, progress)
        await _count(found, started, there, progress)
    return found


async def _rounds(
    found: Found, started: Systems, there: Sequence[Contender], wanted: Wanted, progress: Progress
) -> None:
    task = progress.add_task("runs", total=wanted.rounds * len(wanted.connections) * len(there))
    for number in range(wanted.rounds):
        for connections in wanted.connections:
            for contender in there if number % 2 == 0 else reversed(there):
                progress.update(task, description=f"round {number + 1}: {contender.name}, {connections} connections")
                up, asked = started.up[contender.system], found.asked.setdefault(contender.name, Asked())
                found.runs.append(await _turn(contender, up, asked, connections, number, wanted.seconds))
                progress.advance(task)


async def _turn(contender: Contender, up: Running, asked: Asked, connections: int, number: int, seconds: int) -> Run:
    """Pin, warm up while looking at every answer, measure."""
    systems.pin(up.roots, 0)
    if up.broker:
        systems.pin([up.broker], contender.broker_core)
    size_bytes = await systems.answer_bytes(up.url, contender.name)
    asked.answered, asked.sent = asked.answered + 1, asked.sent + 1
    note(asked, await wrk.load(up.url, contender.name, connections, WARM_UP_S, check=True), connections, size_bytes)
    before = psutil.cpu_times(percpu=True)
    heard = await wrk.load(up.url, contender.name, connections, seconds)
    busy = [_busy(*of) for of in zip(before, psutil.cpu_times(percpu=True), strict=True)]
    note(asked, heard, connections, size_bytes)
    p50_ms, p99_ms = heard.p50_us / 1e3, heard.p99_us / 1e3
    return Run(contender.name, connections, number, heard.rate_s, p50_ms, p99_ms, (busy[0], busy[1]))


def _busy(before: Any, after: Any) -> float:
    spent = [now - then for then, now in zip(before, after, strict=True)]
    return 1 - (spent[before._fields.index("idle")] / sum(spent) if sum(spent) else 1)


def note(asked: Asked, heard: wrk.Heard, connections: int, size_bytes: int) -> None:
    """Add a run to what was asked, and complain of its answers: of those that were looked at, and of the size of
    all."""
    asked.answered += heard.answered
    asked.sent += heard.answered + connections
    asked.ids += heard.ids.split()
    for what, number in (
        ("not a redirect with a click id", heard.wrong), ("4xx or 5xx", heard.refused),
        ("broken connections", heard.broken),
    ):  # fmt: skip
        if number:
            asked.complaints.append(f"{number:,} of {heard.answered:,} answers: {what}")
    least, most = heard.answered * size_bytes, (heard.answered + connections) * size_bytes
    if not least <= heard.size_bytes <= most:
        asked.complaints.append(f"{heard.answered:,} answers of {size_bytes} bytes came to {heard.size_bytes:,} bytes")


async def _count(found: Found, started: Systems, there: Sequence[Contender], progress: Progress) -> None:
    durable = {one.name for one in there if one.system in DURABLE}
    if durable:
        task = progress.add_task("logs applied", total=None)
        for name, house in started.houses.items():
            found.outcomes[name] = outcomes(await house.metrics())
        found.applied_s = await rows.applied(
            started, lambda done, total: progress.update(task, completed=done, total=total)
        )
    ids = [one for name in durable for one in found.asked[name].ids]
    counted, ids_found = await rows.counted(started.database_url, ids) if durable else ({}, 0)
    found.rows = dict(counted)
    found.wrong = verdict.wrong(found.asked, found.rows, durable, ids_found)


def outcomes(metrics: dict[str, float]) -> dict[str, float]:
    """How an edge's clicks ended: recorded, spooled, late, lost."""
    found = {
        name.partition('outcome="')[2].partition('"')[0]: n for name, n in metrics.items() if "outcomes_total" in name
    }
    return {name: n for name, n in found.items() if n}


def show(found: Found, console: Console) -> None:
    """The tables, and what is wrong."""
    console.print(_figures(found))
    console.print(_goals(found))
    for name, of in found.asked.items():
        if name in found.rows:
            most = f"answered {of.answered:,}, sent at most {of.sent:,}, rows in Postgres {found.rows[name]:,}"
            console.print(f"{name}: {most}", highlight=False)
    for name, ended in found.outcomes.items():
        console.print(f"edge on {name}: {', '.join(f'{what} {n:,.0f}' for what, n in ended.items())}", highlight=False)
    for line in found.wrong:
        console.print(f"WRONG: {line}", style="red", highlight=False, markup=False)


def _figures(found: Found) -> Table:
    table = Table("contender", "conn.", title="each system on core 0, wrk on core 1; medians of the rounds")
    for head in ("answers/s", "min - max", "x bare", "p50 ms", "p99 ms", "p99 x bare", "busy 0, 1"):
        table.add_column(head, justify="right")
    lines, what = verdict.lines(found.runs), {one.name: one.what for one in CONTENDERS}
    ceilings = {line.connections: line for line in lines if line.name == CEILING}
    for line in sorted(lines, key=lambda line: (line.connections, NAMES.index(line.name))):
        table.add_row(what[line.name], *_cells(line, ceilings.get(line.connections)))
    for name, reason in found.missing.items():
        table.add_row(f"{what[name]}: {reason}", "-")
    return table


def _cells(line: Line, ceiling: Line | None) -> list[str]:
    near = " *" if line.near(ceiling) else ""  # the load generator may be the limit
    return [
        str(line.connections), f"{line.rate_s:,.0f}{near}", f"{line.rate_min_s:,.0f} - {line.rate_max_s:,.0f}",
        f"{line.of_bare:.2f}", f"{line.p50_ms:.2f}", f"{line.p99_ms:.2f}", f"{line.p99_of_bare:.2f}",
        f"{line.busy[0]:.0%}, {line.busy[1]:.0%}",
    ]  # fmt: skip


def _goals(found: Found) -> Table:
    table = Table(
        "goal", "conn.", "figure", "measured", "goal", "floor", "", title="median of the ratios of each round"
    )
    for met in verdict.goals(found.runs):
        goal = met.goal
        figure = "answers/s" if goal.figure == "rate_s" else "p99"
        figures = [f"{n:.2f}" for n in (met.measured, goal.goal, goal.floor)]
        table.add_row(f"{goal.name} / {goal.over}", str(goal.connections), figure, *figures, met.verdict)
    return table


def as_json(found: Found, wanted: Wanted, began: datetime) -> dict[str, Any]:
    """All of it, with when, where and what was measured."""
    met_or_not = verdict.goals(found.runs)
    asked = {name: {"answered": of.answered, "sent_max": of.sent} for name, of in found.asked.items()}
    return {
        "date": began, "commit": _commit(), "options": asdict(wanted),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        "figures": [asdict(line) for line in verdict.lines(found.runs)],
        "goals": [{**asdict(met.goal), "measured": met.measured, "verdict": met.verdict} for met in met_or_not],
        "runs": [asdict(run) for run in found.runs], "asked": asked, "rows": found.rows, "outcomes": found.outcomes,
        "applied_s": found.applied_s, "missing": found.missing, "wrong": found.wrong,
    }  # fmt: skip


def _commit() -> str:
    """Of the checkout that this runs from, with `-dirty` where it was changed; empty outside of one."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    if shutil.which("git") is None:
        return ""
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
