"""Whether a click costs more with many links, or with many rows already there.

python -m loadtests.growth --links 1000,10000,100000
python -m loadtests.growth --rows 1000000,10000000

With --links, one edge on the journal is asked for links at random, out of the first so many: it is pinned, warmed up
over all of them and measured as `clickdam bench` does, in turns. With --rows, a consumer applies clicks to databases
that already hold so many of the last day, in turns; 10,000,000 rows need 5 GB of disk and some minutes to be made.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg
import orjson
import structlog
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from aggregator.db import partitions
from aggregator.db.connect import Connection
from aggregator.db.migrate import migrate
from loadtests import apply
from loadtests.bench import rows, systems, verdict, wrk
from loadtests.bench.contenders import CONTENDERS
from loadtests.bench.run import Turn, timed
from loadtests.bench.verdict import Asked
from loadtests.circumstances import circumstances
from loadtests.faults import journals
from loadtests.stores import redis_and_postgres

CONNECTIONS = 64
WARMED_S = 3_000  # links a second, at least, while every answer is looked at
FILLED_AT_ONCE = 100_000
_CLICKS = """
INSERT INTO click (id, link_id, offer_id, partner_id, click_class, country, device, os, browser, visitor, ip)
SELECT (lpad(to_hex(at_ms), 12, '0') || '7' || left(luck, 3) || '8' || substr(luck, 4, 15))::uuid,
    1 + n % 1000, 1 + n % 50, 1 + n % 200, 0, 'DE', 'phone', 'iOS', 'Safari', left(luck, 16), '192.0.2.0'
FROM generate_series($1::bigint, $2::bigint) AS n, md5(n::text) AS luck,
    LATERAL (SELECT ($3::bigint + n * 86400000 / $4::bigint) AS at_ms) AS moment
"""
_ROLLUPS = """
INSERT INTO click_rollup (quarter, link_id, offer_id, partner_id, country, device, shard, clicks, invalid_clicks)
SELECT date_bin('15 minutes', uuid_extract_timestamp(id), 'epoch'), link_id, offer_id, partner_id, country, device, 0,
    count(*), 0
FROM click GROUP BY 1, 2, 3, 4, 5, 6
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options. `links` and `rows` are sizes; `clicks` are applied in each turn at `rows`."""

    links: tuple[int, ...]
    rows: tuple[int, ...]
    rounds: int
    seconds: int
    clicks: int


@dataclass(frozen=True, slots=True)
class Taken:
    """A turn at a size. `cpu_us` for each click: of the edge and what it needs, or of the consumer and Postgres."""

    size: int
    round: int
    rate_s: float
    cpu_us: float


async def by_links(wanted: Wanted, folder: Path, progress: Progress) -> tuple[list[Taken], list[str]]:
    """And what is wrong: a click that is not exactly one row. Raises CannotStart."""
    journal = next(of for of in CONTENDERS if of.name == "journal")
    asked, taken = Asked(), list[Taken]()
    starting = progress.add_task("starting", total=1)
    async with systems.running(folder, [journal], max(wanted.links)) as started:
        progress.advance(starting)
        os.sched_setaffinity(0, {wrk.CORE})
        up = started.up[journal.system]
        cold = await _ask_cold(up.url, journal.name, asked, max(wanted.links))
        progress.console.print(f"{cold:,} clicks were refused while their links were read for the first time")
        task = progress.add_task("links", total=len(wanted.links) * wanted.rounds)
        for number, links in turns(wanted.links, wanted.rounds):
            progress.update(task, description=f"round {number + 1}: {links:,} links")
            turn, warm_up_s = Turn(number, mixed=False, connections=CONNECTIONS), 1 + links // WARMED_S
            run = await timed(journal, up, asked, turn, wanted.seconds, links=links, warm_up_s=warm_up_s)
            taken.append(Taken(links, number, run.rate_s, run.cpu_us))
            progress.advance(task)
        return taken, await _wrong(started, asked, journal.name, progress)


async def _ask_cold(url: str, name: str, asked: Asked, links: int) -> int:
    """Ask for every link once; how many were refused, because Redis did not answer in time."""
    heard = await wrk.load(url, name, CONNECTIONS, 1 + links // WARMED_S, links=links, check=True)
    asked.answered += heard.answered - heard.refused
    asked.sent += heard.answered - heard.refused + CONNECTIONS
    asked.ids += heard.ids.split()
    return heard.refused


async def _wrong(started: systems.Systems, asked: Asked, name: str, progress: Progress) -> list[str]:
    house, task = started.houses[name], progress.add_task("log applied", total=None)
    await house.start_aggregator()
    await rows.applied(
        [rows.log_of(house)], started.database_url,
        lambda done, total: progress.update(task, completed=done, total=total),
    )  # fmt: skip
    counted, ids_found = await rows.counted(started.database_url, asked.ids)
    return verdict.wrong({name: asked}, counted, {name}, ids_found)


async def by_rows(wanted: Wanted, progress: Progress) -> tuple[list[Taken], list[str]]:
    """A database for each size, to which every turn adds. Raises CannotStart."""
    taken = list[Taken]()
    with redis_and_postgres("growth") as (folder, valkey, postgres):
        urls = {size: await _filled(postgres.url, size, progress) for size in wanted.rows}
        task = progress.add_task("rows", total=len(wanted.rows) * wanted.rounds)
        for number, size in turns(wanted.rows, wanted.rounds):
            progress.update(task, description=f"round {number + 1}: {size:,} rows")
            clicks = apply.traffic(wanted.clicks, 1_000, seed=random.randrange(2**32))
            journal = folder / f"journal-{size}-{number}"
            journal.mkdir()
            apply.write_journal(journal, clicks)
            settings = journals.settings(urls[size], journal, redis_url=valkey.url)
            stage = apply.Stage(postgres, clicks, {"journal": settings})
            turn = await apply.measured(stage, "journal", number, lambda: apply.applied(settings, wanted.clicks))  # noqa: B023
            taken.append(Taken(size, number, turn.rate_s, turn.client_us + turn.postgres_us))
            progress.advance(task)
        wrong = [await _missing(urls[size], size + wanted.rounds * wanted.clicks) for size in wanted.rows]
    return taken, [line for line in wrong if line]


async def _filled(server_url: str, size: int, progress: Progress) -> str:
    """The URL of a new database with so many clicks of the last day, their rollups, and what Postgres knows of them."""
    name = f"growth_{size}"
    db = await asyncpg.connect(server_url)
    await db.execute(f"CREATE DATABASE {name}")
    await db.close()
    url = f"{server_url.rpartition('/')[0]}/{name}"
    await migrate(url)
    db = await asyncpg.connect(url)
    try:
        today = await partitions.today(db)
        await partitions.ensure(db, [today - timedelta(days=1), today])
        await _fill(db, size, progress)
        await db.execute(_ROLLUPS)
        await db.execute("VACUUM ANALYZE")
    finally:
        await db.close()
    return url


async def _fill(db: Connection, size: int, progress: Progress) -> None:
    task, since_ms = progress.add_task(f"making {size:,} rows", total=size), journals.now_ms() - 86_400_000
    for first in range(0, size, FILLED_AT_ONCE):
        last = min(size, first + FILLED_AT_ONCE)
        await db.execute(_CLICKS, first, last - 1, since_ms, size)
        progress.update(task, completed=last)


async def _missing(url: str, expected: int) -> str:
    db = await asyncpg.connect(url)
    try:
        clicks = await db.fetchval("SELECT count(*) FROM click")
        rolled = await db.fetchval("SELECT sum(clicks)::bigint FROM click_rollup")
    finally:
        await db.close()
    return (
        "" if (clicks, rolled) == (expected, expected) else f"{expected:,} clicks, {clicks:,} rows, {rolled:,} rolled"
    )


def turns(sizes: Sequence[int], rounds: int) -> list[tuple[int, int]]:
    """(round, size), there and back again."""
    return [(number, size) for number in range(rounds) for size in (sizes if number % 2 == 0 else sizes[::-1])]


def grown(taken: Sequence[Taken]) -> dict[int, float]:
    """The median of what a click costs in CPU at a size by what it costs at the least, round by round."""
    cpu = {(of.size, of.round): of.cpu_us for of in taken}
    least = min(of.size for of in taken)
    return {
        size: median(us / cpu[least, number] for (at, number), us in cpu.items() if at == size)
        for size in sorted({of.size for of in taken})
    }


def show(what: str, taken: Sequence[Taken], console: Console) -> None:
    """A row for each size."""
    table = Table(what, title="medians of the rounds; CPU of all processes for each click")
    for head in ("clicks/s", "min - max", "CPU µs", "x the least"):
        table.add_column(head, justify="right")
    for size, times in grown(taken).items():
        rates = [of.rate_s for of in taken if of.size == size]
        cpu_us = median(of.cpu_us for of in taken if of.size == size)
        span = f"{min(rates):,.0f} - {max(rates):,.0f}"
        table.add_row(f"{size:,}", f"{median(rates):,.0f}", span, f"{cpu_us:.1f}", f"{times:.2f}")
    console.print(table)


def measure(wanted: Wanted, progress: Progress) -> tuple[dict[str, list[Taken]], list[str]]:
    """What is asked for, by its name, and what is wrong. Raises CannotStart."""
    found: dict[str, list[Taken]] = {}
    wrong: list[str] = []
    if wanted.links:
        wrk.check_possible()
        folder, cores = Path(tempfile.mkdtemp(prefix="clickdam-growth-")), os.sched_getaffinity(0)
        folder.chmod(0o711)  # as root, Postgres runs as another user and must get through
        try:
            found["links"], wrong = uvloop.run(by_links(wanted, folder, progress))
        finally:
            os.sched_setaffinity(0, cores)
            shutil.rmtree(folder, ignore_errors=True)
    if wanted.rows:
        found["rows"], more = uvloop.run(by_rows(wanted, progress))
        wrong += more
    return found, wrong


def sizes(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(size) for size in text.split(",")}))


def main() -> int:
    """Returns 1 when a click is not exactly one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--links", type=sizes, default=(), metavar="N,N,...", help="links that are asked for")
    parser.add_argument("--rows", type=sizes, default=(), metavar="N,N,...", help="rows that are there before")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of a timed run with --links")
    parser.add_argument("--clicks", type=int, default=100_000, help="applied in each turn with --rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    asked, began, console = parser.parse_args(), datetime.now(UTC), Console(width=150)
    if not asked.links and not asked.rows:
        parser.error("--links, --rows or both")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was started is stopped
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    wanted = Wanted(asked.links, asked.rows, asked.rounds, asked.seconds, asked.clicks)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        found, wrong = measure(wanted, progress)
    for what, taken in found.items():
        show(what, taken, console)
    for line in wrong:
        console.print(f"WRONG: {line}", style="red", highlight=False, markup=False)
    if asked.json:
        as_json = _as_json(found, wrong, wanted, began)
        asked.json.write_bytes(orjson.dumps(as_json, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS) + b"\n")
    return int(bool(wrong))


def _as_json(
    found: Mapping[str, Sequence[Taken]], wrong: Sequence[str], wanted: Wanted, began: datetime
) -> dict[str, Any]:
    of_all = {what: [asdict(of) for of in taken] for what, taken in found.items()}
    times = {what: grown(taken) for what, taken in found.items()}
    return {**circumstances(began), "options": asdict(wanted), "grown": times, "turns": of_all, "wrong": wrong}


if __name__ == "__main__":
    sys.exit(main())
