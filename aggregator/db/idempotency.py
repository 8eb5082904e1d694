"""What is remembered of POSTs that came with an Idempotency-Key, for as long as they may be repeated."""

from __future__ import annotations

from aggregator.db.connect import Database
from schemas import limits

_FORGET = "DELETE FROM idempotency WHERE created_at < now() - make_interval(hours => $1)"


async def forget(db: Database) -> None:
    await db.execute(_FORGET, limits.IDEMPOTENCY_KEEP_H)
