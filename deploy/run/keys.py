"""API keys made without the API: the first one has to come from somewhere."""

from __future__ import annotations

from aggregator.api.keys import create as create_key
from aggregator.db.connect import connected
from schemas import limits


async def create(database_url: str, role: str, partner_id: int | None = None, advertiser_id: int | None = None) -> str:
    """A new key's secret, which is not kept anywhere."""
    async with connected(database_url, command_timeout_s=limits.STATEMENT_S, application_name="clickdam-keys") as db:
        return (await create_key(db, role, partner_id, advertiser_id)).key
