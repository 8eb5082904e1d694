"""Measure how far the figures are complete and how many edges are silent, for whoever watches."""

from __future__ import annotations

import asyncio

import asyncpg
import structlog

from aggregator.db.connect import Database, DatabaseAway, connected
from aggregator.flush import metrics
from schemas import limits
from schemas.settings import AggregatorSettings

log = structlog.get_logger()

_SILENT = """
SELECT count(*) FROM edge_complete WHERE NOT closing AND heard_at < clock_timestamp() - make_interval(secs => $1)
"""


async def measure(settings: AggregatorSettings) -> None:
    """Measure now and then, until cancelled. While Postgres is away the last figures stand: a time that stands still
    falls behind by itself."""
    while True:
        opening = connected(
            settings.database_url, command_timeout_s=limits.STATEMENT_S, application_name="clickdam-measure"
        )
        try:
            async with opening as db:
                await measure_once(db)
        except (asyncpg.PostgresError, *DatabaseAway) as error:
            log.warning("measuring_waits_for_database", error=type(error).__name__)
        await asyncio.sleep(limits.MEASURE_EVERY_S)


async def measure_once(db: Database) -> None:
    through = await db.fetchval("SELECT complete_through FROM complete_through")
    metrics.COMPLETE_THROUGH.set(through.timestamp() if through else 0)
    metrics.SILENT_EDGES.set(await db.fetchval(_SILENT, limits.SILENT_S))
