"""Caps: how much an offer, a partner, or a partner on an offer may bring in a period.

Edges keep those on clicks, aggregators the others, when they approve conversions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from aggregator.api import rows
from aggregator.api.calling import Api, Id, answer, given, path_id, read_body
from aggregator.api.terms import check_currency
from aggregator.api.writing import Change, changing, respond
from aggregator.conversions import caps as counting
from aggregator.db.connect import Row, acquire
from schemas import limits, redis_keys
from schemas.errors import Refused
from schemas.links import Period
from schemas.periods import begins_s
from schemas.redis import RedisError, done

FILTERS: rows.Filters = {"offer_id": int, "partner_id": int, "kind": str, "period": str}
Amount = Annotated[int, msgspec.Meta(ge=0, le=limits.CAP_MAX)]
Kind = Literal["clicks", "conversions", "payout", "revenue"]
OverCap = Literal["fallback", "pass"]
MONEY = ("payout", "revenue")
AMOUNTS = ("clicks", "conversions", "amount_minor")
OverCapStatus = Literal["pending", "rejected"]
COLUMNS = (
    "id", "offer_id", "partner_id", "kind", "period", "amount", "currency", "over_cap", "over_cap_status", "created_at",
)  # fmt: skip
_FIXED = ("offer_id", "partner_id", "kind", "period", "currency")
_TIMEZONE = "SELECT coalesce((SELECT timezone FROM offer WHERE id = $1), timezone) FROM programme"
_INSERT = """
INSERT INTO cap (offer_id, partner_id, kind, period, amount, currency, over_cap, over_cap_status)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING RETURNING *
"""


class CapBody(msgspec.Struct, forbid_unknown_fields=True):
    """On an offer, a partner, or both. The amount is named for the kind: `clicks`, `conversions`, or for `payout` and
    `revenue` `amount_minor` with its `currency`. `over_cap` says what happens to clicks beyond it, `over_cap_status`
    what becomes of conversions."""

    kind: Kind
    period: Period
    offer_id: Id | None = None
    partner_id: Id | None = None
    clicks: Amount | UnsetType = UNSET
    conversions: Amount | UnsetType = UNSET
    amount_minor: Amount | UnsetType = UNSET
    currency: str | None = None
    over_cap: OverCap = "fallback"
    over_cap_status: OverCapStatus | UnsetType = UNSET


class CapChange(msgspec.Struct, forbid_unknown_fields=True):
    """The last five are there to be told why they cannot change."""

    clicks: Amount | UnsetType = UNSET
    conversions: Amount | UnsetType = UNSET
    amount_minor: Amount | UnsetType = UNSET
    over_cap: OverCap | UnsetType = UNSET
    over_cap_status: OverCapStatus | UnsetType = UNSET
    offer_id: Any = UNSET
    partner_id: Any = UNSET
    kind: Any = UNSET
    period: Any = UNSET
    currency: Any = UNSET


async def post(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/caps {offer_id?, partner_id?, kind, period, clicks | conversions | amount_minor + currency, over_cap?,
    over_cap_status?}` -> the cap; `live` once edges keep it."""
    body = await read_body(request, CapBody)
    amount = _amount(given(body), body.kind)
    _check_new(body, amount)
    async with changing(api, request) as change:
        row = await change.db.fetchrow(
            _INSERT, body.offer_id, body.partner_id, body.kind, body.period, amount, body.currency, body.over_cap,
            body.over_cap_status or "pending",
        )  # fmt: skip
        if row is None:
            raise Refused("conflict", "there is a cap of this kind and period there already: change that one", "period")
        await rows.touch(change, *_owner(row))
        await _check_room(change, body.partner_id)
        await counting.begin(change.db, row["id"], int(time.time() * 1000))
        await change.record("create_cap", f"cap:{row['id']}", after=shown(row))
        change.answers(shown(row), 201, row["version"])
    return await respond(api, change)


async def get(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/caps/{id}` -> the cap, its version as ETag; `used` in the present period: clicks as edges count
    them, what is approved as it was counted."""
    async with acquire(api.pool) as db:
        row = await rows.one(db, "cap", path_id(request, "cap"))
        timezone = await db.fetchval(_TIMEZONE, row["offer_id"])
        begins = begins_s(row["period"], timezone, int(time.time() * 1000))
        used = None if row["kind"] == "clicks" else await counting.used(db, row["id"], begins)
    used = await _clicks(api, row, begins) if row["kind"] == "clicks" else used
    return answer(shown(row) | {"used": used}, version=row["version"])


async def listed(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/caps?offer_id&partner_id&kind&period&limit&cursor` -> `{data, truncated, next_cursor}`."""
    return await rows.listing(api, request, "cap", COLUMNS, FILTERS, named)


async def patch(api: Api, request: web.Request) -> web.Response:
    """`PATCH /v1/caps/{id} {clicks | conversions | amount_minor, over_cap?, over_cap_status?}`, `If-Match` -> the cap
    as it is now."""
    cap_id = path_id(request, "cap")
    body = await read_body(request, CapChange)
    for name in _FIXED:
        if getattr(body, name) is not UNSET:
            raise Refused("bad_value", f"the {name} of a cap cannot change: what it has counted is of this one", name)
    async with changing(api, request) as change:
        former = await rows.one(change.db, "cap", cap_id, locked=True)
        before, after = await rows.update(change.db, "cap", cap_id, _changes(body, former), request)
        if after["version"] == before["version"]:
            await change.tell_redis(*_owner(after))
        else:
            await rows.touch(change, *_owner(after))
            await change.record("change_cap", f"cap:{cap_id}", before=shown(before), after=shown(after))
        change.answers(shown(after), version=after["version"])
    return await respond(api, change)


async def delete(api: Api, request: web.Request) -> web.Response:
    """`DELETE /v1/caps/{id}`, `If-Match` -> the cap as it was; it is gone, and in the audit."""
    cap_id = path_id(request, "cap")
    async with changing(api, request) as change:
        row = await rows.one(change.db, "cap", cap_id, locked=True)
        rows.check_version(request, row["version"])
        await change.db.execute("DELETE FROM cap WHERE id = $1", cap_id)
        await rows.touch(change, *_owner(row))
        await change.record("delete_cap", f"cap:{cap_id}", before=shown(row))
        change.answers(shown(row))
    return await respond(api, change)


def shown(row: Row) -> dict[str, Any]:
    """A row of `cap` as it is answered."""
    return named(rows.shown(row, COLUMNS))


def named(cap: Mapping[str, Any]) -> dict[str, Any]:
    """The same with its amount under the name that its kind gives it."""
    dropped = {"amount", "currency"} | ({"over_cap_status"} if cap["kind"] == "clicks" else set())
    kept = {name: value for name, value in cap.items() if name not in dropped}
    if cap["kind"] in MONEY:
        return kept | {"amount_minor": cap["amount"], "currency": cap["currency"]}
    return kept | {cap["kind"]: cap["amount"]}


def _amount(values: Mapping[str, Any], kind: str) -> int | None:
    """The amount that a body gives, which only one name fits. Raises Refused naming another."""
    wanted = "amount_minor" if kind in MONEY else kind
    for name in AMOUNTS:
        if name in values and name != wanted:
            raise Refused("bad_value", f"a cap on {kind} has {wanted}", name)
    return values.get(wanted)


def _check_new(body: CapBody, amount: int | None) -> None:
    if body.offer_id is None and body.partner_id is None:
        raise Refused("missing_field", "a cap is on an offer, on a partner, or on both", "offer_id")
    wanted = "amount_minor" if body.kind in MONEY else body.kind
    if amount is None:
        raise Refused("missing_field", f"{wanted} is missing", wanted)
    if (body.kind in MONEY) != (body.currency is not None):
        raise Refused("bad_value", "a cap on payout or revenue has a currency, and no other one", "currency")
    check_currency(body.currency)
    _check_over(given(body), body.kind)


def _changes(body: CapChange, former: Row) -> dict[str, Any]:
    values = given(body)
    amount = _amount(values, former["kind"])
    changes: dict[str, Any] = {} if amount is None else {"amount": amount}
    _check_over(values, former["kind"])
    return changes | {name: values[name] for name in ("over_cap", "over_cap_status") if name in values}


def _check_over(values: Mapping[str, Any], kind: str) -> None:
    if kind == "clicks" and "over_cap_status" in values:
        raise Refused("bad_value", "a cap on clicks has over_cap: conversions it knows nothing of", "over_cap_status")


async def _clicks(api: Api, cap: Row, begins: int) -> int | None:
    """Clicks of the present period, by Redis, where edges count and what Postgres has is known too. None where it is
    away."""
    key = redis_keys.cap(cap["id"], begins)
    try:
        return max(int(clicks or 0) for clicks in await done(api.redis.hmget(key, ["counted", "settled"])))
    except RedisError:
        return None


def _owner(cap: Row) -> tuple[Literal["offer", "partner"], int]:
    """The config that has the cap is its partner's, else its offer's."""
    return ("offer", cap["offer_id"]) if cap["partner_id"] is None else ("partner", cap["partner_id"])


async def _check_room(change: Change, partner_id: int | None) -> None:
    """Raises Refused for a partner, whose row is locked, with too many caps."""
    held = await change.db.fetchval("SELECT count(*) FROM cap WHERE partner_id = $1", partner_id)
    if held > limits.CAPS_PER_PARTNER_MAX:
        raise Refused("conflict", f"a partner has at most {limits.CAPS_PER_PARTNER_MAX} caps", "partner_id")
