"""The programme itself: its time zone, its currency, and where visitors go that nothing else is there for."""

from __future__ import annotations

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from aggregator.api import rows
from aggregator.api.calling import Api, answer, given, read_body
from aggregator.api.destinations import check_url, own_urls
from aggregator.api.terms import check_currency
from aggregator.api.writing import changing, respond
from aggregator.db.connect import Database, acquire
from aggregator.reports.asked import read_zone
from schemas.errors import Refused

ID = 1  # there is one
COLUMNS = ("timezone", "currency", "fallback_url")


class ProgrammeChange(msgspec.Struct, forbid_unknown_fields=True):
    timezone: str | UnsetType = UNSET
    currency: str | UnsetType = UNSET
    fallback_url: str | UnsetType | None = UNSET


async def get(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/programme` -> `{timezone, currency, fallback_url}`, its version as ETag."""
    async with acquire(api.pool) as db:
        row = await rows.one(db, "programme", ID)
    return answer(rows.shown(row, COLUMNS), version=row["version"])


async def patch(api: Api, request: web.Request) -> web.Response:
    """`PATCH /v1/programme {timezone?, currency?, fallback_url?}`, `If-Match` -> the programme; `live` once edges do
    as it says. The currency stays once anything was sold: 409."""
    body = await read_body(request, ProgrammeChange)
    if body.timezone is not UNSET:
        read_zone(body.timezone)
    if body.currency is not UNSET:
        check_currency(body.currency)
    async with changing(api, request) as change:
        if body.fallback_url is not UNSET:
            check_url("fallback_url", body.fallback_url, await own_urls(change.db, api.public_url))
        before = await rows.one(change.db, "programme", ID, locked=True)
        if body.currency not in (UNSET, before["currency"]):
            await _check_nothing_sold(change.db)
        await rows.alter(change, "programme", ID, given(body), COLUMNS, request)
    api.versions.forget_state()
    return await respond(api, change)


async def _check_nothing_sold(db: Database) -> None:
    if await db.fetchval("SELECT EXISTS (SELECT FROM conversion)"):
        raise Refused("conflict", "the currency cannot change any more: there are conversions in it", "currency")
