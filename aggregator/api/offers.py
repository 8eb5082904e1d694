"""Offers: what partners bring visitors to, whom it is for, and what it pays."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from aggregator.api import rows, terms
from aggregator.api.calling import PARAMETER, Api, Id, Name, given, path_id, read_body
from aggregator.api.dates import Instant, check_order, read_dates
from aggregator.api.destinations import check_url, own_urls
from aggregator.api.references import ExternalId, refer
from aggregator.api.scopes import SHOWN as SCOPES
from aggregator.api.scopes import ScopeFrom, check_past, read_scopes
from aggregator.api.targeting import read_hosts, read_landings, read_targeting
from aggregator.api.writing import Change, changing, respond
from aggregator.reports.asked import read_zone
from schemas import limits
from schemas.links import Landing, Targeting

COLUMNS = (
    "id", "advertiser_id", "name", "status", "access", "external_id", "destination_url", "fallback_url", "currency",
    "click_id_parameter", "deep_link_hosts", "pass_parameters", "starts_at", "ends_at", "timezone", "targeting",
    "landings", "scopes", "click_window_days", "min_conversion_s", "default_status", "auto_approve_days",
    "amount_max_minor", "payout_override_max_minor", "max_duration_months", "created_at",
)  # fmt: skip
FILTERS: rows.Filters = {"status": str, "advertiser_id": int, "access": str, "external_id": str, "name": str}
Access = Literal["open", "approval", "private"]
Parameter = Annotated[str, msgspec.Meta(max_length=limits.PARAMETER_NAME_MAX, pattern=rf"\A{PARAMETER}\Z")]
_SHOWN = (*COLUMNS, "payout")
_AS_THEY_ARE = ", ".join(name for name in (*COLUMNS, "version") if name != "scopes")
_OFFER = f"(SELECT {_AS_THEY_ARE}, {SCOPES} AS scopes, {terms.IN_FORCE} FROM offer) AS offer"  # noqa: S608
Days = Annotated[int, msgspec.Meta(ge=1, le=limits.CLICK_WINDOW_DAYS_MAX)]
DaysOrAtOnce = Annotated[int, msgspec.Meta(ge=0, le=limits.AUTO_APPROVE_DAYS_MAX)]
Seconds = Annotated[int, msgspec.Meta(ge=0, le=limits.CLICK_WINDOW_DAYS_MAX * 86_400)]
AmountMinor = Annotated[int, msgspec.Meta(ge=0, le=limits.AMOUNT_MINOR_MAX)]
Months = Annotated[int, msgspec.Meta(ge=1, le=limits.DURATION_MONTHS_MAX)]
DefaultStatus = Literal["approved", "pending"]


class OfferBody(msgspec.Struct, forbid_unknown_fields=True):
    """`payout` are its first terms; `currency` is that of amounts which come without one, else the payout's."""

    advertiser_id: Id
    name: Name
    destination_url: str
    payout: terms.Payout
    currency: str | None = None
    status: Literal["active", "paused"] = "active"
    access: Access = "open"
    external_id: ExternalId | None = None
    fallback_url: str | None = None
    click_id_parameter: Parameter = "click_id"
    deep_link_hosts: list[str] = []
    pass_parameters: bool = False
    starts_at: Instant | None = None
    ends_at: Instant | None = None
    timezone: str | None = None
    targeting: Targeting | None = None
    landings: list[Landing] = []
    scopes: list[ScopeFrom] = []
    click_window_days: Days = limits.CLICK_WINDOW_DAYS
    min_conversion_s: Seconds = 0
    default_status: DefaultStatus = "approved"
    auto_approve_days: DaysOrAtOnce | None = None
    amount_max_minor: AmountMinor | None = None
    payout_override_max_minor: AmountMinor | None = None
    max_duration_months: Months | None = None


class OfferChange(msgspec.Struct, forbid_unknown_fields=True):
    """`advertiser_id` stays: what was earned is owed by it. Other terms are a call of their own."""

    name: Name | UnsetType = UNSET
    destination_url: str | UnsetType = UNSET
    currency: str | UnsetType = UNSET
    status: Literal["active", "paused", "archived"] | UnsetType = UNSET
    access: Access | UnsetType = UNSET
    external_id: ExternalId | UnsetType | None = UNSET
    fallback_url: str | UnsetType | None = UNSET
    click_id_parameter: Parameter | UnsetType = UNSET
    deep_link_hosts: list[str] | UnsetType = UNSET
    pass_parameters: bool | UnsetType = UNSET
    starts_at: Instant | UnsetType | None = UNSET
    ends_at: Instant | UnsetType | None = UNSET
    timezone: str | UnsetType | None = UNSET
    targeting: Targeting | UnsetType | None = UNSET
    landings: list[Landing] | UnsetType = UNSET
    scopes: list[ScopeFrom] | UnsetType = UNSET
    click_window_days: Days | UnsetType = UNSET
    min_conversion_s: Seconds | UnsetType = UNSET
    default_status: DefaultStatus | UnsetType = UNSET
    auto_approve_days: DaysOrAtOnce | UnsetType | None = UNSET
    amount_max_minor: AmountMinor | UnsetType | None = UNSET
    payout_override_max_minor: AmountMinor | UnsetType | None = UNSET
    max_duration_months: Months | UnsetType | None = UNSET


async def post(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/offers {advertiser_id, name, destination_url, payout, ...}` -> the offer."""
    body = await read_body(request, OfferBody)
    terms.check_payout(body.payout, "payout.")
    async with changing(api, request) as change:
        values = read(body, await own_urls(change.db, api.public_url))
        values["currency"] = body.currency or body.payout.currency
        row = await rows.create(change, "offer", values, COLUMNS)
        check_order(row)
        await refer(change, "offer", row["id"], body.external_id)
        await terms.add_first(change.db, row["id"], body.payout)
        await _answer(change, row["id"], 201)
    return await respond(api, change)


async def get(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/offers/{id}` -> the offer with the terms now in force, its version as ETag."""
    return await rows.show(api, request, _OFFER, _SHOWN)


async def listed(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/offers?status&advertiser_id&access&external_id&name&limit&cursor` -> `{data, truncated,
    next_cursor}`."""
    return await rows.listing(api, request, _OFFER, _SHOWN, FILTERS)


async def patch(api: Api, request: web.Request) -> web.Response:
    """`PATCH /v1/offers/{id}`, `If-Match` -> the offer as it is now; `live` once edges do as it says."""
    return await _change(api, request, await read_body(request, OfferChange))


async def archive(api: Api, request: web.Request) -> web.Response:
    """`DELETE /v1/offers/{id}`: its links lead to the fallback; nothing is forgotten, and a PATCH brings it back."""
    return await _change(api, request, OfferChange(status="archived"))


def read(body: OfferBody | OfferChange, own: tuple[str, ...]) -> dict[str, Any]:
    """The columns that a body names, checked, in the one form that they are kept in; terms are not among them. `own`
    are the URLs that nothing may lead back to. Raises Refused naming the field."""
    values = read_dates({name: value for name, value in given(body).items() if name != "payout"})
    for name in ("destination_url", "fallback_url"):
        check_url(name, values.get(name), own)
    terms.check_currency(values.get("currency"))
    if values.get("timezone") is not None:
        read_zone(values["timezone"])
    if body.targeting:
        values["targeting"] = read_targeting(body.targeting) or None
    if body.landings:
        values["landings"] = read_landings(body.landings, own)
    if body.deep_link_hosts:
        values["deep_link_hosts"] = read_hosts(body.deep_link_hosts, own)
    if body.scopes:
        values["scopes"] = read_scopes(body.scopes)
    return values


async def _change(api: Api, request: web.Request, body: OfferChange) -> web.Response:
    offer_id = path_id(request, "offer")
    async with changing(api, request) as change:
        values = read(body, await own_urls(change.db, api.public_url))
        if "scopes" in values:
            before = await rows.one(change.db, "offer", offer_id, locked=True)
            check_past(before["scopes"], values["scopes"], await change.db.fetchval("SELECT clock_timestamp()"))
        after = await rows.alter(change, "offer", offer_id, values, COLUMNS, request)
        check_order(after)
        await refer(change, "offer", offer_id, after["external_id"])
        await _answer(change, offer_id)
    return await respond(api, change)


async def _answer(change: Change, offer_id: int, status: int = 200) -> None:
    row = await rows.one(change.db, _OFFER, offer_id)
    change.answers(rows.shown(row, _SHOWN), status, row["version"])
