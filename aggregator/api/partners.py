"""Partners: those who bring visitors."""

from __future__ import annotations

import msgspec
from aiohttp import web

from aggregator.api.calling import Api, Name, answer, read_body
from aggregator.api.writing import changing
from aggregator.publish.outbox import enqueue, publish_now


class PartnerBody(msgspec.Struct, forbid_unknown_fields=True):
    name: Name


async def post(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/partners {name}` -> `{id}`."""
    body = await read_body(request, PartnerBody)
    async with changing(api.pool) as db:
        partner_id = await db.fetchval("INSERT INTO partner (name) VALUES ($1) RETURNING id", body.name)
        await enqueue(db, "partner", partner_id)
    await publish_now(api.pool, api.redis, "partner", partner_id)
    return answer({"id": partner_id}, 201)
