"""API keys made without the API: the first one has to come from somewhere. The audit names who did it `cli`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aggregator.api import keys, rows
from aggregator.api.keys import Wanted
from aggregator.db.connect import Connection, Row, connected
from schemas import limits

ACTOR = "cli"
OPERATOR = Wanted("admin", name="clickdam up", requests_per_minute=limits.REQUESTS_PER_MINUTE_MAX)
_LISTED = f"SELECT * FROM api_key WHERE $1 OR {keys.LIVE} ORDER BY id"  # noqa: S608 - our own names
_RECORD = "INSERT INTO audit (actor, action, subject, before, after) VALUES ($1, $2, $3, $4, $5)"


async def create(database_url: str, wanted: Wanted) -> str:
    """A new key's secret, which is not kept anywhere. Raises Refused."""
    async with _connected(database_url) as db, db.transaction():
        made = await keys.create(db, wanted)
        await _record(db, "create_key", None, await rows.one(db, "api_key", made.id))
    return made.key


async def listed(database_url: str, *, also_over: bool) -> list[dict[str, Any]]:
    """All keys, as the API shows them; those that are revoked or expired only when asked for."""
    async with _connected(database_url) as db:
        return [rows.shown(row, keys.COLUMNS) for row in await db.fetch(_LISTED, also_over)]


async def revoke(database_url: str, key_id: int) -> None:
    """End a key. Raises Refused for the last one that may make others."""
    async with _connected(database_url) as db, db.transaction():
        before, after = await keys.end(db, key_id)
        if before is not after:
            await _record(db, "revoke_key", before, after)


async def _record(db: Connection, action: str, before: Row | None, after: Row) -> None:
    shown = before and rows.shown(before, keys.COLUMNS)
    await db.execute(_RECORD, ACTOR, action, f"key:{after['id']}", shown, rows.shown(after, keys.COLUMNS))


@asynccontextmanager
async def _connected(database_url: str) -> AsyncIterator[Connection]:
    async with connected(database_url, command_timeout_s=limits.STATEMENT_S, application_name="clickdam-keys") as db:
        yield db
