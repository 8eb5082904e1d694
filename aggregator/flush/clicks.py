"""Write clicks, each id once, and say which were new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg
import orjson

from aggregator.db.connect import Connection
from aggregator.flush.session import Session, savepoint
from schemas.events import Click

CLASH_BATCHES = 20  # copies come in runs (a replayed spool): that long COPY is not tried again
_COLUMNS = {
    "id": "uuid", "link_id": "int", "offer_id": "int", "partner_id": "int", "click_class": "smallint",
    "reason": "text", "country": "text", "device": "text", "os": "text", "browser": "text", "visitor": "text",
    "ip": "text", "referer": "text", "source_id": "text", "click_ref": "text", "subs": "jsonb",
}  # fmt: skip
_INSERT = f"""
INSERT INTO click ({", ".join(_COLUMNS)})
SELECT * FROM unnest({", ".join(f"${n}::{kind}[]" for n, kind in enumerate(_COLUMNS.values(), 1))})
ON CONFLICT DO NOTHING RETURNING id
"""  # noqa: S608


async def write_clicks(session: Session, clicks: Sequence[Click]) -> list[Click]:
    """The clicks that were new, sorted by id: two partitions with the same ids would deadlock unsorted.

    COPY is tried first, because copies are rare; once an id clashes, the next batches go the slower way at once.
    """
    ordered = _sorted_once(clicks)
    if not ordered:
        return []
    if session.clashing_batches > 0:
        session.clashing_batches -= 1
    else:
        try:
            async with savepoint(session.db, asyncpg.UniqueViolationError):
                await _copy(session.db, ordered)
        except asyncpg.UniqueViolationError:
            session.clashing_batches = CLASH_BATCHES
        else:
            return ordered
    return await _insert_missing(session.db, ordered)


def _sorted_once(clicks: Sequence[Click]) -> list[Click]:
    first_by_id = {click.id.int: click for click in reversed(clicks)}
    return [first_by_id[number] for number in sorted(first_by_id)]


async def _copy(db: Connection, clicks: list[Click]) -> None:
    await db.copy_records_to_table("click", columns=list(_COLUMNS), records=map(_row, clicks))


async def _insert_missing(db: Connection, clicks: list[Click]) -> list[Click]:
    new = {row["id"] for row in await db.fetch(_INSERT, *zip(*map(_row, clicks), strict=True))}
    return [click for click in clicks if click.id in new]


def _row(click: Click) -> tuple[Any, ...]:
    return (
        click.id, click.link_id, click.offer_id, click.partner_id, click.click_class,
        click.reason or None, click.country or None, click.device or None, click.os or None, click.browser or None,
        click.visitor or None, click.ip or None, click.referer or None, click.source_id or None,
        click.click_ref or None, orjson.dumps(click.subs).decode() if click.subs else None,
    )  # fmt: skip
