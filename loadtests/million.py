"""A million links: how long Redis takes to be filled, what that does to its readers, what it and an edge need for them.

python -m loadtests.million --links 1000000
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from asyncio.subprocess import Process
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate

import asyncpg
import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from loadtests.faults.edges import read_answer, request
from loadtests.faults.house import House, house
from loadtests.percentiles import distribution
from loadtests.stores import redis_and_postgres
from schemas import redis_keys
from schemas.redis import Redis, done, publishing, reading

LOOK_EVERY_S = 0.1
MGET_KEYS = 20
MGET_EVERY_S = 0.005
CONNECTIONS = 32
FILL_S = 900.0
OFFERS, PARTNERS = 100, 1_000
_PARTNERS = """
INSERT INTO partner (name) SELECT 'Partner ' || n FROM generate_series(1, $1) AS n
"""
_OFFERS = """
INSERT INTO offer (advertiser_id, name, destination_url, currency)
SELECT advertiser.id, 'Offer ' || n, 'https://shop.example/buy?from={sub1}', 'EUR'
FROM advertiser, generate_series(1, $1) AS n
"""
_LINKS = """
INSERT INTO link (code, offer_id, partner_id)
SELECT 'm' || n, 1 + n % (SELECT max(id) FROM offer), 1 + n % (SELECT max(id) FROM partner)
FROM generate_series(1, $1) AS n
"""


@dataclass(slots=True)
class Seen:
    """What was measured; times in s, sizes in bytes."""

    mget_s: list[float] = field(default_factory=list)
    mget_failures: int = 0
    aggregator_rss: int = 0


async def load(database_url: str, count: int) -> float:
    """Links straight into Postgres, as a restored backup has them; seconds."""
    db = await asyncpg.connect(database_url)
    began = time.monotonic()
    try:
        await db.execute(_PARTNERS, PARTNERS)
        await db.execute(_OFFERS, OFFERS)
        await db.execute(_LINKS, count)
        await db.execute("ANALYZE link")
    finally:
        await db.close()
    return time.monotonic() - began


async def fill(redis: Redis, redis_url: str, aggregator: Process, count: int, progress: Progress) -> tuple[float, Seen]:
    """Empty Redis and wait until the publisher has filled it again; an edge's reads meanwhile."""
    seen, task = Seen(), progress.add_task("refill", total=count)
    await done(redis.flushall())
    began = time.monotonic()
    probing = asyncio.create_task(_probe(redis_url, seen, count))
    try:
        async with asyncio.timeout(FILL_S):
            while not await done(redis.exists(redis_keys.COMPLETE)):
                await asyncio.sleep(LOOK_EVERY_S)
                progress.update(task, completed=await done(redis.dbsize()))
                seen.aggregator_rss = max(seen.aggregator_rss, rss_of(aggregator))
    finally:
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)
    return time.monotonic() - began, seen


async def _probe(redis_url: str, seen: Seen, count: int) -> None:
    """What an edge's misses meet, with an edge's client and its 50 ms."""
    rng = random.Random(1)
    async with reading(redis_url) as redis:
        while True:
            keys = [redis_keys.link(f"m{rng.randint(1, count)}") for _ in range(MGET_KEYS)]
            began = time.monotonic()
            try:
                await done(redis.mget(keys))
                seen.mget_s.append(time.monotonic() - began)
            except Exception:
                seen.mget_failures += 1
            await asyncio.sleep(MGET_EVERY_S)


async def visit(edge_port: int, count: int, clicks: int, progress: Progress) -> tuple[float, Counter[int]]:
    """Zipf clicks over all links; seconds, and the statuses of the answers."""
    weights = list(accumulate(1 / rank for rank in range(1, count + 1)))
    order = random.Random(2)
    ranks = iter(order.choices(range(1, count + 1), cum_weights=weights, k=clicks))
    task, statuses = progress.add_task("clicks", total=clicks), Counter[int]()

    async def on_one_connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", edge_port)
        for rank in ranks:
            # the most used links lie anywhere among the ids
            writer.write(request(f"/c/m{rank * 7_919 % count + 1}"))
            statuses[(await read_answer(reader)).status] += 1
            progress.advance(task)
        writer.close()

    began = time.monotonic()
    await asyncio.gather(*(on_one_connection() for _ in range(CONNECTIONS)))
    return time.monotonic() - began, statuses


def rss_of(process: Process) -> int:
    return int(psutil.Process(process.pid).memory_info().rss)


def worker_rss(built: House) -> int:
    return sum(int(psutil.Process(pid).memory_info().rss) for pid in built.worker_pids())


async def measure(count: int, clicks: int, progress: Progress) -> dict[str, str]:
    """What was found, as lines of a table."""
    with redis_and_postgres("million") as (folder, valkey, postgres):
        log_url = f"journal://{folder}/journal"
        async with (
            publishing(valkey.url) as redis,
            house(folder / "house", postgres.url, valkey.url, log_url) as built,
        ):
            loaded_s = await load(postgres.url, count)
            filled = await measure_refill(redis, valkey.url, built.aggregators[0], count, progress)
            visited = await measure_edge(built, count, clicks, progress)
            return {"links": f"{count:,}, loaded into Postgres in {loaded_s:.0f} s"} | filled | visited


async def measure_refill(
    redis: Redis, redis_url: str, aggregator: Process, count: int, progress: Progress
) -> dict[str, str]:
    rss, empty = rss_of(aggregator), await used_memory(redis)
    took_s, seen = await fill(redis, redis_url, aggregator, count, progress)
    memory, mget = await used_memory(redis) - empty, seen.mget_s
    size = len(await done(redis.get(redis_keys.link("m1"))))
    return {
        "full refill": f"{took_s:.1f} s, {count / took_s:,.0f} values/s",
        "Redis memory": f"{memory / 1e6:,.0f} MB, {memory / count:.0f} bytes a link ({size} of them JSON)",
        "aggregator's RSS": f"{rss / 1e6:.0f} MB before, {seen.aggregator_rss / 1e6:.0f} MB at most",
        f"MGET of {MGET_KEYS} meanwhile": f"{len(mget):,}: {distribution(mget)}; {seen.mget_failures} failed",
    }


async def measure_edge(built: House, count: int, clicks: int, progress: Progress) -> dict[str, str]:
    rss = worker_rss(built)
    took_s, statuses = await visit(built.edge_port, count, clicks, progress)
    held = (await built.metrics())['clickdam_edge_cached_configs{worker="0"}']
    return {
        "Zipf clicks": f"{clicks:,} in {took_s:.0f} s, {clicks / took_s:,.0f}/s, statuses {dict(statuses)}",
        "edge worker's RSS": f"{rss / 1e6:.0f} MB before, {worker_rss(built) / 1e6:.0f} MB after",
        "values held by the edge": f"{held:,.0f}",
    }


async def used_memory(redis: Redis) -> int:
    return int((await done(redis.info("memory")))["used_memory"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--links", type=int, default=1_000_000)
    parser.add_argument("--clicks", type=int, default=200_000)
    asked = parser.parse_args()
    with Progress("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as progress:
        found = asyncio.run(measure(asked.links, asked.clicks, progress))
    table = Table("what", "found")
    for name, figure in found.items():
        table.add_row(name, figure)
    Console(width=150).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
