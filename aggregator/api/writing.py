"""How a change is made: checked by the database's constraints, queued for Redis in the same transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg

from aggregator.db.connect import Pool, Pooled, acquire
from schemas.errors import Refused


@asynccontextmanager
async def changing(pool: Pool) -> AsyncIterator[Pooled]:
    """A connection in a transaction. Raises Refused for an id that names nothing, and when Postgres is away."""
    async with acquire(pool) as db:
        with refusing_unknown_ids():
            async with db.transaction():
                yield db


@contextmanager
def refusing_unknown_ids() -> Iterator[None]:
    """A foreign key that is not kept is the caller's mistake: Refused names the field."""
    try:
        yield
    except asyncpg.ForeignKeyViolationError as error:
        field = _field(error)
        raise Refused("bad_value", f"there is no such {field.removesuffix('_id')}", field) from None


def _field(error: asyncpg.ForeignKeyViolationError) -> str:
    """`offer_advertiser_id_fkey` of the table `offer` is about `advertiser_id`."""
    return (error.constraint_name or "").removeprefix(f"{error.table_name}_").removesuffix("_fkey")
