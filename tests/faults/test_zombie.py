"""An aggregator frozen inside a COPY holds its locks; another takes over, and what the zombie does later counts not."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import asyncpg

from aggregator.db import partitions
from loadtests.faults.drift import value
from loadtests.faults.journals import click, clicks, consuming, now_ms
from loadtests.faults.processes import aggregator
from schemas.events import Click
from tests.faults.conftest import OnTrial

TAKEOVER_S = 30.0  # 1.5 s on a quiet machine; a group of consumers waits 6 s before it gives up a member
_IN_COPY = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND query LIKE 'COPY %' AND state = 'active' AND wait_event_type = $1
"""


@asynccontextmanager
async def its_first_click_is_being_written(database_url: str, first: Click) -> AsyncIterator[None]:
    """Somebody else is about to write this id: a COPY that holds it waits, with all behind it unread."""
    blocker = await asyncpg.connect(database_url)
    today = datetime.now(UTC).date()
    await partitions.ensure(blocker, [today - timedelta(days=1), today])
    async with blocker.transaction():
        await blocker.execute(
            "INSERT INTO click (id, link_id, offer_id, partner_id, click_class) VALUES ($1, 1, 1, 1, 0)", first.id
        )
        yield
        await blocker.execute("DELETE FROM click WHERE id = $1", first.id)
    await blocker.close()


async def a_copy_waits_for(database_url: str, what: str) -> int:
    async with asyncio.timeout(20):
        while True:
            pid = await value(database_url, _IN_COPY, what)
            if pid:
                return int(pid)
            await asyncio.sleep(0.02)


def more_than_the_sockets_hold() -> list[Click]:
    """About 20 MB, so that the frozen process cannot have sent the end of its COPY."""
    now = now_ms()
    return [click(now - 5_000 + n, subs={"sub1": "x" * 4_000}, link_id=n % 9 + 1) for n in range(5_000)]


async def test_another_takes_over_from_a_zombie_frozen_inside_a_copy(log: OnTrial, database_url: str) -> None:
    big = more_than_the_sockets_hold()
    await log.append(big, row_events=len(big))
    async with aggregator(log.settings) as (zombie, _):
        async with its_first_click_is_being_written(database_url, big[0]):
            await a_copy_waits_for(database_url, "Lock")
            zombie.send_signal(signal.SIGSTOP)
        frozen = await a_copy_waits_for(database_url, "Client")
        await asyncio.sleep(0.5)
        assert await a_copy_waits_for(database_url, "Client") == frozen

        async with consuming(log.settings):
            began = time.monotonic()
            await log.consumed(within_s=TAKEOVER_S)
            print(f"taken over from the zombie in {time.monotonic() - began:.1f} s")
            zombie.send_signal(signal.SIGCONT)
            for _ in range(5):
                await log.append(clicks(300))
                await asyncio.sleep(0.2)
            await log.consumed()

        await log.append(clicks(300))
        await log.consumed()  # by the former zombie alone
        assert zombie.returncode is None
    figures = await log.drift()
    assert (figures.drift, figures.in_postgres) == (0, 5_000 + 6 * 300)
