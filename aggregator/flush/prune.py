"""Remove segments that are sealed, applied and older than what a restored Postgres could ask for again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import asyncpg
import structlog

from aggregator.db.connect import DatabaseAway, connected
from aggregator.flush.batch import Positions
from aggregator.flush.fence import positions
from aggregator.flush.journal_in import in_thread
from schemas import journal, limits
from schemas.settings import AggregatorSettings

log = structlog.get_logger()


async def prune(settings: AggregatorSettings) -> None:
    """Prune the journal now and then, until cancelled."""
    while True:
        try:
            await prune_once(settings)
        except (asyncpg.PostgresError, *DatabaseAway) as error:
            log.warning("prune_waits_for_database", error=type(error).__name__)
        await asyncio.sleep(limits.PRUNE_EVERY_S)


async def prune_once(settings: AggregatorSettings) -> list[Path]:
    """One round; answers the segments removed. Only what Postgres says counts as applied."""
    opening = connected(
        settings.database_url, command_timeout_s=limits.TRANSACTION_S, application_name="clickdam-prune"
    )
    async with opening as db:
        applied = await positions(db)
    retention_s = settings.journal_retention_h * 3600
    return await in_thread(lambda: _prune(settings.journal_folder, applied, retention_s))


def _prune(folder: Path, applied: Positions, retention_s: float) -> list[Path]:
    removed = [
        path
        for slot in journal.slots(folder)
        for path in journal.segments(journal.slot_folder(folder, slot))
        if _is_old(path, retention_s) and _is_applied(path, slot, applied)
    ]
    for path in removed:
        journal.remove(path)
        log.info("segment_removed", slot=path.parent.name, segment=path.name)
    return removed


def _is_old(path: Path, retention_s: float) -> bool:
    try:
        return time.time() - path.stat().st_mtime >= retention_s
    except FileNotFoundError:
        return False


def _is_applied(path: Path, slot: int, applied: Positions) -> bool:
    try:
        with journal.reading(path) as segment:
            meta = segment.meta()
            if meta is None or not meta.sealed:
                return False
            position = applied.get((meta.source, slot))
            return (position.next if position else journal.FIRST_OFFSET) > segment.last_offset()
    except (journal.Unreadable, ValueError):
        return False
