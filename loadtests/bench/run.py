"""`clickdam bench`: in each round every contender in turn, there and back again; then the count, then the table."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import urlencode

import orjson
import psutil
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from loadtests.bench import rows, systems, verdict, wrk
from loadtests.bench.contenders import BARE, CEILING, CONTENDERS, Contender
from loadtests.bench.picture import picture
from loadtests.bench.systems import Running, Systems
from loadtests.bench.verdict import Asked, Line, Run
from loadtests.circumstances import circumstances, commit
from loadtests.cpu import cpu_s

WARM_UP_S = 1
Load = Callable[..., Awaitable[wrk.Heard]]  # for so many seconds; `check`: every answer is looked at
DURABLE = frozenset({"journal", "kafka"})
NAMES = [one.name for one in CONTENDERS]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options of the command. The bare server and the ceiling are always among `only`."""

    rounds: int
    seconds: int
    connections: tuple[int, ...]
    only: tuple[str, ...]
    mixed: bool = False

    @property
    def contenders(self) -> list[Contender]:
        return [one for one in CONTENDERS if not self.only or one.name in (CEILING, BARE, *self.only)]


@dataclass(frozen=True, slots=True)
class Turn:
    """What every contender does before the next turn."""

    round: int
    mixed: bool
    connections: int


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


def main(wanted: Wanted, json_file: Path | None, svg_file: Path | None) -> int:
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
    if svg_file:
        caption = f"{began:%Y-%m-%d}, {commit()}: each system on one core, the load on another of {os.cpu_count()}"
        svg_file.write_text(picture(verdict.lines(found.runs), caption))
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
    turns = [Turn(*of) for of in product(range(wanted.rounds), (False, True)[: 1 + wanted.mixed], wanted.connections)]
    clicked = sum(not one.conversions for one in there)
    total = sum(clicked if turn.mixed else len(there) for turn in turns)
    task = progress.add_task("runs", total=total)
    for turn in turns:
        for contender in there if turn.round % 2 == 0 else reversed(there):
            if turn.mixed and contender.conversions:
                continue
            what = f"round {turn.round + 1}: {contender.name}, {_load(turn.connections, turn.mixed)} connections"
            progress.update(task, description=what)
            up, asked = started.up[contender.system], found.asked.setdefault(contender.name, Asked())
            found.runs.append(await timed(contender, up, asked, turn, wanted.seconds))
            progress.advance(task)


async def timed(
    contender: Contender, up: Running, asked: Asked, turn: Turn, seconds: int, *, links: int = wrk.CODES,
    warm_up_s: int = WARM_UP_S,
) -> Run:  # fmt: skip
    """Pin, warm up while looking at every answer, measure: clicks on so many links, or conversions."""
    systems.pin(up.roots, 0)
    if up.broker:
        systems.pin([up.broker], contender.broker_core)
    load, sizes = await (_converting if contender.conversions else _clicking)(contender, up, asked, turn, links)
    each = contender.conversions or 1
    verdict.note(asked, await load(warm_up_s, check=True), turn.connections, *sizes, each=each)
    before, spent_s = psutil.cpu_times(percpu=True), cpu_s(up.pids)
    heard = await load(seconds)
    spent_s = cpu_s(up.pids) - spent_s
    busy = [_busy(*of) for of in zip(before, psutil.cpu_times(percpu=True), strict=True)]
    verdict.note(asked, heard, turn.connections, *sizes, each=each)
    return Run(
        contender.name, turn.connections, turn.mixed, turn.round, heard.rate_s * each, heard.p50_us / 1e3,
        heard.p99_us / 1e3, spent_s / max(heard.answered * each, 1) * 1e6, (busy[0], busy[1]),
    )  # fmt: skip


async def _clicking(contender: Contender, up: Running, asked: Asked, turn: Turn, links: int) -> tuple[Load, list[int]]:
    """How this one is loaded, and the sizes of its answers: to a click, and to another request."""
    sizes = [await systems.answer_bytes(up.url, path) for path in (f"/c/{contender.name}-{wrk.CODES}", "/live")]
    asked.answered, asked.sent = asked.answered + 1, asked.sent + 1
    return partial(wrk.load, up.url, contender.name, turn.connections, links=links, mixed=turn.mixed), sizes


async def _converting(contender: Contender, up: Running, asked: Asked, turn: Turn, _: int) -> tuple[Load, list[int]]:
    """The same for conversions."""
    each = contender.conversions
    click_id = await systems.click_id(up.url, f"/c/{contender.name}-{wrk.CODES}")
    order = {"click_id": click_id, "amount": "49.90", "currency": "EUR", "order_id": f"{contender.name}-{token_hex(4)}"}
    if each == 1:
        size = await systems.answer_bytes(up.url, f"/postback?{urlencode(order | {'token': 'bench'})}")
    else:
        some = [order | {"order_id": f"{order['order_id']}-{n}"} for n in range(each)]
        size = await systems.answer_bytes(up.url, "/v1/conversions", orjson.dumps({"conversions": some}).decode())
    asked.answered, asked.sent = asked.answered + each, asked.sent + each
    return partial(wrk.convert, up.url, contender.name, click_id, each, turn.connections), [size]


def _busy(before: Any, after: Any) -> float:
    spent = [now - then for then, now in zip(before, after, strict=True)]
    return 1 - (spent[before._fields.index("idle")] / sum(spent) if sum(spent) else 1)


async def _count(found: Found, started: Systems, there: Sequence[Contender], progress: Progress) -> None:
    durable = {one.name for one in there if one.system in DURABLE}
    if durable:
        task = progress.add_task("logs applied", total=None)
        for name, house in started.houses.items():
            found.outcomes[name] = outcomes(await house.metrics())
        for house in started.houses.values():
            await house.start_aggregator()
        logs = [rows.log_of(house) for house in started.houses.values()]
        found.applied_s = await rows.applied(
            logs, started.database_url, lambda done, total: progress.update(task, completed=done, total=total)
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
    title = "each system on core 0, wrk on core 1; medians of the rounds; CPU of all its processes for each answer"
    mixed = any(run.mixed for run in found.runs)
    table = Table("contender", "conn.", title=title, caption="+5 %: of 20 requests one is GET /live" if mixed else None)
    for head in ("answers/s", "min - max", "x bare", "p50 ms", "p99 ms", "p99 x bare", "CPU µs", "busy 0, 1"):
        table.add_column(head, justify="right")
    lines, what = verdict.lines(found.runs), {one.name: one.what for one in CONTENDERS}
    ceilings = {(line.connections, line.mixed): line for line in lines if line.name == CEILING}
    for line in sorted(lines, key=lambda line: (line.mixed, line.connections, NAMES.index(line.name))):
        table.add_row(what[line.name], *_cells(line, ceilings.get((line.connections, line.mixed))))
    for name, reason in found.missing.items():
        table.add_row(f"{what[name]}: {reason}", "-")
    return table


def _cells(line: Line, ceiling: Line | None) -> list[str]:
    near = " *" if line.near(ceiling) else ""  # the load generator may be the limit
    return [
        _load(line.connections, line.mixed),
        f"{line.rate_s:,.0f}{near}", f"{line.rate_min_s:,.0f} - {line.rate_max_s:,.0f}",
        f"{line.of_bare:.2f}", f"{line.p50_ms:.2f}", f"{line.p99_ms:.2f}", f"{line.p99_of_bare:.2f}",
        f"{line.cpu_us:.0f}", f"{line.busy[0]:.0%}, {line.busy[1]:.0%}",
    ]  # fmt: skip


def _load(connections: int, mixed: bool) -> str:
    return f"{connections} +5 %" if mixed else f"{connections}"


def _goals(found: Found) -> Table:
    table = Table(
        "goal", "conn.", "figure", "measured", "goal", "floor", "", title="median of the ratios of each round"
    )
    for met in verdict.goals(found.runs):
        goal = met.goal
        figure = "answers/s" if goal.figure == "rate_s" else "p99"
        figures = [f"{n:.2f}" for n in (met.measured, goal.goal, goal.floor)]
        load = _load(goal.connections, met.mixed)
        table.add_row(f"{goal.name} / {goal.over}", load, figure, *figures, met.verdict)
    return table


def as_json(found: Found, wanted: Wanted, began: datetime) -> dict[str, Any]:
    """All of it, with when, where and what was measured."""
    asked = {name: {"answered": of.answered, "sent_max": of.sent} for name, of in found.asked.items()}
    return {
        **circumstances(began), "options": asdict(wanted),
        "figures": [asdict(line) for line in verdict.lines(found.runs)],
        "goals": [asdict(met.goal) | {"mixed": met.mixed, "measured": met.measured, "verdict": met.verdict}
                  for met in verdict.goals(found.runs)],
        "runs": [asdict(run) for run in found.runs], "asked": asked, "rows": found.rows, "outcomes": found.outcomes,
        "applied_s": found.applied_s, "missing": found.missing, "wrong": found.wrong,
    }  # fmt: skip
