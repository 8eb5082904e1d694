"""Domains: hosts that visitors come by, beside that of the public URL. All of them lie in the programme's config."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from aggregator.api import rows
from aggregator.api.calling import Api, given, path_id, read_body
from aggregator.api.destinations import LABEL, check_url, own_urls
from aggregator.api.programme import ID as PROGRAMME_ID
from aggregator.api.writing import changing, respond
from aggregator.db.connect import Database
from schemas import limits
from schemas.errors import Refused

COLUMNS = ("id", "host", "own_links", "fallback_url", "status", "created_at")
FILTERS: rows.Filters = {"status": str, "host": str}
# a name, not an address: its last label begins with a letter
_HOST = re.compile(rf"(?=.{{1,253}}\Z)({LABEL}\.)+(?=[a-z]){LABEL}", re.ASCII)


class DomainBody(msgspec.Struct, forbid_unknown_fields=True):
    host: str
    own_links: bool = False
    fallback_url: str | None = None


class DomainChange(msgspec.Struct, forbid_unknown_fields=True):
    own_links: bool | UnsetType = UNSET
    fallback_url: str | UnsetType | None = UNSET
    status: Literal["active", "archived"] | UnsetType = UNSET


async def post(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/domains {host, own_links?, fallback_url?}` -> the domain; `live` once edges know it."""
    body = await read_body(request, DomainBody)
    _check_host(body.host, api.public_url)
    async with changing(api, request) as change:
        await rows.touch(change, "programme", PROGRAMME_ID)
        own = (*await own_urls(change.db, api.public_url), f"http://{body.host}", f"https://{body.host}")
        check_url("fallback_url", body.fallback_url, own)
        row = await change.db.fetchrow(
            "INSERT INTO domain (host, own_links, fallback_url) VALUES ($1, $2, $3) RETURNING *",
            body.host, body.own_links, body.fallback_url,
        )  # fmt: skip
        assert row is not None
        await _check_room(change.db)
        await change.record("create_domain", f"domain:{row['id']}", after=rows.shown(row, COLUMNS))
        change.answers(rows.shown(row, COLUMNS), 201, row["version"])
    return await respond(api, change)


async def get(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/domains/{id}` -> the domain, its version as ETag."""
    return await rows.show(api, request, "domain", COLUMNS)


async def listed(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/domains?status&host&limit&cursor` -> `{data, truncated, next_cursor}`."""
    return await rows.listing(api, request, "domain", COLUMNS, FILTERS)


async def patch(api: Api, request: web.Request) -> web.Response:
    """`PATCH /v1/domains/{id} {own_links?, fallback_url?, status?}`, `If-Match` -> the domain as it is now.

    `own_links` stays as it is while there are links on it: 409.
    """
    return await _change(api, request, await read_body(request, DomainChange))


async def archive(api: Api, request: web.Request) -> web.Response:
    """`DELETE /v1/domains/{id}`: its host is one that nobody told us of, or, where it had codes of its own, has none; a
    PATCH brings it back."""
    return await _change(api, request, DomainChange(status="archived"))


async def _change(api: Api, request: web.Request, body: DomainChange) -> web.Response:
    domain_id = path_id(request, "domain")
    async with changing(api, request) as change:
        await rows.touch(change, "programme", PROGRAMME_ID)
        if body.fallback_url is not UNSET:
            check_url("fallback_url", body.fallback_url, await own_urls(change.db, api.public_url))
        if body.own_links is not UNSET:
            await _check_own_links(change.db, domain_id, body.own_links)
        before, after = await rows.update(change.db, "domain", domain_id, given(body), request)
        await _check_room(change.db)
        action = "archive_domain" if body.status == "archived" else "change_domain"
        await rows.answer_change(change, action, f"domain:{domain_id}", before, after, COLUMNS)
    return await respond(api, change)


def _check_host(host: str, public_url: str) -> None:
    if not _HOST.fullmatch(host):
        raise Refused(
            "bad_value",
            "host must be a name in lower case, such as go.example.com, without scheme, port or path"
            " (write an international name in its xn-- form)",
            "host",
        )
    if host == urlsplit(public_url).hostname:
        raise Refused("bad_value", "host is that of the public URL, which needs no domain", "host")


async def _check_room(db: Database) -> None:
    if await db.fetchval("SELECT count(*) FROM domain WHERE status = 'active' OR own_links") > limits.DOMAINS_MAX:
        raise Refused("conflict", f"there are {limits.DOMAINS_MAX} domains already")


async def _check_own_links(db: Database, domain_id: int, own_links: bool) -> None:
    """The lock keeps links from being put on it meanwhile."""
    before = await db.fetchval("SELECT own_links FROM domain WHERE id = $1 FOR UPDATE", domain_id)
    if before in (None, own_links):
        return
    if await db.fetchval("SELECT EXISTS (SELECT FROM link WHERE domain_id = $1)", domain_id):
        raise Refused("conflict", "own_links cannot change while there are links on this domain", "own_links")
