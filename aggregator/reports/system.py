"""How the house stands: the edges, how far each is complete and which of them hold completeness back; the partitions,
and which stand still; how much was put aside."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from aggregator.db.connect import Database, Row
from aggregator.db.instants import rfc3339
from schemas import limits

_EDGES = """
SELECT count(*) OVER () AS total, incarnation, name, registered_at, complete_to, heard_at,
       CASE WHEN closing THEN 'closing'
            WHEN heard_at < clock_timestamp() - make_interval(secs => $1) THEN 'silent'
            ELSE 'beating' END AS state,
       complete_to IS NOT DISTINCT FROM first_value(complete_to) OVER (ORDER BY complete_to NULLS FIRST) AS holds_back
FROM edge_complete ORDER BY complete_to NULLS FIRST, incarnation LIMIT $2
"""
_PARTITIONS = """
SELECT count(*) OVER () AS total, source, partition, next, stopped, stopped_at
FROM log_position ORDER BY stopped_at NULLS LAST, source, partition LIMIT $1
"""


async def system(db: Database) -> dict[str, Any]:
    """The answer of `GET /v1/system`: what an operator acts on comes first in its lists, which are bounded."""
    async with db.transaction(isolation="repeatable_read", readonly=True):
        complete_through = await db.fetchval("SELECT complete_through FROM complete_through")
        edges = await db.fetch(_EDGES, limits.SILENT_S, limits.SYSTEM_ROWS_MAX)
        partitions = await db.fetch(_PARTITIONS, limits.SYSTEM_ROWS_MAX)
        dead_letters = await db.fetchval(
            "SELECT count(*) FROM (SELECT FROM dead_letter LIMIT $1) AS counted", limits.DEAD_LETTERS_COUNTED_MAX
        )
    return {
        "complete_through": complete_through and rfc3339(complete_through),
        "edges_total": _total(edges),
        "edges": [_shown(row) for row in edges],
        "partitions_total": _total(partitions),
        "partitions": [_shown(row) for row in partitions],
        "dead_letters": dead_letters,
    }


def _total(rows: list[Row]) -> int:
    return rows[0]["total"] if rows else 0


def _shown(row: Row) -> dict[str, Any]:
    return {
        name: rfc3339(value) if isinstance(value, datetime) else value for name, value in row.items() if name != "total"
    }
