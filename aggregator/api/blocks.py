"""Blocks: traffic that is not wanted, of a partner, of a source or a first sub id, or of both; on one offer or on all.

They lie in the config of the partner, or of the programme where they are for all partners. A block never changes.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from aggregator.api import rows
from aggregator.api.calling import Api, Id, path_id, read_body
from aggregator.api.programme import ID as PROGRAMME_ID
from aggregator.api.writing import Change, changing, respond
from aggregator.db.connect import Database
from schemas import limits
from schemas.errors import Refused

COLUMNS = ("id", "partner_id", "offer_id", "source_id", "sub1", "created_at")
FILTERS: rows.Filters = {"partner_id": int, "offer_id": int, "source_id": str, "sub1": str}
# longer ones are cut before they are compared
Value = Annotated[str, msgspec.Meta(min_length=1, max_length=limits.VALUE_MAX, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
_BLOCK = """
(SELECT id, partner_id, offer_id, CASE field WHEN 'source_id' THEN value END AS source_id,
        CASE field WHEN 'sub1' THEN value END AS sub1, created_at, 1 AS version FROM block) AS block
"""
_INSERT = """
INSERT INTO block (partner_id, offer_id, field, value) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING id
"""


class BlockBody(msgspec.Struct, forbid_unknown_fields=True):
    partner_id: Id | None = None
    offer_id: Id | None = None
    source_id: Value | None = None
    sub1: Value | None = None


async def post(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/blocks {partner_id?, offer_id?, source_id? | sub1?}` -> the block; `live` once edges keep it.

    It names a partner, a source or a sub1, at least.
    """
    body = await read_body(request, BlockBody)
    field, value = _what(body)
    async with changing(api, request) as change:
        await _touch_owner(change, body.partner_id)
        block_id = await change.db.fetchval(_INSERT, body.partner_id, body.offer_id, field, value)
        if block_id is None:
            raise Refused("conflict", "this is blocked already")
        await _check_room(change.db, body.partner_id)
        row = await rows.one(change.db, _BLOCK, block_id)
        await change.record("create_block", f"block:{block_id}", after=rows.shown(row, COLUMNS))
        change.answers(rows.shown(row, COLUMNS), 201, row["version"])
    return await respond(api, change)


async def get(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/blocks/{id}` -> the block."""
    return await rows.show(api, request, _BLOCK, COLUMNS)


async def listed(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/blocks?partner_id&offer_id&source_id&sub1&limit&cursor` -> `{data, truncated, next_cursor}`."""
    return await rows.listing(api, request, _BLOCK, COLUMNS, FILTERS)


async def delete(api: Api, request: web.Request) -> web.Response:
    """`DELETE /v1/blocks/{id}` -> the block that was; `live` once edges let its traffic pass."""
    block_id = path_id(request, "block")
    async with changing(api, request) as change:
        row = await rows.one(change.db, _BLOCK, block_id)
        rows.check_version(request, row["version"])
        await _touch_owner(change, row["partner_id"])
        if await change.db.fetchval("DELETE FROM block WHERE id = $1 RETURNING id", block_id) is None:
            raise Refused("not_found", "there is no such block")
        await change.record("delete_block", f"block:{block_id}", before=rows.shown(row, COLUMNS))
        change.answers(rows.shown(row, COLUMNS))
    return await respond(api, change)


def _what(body: BlockBody) -> tuple[str, str]:
    """Which field is blocked, and which of its values. Raises Refused."""
    if body.source_id is not None and body.sub1 is not None:
        raise Refused("bad_value", "a block is on a source_id or on a sub1, not on both", "sub1")
    if body.source_id is not None:
        return "source_id", body.source_id
    if body.sub1 is not None:
        return "sub1", body.sub1
    if body.partner_id is None:
        raise Refused("missing_field", "a block needs a partner_id, a source_id or a sub1", "partner_id")
    return "partner", ""


async def _touch_owner(change: Change, partner_id: int | None) -> None:
    if partner_id is None:
        await rows.touch(change, "programme", PROGRAMME_ID)
    else:
        await rows.touch(change, "partner", partner_id)


async def _check_room(db: Database, partner_id: int | None) -> None:
    blocks = await db.fetchval("SELECT count(*) FROM block WHERE partner_id IS NOT DISTINCT FROM $1", partner_id)
    if blocks > limits.BLOCKS_MAX:
        whose = "for all partners" if partner_id is None else f"of partner {partner_id}"
        raise Refused("conflict", f"there are {limits.BLOCKS_MAX} blocks {whose} already")
