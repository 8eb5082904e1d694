"""What a batch costs in statements, however many clicks are in it. Counted by Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import asyncpg
import pytest

from aggregator.flush.commit import commit
from aggregator.flush.session import open_session
from loadtests.faults.journals import beat, click, clicks, conversion, now_ms, settings
from schemas.events import Event
from schemas.journal import FIRST_OFFSET
from tests.aggregator.flush.test_exactly_once import batch_of

CALLS = """
SELECT coalesce(sum(calls), 0)::int FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND query NOT LIKE '%pg_stat_statements%'
"""
OF_CLICKS = 9  # the time, begin with its lock_timeout (2), fence, savepoint, copy, release, rollups, commit


async def statements(database_url: str, folder: Path, batches: Sequence[Sequence[Event]]) -> list[int]:
    """How many each batch took, a first one left out: it prepares, and makes the partitions of the last half hour."""
    counter = await asyncpg.connect(database_url)
    await counter.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    first_batch = [*clicks(1), click(now_ms() - 1_800_000), conversion(), beat("i")]
    counts = []
    try:
        async with open_session(settings(database_url, folder)) as session:
            for first, events in enumerate((first_batch, *batches), FIRST_OFFSET):
                before = await counter.fetchval(CALLS)
                await commit(batch_of(*events, first=first), session)
                counts.append(await counter.fetchval(CALLS) - before)
    finally:
        await counter.close()
    return counts[1:]


async def test_a_batch_of_clicks_costs_the_same_statements_whatever_their_number(
    database_url: str, tmp_path: Path
) -> None:
    counts = await statements(database_url, tmp_path, [clicks(number) for number in (1, 10, 100, 1_000, 10_000)])
    print(f"statements for 1, 10, 100, 1,000 and 10,000 clicks: {counts}")
    assert set(counts) == {OF_CLICKS}


@pytest.mark.parametrize("kind", ["conversions", "beats", "copies"])
async def test_nor_do_statements_grow_with_what_else_is_in_a_batch(
    kind: str, database_url: str, tmp_path: Path
) -> None:
    def batch(number: int) -> list[Event]:
        if kind == "conversions":
            return [conversion() for _ in range(number)]
        if kind == "beats":
            return [beat(f"i{n}") for n in range(number)]
        return clicks(number) * 2

    few, many = await statements(database_url, tmp_path, [batch(2), batch(200)])
    assert many == few
