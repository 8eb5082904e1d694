"""What Postgres has of a spike, in a system that nobody else uses."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp

from loadtests.faults.drift import fetch, value
from loadtests.heard import uuid_of

COMPLETE_S = 120.0
_RECORDED = """
SELECT (SELECT count(*) FROM click) AS clicks, (SELECT coalesce(sum(clicks), 0)::bigint FROM click_rollup) AS rolled_up,
       (SELECT count(*) FROM conversion) AS conversions, (SELECT count(*) FROM click WHERE id = ANY($1)) AS sampled
"""


@dataclass(frozen=True, slots=True)
class Recorded:
    """Rows once the reports are complete. `sampled` of `samples` click ids that visitors were given are a row."""

    clicks: int
    rolled_up: int
    conversions: int
    sampled: int
    samples: int


async def complete(database_url: str) -> float:
    """Wait until the reports are complete up to now; the seconds it took. Raises TimeoutError."""
    began, now = time.monotonic(), datetime.now(UTC)
    async with asyncio.timeout(COMPLETE_S):
        while await value(database_url, "SELECT complete_through FROM complete_through") < now:
            await asyncio.sleep(0.2)
    return time.monotonic() - began


async def count(database_url: str, ids: list[str]) -> Recorded:
    """`ids` are those of the sample."""
    (row,) = await fetch(database_url, _RECORDED, [uuid_of(one) for one in ids])
    return Recorded(row["clicks"], row["rolled_up"], row["conversions"], row["sampled"], len(ids))


async def outcomes(metrics_url: str) -> dict[str, int]:
    """The edge's own count: outcomes that are not 0, their reasons summed."""
    async with aiohttp.ClientSession() as session, session.get(metrics_url) as answer:
        lines = (await answer.text()).splitlines()
    found: Counter[str] = Counter()
    for line in lines:
        if line.startswith("clickdam_edge_outcomes_total"):
            found[line.split('outcome="')[1].partition('"')[0]] += int(float(line.rpartition(" ")[2]))
    return {name: number for name, number in found.items() if number}
