"""How much of the log has not been applied yet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aggregator.db.connect import connect
from deploy.run import topics
from schemas import journal
from schemas.settings import LogSettings

Held = Mapping[tuple[str, int], range]  # (source, partition) -> the offsets that are there


async def held(log: LogSettings) -> Held:
    """What the log holds. Raises CannotStart when Kafka does not say, journal.Unreadable."""
    return await topics.held(log) if log.is_kafka else written(log.journal_folder)


async def behind(held: Held, database_url: str) -> int:
    """Entries among these that the database has not applied, but for partitions that stand still until an operator
    resumes them. Raises one of DatabaseAway."""
    connection = await connect(database_url, command_timeout_s=1.0, application_name="clickdam-up")
    try:
        found = await connection.fetch("SELECT source, partition, next, stopped FROM log_position")
    finally:
        connection.terminate()  # nothing to say goodbye to, and Postgres may be frozen
    stopped = {(row["source"], row["partition"]) for row in found if row["stopped"]}
    applied = {(row["source"], row["partition"]): row["next"] for row in found}
    moving = {of: there for of, there in held.items() if of not in stopped}
    return sum(max(0, there.stop - max(there.start, applied.get(of, 0))) for of, there in moving.items())


def written(folder: Path) -> dict[tuple[str, int], range]:
    """The rows of every segment that is still there, by source and slot."""
    found: dict[tuple[str, int], range] = {}
    for slot in journal.slots(folder):
        for path in journal.segments(journal.slot_folder(folder, slot)):
            with journal.reading(path) as segment:
                meta = segment.meta()
                if meta is not None:
                    found[meta.source, slot] = range(journal.FIRST_OFFSET, segment.last_offset() + 1)
    return found
