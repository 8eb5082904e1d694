"""Who changed what, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from aggregator.db.connect import Database
from aggregator.db.instants import rfc3339

_AUDIT = """
SELECT id, at, actor, action, subject, reason, before, after
FROM audit
WHERE id < $1 AND at >= coalesce($2::timestamptz, '-infinity') AND at < coalesce($3::timestamptz, 'infinity') {rules}
ORDER BY id DESC LIMIT $4
"""


@dataclass(frozen=True, slots=True)
class Acts:
    """Which acts are asked for: before this one, in this time, with these words in these columns."""

    before_id: int
    limit: int
    starts: datetime | None = None
    ends: datetime | None = None
    words: Mapping[str, str] = field(default_factory=dict)  # by the column's name, which is ours


async def audit(db: Database, acts: Acts) -> dict[str, Any]:
    """These acts, the latest first."""
    rules = [f"AND {column} = ${n}" for n, column in enumerate(acts.words, 5)]
    rows = await db.fetch(
        _AUDIT.format(rules=" ".join(rules)),
        acts.before_id, acts.starts, acts.ends, acts.limit + 1, *acts.words.values(),
    )  # fmt: skip
    page = rows[: acts.limit]
    truncated = len(rows) > acts.limit
    return {
        "data": [{**row, "at": rfc3339(row["at"])} for row in page],
        "truncated": truncated,
        "next_cursor": str(page[-1]["id"]) if truncated else None,
    }
