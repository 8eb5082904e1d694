"""Who changed what by hand, and when."""

from __future__ import annotations

from typing import Any

from aggregator.db.connect import Database
from aggregator.db.instants import rfc3339

_AUDIT = """
SELECT id, at, actor, action, subject, reason, before, after
FROM audit WHERE id < $1 ORDER BY id DESC LIMIT $2
"""


async def audit(db: Database, before_id: int, limit: int) -> dict[str, Any]:
    """The acts before this one, the latest first."""
    rows = await db.fetch(_AUDIT, before_id, limit + 1)
    page = rows[:limit]
    truncated = len(rows) > limit
    return {
        "data": [{**row, "at": rfc3339(row["at"])} for row in page],
        "truncated": truncated,
        "next_cursor": str(page[-1]["id"]) if truncated else None,
    }
