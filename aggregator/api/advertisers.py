"""Advertisers: those who sell, and report what was sold with their token."""

from __future__ import annotations

import hashlib

import msgspec
from aiohttp import web

from aggregator.api.calling import Api, Name, answer, read_body
from aggregator.api.secret_text import random_base62
from aggregator.api.writing import changing
from aggregator.publish.outbox import enqueue, publish_now


class AdvertiserBody(msgspec.Struct, forbid_unknown_fields=True):
    name: Name


async def post(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/advertisers {name}` -> `{id, token}`; the token is shown only this once."""
    body = await read_body(request, AdvertiserBody)
    token = f"at_{random_base62(32)}"
    async with changing(api.pool) as db:
        advertiser_id = await db.fetchval(
            "INSERT INTO advertiser (name, token_sha256) VALUES ($1, $2) RETURNING id",
            body.name,
            hashlib.sha256(token.encode("ascii")).digest(),
        )
        await enqueue(db, "advertiser", advertiser_id)
    await publish_now(api.pool, api.redis, "advertiser", advertiser_id)
    return answer({"id": advertiser_id, "token": token}, 201)
