"""Edges that are killed under traffic have counted less than they took, and that is never drift."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from aggregator.reports.reconciliation import HOUR, floor, reconciliation
from loadtests.faults.house import House, house
from loadtests.faults.traffic import complete_now, connected, visited

KILLS = 3


class Reconciled(NamedTuple):
    rows: int
    unaccounted: int
    drift: int


async def reconciled(of: House) -> Reconciled:
    """Of clicks and intakes of the last hours, the one that goes on included: all of it is to be complete."""
    now = floor(datetime.now(UTC))
    async with connected(of) as db:
        told = await reconciliation(db, now - 3 * HOUR, now + HOUR)
    sides = [hour[side] for hour in told["data"] for side in ("clicks", "conversions")]
    return Reconciled(*(sum(abs(side[name]) for side in sides) for name in Reconciled._fields))


async def test_edges_killed_under_traffic_leave_rows_that_are_unaccounted_and_no_drift(
    database_url: str, redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with house(tmp_path, database_url, redis_url, f"journal://{tmp_path}/journal", workers=2) as running:
        async with visited(running, pause_s=0.005):
            for _ in range(KILLS):
                await asyncio.sleep(2.5)
                await running.kill_edge()
                await running.start_edge()
            await asyncio.sleep(2.5)
        await complete_now(running)
        found = await reconciled(running)
        async with connected(running) as db:
            rows = await db.fetchval("SELECT (SELECT count(*) FROM click) + (SELECT count(*) FROM conversion_intake)")
    with capsys.disabled():
        print(f"\n{KILLS} kills of two workers: {found}")
    assert found.drift == 0
    assert 0 < found.unaccounted < found.rows == rows
