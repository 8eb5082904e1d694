"""P7 for links that nobody has clicked for long. A file of its own: other publishers must leave its Redis alone."""

from __future__ import annotations

import asyncio
import time

from loadtests.faults import edges
from loadtests.faults.edges import Filled, RunningEdge, get
from schemas import redis_keys

SEEN_MAX_S = 1.0


async def test_a_link_that_was_idle_for_an_hour_leads_where_it_leads_now(
    running: RunningEdge, publisher: Filled
) -> None:
    assert (await get(running.port, "/c/demo")).status == 302
    tier = running.edge.links.tier
    tier._clock = lambda: time.monotonic() + 3_600
    await publisher.change(redis_keys.link("demo"), edges.link(status="paused"), tell=False)
    assert (await get(running.port, "/c/demo")).status == 404
    tier._clock = lambda: time.monotonic() + 3_630  # fresh again, and changed meanwhile
    await publisher.change(redis_keys.link("demo"), edges.link(status="active"))
    async with asyncio.timeout(SEEN_MAX_S):
        while (await get(running.port, "/c/demo")).status != 302:
            await asyncio.sleep(0.01)
