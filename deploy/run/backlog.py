"""How much of the journal has not been applied yet."""

from __future__ import annotations

from pathlib import Path

from aggregator.db.connect import connect
from schemas import journal


async def rows_behind(folder: Path, database_url: str) -> int:
    """Journal rows that the database has not applied."""
    ends = written(folder)
    connection = await connect(database_url, command_timeout_s=1.0, application_name="clickdam-up")
    try:
        found = await connection.fetch("SELECT source, partition, next FROM log_position")
    finally:
        connection.terminate()  # nothing to say goodbye to, and Postgres may be frozen
    applied = {(row["source"], row["partition"]): row["next"] for row in found}
    return sum(max(0, end - applied.get(of, journal.FIRST_OFFSET)) for of, end in ends.items())


def written(folder: Path) -> dict[tuple[str, int], int]:
    """The next offset to be written of every segment that is still there, by source and slot."""
    ends: dict[tuple[str, int], int] = {}
    for slot in journal.slots(folder):
        for path in journal.segments(journal.slot_folder(folder, slot)):
            with journal.reading(path) as segment:
                meta = segment.meta()
                if meta is not None:
                    ends[meta.source, slot] = segment.last_offset() + 1
    return ends
