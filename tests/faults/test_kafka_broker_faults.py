"""P1 to P6 on one real broker that is frozen, killed, slow and full: visitors notice nothing, nothing is lost.

Each fault once, short; `make faults` has them long, under more load and with the strict bound.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from loadtests.faults.broken import EVENTS, Broken, broken
from loadtests.faults.ridden import Act, Ridden, holds, note, outcomes, ride_out
from loadtests.faults.traffic import complete_now, verdict, visited, watched
from tests.faults.test_reconciliation_faults import reconciled

P99_MAX_S = 1.0
P99_STRICT_MAX_S = 0.250
EXIT_MAX_S = 15.0
SMALLEST_SPOOL_BYTES = 1_000_000
LENGTHS = [pytest.param(False, id="short"), pytest.param(True, id="long", marks=pytest.mark.long)]


@pytest.fixture(scope="module")
async def whole(
    tmp_path_factory: pytest.TempPathFactory, shared_database_url: str, shared_redis_url: str
) -> AsyncIterator[Broken]:
    """One house for all tests of this file: each leaves it whole."""
    async with broken(tmp_path_factory.mktemp("broken"), shared_database_url, shared_redis_url) as found:
        yield found


async def rides_out(of: Broken, fault: str, begin: Act, end: Act, for_s: float, long: bool) -> Ridden:
    connections, pause_s = (32, 0.005) if long else (8, 0.02)
    ridden = await ride_out(of.house, fault, begin, end, for_s, connections=connections, pause_s=pause_s)
    holds(ridden, P99_STRICT_MAX_S if long else P99_MAX_S)
    assert ridden.found.answered > 100
    assert (await reconciled(of.house)).drift == 0
    return ridden


@pytest.mark.parametrize("long", LENGTHS)
async def test_visitors_notice_nothing_of_a_frozen_broker(whole: Broken, long: bool) -> None:
    ridden = await rides_out(whole, "broker frozen", whole.freeze, whole.thaw, 60 if long else 15, long)
    assert ridden.outcomes["spooled"] > 0
    assert {status for _, status in ridden.heard.receipts} == {200, 202}


@pytest.mark.parametrize("long", LENGTHS)
async def test_visitors_notice_nothing_of_a_broker_killed_and_started_again(whole: Broken, long: bool) -> None:
    ridden = await rides_out(whole, "broker killed", whole.kill, whole.start_again, 30 if long else 4, long)
    assert ridden.outcomes["spooled"] > 0


@pytest.mark.parametrize("long", LENGTHS)
async def test_visitors_notice_nothing_of_acks_that_take_half_a_second(whole: Broken, long: bool) -> None:
    fault = whole.turn("latency"), whole.turn("pass")
    ridden = await rides_out(whole, "acks take 500 ms", *fault, 30 if long else 6, long)
    assert ridden.outcomes["spooled"] > 0


@pytest.mark.parametrize("long", LENGTHS)
async def test_visitors_notice_nothing_of_connections_that_flap_every_two_seconds(whole: Broken, long: bool) -> None:
    async def flap() -> None:
        for _ in range(15 if long else 2):
            whole.proxy.mode = "refuse"
            await asyncio.sleep(2)
            whole.proxy.mode = "pass"
            await asyncio.sleep(2)

    ridden = await rides_out(whole, "connections flap every 2 s", flap, whole.turn("pass"), 0, long)
    assert ridden.outcomes["spooled"] > 0


@pytest.mark.parametrize("long", LENGTHS)
async def test_what_a_broker_refuses_as_too_large_waits_in_the_spool_and_comes_later(whole: Broken, long: bool) -> None:
    async def allow(size_bytes: int) -> None:
        async with whole.admin() as admin:
            wanted = {"max.message.bytes": str(size_bytes)}
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, EVENTS, wanted)])

    ridden = await rides_out(
        whole, "messages too large", lambda: allow(300), lambda: allow(1_048_588), 20 if long else 4, long
    )
    assert ridden.outcomes["spooled"] > 0


@pytest.mark.parametrize("long", LENGTHS)
async def test_an_edge_killed_with_a_full_spool_loses_only_what_it_has_counted(whole: Broken, long: bool) -> None:
    house = whole.house
    async with small_spool(whole), watched(house) as shown:
        async with visited(house, connections=64 if long else 16, pause_s=0.0) as heard:
            await asyncio.sleep(1)
            await whole.freeze()
            async with asyncio.timeout(60):
                while not (await outcomes(house))["lost"]:
                    await asyncio.sleep(0.2)
            await asyncio.sleep(10 if long else 0.5)
        counted = await outcomes(house)
        await house.kill_edge()
        await house.start_edge()  # ready though the broker is frozen still: it registers in Redis
        async with visited(house) as later:
            await asyncio.sleep(1)
        await whole.thaw()
        await complete_now(house)
        counted += await outcomes(house)  # the new edge's: it has what room the old one has left it
        heard.clicks |= later.clicks
        heard.orders |= later.orders
        found = await verdict(house, heard, shown)
    note("spool full, edge killed", heard, found, counted, "a new edge at once")
    assert (await reconciled(house)).drift == 0
    assert set(heard.statuses) == set(later.statuses) == {302}
    assert 0 < found.missing <= counted["lost"] + counted["late"]
    assert found.missing_orders == found.drift == found.broken_promises == 0
    assert 503 in {status for _, status in heard.receipts}


@asynccontextmanager
async def small_spool(of: Broken) -> AsyncIterator[None]:
    """An edge whose spool is soon full; afterwards one as it was."""
    await end_edge(of)
    usual, of.house.env = of.house.env, of.house.env | {"CLICKDAM_SPOOL_BYTES_MAX": str(SMALLEST_SPOOL_BYTES)}
    await of.house.start_edge()
    try:
        yield
    finally:
        await of.thaw()
        await end_edge(of)
        of.house.env = usual
        await of.house.start_edge()


@pytest.mark.parametrize("long", LENGTHS)
async def test_everything_frozen_an_edge_and_an_aggregator_end_in_time_and_lose_nothing(
    whole: Broken, long: bool
) -> None:
    """P5."""
    house = whole.house
    async with visited(house) as heard:
        await asyncio.sleep(1)
        for proxy in whole.proxies:
            proxy.mode = "blackhole"
        await asyncio.sleep(20 if long else 3)
    began = time.monotonic()
    took = await asyncio.gather(end_edge(whole), end_aggregator(whole))
    assert time.monotonic() - began < EXIT_MAX_S
    for proxy in whole.proxies:
        proxy.mode = "pass"
    await house.start_aggregator()
    await house.start_edge()
    await complete_now(house)
    found = await verdict(house, heard)
    note("everything frozen, SIGTERM", heard, found, said=f"ended in {took[0]:.1f} s, aggregator {took[1]:.1f} s")
    assert set(heard.statuses) == {302}
    assert found.exact


async def end_edge(of: Broken) -> float:
    assert of.house.edge is not None
    began = time.monotonic()
    of.house.edge.send_signal(signal.SIGTERM)
    assert await of.house.edge.wait() == 0
    return time.monotonic() - began


async def end_aggregator(of: Broken) -> float:
    began = time.monotonic()
    process = of.house.aggregators.pop()
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
    return time.monotonic() - began
