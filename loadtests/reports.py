"""How long reports take: a partner's month by day and five other questions, not remembered and remembered, at rest and
while clicks are ingested, over one or more sizes of history.

python -m loadtests.reports --clicks 1000000,10000000 --conversions 20000,200000 --ingest-per-s 5000

Postgres, Valkey and API are its own, and so is the aggregator that ingests. Each question that is not remembered is one
that nobody has asked before: of another partner, or of a range that is moved by a quarter hour. 10,000,000 clicks need
10 GB of disk and take most of an hour to be made.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import aiohttp
import asyncpg
import orjson
import structlog
import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from aggregator.api import keys
from aggregator.db.connect import connected
from aggregator.db.migrate import migrate
from deploy.run.children import free_port
from deploy.run.servers import Server
from loadtests import apply, history
from loadtests.circumstances import circumstances
from loadtests.faults import journals
from loadtests.faults.house import House
from loadtests.percentiles import percentile
from loadtests.stores import redis_and_postgres
from schemas import limits

KEYS = 40  # of partners that ask, the first of them the busiest
READY_S = 30.0
AT_REST, INGESTING = "at rest", "ingesting"
GOAL_MS, GOAL_TIMES_FASTER, GOAL_TIMES_SLOWER = 120.0, 20.0, 2.0
_ROLLUP_ROWS = "SELECT sum(clicks)::bigint FROM click_rollup"
_ALL = "clicks,unique_clicks,conversions,approved,pending,rejected,reversed,sale_amount,payout,cr,epc"


@dataclass(frozen=True, slots=True)
class Asked:
    """A question: the last `days` of the history, by what, and whether a partner asks or an admin."""

    name: str
    days: int
    words: Mapping[str, str]
    is_partners: bool = True


QUESTIONS = (
    Asked("partner, month by day", 30, {"group_by": "day", "metrics": _ALL, "totals": "1"}),
    Asked("partner, month by link", 30, {"group_by": "link", "metrics": _ALL}),
    Asked("partner, month by sub1", 30, {"group_by": "sub1", "metrics": "clicks,invalid_clicks,unique_clicks"}),
    Asked("partner, month by day and country", 30, {"group_by": "day,country", "metrics": "clicks,unique_clicks"}),
    Asked("partner, week by hour", 7, {"group_by": "hour", "metrics": _ALL}),
    Asked(
        "admin, month by partner", 30, {"group_by": "partner", "metrics": _ALL, "sort": "-clicks"}, is_partners=False
    ),
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options. `conversions` go with `clicks`, one for each."""

    clicks: tuple[int, ...]
    conversions: tuple[int, ...]
    days: int
    partners: int
    asks: int
    ingest_per_s: int


@dataclass(frozen=True, slots=True)
class Taken:
    """How long a question took (ms) in a size of history; `ingested_s` are clicks a second meanwhile."""

    clicks: int
    state: str
    question: str
    fresh_p50_ms: float
    fresh_p95_ms: float
    remembered_p95_ms: float
    ingested_s: float

    @property
    def times_faster(self) -> float:
        return self.fresh_p95_ms / self.remembered_p95_ms


@dataclass(frozen=True, slots=True)
class Stage:
    """An API on one history that ends then, keys to ask with (partners', and an admin's), and where it lies."""

    clicks: int
    ends: datetime
    url: str
    partner_keys: Sequence[str]
    admin_key: str
    house: House


async def measured(wanted: Wanted, folder: Path, redis: Server, postgres: Server, progress: Progress) -> list[Taken]:
    """Every size in a database of its own, one after the other. Raises RuntimeError for an answer other than 200."""
    taken = list[Taken]()
    for clicks, conversions in zip(wanted.clicks, wanted.conversions, strict=True):
        of = history.Wanted(clicks, conversions, wanted.days, wanted.partners)
        async with _stage(of, folder / str(clicks), redis, postgres, progress) as stage:
            numbers = count(1)
            taken += await _all(stage, AT_REST, wanted, numbers, progress)
            if wanted.ingest_per_s:
                async with _ingesting(stage, wanted, progress):
                    taken += await _all(stage, INGESTING, wanted, numbers, progress)
    return taken


@asynccontextmanager
async def _stage(
    of: history.Wanted, folder: Path, redis: Server, postgres: Server, progress: Progress
) -> AsyncIterator[Stage]:
    name = f"reports_{of.clicks}"
    db = await asyncpg.connect(postgres.url)
    await db.execute(f"CREATE DATABASE {name}")
    await db.close()
    url = f"{postgres.url.rpartition('/')[0]}/{name}"
    await migrate(url)
    ends = await history.fill(url, of, progress)
    partner_keys, admin_key = await _make_keys(url, min(KEYS, of.partners))
    folder.mkdir()
    port = free_port()
    env = {
        "CLICKDAM_DATABASE_URL": url, "CLICKDAM_REDIS_URL": redis.url, "CLICKDAM_API_PORT": str(port),
        "CLICKDAM_LOG_URL": f"journal://{folder / 'journal'}", "CLICKDAM_PUBLIC_URL": "https://go.example",
    }  # fmt: skip
    house = House(folder, url, env, 0, 0, 0)
    api = await house.spawn("api")
    house.aggregators.append(api)
    try:
        await _ready(f"http://127.0.0.1:{port}")
        yield Stage(of.clicks, ends, f"http://127.0.0.1:{port}", partner_keys, admin_key, house)
    finally:
        await house.stop()


async def _make_keys(url: str, partners: int) -> tuple[list[str], str]:
    async with connected(url, command_timeout_s=10.0, application_name="clickdam-loadtest") as db:
        most = limits.REQUESTS_PER_MINUTE_MAX
        wanted = [keys.Wanted("partner", 1 + n, requests_per_minute=most) for n in range(partners)]
        made = [(await keys.create(db, one)).key for one in wanted]
        return made, (await keys.create(db, keys.Wanted("admin", requests_per_minute=most))).key


async def _ready(url: str) -> None:
    async with asyncio.timeout(READY_S), aiohttp.ClientSession(url) as session:
        while True:
            try:
                async with session.get("/ready") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


async def _all(stage: Stage, state: str, wanted: Wanted, numbers: Iterable[int], progress: Progress) -> list[Taken]:
    task = progress.add_task(f"{stage.clicks:,} clicks, {state}", total=len(QUESTIONS) * wanted.asks)
    taken = list[Taken]()
    async with aiohttp.ClientSession(stage.url) as session:
        for question in QUESTIONS:
            before, began = await _recorded(stage), time.monotonic()
            fresh, remembered = list[float](), list[float]()
            for number, _ in zip(numbers, range(wanted.asks)):  # noqa: B905 - the numbers go on
                fresh.append(await _ask(session, stage, question, number))
                remembered.append(await _ask(session, stage, question, number))
                progress.advance(task)
            rate_s = (await _recorded(stage) - before) / (time.monotonic() - began)
            p50_ms, p95_ms, again_ms = percentile(fresh, 50), percentile(fresh, 95), percentile(remembered, 95)
            taken.append(Taken(stage.clicks, state, question.name, p50_ms, p95_ms, again_ms, rate_s))
    return taken


async def _recorded(stage: Stage) -> int:
    db = await asyncpg.connect(stage.house.database_url)
    try:
        return int(await db.fetchval(_ROLLUP_ROWS) or 0)
    finally:
        await db.close()


async def _ask(session: aiohttp.ClientSession, stage: Stage, question: Asked, number: int) -> float:
    """Milliseconds. The number is of a question that nobody has asked before."""
    asks = stage.partner_keys if question.is_partners else [stage.admin_key]
    earlier = timedelta(minutes=15) * (number // len(asks) + 1)
    ends = stage.ends - earlier
    words = {"from": _text(ends - timedelta(days=question.days)), "to": _text(ends), **question.words}
    headers = {"Authorization": f"Bearer {asks[number % len(asks)]}"}
    began = time.perf_counter()
    async with session.get("/v1/reports", params=words, headers=headers) as answer:
        body = await answer.read()
        took_ms = (time.perf_counter() - began) * 1e3
    if answer.status != 200:
        raise RuntimeError(f"{question.name}: {answer.status} {body[:300]!r}")
    return took_ms


def _text(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%dT%H:%M:%SZ")


@asynccontextmanager
async def _ingesting(stage: Stage, wanted: Wanted, progress: Progress) -> AsyncIterator[None]:
    """Clicks of now are written to a journal at the wanted pace, and an aggregator applies them."""
    await stage.house.start_aggregator()
    writing = asyncio.create_task(asyncio.to_thread(_write, stage.house.folder / "journal", wanted, stop := [False]))
    progress.console.print(f"ingesting {wanted.ingest_per_s:,} clicks/s", highlight=False)
    await asyncio.sleep(3.0)  # until it is under way
    try:
        yield
    finally:
        stop[0] = True
        await writing


def _write(folder: Path, wanted: Wanted, stop: Sequence[bool]) -> None:
    """A tenth of a second at once, for as long as it takes."""
    segment, links = journals.new_segment(folder, incarnation="ingest"), wanted.partners * history.LINKS_PER_PARTNER
    for number in count(1):
        due = time.monotonic() + 0.1
        journals.append(segment, apply.traffic(wanted.ingest_per_s // 10, links, seed=number))
        if stop[0]:
            break
        time.sleep(max(0.0, due - time.monotonic()))
    segment.seal()


def verdicts(taken: Sequence[Taken]) -> dict[str, bool]:
    """What was wished for, and whether it holds, for the partner's month by day."""
    first = [one for one in taken if one.question == QUESTIONS[0].name]
    rest = {one.clicks: one for one in first if one.state == AT_REST}
    most = rest[max(rest)]
    found = {
        f"at most {GOAL_MS:.0f} ms at p95": most.fresh_p95_ms <= GOAL_MS,
        f"remembered at least {GOAL_TIMES_FASTER:.0f} times faster": most.times_faster >= GOAL_TIMES_FASTER,
    }
    for one in first:
        if one.state == INGESTING and one.clicks == most.clicks:
            times = one.fresh_p95_ms / most.fresh_p95_ms
            found[f"at most {GOAL_TIMES_SLOWER:.0f} times slower while ingesting"] = times <= GOAL_TIMES_SLOWER
    return found


def show(taken: Sequence[Taken], console: Console) -> None:
    table = Table("clicks", "", "question", title="ms; p95 unless said")
    for head in ("not remembered p50", "p95", "remembered", "times faster", "ingested/s"):
        table.add_column(head, justify="right")
    for one in taken:
        figures = (one.fresh_p50_ms, one.fresh_p95_ms, one.remembered_p95_ms, one.times_faster)
        cells = [f"{figure:,.1f}" for figure in figures]
        table.add_row(f"{one.clicks:,}", one.state, one.question, *cells, f"{one.ingested_s:,.0f}")
    console.print(table)
    for wish, holds in verdicts(taken).items():
        console.print(f"{QUESTIONS[0].name}, {wish}: {'yes' if holds else 'NO'}", highlight=False)


def main() -> int:
    """Returns 1 where a wish does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clicks", type=_sizes, default=(200_000,), metavar="N,N,...")
    parser.add_argument("--conversions", type=_sizes, default=(4_000,), metavar="N,N,...", help="one for each of these")
    parser.add_argument("--days", type=int, default=31)
    parser.add_argument("--partners", type=int, default=1_000)
    parser.add_argument("--asks", type=int, default=100, help="of each question")
    parser.add_argument("--ingest-per-s", type=int, default=0, metavar="N", help="once more while so many come in")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    asked, began, console = parser.parse_args(), datetime.now(UTC), Console(width=150)
    if len(asked.clicks) != len(asked.conversions):
        parser.error("--conversions has one figure for each of --clicks")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was started is stopped
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    wanted = Wanted(asked.clicks, asked.conversions, asked.days, asked.partners, asked.asks, asked.ingest_per_s)
    with (
        redis_and_postgres("reports") as (folder, redis, postgres),
        Progress(*history.COLUMNS, console=console) as progress,
    ):
        taken = uvloop.run(measured(wanted, folder, redis, postgres, progress))
    show(taken, console)
    if asked.json:
        found = {"taken": [asdict(one) for one in taken], "wishes": verdicts(taken)}
        whole = {**circumstances(began), "options": asdict(wanted), **found}
        asked.json.write_bytes(orjson.dumps(whole, option=orjson.OPT_INDENT_2) + b"\n")
    return int(not all(verdicts(taken).values()))


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
