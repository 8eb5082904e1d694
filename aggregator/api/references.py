"""What published links may call an offer or a partner: its own id, or the id it had at another tracker."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from aggregator.api.writing import Change
from schemas import limits
from schemas.errors import Refused

ExternalId = Annotated[
    str, msgspec.Meta(min_length=1, max_length=limits.EXTERNAL_ID_MAX, pattern=r"\A[A-Za-z0-9._~-]+\Z")
]
# an id of our own gives way to an imported name; an imported name belongs to whoever had it first
_NAME = """
INSERT INTO reference AS held (kind, name, target_id, imported) VALUES ($1, $2, $3, $4)
ON CONFLICT (kind, name) DO UPDATE
    SET target_id = excluded.target_id, imported = true, version = held.version + 1
    WHERE excluded.imported AND NOT held.imported
RETURNING id
"""


async def refer(change: Change, kind: Literal["offer", "partner"], target_id: int, external_id: str | None) -> None:
    """Name a row by its id and by its external one. Raises Refused where that is another's already."""
    own = await change.db.fetchval(_NAME, kind, str(target_id), target_id, False)
    if own is not None:
        await change.tell_redis("reference", own)
    if external_id is None:
        return
    held = await change.db.fetchval(
        "SELECT target_id FROM reference WHERE kind = $1 AND name = $2 AND imported", kind, external_id
    )
    if held not in (None, target_id):
        raise Refused("conflict", f"this external_id is that of {kind} {held}", "external_id")
    imported = await change.db.fetchval(_NAME, kind, external_id, target_id, True)
    if imported is not None:
        await change.tell_redis("reference", imported)
