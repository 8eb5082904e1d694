"""Advertisers: those who sell, and report what was sold with their token; how their reports are read and trusted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from aggregator.api import rows
from aggregator.api.calling import Api, Name, given, path_id, read_body
from aggregator.api.dates import Instant, read_dates
from aggregator.api.references import ExternalId
from aggregator.api.secret_text import LENGTH, digest, pixel_key, random_base62
from aggregator.api.writing import changing, respond
from aggregator.db.connect import Row
from schemas import limits
from schemas.conversions.dialects import DIALECTS, IGNORED
from schemas.errors import Refused
from schemas.links import check_destination
from schemas.outcomes import Status

COLUMNS = (
    "id", "name", "status", "external_id", "dialect", "decimal_separator", "status_map", "duplicates", "attribution",
    "networks", "signature_required", "postbacks_per_minute", "pixel_key", "pixel_origins", "foreign_clicks_until",
    "created_at",
)  # fmt: skip
FILTERS: rows.Filters = {"status": str, "name": str, "external_id": str}
STATUSES = (*map(str, Status), IGNORED)  # what a word of an advertiser may mean
# At the version that its advertiser has now, so that no earlier value under this token ever wins over the tombstone.
_REPLACED = """
INSERT INTO replaced_token (advertiser_id, token_sha256, version) VALUES ($1, $2, $3) RETURNING id
"""


PerMinute = Annotated[int, msgspec.Meta(ge=1, le=limits.POSTBACKS_PER_MINUTE_MAX)]
Duplicates = Literal["ignore", "update", "increment", "record_repeat"]
_PLAIN = re.compile(rf"[^\x00-\x1f\x7f-\x9f]{{1,{limits.STATUS_MAX}}}")


class AdvertiserBody(msgspec.Struct, forbid_unknown_fields=True):
    name: Name
    external_id: ExternalId | None = None
    dialect: str = "clickdam"
    decimal_separator: Literal["", ".", ","] = ""
    status_map: dict[str, str] = {}
    duplicates: Duplicates = "ignore"
    attribution: Literal["click", "coupon"] = "click"
    networks: list[str] = []
    signature_required: bool = False
    postbacks_per_minute: PerMinute = limits.POSTBACKS_PER_MINUTE
    pixel_origins: list[str] = []
    foreign_clicks_until: Instant | None = None


class AdvertiserChange(msgspec.Struct, forbid_unknown_fields=True):
    name: Name | UnsetType = UNSET
    external_id: ExternalId | UnsetType | None = UNSET
    status: Literal["active", "blocked", "archived"] | UnsetType = UNSET
    dialect: str | UnsetType = UNSET
    decimal_separator: Literal["", ".", ","] | UnsetType = UNSET
    status_map: dict[str, str] | UnsetType = UNSET
    duplicates: Duplicates | UnsetType = UNSET
    attribution: Literal["click", "coupon"] | UnsetType = UNSET
    networks: list[str] | UnsetType = UNSET
    signature_required: bool | UnsetType = UNSET
    postbacks_per_minute: PerMinute | UnsetType = UNSET
    pixel_origins: list[str] | UnsetType = UNSET
    foreign_clicks_until: Instant | UnsetType | None = UNSET


async def post(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/advertisers {name, ...}` -> the advertiser and its `token`, which is shown only this once."""
    values = with_pixel_key(read(await read_body(request, AdvertiserBody)), None)
    async with changing(api, request) as change:
        token = {"token_sha256": digest(change.secret("token"))}
        await rows.create(change, "advertiser", values | token, COLUMNS)
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
    return await _change(api, request, read(body))


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


async def post_signing_key(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/advertisers/{id}/signing-key`, `If-Match` -> the advertiser and its new `signing_key`, shown only this
    once. With `live`, what is signed with the former one is refused everywhere within a second."""
    advertiser_id = path_id(request, "advertiser")
    async with changing(api, request) as change:
        values = {"signing_key": change.secret("signing_key")}
        _, after = await rows.update(change.db, "advertiser", advertiser_id, values, request)
        await change.tell_redis("advertiser", advertiser_id)
        await change.record("replace_signing_key", f"advertiser:{advertiser_id}")
        change.answers(rows.shown(after, COLUMNS), 201, after["version"])
    return await respond(api, change)


def read(body: AdvertiserBody | AdvertiserChange) -> dict[str, Any]:
    """The columns that a body names, checked, in the one form that they are kept in. Raises Refused naming the
    field."""
    values = read_dates(given(body))
    if values.get("dialect") not in {None, *DIALECTS}:
        raise Refused("bad_value", f"dialect must be one of {', '.join(sorted(DIALECTS))}", "dialect")
    if body.status_map:
        values["status_map"] = _read_status_map(body.status_map)
    if body.networks:
        values["networks"] = _read_networks(body.networks)
    if body.pixel_origins:
        values["pixel_origins"] = _read_origins(body.pixel_origins)
    return values


def with_pixel_key(values: dict[str, Any], before: Row | None) -> dict[str, Any]:
    """The same with a pixel key, once there are pages to use it: it stays, because it stands in them."""
    if not values.get("pixel_origins") or (before and before["pixel_key"]):
        return values
    return values | {"pixel_key": pixel_key(random_base62(LENGTH))}


def _read_status_map(status_map: Mapping[str, str]) -> dict[str, str]:
    """An advertiser's words in lower case, as they are looked for."""
    kept = {said.strip().lower(): status for said, status in status_map.items()}
    if len(kept) < len(status_map):
        raise Refused("bad_value", "a word is there twice: its letters may be small or capital", "status_map")
    if len(kept) > limits.STATUSES_MAX:
        raise Refused("bad_value", f"a status_map has at most {limits.STATUSES_MAX} words", "status_map")
    for said, status in kept.items():
        if not _PLAIN.fullmatch(said):
            raise Refused("bad_value", f"a status has 1 to {limits.STATUS_MAX} printable characters", "status_map")
        if status not in STATUSES:
            raise Refused("bad_value", f"a word means one of {', '.join(STATUSES)}", f"status_map.{said}")
    return dict(sorted(kept.items()))


def _read_networks(networks: Iterable[str]) -> list[str]:
    try:
        kept = sorted({str(ip_network(text)) for text in networks})
    except ValueError:
        raise Refused("bad_value", "a network is such as 203.0.113.7 or 2001:db8::/32", "networks") from None
    if len(kept) > limits.NETWORKS_MAX:
        raise Refused("bad_value", f"at most {limits.NETWORKS_MAX} networks", "networks")
    return kept


def _read_origins(origins: Iterable[str]) -> list[str]:
    kept = sorted({text.lower() for text in origins})
    if len(kept) > limits.PIXEL_ORIGINS_MAX:
        raise Refused("bad_value", f"at most {limits.PIXEL_ORIGINS_MAX} origins", "pixel_origins")
    for text in kept:
        if not _is_origin(text):
            raise Refused("bad_value", "an origin is such as https://shop.example", "pixel_origins")
    return kept


def _is_origin(text: str) -> bool:
    """Whether a browser sends this as `Origin`: scheme, host, and a port that is not the scheme's own."""
    try:
        check_destination(text)
        parts = urlsplit(text)
        own = {"http": 80, "https": 443}[parts.scheme]
        return text == f"{parts.scheme}://{parts.netloc}" and parts.port != own and not text.endswith((".", ":"))
    except ValueError:
        return False


async def _change(api: Api, request: web.Request, values: dict[str, Any]) -> web.Response:
    advertiser_id = path_id(request, "advertiser")
    async with changing(api, request) as change:
        before = await rows.one(change.db, "advertiser", advertiser_id, locked=True)
        await rows.alter(change, "advertiser", advertiser_id, with_pixel_key(values, before), COLUMNS, request)
    return await respond(api, change)
