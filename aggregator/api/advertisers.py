"""Advertisers: those who sell, and report what was sold with their token."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from aggregator.api import rows
from aggregator.api.calling import Api, Name, given, path_id, read_body
from aggregator.api.references import ExternalId
from aggregator.api.secret_text import digest
from aggregator.api.writing import changing, respond

COLUMNS = ("id", "name", "status", "external_id", "created_at")
FILTERS: rows.Filters = {"status": str, "name": str, "external_id": str}
# At the version that its advertiser has now, so that no earlier value under this token ever wins over the tombstone.
_REPLACED = """
INSERT INTO replaced_token (advertiser_id, token_sha256, version) VALUES ($1, $2, $3) RETURNING id
"""


class AdvertiserBody(msgspec.Struct, forbid_unknown_fields=True):
    name: Name
    external_id: ExternalId | None = None


class AdvertiserChange(msgspec.Struct, forbid_unknown_fields=True):
    name: Name | UnsetType = UNSET
    external_id: ExternalId | UnsetType | None = UNSET
    status: Literal["active", "blocked", "archived"] | UnsetType = UNSET


async def post(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/advertisers {name, external_id?}` -> the advertiser and its `token`, which is shown only this once."""
    body = await read_body(request, AdvertiserBody)
    async with changing(api, request) as change:
        values = given(body) | {"token_sha256": digest(change.secret("token"))}
        await rows.create(change, "advertiser", values, COLUMNS)
    return await respond(api, change)


async def get(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/advertisers/{id}` -> the advertiser, its version as ETag."""
    return await rows.show(api, request, "advertiser", COLUMNS)


async def listed(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/advertisers?status&name&external_id&limit&cursor` -> `{data, truncated, next_cursor}`."""
    return await rows.listing(api, request, "advertiser", COLUMNS, FILTERS)


async def patch(api: Api, request: web.Request) -> web.Response:
    """`PATCH /v1/advertisers/{id}`, `If-Match` -> the advertiser as it is now; `live` once edges do as it says."""
    body = await read_body(request, AdvertiserChange)
    return await _change(api, request, given(body))


async def archive(api: Api, request: web.Request) -> web.Response:
    """`DELETE /v1/advertisers/{id}`: its token reports nothing any more; a PATCH brings it back."""
    return await _change(api, request, {"status": "archived"})


async def post_token(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/advertisers/{id}/token`, `If-Match` -> the advertiser and its new `token`, shown only this once. With
    `live`, the former one is refused everywhere within a second."""
    advertiser_id = path_id(request, "advertiser")
    async with changing(api, request) as change:
        token = {"token_sha256": digest(change.secret("token"))}
        before, after = await rows.update(change.db, "advertiser", advertiser_id, token, request)
        await change.tell_redis("advertiser", advertiser_id)
        former = await change.db.fetchval(_REPLACED, advertiser_id, before["token_sha256"], after["version"])
        await change.tell_redis("replaced_token", former)
        await change.record("replace_token", f"advertiser:{advertiser_id}")
        change.answers(rows.shown(after, COLUMNS), 201, after["version"])
    return await respond(api, change)


async def _change(api: Api, request: web.Request, values: dict[str, Any]) -> web.Response:
    advertiser_id = path_id(request, "advertiser")
    async with changing(api, request) as change:
        await rows.alter(change, "advertiser", advertiser_id, values, COLUMNS, request)
    return await respond(api, change)
