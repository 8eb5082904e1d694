"""Partners: those who bring visitors."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from aggregator.api import rows
from aggregator.api.calling import Api, Name, given, path_id, read_body
from aggregator.api.references import ExternalId, refer
from aggregator.api.writing import changing, respond

COLUMNS = ("id", "name", "status", "external_id", "created_at")
FILTERS: rows.Filters = {"status": str, "name": str, "external_id": str}


class PartnerBody(msgspec.Struct, forbid_unknown_fields=True):
    name: Name
    external_id: ExternalId | None = None
    status: Literal["pending", "active"] = "active"


class PartnerChange(msgspec.Struct, forbid_unknown_fields=True):
    name: Name | UnsetType = UNSET
    external_id: ExternalId | UnsetType | None = UNSET
    status: Literal["pending", "active", "blocked", "archived"] | UnsetType = UNSET


async def post(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/partners {name, external_id?, status?}` -> the partner."""
    body = await read_body(request, PartnerBody)
    async with changing(api, request) as change:
        row = await rows.create(change, "partner", given(body), COLUMNS)
        await refer(change, "partner", row["id"], body.external_id)
    return await respond(api, change)


async def get(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/partners/{id}` -> the partner, its version as ETag."""
    return await rows.show(api, request, "partner", COLUMNS)


async def listed(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/partners?status&name&external_id&limit&cursor` -> `{data, truncated, next_cursor}`."""
    return await rows.listing(api, request, "partner", COLUMNS, FILTERS)


async def patch(api: Api, request: web.Request) -> web.Response:
    """`PATCH /v1/partners/{id}`, `If-Match` -> the partner as it is now; `live` once edges do as it says."""
    body = await read_body(request, PartnerChange)
    return await _change(api, request, given(body))


async def archive(api: Api, request: web.Request) -> web.Response:
    """`DELETE /v1/partners/{id}`: its links lead to the fallback; nothing is forgotten, and a PATCH brings it back."""
    return await _change(api, request, {"status": "archived"})


async def _change(api: Api, request: web.Request, values: dict[str, Any]) -> web.Response:
    partner_id = path_id(request, "partner")
    async with changing(api, request) as change:
        after = await rows.alter(change, "partner", partner_id, values, COLUMNS, request)
        await refer(change, "partner", partner_id, after["external_id"])
    return await respond(api, change)
