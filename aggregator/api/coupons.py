"""Coupons: codes by which a sale is a partner's without a click.

A code is in upper case, an advertiser's own, and stays what it is: only its dates change. Archived, it ends at once;
the sales before that are still its partner's.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from aggregator.api import rows
from aggregator.api.calling import CALLER, Api, Id, given, path_id, read_body
from aggregator.api.dates import Instant, check_order, read_dates
from aggregator.api.writing import changing, respond
from aggregator.db.connect import Row
from schemas import limits
from schemas.errors import Refused

COLUMNS = (
    "id", "code", "advertiser_id", "offer_id", "partner_id", "status", "starts_at", "ends_at", "created_at",
)  # fmt: skip
FILTERS: rows.Filters = {"status": str, "advertiser_id": int, "offer_id": int, "partner_id": int, "code": str}
OWN_COLUMNS = tuple(name for name in COLUMNS if name not in ("advertiser_id", "partner_id"))
OWN_FILTERS: rows.Filters = {"status": str, "offer_id": int, "code": str}
# as a door reads it: what people type, without the spaces around it
Code = Annotated[
    str, msgspec.Meta(min_length=1, max_length=limits.COUPON_CODE_MAX, pattern=r"\A(?=.*\S)[^\x00-\x1f\x7f-\x9f]*\Z")
]
_INSERT = """
INSERT INTO coupon (code, advertiser_id, offer_id, partner_id, starts_at, ends_at)
SELECT $1, advertiser_id, id, $3, $4, $5 FROM offer WHERE id = $2 ON CONFLICT DO NOTHING RETURNING *
"""


class CouponBody(msgspec.Struct, forbid_unknown_fields=True):
    code: Code
    offer_id: Id
    partner_id: Id
    starts_at: Instant | None = None
    ends_at: Instant | None = None


class CouponChange(msgspec.Struct, forbid_unknown_fields=True):
    """The last three are there to be told why they cannot change."""

    starts_at: Instant | UnsetType | None = UNSET
    ends_at: Instant | UnsetType | None = UNSET
    status: Literal["active", "archived"] | UnsetType = UNSET
    code: Any = UNSET
    offer_id: Any = UNSET
    partner_id: Any = UNSET


async def post(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/coupons {code, offer_id, partner_id, starts_at?, ends_at?}` -> the coupon, its offer's advertiser's."""
    body = await read_body(request, CouponBody)
    values = read_dates(given(body))
    check_order(values)
    async with changing(api, request) as change:
        if not await change.db.fetchval("SELECT true FROM offer WHERE id = $1", body.offer_id):
            raise Refused("bad_value", "there is no such offer", "offer_id")
        row = await change.db.fetchrow(
            _INSERT, read_code(body.code), body.offer_id, body.partner_id, values["starts_at"], values["ends_at"]
        )
        if row is None:
            raise Refused("conflict", "this advertiser has a coupon of this code already", "code")
        await change.record("create_coupon", f"coupon:{row['id']}", after=rows.shown(row, COLUMNS))
        change.answers(rows.shown(row, COLUMNS), 201, row["version"])
    return await respond(api, change)


async def get(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/coupons/{id}` -> the coupon, its version as ETag."""
    return await rows.show(api, request, "coupon", COLUMNS)


async def listed(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/coupons?status&advertiser_id&offer_id&partner_id&code&limit&cursor` -> `{data, truncated,
    next_cursor}`."""
    return await rows.listing(api, request, "coupon", COLUMNS, FILTERS)


async def patch(api: Api, request: web.Request) -> web.Response:
    """`PATCH /v1/coupons/{id} {starts_at?, ends_at?, status?}`, `If-Match` -> the coupon as it is now."""
    body = await read_body(request, CouponChange)
    for name in ("code", "offer_id", "partner_id"):
        if getattr(body, name) is not UNSET:
            raise Refused("bad_value", f"the {name} of a coupon cannot change: make another one", name)
    return await _change(api, request, body)


async def archive(api: Api, request: web.Request) -> web.Response:
    """`DELETE /v1/coupons/{id}`: it ends now, if it has not ended; a PATCH of `status` and `ends_at` brings it back."""
    return await _change(api, request, CouponChange(status="archived"))


async def own(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/me/coupons?status&offer_id&code&limit&cursor` -> `{data, truncated, next_cursor}`: the caller's."""
    partner_id = request[CALLER].partner_id
    return await rows.listing(api, request, "coupon", OWN_COLUMNS, OWN_FILTERS, partner_id=partner_id)


def read_code(text: str) -> str:
    """The one form in which a code is kept and looked for."""
    return text.strip().upper()


def check_active(coupon: Row) -> None:
    """Raises Refused for one that was archived: with other dates it would pay again, unseen."""
    if coupon["status"] == "archived":
        raise Refused("conflict", "this coupon is archived: bring it back with a PATCH of its status", "status")


async def _change(api: Api, request: web.Request, body: CouponChange) -> web.Response:
    coupon_id = path_id(request, "coupon")
    values = read_dates(given(body))
    async with changing(api, request) as change:
        before = await rows.one(change.db, "coupon", coupon_id, locked=True)
        if values.get("status", before["status"]) == "archived":
            if any(before[name] != value for name, value in values.items() if name != "status"):
                check_active(before)
            values["ends_at"] = _end(values.get("ends_at", before["ends_at"]))
        before, after = await rows.update(change.db, "coupon", coupon_id, values, request)
        if values.get("status") != "archived":
            check_order(after)
        action = "archive_coupon" if values.get("status") == "archived" else "change_coupon"
        await rows.answer_change(change, action, f"coupon:{coupon_id}", before, after, COLUMNS)
    return await respond(api, change)


def _end(ends_at: datetime | None) -> datetime:
    """When a coupon ends that is archived now."""
    now = datetime.now(UTC)
    now = now.replace(microsecond=now.microsecond // 1000 * 1000)
    return now if ends_at is None else min(ends_at, now)
