"""Settle quarter hours, then days, and remove what is past its time: one connection, after each other."""

from __future__ import annotations

import asyncio
import time

import structlog

from aggregator.db.connect import Connection, DatabaseAway, connected
from aggregator.settled import days, quarters
from aggregator.settled.prune import prune_once
from schemas import limits
from schemas.settings import AggregatorSettings

log = structlog.get_logger()


async def run(settings: AggregatorSettings) -> None:
    """Settle until cancelled. Postgres being away is waited for."""
    while True:
        opening = connected(
            settings.database_url, command_timeout_s=limits.SETTLE_QUARTER_S, application_name="clickdam-settled"
        )
        try:
            async with opening as db:
                await db.execute(quarters.SESSION)
                await _work_for_ever(db, settings.click_retention_days)
        except DatabaseAway as error:
            log.warning("settling_waits_for_database", error=type(error).__name__)
        await asyncio.sleep(limits.DATABASE_RETRY_MAX_S)


async def _work_for_ever(db: Connection, keep_days: int) -> None:
    while True:
        began, now_ms = time.monotonic(), time.time_ns() // 1_000_000
        more = await quarters.settle_once(db, now_ms)
        more |= await days.settle_once(db, now_ms)
        more |= await prune_once(db, now_ms, keep_days)
        took_s = time.monotonic() - began
        await asyncio.sleep(max(0 if more else limits.SETTLE_EVERY_S, took_s * (1 / limits.BEHIND_SHARE - 1)))
