"""Advertisers: those who sell, and report what was sold with their token."""

from __future__ import annotations

import hashlib

import msgspec
from aiohttp import web

from aggregator.api import rows
from aggregator.api.calling import Api, Name, read_body
from aggregator.api.writing import changing, respond

COLUMNS = ("id", "name", "status", "external_id", "created_at")


class AdvertiserBody(msgspec.Struct, forbid_unknown_fields=True):
    name: Name


async def post(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/advertisers {name}` -> `{id, token}`; the token is shown only this once."""
    body = await read_body(request, AdvertiserBody)
    async with changing(api, request) as change:
        token = change.secret("token")
        values = {"name": body.name, "token_sha256": hashlib.sha256(token.encode("ascii")).digest()}
        await rows.create(change, "advertiser", values, COLUMNS)
    return await respond(api, change)
