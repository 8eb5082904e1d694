"""Change conversions by hand: the same states, caps and ledger as what senders say."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple
from uuid import UUID

from aggregator.db.connect import Database
from schemas.outcomes import Status


class Changed(NamedTuple):
    """What became of a conversion; `refused` says why nothing did: a code of `schemas.errors` and a sentence."""

    conversion_id: UUID
    status: Status
    refused: tuple[str, str] | None = None


async def approve(db: Database, ids: Collection[UUID], actor: str, reason: str, shard: int = -1) -> list[Changed]:
    """Approve what is pending. `actor` is `admin:3`, or `auto`, which lifts nothing but the wait for approval. Of an id
    that there is no conversion for nothing is answered."""
    raise NotImplementedError


async def reject(db: Database, ids: Collection[UUID], actor: str, reason: str, shard: int = -1) -> list[Changed]:
    """Reject what is pending; what is approved is reversed."""
    raise NotImplementedError


async def reverse(
    db: Database,
    ids: Collection[UUID],
    actor: str,
    reason: str,
    kind: Literal["reversal", "chargeback"] = "reversal",
    shard: int = -1,
) -> list[Changed]:
    """Take back what is approved."""
    raise NotImplementedError


async def refund(
    db: Database,
    conversion_id: UUID,
    actor: str,
    reason: str,
    *,
    refund_minor: int | None = None,
    remaining_minor: int | None = None,
    event_id: str = "",
    shard: int = -1,
) -> Changed:
    """Refund a part, named by `event_id` and counted once, or say what remains. Raises Refused."""
    raise NotImplementedError


async def adjust(
    db: Database,
    partner_id: int,
    amount_minor: int,
    currency: str,
    reason: str,
    actor: str,
    period: str | None = None,
    *,
    offer_id: int | None = None,
    once: str | None = None,
) -> int | None:
    """Book an amount for a partner, or against it where it is negative; the entry's id. None where an entry of that
    `once` is there already."""
    raise NotImplementedError
