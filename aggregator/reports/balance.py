"""What an account comes to: of a partner or an advertiser, by currency."""

from __future__ import annotations

from typing import Any

from aggregator.conversions import ledger
from aggregator.db.connect import Database
from schemas.errors import Refused


async def find_account(db: Database, kind: str, owner_id: int) -> str:
    """The account of a `partner` or an `advertiser`. Raises Refused where there is no such one."""
    if not await db.fetchval(f"SELECT EXISTS (SELECT FROM {kind} WHERE id = $1)", owner_id):  # noqa: S608
        raise Refused("bad_value", f"there is no such {kind}", f"{kind}_id")
    return ledger.partner(owner_id) if kind == "partner" else ledger.advertiser(owner_id)


async def balance(db: Database, account: str) -> list[dict[str, Any]]:
    """One row per currency: what we owe it, and negative what it owes us, in minor units."""
    sums = await ledger.balance(db, account)
    return [{"currency": currency, "amount_minor": sums[currency]} for currency in sorted(sums)]
