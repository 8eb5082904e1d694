"""Links: a partner's way to an offer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from aggregator.api import approvals, rows
from aggregator.api.calling import Api, Id, given, path_id, read_body
from aggregator.api.dates import Instant, check_order, read_dates
from aggregator.api.destinations import check_url, own_urls
from aggregator.api.references import ExternalId, refer
from aggregator.api.secret_text import random_base62
from aggregator.api.writing import Change, changing, respond
from aggregator.db.connect import Database, Row
from schemas import limits
from schemas.errors import Refused
from schemas.links import CODE

COLUMNS = (
    "id", "code", "domain_id", "offer_id", "partner_id", "status", "paused_by_partner", "external_id",
    "destination_url", "fallback_url", "starts_at", "ends_at", "test", "created_at",
)  # fmt: skip
FILTERS: rows.Filters = {
    "partner_id": int, "offer_id": int, "status": str, "code": str, "external_id": str, "domain_id": int,
}  # fmt: skip
CODE_LENGTH = 8  # of 62: a new one meets one of a million others once in 200 million, and is then drawn again
# with the host that it has a code on
LINK = "(SELECT link.*, domain.host FROM link LEFT JOIN domain ON domain.id = domain_id) AS link"
_SHOWN = (*COLUMNS, "host")
_TEST_PARTNER = "clickdam-tests"  # its external id
_TEST_LINK = "SELECT id FROM link WHERE offer_id = $1 AND partner_id = $2 AND test AND status = 'active' LIMIT 1"
_FIXED = ("code", "domain_id", "offer_id", "partner_id")


class LinkBody(msgspec.Struct, forbid_unknown_fields=True):
    """`domain_id` is that of a domain with codes of its own; `destination_url` leads elsewhere than the offer does."""

    offer_id: Id
    partner_id: Id
    code: str | None = None
    domain_id: Id | None = None
    status: Literal["active", "paused"] = "active"
    external_id: ExternalId | None = None
    destination_url: str | None = None
    fallback_url: str | None = None
    starts_at: Instant | None = None
    ends_at: Instant | None = None


class TestBody(msgspec.Struct, forbid_unknown_fields=True):
    partner_id: Id | None = None


class LinkChange(msgspec.Struct, forbid_unknown_fields=True):
    """The last four are there to be told why they cannot change."""

    status: Literal["active", "paused", "archived"] | UnsetType = UNSET
    external_id: ExternalId | UnsetType | None = UNSET
    destination_url: str | UnsetType | None = UNSET
    fallback_url: str | UnsetType | None = UNSET
    starts_at: Instant | UnsetType | None = UNSET
    ends_at: Instant | UnsetType | None = UNSET
    code: Any = UNSET
    domain_id: Any = UNSET
    offer_id: Any = UNSET
    partner_id: Any = UNSET


async def post(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/links {offer_id, partner_id, code?, ...}` -> the link, its `url`; `live` once edges redirect it."""
    body = await read_body(request, LinkBody)
    async with changing(api, request) as change:
        values = read(body, await own_urls(change.db, api.public_url))
        row = await insert(change, values)
        change.answers(shown(api, row), 201, row["version"])
    return await respond(api, change)


async def get(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/links/{id}` -> the link, its version as ETag."""
    return await rows.show(api, request, LINK, _SHOWN, partial(with_url, api))


async def listed(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/links?partner_id&offer_id&status&code&external_id&domain_id&limit&cursor` -> `{data, truncated,
    next_cursor}`."""
    return await rows.listing(api, request, LINK, _SHOWN, FILTERS, partial(with_url, api))


async def patch(api: Api, request: web.Request) -> web.Response:
    """`PATCH /v1/links/{id}`, `If-Match` -> the link as it is now; `live` once edges do as it says."""
    body = await read_body(request, LinkChange)
    for name in _FIXED:
        if getattr(body, name) is not UNSET:
            raise Refused("bad_value", f"the {name} of a link that was published cannot change: make another", name)
    return await _change(api, request, body)


async def archive(api: Api, request: web.Request) -> web.Response:
    """`DELETE /v1/links/{id}`: it leads to the fallback, its code stays taken, and a PATCH brings it back."""
    return await _change(api, request, LinkChange(status="archived"))


async def post_test(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/offers/{id}/test {partner_id?}` -> a link whose clicks and conversions are tests: shown in the intake
    log, outside money, caps and reports. The same one each time; of a partner kept for tests where none is named."""
    offer_id = path_id(request, "offer")
    body = await read_body(request, TestBody) if request.body_exists else TestBody()
    async with changing(api, request) as change:
        await rows.one(change.db, "offer", offer_id, locked=True)
        partner_id = body.partner_id or await _test_partner(change, offer_id)
        link_id = await change.db.fetchval(_TEST_LINK, offer_id, partner_id)
        values = {"offer_id": offer_id, "partner_id": partner_id, "code": None, "test": True}
        row = await rows.one(change.db, LINK, link_id) if link_id else await insert(change, values)
        if link_id:
            await change.tell_redis("link", link_id)
        change.answers(shown(api, row), 200 if link_id else 201, row["version"])
    return await respond(api, change)


def read(body: LinkBody | LinkChange, own: tuple[str, ...]) -> dict[str, Any]:
    """The columns that a body names, checked. `own` are the URLs that nothing may lead back to. Raises Refused naming
    the field."""
    values = read_dates(given(body))
    for name in ("destination_url", "fallback_url"):
        check_url(name, values.get(name), own)
    if values.get("code") is not None and not CODE.fullmatch(values["code"]):
        raise Refused(
            "bad_value",
            f"code must be 1 to {limits.CODE_MAX} letters, digits, - or _, and begin with a letter or digit",
            "code",
        )
    return values


async def insert(change: Change, values: Mapping[str, Any]) -> Row:
    """Make a link and publish it, under a code of our own where it names none. Raises Refused where its partner may not
    run its offer, its domain shares the codes of the public URL, or its code is taken."""
    await _check_parties(change.db, values["offer_id"], values["partner_id"])
    if values.get("domain_id") is not None:
        await _check_domain(change.db, values["domain_id"])
    link_id = await _insert(change.db, values)
    row = await rows.one(change.db, LINK, link_id)
    check_order(row)
    await change.tell_redis("link", link_id)
    await change.record("create_link", f"link:{link_id}", after=rows.shown(row, COLUMNS))
    return row


def shown(api: Api, row: Row, columns: tuple[str, ...] = COLUMNS) -> dict[str, Any]:
    """A row of `LINK` as it is answered, with its `url`."""
    return with_url(api, rows.shown(row, (*columns, "host")))


def with_url(api: Api, shown: dict[str, Any]) -> dict[str, Any]:
    """The same with its `url`, instead of the `host` that it has a code on."""
    host = shown.pop("host")
    scheme = api.public_url.partition("://")[0]
    return shown | {"url": f"{f'{scheme}://{host}' if host else api.public_url}/c/{shown['code']}"}


async def _change(api: Api, request: web.Request, body: LinkChange) -> web.Response:
    link_id = path_id(request, "link")
    async with changing(api, request) as change:
        values = read(body, await own_urls(change.db, api.public_url))
        if "status" in values:
            values["paused_by_partner"] = False
        after = await rows.alter(change, "link", link_id, values, COLUMNS, request)
        check_order(after)
        change.answers(shown(api, await rows.one(change.db, LINK, link_id)), version=after["version"])
    return await respond(api, change)


async def _test_partner(change: Change, offer_id: int) -> int:
    """The partner that tests are made as, which may run every offer."""
    partner_id: int | None = await change.db.fetchval("SELECT id FROM partner WHERE external_id = $1", _TEST_PARTNER)
    if partner_id is None:
        partner = await rows.create(
            change, "partner", {"name": "Tests", "external_id": _TEST_PARTNER}, ("id", "name", "external_id")
        )
        partner_id = partner["id"]
        await refer(change, "partner", partner_id, _TEST_PARTNER)
    await rows.one(change.db, "partner", partner_id, locked=True)
    await approvals.decide(change, offer_id, partner_id, "approved")
    return partner_id


async def _insert(db: Database, values: Mapping[str, Any]) -> int:
    names, places = ", ".join(values), ", ".join(f"${n}" for n in range(1, len(values) + 1))
    sql = (
        f"INSERT INTO link ({names}) VALUES ({places}) ON CONFLICT ON CONSTRAINT link_code_key DO NOTHING RETURNING id"  # noqa: S608
    )
    while True:
        code = values.get("code") or random_base62(CODE_LENGTH)
        link_id: int | None = await db.fetchval(sql, *{**values, "code": code}.values())
        if link_id is not None:
            return link_id
        if values.get("code") is not None:
            raise Refused("conflict", "this code is taken", "code")


async def _check_parties(db: Database, offer_id: int, partner_id: int) -> None:
    offer = await db.fetchrow("SELECT status, access FROM offer WHERE id = $1", offer_id)
    partner = await db.fetchrow("SELECT status FROM partner WHERE id = $1", partner_id)
    for kind, row in (("offer", offer), ("partner", partner)):
        if row is None:
            raise Refused("bad_value", f"there is no such {kind}", f"{kind}_id")
        if row["status"] == "archived":
            raise Refused("conflict", f"this {kind} is archived", f"{kind}_id")
    assert offer is not None
    if offer["access"] != "open" and await approvals.standing(db, offer_id, partner_id) != "approved":
        raise Refused("not_approved", "this partner is not approved for this offer", "partner_id")


async def _check_domain(db: Database, domain_id: int) -> None:
    """A domain that shares its codes has every link already; the lock keeps it from sharing them while this lasts."""
    domain = await db.fetchrow("SELECT status, own_links FROM domain WHERE id = $1 FOR SHARE", domain_id)
    if domain is None or domain["status"] != "active":
        raise Refused("bad_value", "there is no such domain", "domain_id")
    if not domain["own_links"]:
        raise Refused("bad_value", "this domain has no links of its own: it serves those without a domain", "domain_id")
