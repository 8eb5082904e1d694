"""How little a running edge asks Redis: few round trips per click, one read for a cold code, bounded storms."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from loadtests.faults import edges
from loadtests.faults.edges import Filled, RunningEdge, get_all
from loadtests.faults.proxy import FaultProxy
from schemas import limits, redis_keys
from schemas.redis import Redis, done, publishing
from tracker.links import NotReady

CLICKS = 4_000
STORM = 20_000  # twice as many as may wait
TRIPS_PER_CLICK_MAX = 0.05
STORM_MEMORY_MAX_BYTES = 100_000_000

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def _patient_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted here is how often Redis is asked, not how soon it answers on a busy machine."""
    monkeypatch.setattr(limits, "READ_TIMEOUT_S", 5.0)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with publishing(redis_url) as client:
        yield client


async def reads(redis: Redis) -> int:
    """MGETs that Redis has carried out."""
    return int((await done(redis.info("commandstats"))).get("cmdstat_mget", {"calls": 0})["calls"])


async def test_a_click_costs_less_than_a_twentieth_of_a_round_trip(
    tmp_path: Path, redis_url: str, publisher: Filled, redis: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = [f"c{n}" for n in range(20)]
    await publisher.write({redis_keys.link(code): edges.link(code, id=n) for n, code in enumerate(codes, 10)})
    parts = urlsplit(redis_url)
    async with FaultProxy(parts.hostname or "", parts.port or 0) as proxy:
        near = redis_url.replace(f":{parts.port}/", f":{proxy.port}/")
        async with edges.running_edge(edges.settings(tmp_path, near)) as running:
            await edges.follows(running.edge)
            trips, began, asked = proxy.requests, time.monotonic(), await reads(redis)
            answers = await get_all(running.port, [f"/c/{codes[n % 20]}" for n in range(CLICKS)])
            took_s, trips, asked = time.monotonic() - began, proxy.requests - trips, await reads(redis) - asked
    with capsys.disabled():
        print(f"\n{CLICKS:,} clicks at {CLICKS / took_s:,.0f}/s: {trips} round trips to Redis, {asked} of them reads;")
        print(f"    {trips / CLICKS:.4f} per click")
    assert {answer.status for answer in answers} == {302}
    assert trips / CLICKS <= TRIPS_PER_CLICK_MAX


async def test_200_visitors_of_one_cold_code_cause_one_read(
    running: RunningEdge, publisher: Filled, redis: Redis
) -> None:
    await get_all(running.port, ["/c/demo"])  # programme, offer and partner are warm
    await publisher.write({redis_keys.link("cold"): edges.link("cold", id=7)})
    before = await reads(redis)
    answers = await get_all(running.port, ["/c/cold"] * 200, connections=200)
    assert {answer.status for answer in answers} == {302}
    assert await reads(redis) == before + 1


async def test_a_storm_of_unknown_codes_is_bounded_in_reads_and_memory(
    running: RunningEdge, redis: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    """All at once, without the HTTP around it: what has no room to wait is told to come back."""
    links, tier = running.edge.links, running.edge.links.tier
    await links.find("demo")
    process, before, fetches = psutil.Process(), await reads(redis), tier.fetches
    rss, most_waiting = process.memory_info().rss, 0

    async def ask(n: int) -> bool:
        nonlocal most_waiting
        try:
            found = await links.find(f"storm-{n}")
        except NotReady:
            return False
        finally:
            most_waiting = max(most_waiting, tier.waiting)
        assert found.link is None
        return True

    told = await asyncio.gather(*(ask(n) for n in range(STORM)))
    asked = await reads(redis) - before
    grown = process.memory_info().rss - rss
    with capsys.disabled():
        print(f"\n{STORM:,} unknown codes at once: {sum(told):,} answered, {STORM - sum(told):,} told to come back,")
        print(f"    {asked} reads, at most {most_waiting:,} codes waiting, {grown / 1e6:.0f} MB")
    assert most_waiting <= limits.FETCH_WAITING_MAX
    assert len(tier._absent) <= limits.NEGATIVE_ENTRIES_MAX
    assert tier.fetches - fetches <= STORM / limits.FETCH_KEYS_MAX + 5
    assert asked <= tier.fetches - fetches
    assert grown < STORM_MEMORY_MAX_BYTES
    assert sum(told) > 0
    found = await links.find("demo")
    assert found.link
