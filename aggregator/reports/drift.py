"""Watch by how many events Postgres is off from what edges have counted."""

from __future__ import annotations

import asyncio

import asyncpg
import structlog
from prometheus_client import Gauge

from aggregator.db.connect import Database, DatabaseAway, connected
from aggregator.reports.reconciliation import drift_of_settled
from schemas import limits
from schemas.settings import AggregatorSettings

log = structlog.get_logger()

_DRIFT = Gauge("clickdam_drift_events", "Events of the last settled 48 hours that are missing, or too many; expected 0")


async def watch(settings: AggregatorSettings) -> None:
    """Look now and then, until cancelled. While Postgres is away the last figure stands."""
    while True:
        opening = connected(
            settings.database_url, command_timeout_s=limits.STATEMENT_S, application_name="clickdam-drift"
        )
        try:
            async with opening as db:
                await watch_once(db)
        except (asyncpg.PostgresError, *DatabaseAway) as error:
            log.warning("drift_waits_for_database", error=type(error).__name__)
        await asyncio.sleep(limits.DRIFT_EVERY_S)


async def watch_once(db: Database) -> None:
    drift = await drift_of_settled(db)
    _DRIFT.set(drift)
    if drift:
        log.error("drift", events=drift)
