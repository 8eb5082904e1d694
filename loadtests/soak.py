"""Full load on one edge with its aggregator: does memory stay flat, what does a click cost, is everything recorded?

python -m loadtests.soak --minutes 10 --json FILE

First nobody comes, then visitors at a fixed rate; then `wrk` asks for as much as there is for ten minutes, and the
visitors keep coming. Nothing is pinned: on two cores everybody shares them, the load generator too. The visitors'
latencies count from the moment a click was due, so a stall is felt by all who would have clicked meanwhile. CPU is that
of all processes until the log is applied, by whose it is.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import orjson
import psutil
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from loadtests import workload
from loadtests.bench import rows, systems, verdict, wrk
from loadtests.bench.verdict import Asked
from loadtests.circumstances import circumstances
from loadtests.clicking import send_clicks
from loadtests.cpu import cpu_s, cpu_us_each
from loadtests.faults.house import CODES, House, house
from loadtests.heard import Heard
from loadtests.percentiles import percentile
from loadtests.stores import redis_and_postgres

SAMPLE_S = 10.0
IDLE_S, WARM_UP_S = 10, 10
GROWN_MAX = 1.1  # last minute's memory by the first's; what an allocator keeps moves it by a few hundredths
NAME, LINKS = "house", len(CODES) - 1  # wrk counts its links from 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options. Visitors come `rate_s` a second."""

    minutes: float
    rest_s: int
    rate_s: float
    connections: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident memory in MB, so long after the start of the full load."""

    at_s: float
    worker_mb: float
    aggregator_mb: float


@dataclass(frozen=True, slots=True)
class Phase:
    """A rate for a while. CPU µs for each click by process, and what the visitors waited from when they were due."""

    name: str
    clicks: int
    rate_s: float
    cpu_us: Mapping[str, float]
    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class Found:
    """`idle` is the share of a core that each process needs when nobody comes, `worker_grown` the last minute's memory
    by the first's."""

    idle: Mapping[str, float]
    phases: Sequence[Phase]
    samples: Sequence[Sample]
    worker_mb: tuple[float, float]
    aggregator_mb: tuple[float, float]
    rows: int
    asked: Asked
    wrong: Sequence[str]

    @property
    def worker_grown(self) -> float:
        return self.worker_mb[1] / self.worker_mb[0]


@dataclass(slots=True)
class Site:
    """What runs, whose CPU is counted by name, and all that was asked of it."""

    house: House
    roots: Mapping[str, int]
    wanted: Wanted
    progress: Progress
    asked: Asked

    def cpu_s(self) -> dict[str, float]:
        return {name: cpu_s([pid]) for name, pid in self.roots.items()}


async def soak(wanted: Wanted, progress: Progress) -> Found:
    """Rest, then full load. Raises CannotStart."""
    with redis_and_postgres("soak") as (folder, valkey, postgres):
        async with house(folder / "house", postgres.url, valkey.url, f"journal://{folder}/journal") as built:
            assert built.edge is not None
            roots = {"edge": built.edge.pid, "aggregator": built.aggregators[0].pid}
            roots |= {"Valkey": valkey.pid, "PostgreSQL": postgres.pid}
            site = Site(built, roots, wanted, progress, Asked())
            idle = await alone(site)
            rest = await at_rest(site)
            full, samples = await at_full_load(site)
            counted, ids_found = await rows.counted(postgres.url, site.asked.ids)
    wrong = verdict.wrong({NAME: site.asked}, counted, {NAME}, ids_found)
    worker, aggregator = ([getattr(of, name) for of in samples] for name in ("worker_mb", "aggregator_mb"))
    return Found(
        idle, (rest, full), samples, ends(worker), ends(aggregator), counted.get(NAME, 0), site.asked, wrong
    )  # fmt: skip


async def alone(site: Site) -> dict[str, float]:
    """The share of a core for beats, watches and polls."""
    before = site.cpu_s()
    await asyncio.sleep(IDLE_S)
    return {name: (spent - before[name]) / IDLE_S for name, spent in site.cpu_s().items()}


async def at_rest(site: Site) -> Phase:
    """Visitors only."""
    task = site.progress.add_task(f"{site.wanted.rate_s:.0f} clicks/s", total=None)
    before, began = site.cpu_s(), time.monotonic()
    heard = await _visitors(site, site.wanted.rest_s, seed=1)
    took_s = time.monotonic() - began
    await _applied(site, task)
    clicks = note_visitors(site.asked, heard)
    return _phase(
        f"{site.wanted.rate_s:.0f} clicks/s", clicks, took_s, cpu_us_each(before, site.cpu_s(), clicks), heard
    )


async def at_full_load(site: Site) -> tuple[Phase, list[Sample]]:
    """Visitors beside wrk. The warm-up looks at every answer, and is not measured."""
    url, seconds = site.house.edge_url, round(site.wanted.minutes * 60)
    size_bytes = await systems.answer_bytes(url, f"/c/{CODES[1]}")
    site.asked.answered, site.asked.sent = site.asked.answered + 1, site.asked.sent + 1
    checked = await wrk.load(url, NAME, site.wanted.connections, WARM_UP_S, links=LINKS, check=True)
    verdict.note(site.asked, checked, site.wanted.connections, size_bytes)
    task = site.progress.add_task("full load", total=seconds)
    before, samples = site.cpu_s(), list[Sample]()
    async with _sampled(site, samples, task):
        heard, visitors = await asyncio.gather(
            wrk.load(url, NAME, site.wanted.connections, seconds, links=LINKS), _visitors(site, seconds, seed=2)
        )
    verdict.note(site.asked, heard, site.wanted.connections, size_bytes)
    await _applied(site, site.progress.add_task("log applied", total=None))
    clicks = heard.answered + note_visitors(site.asked, visitors)
    return _phase("full load", clicks, seconds, cpu_us_each(before, site.cpu_s(), clicks), visitors), samples


@asynccontextmanager
async def _sampled(site: Site, samples: list[Sample], task: TaskID) -> AsyncIterator[None]:
    sampling = asyncio.create_task(_sample(site, samples, task))
    try:
        yield
    finally:
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)


async def _sample(site: Site, samples: list[Sample], task: TaskID) -> None:
    began = time.monotonic()
    while True:
        await asyncio.sleep(SAMPLE_S)
        at_s = time.monotonic() - began
        samples.append(Sample(at_s, _mb(site.house.worker_pids()), _mb([site.roots["aggregator"]])))
        site.progress.update(task, completed=at_s)


def _mb(pids: Sequence[int]) -> float:
    return sum(psutil.Process(pid).memory_info().rss for pid in pids) / 2**20


async def _visitors(site: Site, seconds: float, seed: int) -> Heard:
    """They come at their rate whether or not those before them have been answered."""
    heard = Heard()
    planned = list(workload.clicks(seed, CODES[1:], round(site.wanted.rate_s * seconds)))
    await send_clicks(planned, site.house.edge_url, heard, site.wanted.rate_s)
    return heard


async def _applied(site: Site, task: TaskID) -> None:
    log = rows.log_of(site.house)
    await rows.applied(
        [log], site.house.database_url, lambda done, total: site.progress.update(task, completed=done, total=total)
    )


def note_visitors(asked: Asked, heard: Heard) -> int:
    """Clicks that were answered with a redirect that is recorded; a GET that was cut off may be."""
    ids = [one for one in heard.settled.values() if one is not None]
    asked.ids += ids
    asked.answered += len(ids)
    asked.sent += len(ids) + sum(click.method == "GET" for click in heard.cut_off)
    asked.complaints += heard.complaints
    return len(ids)


def _phase(name: str, clicks: int, took_s: float, cpu_us: Mapping[str, float], visitors: Heard) -> Phase:
    p50_ms, p99_ms, max_ms = (percentile(visitors.took_s, percent) * 1e3 for percent in (50, 99, 100))
    return Phase(name, clicks, clicks / took_s, cpu_us, p50_ms, p99_ms, max_ms)


def ends(figures: Sequence[float]) -> tuple[float, float]:
    """The medians of the first and of the last minute, or of the halves of what took less than two."""
    count = min(round(60 / SAMPLE_S), (len(figures) + 1) // 2)
    return (median(figures[:count]), median(figures[-count:])) if figures else (0.0, 0.0)


def show(found: Found, console: Console) -> None:
    """The table, and what is wrong."""
    columns = list(found.phases[0].cpu_us)
    table = Table("", title="CPU µs for each click, until it is a row; visitors' latencies from when they were due")
    for head in ("clicks/s", *columns, "all CPU µs", "p50 ms", "p99 ms", "max ms"):
        table.add_column(head, justify="right")
    for of in found.phases:
        cpu = [*(of.cpu_us[name] for name in columns), sum(of.cpu_us.values())]
        latencies = [f"{ms:.1f}" for ms in (of.p50_ms, of.p99_ms, of.max_ms)]
        table.add_row(of.name, f"{of.rate_s:,.0f}", *(f"{us:.0f}" for us in cpu), *latencies)
    console.print(table)
    idle = ", ".join(f"{name} {share:.1%}" for name, share in found.idle.items())
    console.print(f"of a core when nobody comes: {idle}", highlight=False)
    for name, (first, last) in (("edge worker", found.worker_mb), ("aggregator", found.aggregator_mb)):
        console.print(f"{name}: {first:.0f} MB in the first minute, {last:.0f} MB in the last", highlight=False)
    of_all = f"answered {found.asked.answered:,}, sent at most {found.asked.sent:,}, rows in Postgres {found.rows:,}"
    console.print(of_all, highlight=False)
    for line in found.wrong:
        console.print(f"WRONG: {line}", style="red", highlight=False, markup=False)


def as_json(found: Found, wanted: Wanted, began: datetime) -> dict[str, Any]:
    """All of it."""
    return {
        **circumstances(began), "options": asdict(wanted), "idle": found.idle,
        "phases": [asdict(of) for of in found.phases],
        "samples": [asdict(of) for of in found.samples], "worker_mb": found.worker_mb,
        "aggregator_mb": found.aggregator_mb, "worker_grown": found.worker_grown, "rows": found.rows,
        "answered": found.asked.answered, "sent_max": found.asked.sent, "wrong": found.wrong,
    }  # fmt: skip


def main() -> int:
    """Returns 1 if the worker's memory has grown, or a click is not exactly one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of full load")
    parser.add_argument("--rest", type=int, default=60, metavar="SECONDS", help="of visitors alone")
    parser.add_argument("--rate", type=float, default=100.0, help="visitors a second, all along")
    parser.add_argument("--connections", type=int, default=64, help="of wrk")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    asked, began = parser.parse_args(), datetime.now(UTC)
    wrk.check_possible()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was started is stopped
    wanted, console = Wanted(asked.minutes, asked.rest, asked.rate, asked.connections), Console(width=150)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}"), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        found = uvloop.run(soak(wanted, progress))
    show(found, console)
    if asked.json:
        asked.json.write_bytes(orjson.dumps(as_json(found, wanted, began), option=orjson.OPT_INDENT_2) + b"\n")
    return int(bool(found.wrong) or found.worker_grown > GROWN_MAX)


if __name__ == "__main__":
    sys.exit(main())
