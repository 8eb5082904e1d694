"""Who may run an offer that is not open to all: partners apply, an operator decides."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from aiohttp import web

from aggregator.api import rows
from aggregator.api.calling import Api, answer, path_id, read_body
from aggregator.api.writing import Change, changing, respond
from aggregator.db.connect import Database, acquire
from schemas import limits
from schemas.errors import Refused

COLUMNS = ("offer_id", "partner_id", "partner_name", "status", "changed_at")
FILTERS: rows.Filters = {"status": str}
Status = Literal["pending", "approved", "rejected"]
_APPROVAL = """
(SELECT partner_id AS id, offer_id, partner_id, partner.name AS partner_name, approval.status, changed_at
 FROM approval JOIN partner ON partner.id = partner_id) AS approval
"""
_DECIDE = """
INSERT INTO approval (offer_id, partner_id, status) VALUES ($1, $2, $3)
ON CONFLICT (offer_id, partner_id) DO UPDATE SET status = excluded.status, changed_at = now()
"""
_APPROVED = "SELECT count(*) FROM approval WHERE partner_id = $1 AND status = 'approved'"


class ApprovalBody(msgspec.Struct, forbid_unknown_fields=True):
    status: Status


async def put(api: Api, request: web.Request) -> web.Response:
    """`PUT /v1/offers/{id}/partners/{partner_id} {status}` -> `{offer_id, partner_id, partner_name, status,
    changed_at, live}`; `live` once edges let the partner's visitors through, or no more."""
    offer_id, partner_id = path_id(request, "offer"), path_id(request, "partner", "partner_id")
    body = await read_body(request, ApprovalBody)
    async with changing(api, request) as change:
        await rows.one(change.db, "offer", offer_id)
        await rows.one(change.db, "partner", partner_id, locked=True)
        await decide(change, offer_id, partner_id, body.status)
        if not change.answer.publish:
            await change.tell_redis("partner", partner_id)
        change.answers(await _shown(change.db, offer_id, partner_id))
    return await respond(api, change)


async def listed(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/offers/{id}/partners?status&limit&cursor` -> `{data, truncated, next_cursor}`, by partner."""
    offer_id = path_id(request, "offer")
    async with acquire(api.pool) as db:
        await rows.one(db, "offer", offer_id)
        return answer(await rows.page(db, _APPROVAL, COLUMNS, FILTERS, request, offer_id=offer_id))


async def decide(change: Change, offer_id: int, partner_id: int, status: Status) -> None:
    """Keep how an offer stands to a partner, whose row is locked; what changes nothing leaves no trace. Only what is or
    was approved concerns edges. Raises Refused for more offers than one partner's value may have."""
    before = await standing(change.db, offer_id, partner_id)
    if before == status:
        return
    await change.db.execute(_DECIDE, offer_id, partner_id, status)
    if await change.db.fetchval(_APPROVED, partner_id) > limits.APPROVALS_PER_PARTNER_MAX:
        raise Refused("conflict", f"a partner is approved for at most {limits.APPROVALS_PER_PARTNER_MAX} offers")
    if "approved" in (before, status):
        await rows.touch(change, "partner", partner_id)
    await change.record(
        "change_approval", f"offer:{offer_id}",
        before={"partner_id": partner_id, "status": before}, after={"partner_id": partner_id, "status": status},
    )  # fmt: skip


async def standing(db: Database, offer_id: int, partner_id: int) -> str | None:
    """The status of a partner with an offer, None where it never asked."""
    status: str | None = await db.fetchval(
        "SELECT status FROM approval WHERE offer_id = $1 AND partner_id = $2", offer_id, partner_id
    )
    return status


async def _shown(db: Database, offer_id: int, partner_id: int) -> dict[str, Any]:
    row = await db.fetchrow(
        f"SELECT * FROM {_APPROVAL} WHERE offer_id = $1 AND partner_id = $2",  # noqa: S608
        offer_id, partner_id,
    )  # fmt: skip
    assert row is not None
    return rows.shown(row, COLUMNS)
