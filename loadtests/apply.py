"""How fast the log is applied to Postgres, exactly once and rolled up, beside a bare COPY of the same rows.

python -m loadtests.apply --clicks 200000 --rounds 5

The bare COPY has its rows ready in memory and writes them into the same partitioned table with its index, BATCH_ROWS
in each transaction. In each round everybody has a turn, on a database of its own, and what counts is the ratio within
the round. What lies in the logs is what edges write: clicks by the thousand, and one beat for each second of them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import structlog
import uvloop
from aiokafka import AIOKafkaProducer
from prometheus_client import REGISTRY
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from aggregator.db import partitions
from aggregator.db.connect import Connection
from aggregator.db.migrate import migrate
from aggregator.flush import metrics
from deploy.run import kafka, servers
from loadtests.cpu import cpu_s
from loadtests.faults import journals, topics
from loadtests.faults.kafkas import settings_of
from loadtests.workload import ZIPF
from schemas import events, limits
from schemas.click_id import uuid7_bytes
from schemas.events import Beat, Click
from schemas.settings import AggregatorSettings

BATCH_ROWS = 10_000  # of the bare COPY; larger ones gain it nothing
CLICKS_PER_S = 10_000  # at the edge that wrote the log: a beat for so many clicks
ROW_EVENTS = 100  # in a group commit of that edge
KAFKA_PARTITIONS = 4
STALL_S = 60.0
LOOK_EVERY_S = 0.005
COPY, TEMPLATE = "copy", "apply_template"
STAGES = ("read", "decode", "clicks", "rollups")
GOAL, FLOOR = 0.6, 0.4
_COLUMNS = (
    "id", "link_id", "offer_id", "partner_id", "click_class", "country", "device", "os", "browser", "visitor", "ip",
    "referer", "source_id", "subs",
)  # fmt: skip
_FOUND = "SELECT count(*) FROM click", "SELECT sum(clicks)::bigint FROM click_rollup"
_SITES = ("www.google.com", "m.facebook.com", "t.co", "blog.example.org", "")
_COUNTRIES, _COUNTRY_WEIGHTS = ("DE", "US", "FR", "GB", "PL", "IT", "ES", "BR", ""), (30, 25, 12, 10, 8, 6, 5, 3, 1)
_DEVICES = ("phone", "phone", "desktop", "tablet")


@dataclass(frozen=True, slots=True)
class Turn:
    """One log, or the bare COPY, applied once. Times are µs for each click: of the stages, of the CPU here and in
    Postgres. Stages overlap: a batch is read and decoded while the one before it is written."""

    name: str
    round: int
    rate_s: float
    client_us: float
    postgres_us: float
    stages_us: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Stage:
    """What all turns share. `logs` are the settings of a consumer of each log, but for their database."""

    postgres: servers.Server
    clicks: Sequence[Click]
    logs: Mapping[str, AggregatorSettings]


def traffic(count: int, links: int, seed: int = 1) -> list[Click]:
    """Clicks as an edge records them, up to now, popular links first."""
    rng, now = random.Random(seed), journals.now_ms()
    popularity = list(accumulate((rank + 1) ** -ZIPF for rank in range(links)))
    return [_click(rng, now - (count - n) * 1_000 // CLICKS_PER_S, popularity) for n in range(count)]


def _click(rng: random.Random, at_ms: int, popularity: list[float]) -> Click:
    (link,) = rng.choices(range(len(popularity)), cum_weights=popularity)
    return Click(
        v=1, id=UUID(bytes=uuid7_bytes(at_ms, rng.randbytes(10))), link_id=link + 1, offer_id=link % 50 + 1,
        partner_id=link % 200 + 1, click_class=int(rng.random() < 0.05),
        country=rng.choices(_COUNTRIES, _COUNTRY_WEIGHTS)[0], device=rng.choice(_DEVICES),
        os=rng.choice(("iOS", "Android", "Windows")), browser=rng.choice(("Chrome", "Safari", "Firefox")),
        visitor=rng.randbytes(8).hex(), ip=f"{rng.randrange(1, 224)}.{rng.randrange(256)}.{rng.randrange(256)}.0",
        referer=rng.choice(_SITES), source_id=f"site-{rng.randrange(500)}",
        subs={"sub1": f"campaign-{rng.randrange(40)}", "sub2": rng.randbytes(6).hex()},
    )  # fmt: skip


def _beat(at_ms: int, acked: Sequence[tuple[str, int, int]]) -> Beat:
    hour = datetime.fromtimestamp(at_ms / 1_000, UTC).strftime("%Y-%m-%dT%H")
    return journals.beat("one", at_ms=at_ms, complete_to_ms=at_ms, acked=acked, counters={hour: {"recorded": at_ms}})


def _seconds(clicks: Sequence[Click]) -> Iterator[Sequence[Click]]:
    yield from (clicks[first : first + CLICKS_PER_S] for first in range(0, len(clicks), CLICKS_PER_S))


def write_journal(folder: Path, clicks: Sequence[Click]) -> None:
    """One slot, as one edge worker writes it."""
    segment = journals.new_segment(folder, incarnation="one")
    offset = 0
    for second in _seconds(clicks):
        for first in range(0, len(second), ROW_EVENTS):
            offset = segment.append(journals.body(second[first : first + ROW_EVENTS]), journals.now_ms())
        segment.append(journals.body([_beat(_ms(second[-1]), [(segment.meta.source, 0, offset)])]), journals.now_ms())
    segment.seal()


async def write_kafka(settings: AggregatorSettings, clicks: Sequence[Click]) -> None:
    """Packed as edges pack them, the clicks of one group commit in one partition."""
    await topics.make(settings, KAFKA_PARTITIONS)
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka_servers, acks="all", linger_ms=2, max_batch_size=limits.BATCH_BYTES_MAX,
        compression_type="snappy",
    )  # fmt: skip
    await producer.start()
    try:
        for second in _seconds(clicks):
            sent = [
                await producer.send(
                    settings.kafka_events_topic, events.encode(click), partition=n // ROW_EVENTS % KAFKA_PARTITIONS
                )
                for n, click in enumerate(second)
            ]
            await asyncio.gather(*sent)
            await producer.send_and_wait(settings.kafka_beats_topic, events.encode(_beat(_ms(second[-1]), [])))
    finally:
        await producer.stop()


def _ms(click: Click) -> int:
    return click.id.int >> 80


@asynccontextmanager
async def database(stage: Stage) -> AsyncIterator[tuple[str, Connection]]:
    """A migrated database for one turn, its partitions made."""
    name = f"apply_{uuid4().hex}"
    await _run(stage.postgres.url, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}", "CHECKPOINT")
    url = _named(stage.postgres.url, name)
    db = await asyncpg.connect(url)
    try:
        today = await partitions.today(db)
        await partitions.ensure(db, [today - timedelta(days=1), today])
        yield url, db
    finally:
        await db.close()
        await _run(stage.postgres.url, f"DROP DATABASE {name} WITH (FORCE)")


async def _run(url: str, *statements: str) -> None:
    db = await asyncpg.connect(url)
    try:
        for statement in statements:
            await db.execute(statement)
    finally:
        await db.close()


def _named(url: str, name: str) -> str:
    return f"{url.rpartition('/')[0]}/{name}"


async def take_turn(stage: Stage, name: str, number: int) -> Turn:
    """Raises RuntimeError when what came to Postgres is not what was clicked."""
    async with database(stage) as (url, db):
        if name == COPY:
            rows = [_row(click) for click in stage.clicks]
            return await measured(stage, name, number, lambda: _copy(db, rows))
        settings = stage.logs[name].model_copy(update={"database_url": url, "kafka_group": uuid4().hex})
        turn = await measured(stage, name, number, lambda: applied(settings, len(stage.clicks)))
        found = [await db.fetchval(query) for query in _FOUND]
    if found != [len(stage.clicks)] * 2:
        raise RuntimeError(f"{name}: {len(stage.clicks)} clicks came to {found} rows and clicks in rollups")
    return turn


async def measured(stage: Stage, name: str, number: int, work: Callable[[], Awaitable[tuple[int, float]]]) -> Turn:
    """`work` answers how many clicks it took how many seconds for."""
    postgres, here, stages = cpu_s([stage.postgres.pid]), time.process_time(), _stages_s()
    rows, took_s = await work()
    every = 1e6 / len(stage.clicks)
    return Turn(
        name, number, rows / took_s, (time.process_time() - here) * every,
        (cpu_s([stage.postgres.pid]) - postgres) * every,
        {of: (spent - stages[of]) * every for of, spent in _stages_s().items()} if name != COPY else {},
    )  # fmt: skip


def _row(click: Click) -> tuple[Any, ...]:
    *plain, subs = (getattr(click, name) for name in _COLUMNS)
    return (*(value if value != "" else None for value in plain), orjson.dumps(subs).decode())


async def _copy(db: Connection, rows: Sequence[tuple[Any, ...]]) -> tuple[int, float]:
    began = time.perf_counter()
    for first in range(0, len(rows), BATCH_ROWS):
        await db.copy_records_to_table("click", columns=_COLUMNS, records=rows[first : first + BATCH_ROWS])
    return len(rows), time.perf_counter() - began


async def applied(settings: AggregatorSettings, clicks: int) -> tuple[int, float]:
    """From the end of the first batch on: to join a group and to open a connection is no work on clicks."""
    before = _applied_clicks()
    async with journals.consuming(settings) as consumer:
        await _until(lambda: _applied_clicks() > before, consumer)
        first, began = _applied_clicks() - before, time.perf_counter()
        await _until(lambda: _applied_clicks() - before >= clicks, consumer)
        return clicks - first, time.perf_counter() - began


async def _until(there: Callable[[], bool], consumer: asyncio.Task[None]) -> None:
    async with asyncio.timeout(STALL_S):
        while not there() and not consumer.done():
            await asyncio.sleep(LOOK_EVERY_S)


def _applied_clicks() -> int:
    (found,) = metrics.APPLIED.labels("click").collect()
    return int(found.samples[0].value)


def _stages_s() -> dict[str, float]:
    """Spent so far; the rest is fence, conversions, beats and commit."""
    total = REGISTRY.get_sample_value("clickdam_batch_seconds_sum") or 0.0
    spent = {of: REGISTRY.get_sample_value("clickdam_batch_stage_seconds_sum", {"stage": of}) or 0.0 for of in STAGES}
    return spent | {"rest": total - spent["clicks"] - spent["rollups"]}


def ratio(turns: Sequence[Turn], name: str) -> float:
    """The median of the ratios to the bare COPY of the same round."""
    rates = {(turn.name, turn.round): turn.rate_s for turn in turns}
    return median(rate / rates[COPY, number] for (of, number), rate in rates.items() if of == name)


def show(turns: Sequence[Turn], console: Console) -> None:
    """The table, and what it comes to."""
    table = Table("", title="medians of the rounds; µs for each click, read and decode overlap with the others")
    for head in ("clicks/s", "min - max", "x COPY", "CPU here", "CPU Postgres", *STAGES, "rest"):
        table.add_column(head, justify="right")
    for name in dict.fromkeys(turn.name for turn in turns):
        table.add_row(name, *_cells([turn for turn in turns if turn.name == name], ratio(turns, name)))
    console.print(table)
    for name in sorted({turn.name for turn in turns} - {COPY}):
        reached = ratio(turns, name)
        verdict = "met" if reached >= GOAL else "under the goal" if reached >= FLOOR else "beyond the floor"
        console.print(f"{name} / bare COPY: {reached:.2f} (goal {GOAL}, floor {FLOOR}): {verdict}", highlight=False)


def _cells(turns: Sequence[Turn], of_copy: float) -> list[str]:
    rates = [turn.rate_s for turn in turns]
    cpu = [median(turn.client_us for turn in turns), median(turn.postgres_us for turn in turns)]
    stages = [median(turn.stages_us.get(of, 0.0) for turn in turns) for of in (*STAGES, "rest")]
    return [
        f"{median(rates):,.0f}", f"{min(rates):,.0f} - {max(rates):,.0f}", f"{of_copy:.2f}",
        *(f"{us:.1f}" for us in (*cpu, *stages)),
    ]  # fmt: skip


@contextmanager
def _started(folder: Path, clicks: Sequence[Click], names: Sequence[str]) -> Iterator[Stage]:
    """Servers, and the logs already written. Raises CannotStart."""
    postgres, valkey = servers.start_postgres(folder / "postgres"), servers.start_valkey(folder / "valkey")
    broker = kafka.start_kafka(folder / "kafka") if "kafka" in names else None
    urls = {"redis_url": valkey.url}
    try:
        logs = {}
        if "journal" in names:
            logs["journal"] = journals.settings(postgres.url, folder / "journal", **urls)
            write_journal(folder / "journal", clicks)
        if broker:
            logs["kafka"] = settings_of(postgres.url, broker.url, ("events", "beats"), **urls)
            uvloop.run(write_kafka(logs["kafka"], clicks))
        uvloop.run(_make_template(postgres.url))
        yield Stage(postgres, clicks, logs)
    finally:
        if broker:
            kafka.stop_kafka(broker)
        servers.stop_valkey(valkey)
        servers.stop_postgres(postgres)


async def _make_template(url: str) -> None:
    await _run(url, f"CREATE DATABASE {TEMPLATE}")
    await migrate(_named(url, TEMPLATE))


async def _rounds(stage: Stage, rounds: int, progress: Progress) -> list[Turn]:
    turns, names = [], [COPY, *stage.logs]
    task = progress.add_task("turns", total=rounds * len(names))
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            progress.update(task, description=f"round {number + 1}: {name}")
            turns.append(await take_turn(stage, name, number))
            progress.advance(task)
    return turns


def main() -> int:
    """Returns 1 when a log is applied slower than the floor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clicks", type=int, default=200_000)
    parser.add_argument("--links", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--logs", nargs="+", choices=("journal", "kafka"), default=("journal", "kafka"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked, console, began = parser.parse_args(), Console(width=150), datetime.now(UTC)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    folder = Path(tempfile.mkdtemp(prefix="clickdam-apply-"))
    folder.chmod(0o711)  # as root, Postgres runs as another user and must get through
    try:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        clicks = traffic(asked.clicks, asked.links)
        with _started(folder, clicks, asked.logs) as stage, Progress(*columns, console=console) as progress:
            gc.set_threshold(limits.GARBAGE_OBJECTS)  # as the aggregator does
            gc.freeze()  # the clicks are no work of the collector of who applies them
            turns = uvloop.run(_rounds(stage, asked.rounds, progress))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(turns, console)
    if asked.json:
        asked.json.write_bytes(orjson.dumps(_as_json(turns, asked, began), option=orjson.OPT_INDENT_2) + b"\n")
    return int(any(ratio(turns, name) < FLOOR for name in asked.logs))


def _as_json(turns: Sequence[Turn], asked: argparse.Namespace, began: datetime) -> dict[str, Any]:
    return {
        "date": began, "clicks": asked.clicks, "links": asked.links, "rounds": asked.rounds, "cores": os.cpu_count(),
        "ratios": {name: ratio(turns, name) for name in asked.logs}, "turns": [asdict(turn) for turn in turns],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
