"""Whether every answered click is a row: wait until the logs are applied, then count both."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping

import asyncpg

from deploy.run.backlog import behind, held
from loadtests.faults.house import House
from loadtests.heard import uuid_of
from schemas.settings import PREFIX, LogSettings, load

STANDS_STILL_S = 60.0
_CLICKS = """
SELECT split_part(link.code, '-', 1) AS name, count(*) AS rows FROM click JOIN link ON link.id = link_id GROUP BY 1
"""
_CONVERSIONS = "SELECT split_part(order_id, '-', 1) AS name, count(*) AS rows FROM conversion GROUP BY 1"


async def applied(logs: Iterable[LogSettings], database_url: str, advance: Callable[[int, int], None]) -> float:
    """Wait until all that is in the logs is in Postgres, calling `advance` with how many entries are done of how many;
    seconds it took. Gives up when nothing moves for a minute: the count then says what is missing."""
    there = {of: rows for log in logs for of, rows in (await held(log)).items()}
    total = sum(map(len, there.values()))
    began = moved = time.monotonic()
    least = total + 1
    while least > 0 and time.monotonic() - moved < STANDS_STILL_S:
        left = least
        with contextlib.suppress(TimeoutError, OSError, asyncpg.PostgresError):
            left = await behind(there, database_url)
        if left < least:
            least, moved = left, time.monotonic()
            advance(total - left, total)
        await asyncio.sleep(0.2)
    return time.monotonic() - began


def log_of(house: House) -> LogSettings:
    """Where its edge writes and its aggregators read."""
    return load(LogSettings, log_url=house.env[f"{PREFIX}LOG_URL"])


async def counted(database_url: str, ids: list[str]) -> tuple[Mapping[str, int], int]:
    """Rows of each contender, clicks or conversions, and how many of these click ids are a row."""
    connection = await asyncpg.connect(database_url)
    try:
        found = await connection.fetch(_CLICKS) + await connection.fetch(_CONVERSIONS)
        rows = {row["name"]: row["rows"] for row in found}  # who is told of conversions was clicked on for their sake
        uuids = [uuid_of(one) for one in ids]
        return rows, await connection.fetchval("SELECT count(*) FROM click WHERE id = ANY($1)", uuids)
    finally:
        await connection.close()
