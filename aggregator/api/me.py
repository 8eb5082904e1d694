"""What a partner sees of the programme: itself, the offers it may run or apply for, its links. Nothing of anybody else.

Every question names the caller's own partner; what is not its own is not found. An advertiser sees itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import msgspec
from aiohttp import web

from aggregator.api import approvals, caps, links, rows, terms
from aggregator.api.calling import CALLER, Api, Caller, Id, answer, path_id, read_body
from aggregator.api.writing import changing, respond
from aggregator.db.connect import Database, Row, acquire
from schemas import limits
from schemas.errors import Refused

KEY_COLUMNS = ("id", "name", "last_four", "scopes", "requests_per_minute", "expires_at")
OFFER_COLUMNS = (
    "id", "external_id", "name", "status", "access", "approval", "currency", "starts_at", "ends_at", "timezone",
    "targeting", "deep_link_hosts", "payout", "event_payouts", "caps",
)  # fmt: skip
LINK_COLUMNS = ("id", "code", "offer_id", "status", "paused_by_partner", "starts_at", "ends_at", "created_at")
OFFER_FILTERS: rows.Filters = {"status": str, "access": str, "approval": str}
LINK_FILTERS: rows.Filters = {"offer_id": int, "status": str, "code": str}
_OWNER = {
    "partner": "SELECT id, name, status FROM partner WHERE id = $1",
    "advertiser": "SELECT id, name, status FROM advertiser WHERE id = $1",
}
_CAPS = """
SELECT kind, period, amount, currency, over_cap FROM cap
WHERE partner_id = $1 AND offer_id IS NULL AND kind <> 'revenue' ORDER BY id
"""
# Of an offer only what a partner may know: neither whose it is, nor where it leads, nor what it brings in.
_VISIBLE = f"""
(SELECT offer.id, offer.external_id, offer.name, offer.status, access, approval.status AS approval, offer.currency,
        starts_at, ends_at, timezone, targeting, deep_link_hosts, partner.id AS partner_id,
        {terms.IN_FORCE_FOR_PARTNER},
        coalesce((SELECT jsonb_agg(jsonb_build_object('kind', kind, 'period', period, 'amount', amount,
                                                      'currency', cap.currency, 'over_cap', over_cap) ORDER BY cap.id)
                  FROM cap WHERE cap.offer_id = offer.id AND kind <> 'revenue'
                    AND (cap.partner_id IS NULL OR cap.partner_id = partner.id)), '[]') AS caps
 FROM partner CROSS JOIN offer
 LEFT JOIN approval ON approval.offer_id = offer.id AND approval.partner_id = partner.id
 WHERE partner.status = 'active' AND offer.status <> 'archived'
   AND (access <> 'private' OR coalesce(approval.status = 'approved', false))) AS offer
"""  # noqa: S608
_LINKS = "SELECT count(*) FROM link WHERE partner_id = $1"


class OwnLinkBody(msgspec.Struct, forbid_unknown_fields=True):
    offer_id: Id
    code: str | None = None


class OwnLinkChange(msgspec.Struct, forbid_unknown_fields=True):
    status: Literal["active", "paused"]


async def get(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/me` -> `{role, id, name, status, programme, key, caps?}`; `caps` are a partner's on all that it does."""
    caller = request[CALLER]
    async with acquire(api.pool) as db:
        owner = await db.fetchrow(_OWNER[caller.role], caller.partner_id or caller.advertiser_id)
        programme = await db.fetchrow("SELECT timezone, currency FROM programme")
        key = await rows.one(db, "api_key", caller.key_id)
        own_caps = await db.fetch(_CAPS, caller.partner_id) if caller.partner_id else []
    assert owner is not None
    assert programme is not None
    told = {"role": caller.role, **dict(owner), "programme": dict(programme), "key": rows.shown(key, KEY_COLUMNS)}
    return answer(told | ({"caps": [caps.named(dict(cap)) for cap in own_caps]} if caller.partner_id else {}))


async def offers(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/me/offers?status&access&approval&limit&cursor` -> `{data, truncated, next_cursor}`: the open ones, those
    to apply for, those it was approved for. None for a partner that is not active."""
    partner_id = _partner_id(request)
    return await rows.listing(api, request, _VISIBLE, OFFER_COLUMNS, OFFER_FILTERS, _offer, partner_id=partner_id)


async def offer(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/me/offers/{id}` -> the offer with its payout and caps."""
    offer_id = path_id(request, "offer")
    async with acquire(api.pool) as db:
        row = await _visible(db, offer_id, _partner_id(request))
    if row is None:
        raise Refused("not_found", "there is no such offer")
    return answer(_offer(rows.shown(row, OFFER_COLUMNS)))


async def apply(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/me/offers/{id}/apply` -> `{offer_id, status}`, how it stands now: a repetition changes nothing."""
    offer_id, partner_id = path_id(request, "offer"), _partner_id(request)
    async with changing(api, request) as change:
        await _locked_partner(change.db, partner_id)
        row = await _visible(change.db, offer_id, partner_id)
        if row is None:
            raise Refused("not_found", "there is no such offer")
        if row["access"] == "open":
            raise Refused("conflict", "this offer is open: make a link")
        if row["approval"] is None:
            await approvals.decide(change, offer_id, partner_id, "pending")
        change.answers({"offer_id": offer_id, "status": row["approval"] or "pending"})
    return await respond(api, change)


async def own_links(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/me/links?offer_id&status&code&limit&cursor` -> `{data, truncated, next_cursor}`."""
    columns, url, partner_id = (*LINK_COLUMNS, "host"), partial(links.with_url, api), _partner_id(request)
    return await rows.listing(api, request, links.LINK, columns, LINK_FILTERS, url, partner_id=partner_id)


async def own_link(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/me/links/{id}` -> the link, its version as ETag."""
    async with acquire(api.pool) as db:
        row = await _own(db, path_id(request, "link"), request[CALLER])
    return answer(links.shown(api, row, LINK_COLUMNS), version=row["version"])


async def make_link(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/me/links {offer_id, code?}` -> the link, for an offer that the partner may run; `live` once edges
    redirect it."""
    body, partner_id = await read_body(request, OwnLinkBody), _partner_id(request)
    async with changing(api, request) as change:
        await _locked_partner(change.db, partner_id)
        await _check_room(change.db, partner_id)
        if await _visible(change.db, body.offer_id, partner_id) is None:
            raise Refused("bad_value", "there is no such offer", "offer_id")
        values = links.read(links.LinkBody(offer_id=body.offer_id, partner_id=partner_id, code=body.code), own=())
        row = await links.insert(change, values)
        change.answers(links.shown(api, row, LINK_COLUMNS), 201, row["version"])
    return await respond(api, change)


async def change_link(api: Api, request: web.Request) -> web.Response:
    """`PATCH /v1/me/links/{id} {status: active | paused}`, `If-Match` -> the link.

    A partner lets go on only what it paused itself: a link that the operator stopped stays stopped, 409.
    """
    link_id, body = path_id(request, "link"), await read_body(request, OwnLinkChange)
    async with changing(api, request) as change:
        former = await _own(change.db, link_id, request[CALLER], locked=True)
        if former["status"] not in ("active", body.status) and not former["paused_by_partner"]:
            raise Refused("conflict", f"the operator has {former['status']} this link", "status")
        values = {"status": body.status, "paused_by_partner": body.status == "paused"}
        changes = values if body.status != former["status"] else {}
        after = await rows.alter(change, "link", link_id, changes, links.COLUMNS, request)
        change.answers(
            links.shown(api, await rows.one(change.db, links.LINK, link_id), LINK_COLUMNS), version=after["version"]
        )
    return await respond(api, change)


def _partner_id(request: web.Request) -> int:
    partner_id = request[CALLER].partner_id
    assert partner_id is not None
    return partner_id


async def _own(db: Database, link_id: int, caller: Caller, *, locked: bool = False) -> Row:
    """A link of the caller's. Raises Refused("not_found") for every other one."""
    if locked:
        await db.execute(
            "SELECT FROM link WHERE id = $1 AND partner_id = $2 FOR NO KEY UPDATE", link_id, caller.partner_id
        )
    row = await rows.one(db, links.LINK, link_id)
    if row["partner_id"] != caller.partner_id:
        raise Refused("not_found", "there is no such link")
    return row


async def _visible(db: Database, offer_id: int, partner_id: int) -> Row | None:
    return await db.fetchrow(
        f"SELECT * FROM {_VISIBLE} WHERE id = $1 AND partner_id = $2",  # noqa: S608
        offer_id, partner_id,
    )  # fmt: skip


async def _locked_partner(db: Database, partner_id: int) -> None:
    """What a partner does by itself is done one after the other. Raises Refused unless it is active."""
    partner = await rows.one(db, "partner", partner_id, locked=True)
    if partner["status"] != "active":
        raise Refused("forbidden", f"this partner is {partner['status']}")


async def _check_room(db: Database, partner_id: int) -> None:
    if await db.fetchval(_LINKS, partner_id) >= limits.LINKS_PER_PARTNER_MAX:
        raise Refused("conflict", f"a partner makes at most {limits.LINKS_PER_PARTNER_MAX} links: ask the operator")


def _offer(shown: dict[str, Any]) -> dict[str, Any]:
    return shown | {"caps": [caps.named(cap) for cap in shown["caps"]]}
