"""What published links may call an offer or a partner: its own id, or the id it had at another tracker."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Literal

import msgspec

from aggregator.api.calling import EXTERNAL_ID
from aggregator.api.writing import Change
from aggregator.db.connect import Database
from schemas import limits
from schemas.errors import Refused

ExternalId = Annotated[
    str, msgspec.Meta(min_length=1, max_length=limits.EXTERNAL_ID_MAX, pattern=rf"\A{EXTERNAL_ID}\Z")
]
# an id of our own gives way to an imported name; an imported name belongs to whoever had it first
_NAME = """
INSERT INTO reference AS held (kind, name, target_id, imported)
SELECT $1, name, target_id, $4 FROM unnest($2::text[], $3::int[]) AS given (name, target_id)
ON CONFLICT (kind, name) DO UPDATE
    SET target_id = excluded.target_id, imported = true, version = held.version + 1
    WHERE excluded.imported AND NOT held.imported
RETURNING id
"""


async def refer(change: Change, kind: Literal["offer", "partner"], target_id: int, external_id: str | None) -> None:
    """Name a row by its id and by its external one. Raises Refused where that is another's already."""
    if external_id is not None:
        check_held(kind, target_id, (await held_names(change.db, kind, [external_id])).get(external_id))
    for named in await refer_all(change.db, kind, [(target_id, external_id)]):
        await change.tell_redis("reference", named)


async def refer_all(db: Database, kind: str, named: Sequence[tuple[int, str | None]]) -> list[int]:
    """Name rows by their ids and by their external ones, which are no other's; the references that this made or
    changed."""
    own = [target_id for target_id, _ in named]
    made = await db.fetch(_NAME, kind, list(map(str, own)), own, False)
    imported = {name: target_id for target_id, name in named if name is not None}
    made += await db.fetch(_NAME, kind, list(imported), list(imported.values()), True)
    return list(dict.fromkeys(row["id"] for row in made))


async def held_names(db: Database, kind: str, names: Collection[str]) -> dict[str, int]:
    """Whose these external names are already."""
    rows = await db.fetch(
        "SELECT name, target_id FROM reference WHERE kind = $1 AND name = ANY($2::text[]) AND imported",
        kind, list(names),
    )  # fmt: skip
    return {row["name"]: row["target_id"] for row in rows}


def check_held(kind: str, target_id: int | None, held_by: int | None) -> None:
    """Raises Refused for an external id that is, or once was, another row's."""
    if held_by not in (None, target_id):
        raise Refused("conflict", f"this external_id is that of {kind} {held_by}", "external_id")
