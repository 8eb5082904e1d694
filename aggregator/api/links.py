"""Links: a partner's way to an offer."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from aiohttp import web

from aggregator.api import rows
from aggregator.api.calling import Api, Id, given, path_id, read_body
from aggregator.api.secret_text import random_base62
from aggregator.api.writing import changing, respond
from aggregator.db.connect import Database, Row
from schemas import limits
from schemas.errors import Refused
from schemas.links import CODE

COLUMNS = ("id", "code", "offer_id", "partner_id", "status", "created_at")
CODE_LENGTH = 8  # of 62: a new one meets one of a million others once in 200 million, and is then drawn again


class LinkBody(msgspec.Struct, forbid_unknown_fields=True):
    offer_id: Id
    partner_id: Id
    code: str | None = None


class LinkChange(msgspec.Struct, forbid_unknown_fields=True):
    status: Literal["active", "paused"]


async def post(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/links {offer_id, partner_id, code?}` -> `{id, code, url, live}`; `live` once the edge answers it."""
    body = await read_body(request, LinkBody)
    if body.code is not None and not CODE.fullmatch(body.code):
        raise Refused(
            "bad_value",
            f"code must be 1 to {limits.CODE_MAX} letters, digits, - or _, and begin with a letter or digit",
            "code",
        )
    async with changing(api, request) as change:
        row = await _insert(change.db, body)
        await change.tell_redis("link", row["id"])
        await change.record("create_link", f"link:{row['id']}", after=_shown(api, row))
        change.answers(_shown(api, row), 201, row["version"])
    return await respond(api, change)


async def patch(api: Api, request: web.Request) -> web.Response:
    """`PATCH /v1/links/{id} {status}` -> the link; `live` once the edge does as it says."""
    link_id = path_id(request, "link")
    body = await read_body(request, LinkChange)
    async with changing(api, request) as change:
        after = await rows.alter(change, "link", link_id, given(body), COLUMNS, request)
        change.answers(_shown(api, after), version=after["version"])
    return await respond(api, change)


async def _insert(db: Database, body: LinkBody) -> Row:
    while True:
        row = await db.fetchrow(
            "INSERT INTO link (code, offer_id, partner_id) VALUES ($1, $2, $3)"
            " ON CONFLICT ON CONSTRAINT link_code_key DO NOTHING RETURNING *",
            body.code or random_base62(CODE_LENGTH),
            body.offer_id,
            body.partner_id,
        )
        if row is not None:
            return row
        if body.code is not None:
            raise Refused("conflict", "this code is taken", "code")


def _shown(api: Api, row: Row) -> dict[str, Any]:
    return rows.shown(row, COLUMNS) | {"url": f"{api.public_url}/c/{row['code']}"}
