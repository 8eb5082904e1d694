"""Links: a partner's way to an offer."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from aiohttp import web

from aggregator.api.calling import ID_MAX, Api, Id, answer, read_body
from aggregator.api.secret_text import random_base62
from aggregator.api.writing import changing
from aggregator.db.connect import Database, Row
from aggregator.publish.outbox import enqueue, publish_now
from schemas import limits
from schemas.errors import Refused
from schemas.links import CODE

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
    async with changing(api.pool) as db:
        link_id, code = await _insert(db, body)
        await enqueue(db, "link", link_id)
    live = await publish_now(api.pool, api.redis, "link", link_id)
    return answer({"id": link_id, "code": code, "url": _url(api, code), "live": live}, 201)


async def patch(api: Api, request: web.Request) -> web.Response:
    """`PATCH /v1/links/{id} {status}` -> the link; `live` once the edge does as it says."""
    link_id = _path_id(request)
    body = await read_body(request, LinkChange)
    async with changing(api.pool) as db:
        row = await db.fetchrow(
            "UPDATE link SET status = $2, version = version + 1 WHERE id = $1"
            " RETURNING id, code, offer_id, partner_id, status",
            link_id,
            body.status,
        )
        if row is None:
            raise _no_such_link()
        await enqueue(db, "link", link_id)
    live = await publish_now(api.pool, api.redis, "link", link_id)
    return answer(_shown(api, row) | {"live": live})


async def _insert(db: Database, body: LinkBody) -> tuple[int, str]:
    while True:
        code = body.code or random_base62(CODE_LENGTH)
        link_id = await db.fetchval(
            "INSERT INTO link (code, offer_id, partner_id) VALUES ($1, $2, $3) ON CONFLICT (code) DO NOTHING"
            " RETURNING id",
            code,
            body.offer_id,
            body.partner_id,
        )
        if link_id is not None:
            return link_id, code
        if body.code is not None:
            raise Refused("conflict", "this code is taken", "code")


def _path_id(request: web.Request) -> int:
    text = request.match_info["id"]
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= ID_MAX):
        raise _no_such_link()
    return int(text)


def _no_such_link() -> Refused:
    return Refused("not_found", "there is no such link")


def _shown(api: Api, row: Row) -> dict[str, Any]:
    return {**row, "url": _url(api, row["code"])}


def _url(api: Api, code: str) -> str:
    return f"{api.public_url}/c/{code}"
