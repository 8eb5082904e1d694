"""Whether every answered click is a row: the logs are applied after the last timed run, then both are counted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping

import asyncpg

from deploy.run.backlog import behind, held
from deploy.run.children import free_port
from loadtests.bench.systems import Systems
from loadtests.faults.house import House
from loadtests.heard import uuid_of
from schemas.settings import PREFIX, LogSettings, load

STANDS_STILL_S = 60.0
_ROWS = """
SELECT split_part(link.code, '-', 1) AS name, count(*) AS rows FROM click JOIN link ON link.id = link_id GROUP BY 1
"""


async def applied(systems: Systems, advance: Callable[[int, int], None]) -> float:
    """Apply all logs to Postgres, calling `advance` with how many entries are done of how many; seconds it took. Gives
    up when nothing moves for a minute: the count then says what is missing."""
    logs = [_log_of(house) for house in systems.houses.values()]
    there = {of: rows for log in logs for of, rows in (await held(log)).items()}
    total = sum(map(len, there.values()))
    for house in systems.houses.values():
        house.aggregators.append(await house.spawn("aggregator", CLICKDAM_ADMIN_PORT=str(free_port())))
    began = moved = time.monotonic()
    least = total + 1
    while least > 0 and time.monotonic() - moved < STANDS_STILL_S:
        left = least
        with contextlib.suppress(TimeoutError, OSError, asyncpg.PostgresError):
            left = await behind(there, systems.database_url)
        if left < least:
            least, moved = left, time.monotonic()
            advance(total - left, total)
        await asyncio.sleep(0.2)
    return time.monotonic() - began


def _log_of(house: House) -> LogSettings:
    return load(LogSettings, log_url=house.env[f"{PREFIX}LOG_URL"])


async def counted(database_url: str, ids: list[str]) -> tuple[Mapping[str, int], int]:
    """Rows of each contender, and how many of these click ids are a row."""
    connection = await asyncpg.connect(database_url)
    try:
        rows = {row["name"]: row["rows"] for row in await connection.fetch(_ROWS)}
        uuids = [uuid_of(one) for one in ids]
        return rows, await connection.fetchval("SELECT count(*) FROM click WHERE id = ANY($1)", uuids)
    finally:
        await connection.close()
