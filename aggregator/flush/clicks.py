"""Write clicks, each id once, and say which were new."""

from __future__ import annotations

import asyncpg

from aggregator.db.connect import Connection
from aggregator.flush.click_rows import COLUMNS, ClickRow, id_of
from aggregator.flush.session import Session, savepoint

CLASH_BATCHES = 20  # copies come in runs (a replayed spool): that long COPY is not tried again
_INSERT = f"""
INSERT INTO click ({", ".join(COLUMNS)})
SELECT * FROM unnest({", ".join(f"${n}::{kind}[]" for n, kind in enumerate(COLUMNS.values(), 1))})
ON CONFLICT DO NOTHING RETURNING id
"""  # noqa: S608


async def write_clicks(session: Session, rows: list[ClickRow]) -> list[ClickRow]:
    """The rows that were new. They come sorted by id: two partitions with the same ids would deadlock unsorted.

    COPY is tried first, because copies are rare; once an id clashes, the next batches go the slower way at once.
    """
    if not rows:
        return []
    if session.clashing_batches > 0:
        session.clashing_batches -= 1
    else:
        try:
            async with savepoint(session.db, asyncpg.UniqueViolationError):
                await session.db.copy_records_to_table("click", columns=list(COLUMNS), records=rows)
        except asyncpg.UniqueViolationError:
            session.clashing_batches = CLASH_BATCHES
        else:
            return rows
    return await _insert_missing(session.db, rows)


async def _insert_missing(db: Connection, rows: list[ClickRow]) -> list[ClickRow]:
    new = {str(row["id"]) for row in await db.fetch(_INSERT, *zip(*rows, strict=True))}
    return [row for row in rows if id_of(row) in new]
