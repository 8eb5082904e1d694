"""Conversions: what became of each, as far as whoever asks may know, and what a person makes of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from aiohttp import web

from aggregator.api import lists, rows
from aggregator.api.calling import CALLER, UUID_TEXT, Api, Caller, Name, answer, read_body
from aggregator.api.keys import OWNER
from aggregator.api.writing import changing, respond
from aggregator.conversions import change as by_hand
from aggregator.conversions.change import Changed
from aggregator.db.connect import Database, Row, acquire
from aggregator.reports.lists import CONVERSION_FILTERS, changes_through, read_changed_conversions, read_conversions
from schemas import limits
from schemas.errors import RETRY_AFTER_S, Refused
from schemas.outcomes import Held

DECISIONS: Mapping[str, Callable[[Database, Iterable[UUID], str, str | None], Awaitable[list[Changed]]]] = {
    "approved": by_hand.approve,
    "rejected": by_hand.reject,
    "reversed": by_hand.reverse,
}
PLAIN = r"\A[^\x00-\x1f\x7f-\x9f]*\Z"
_FOR_ALL = (
    "conversion_id", "status", "reason", "event", "clicked_at", "event_at", "received_at", "changed_at", "offer_id",
    "partner_id", "link_id", "click_id", "sale_amount_minor", "sale_currency", "coupon_code", "country", "device",
    "click_seen",
)  # fmt: skip
_OF_ADVERTISERS = (
    "order_id", "advertiser_id", "door", "original_status", "foreign_click", "base_minor", "increments_minor",
    "refunds_minor", "remaining_minor", "revenue_minor", "revenue_currency", "revenue_stated_minor",
    "booked_revenue_minor", "customer_id", "adv",
)  # fmt: skip
_OF_PARTNERS = ("source_id", "click_ref", "subs", "payout_minor", "currency", "booked_payout_minor")
# A partner never sees what a conversion brings in, whose it is or what its shop calls it; an advertiser never what the
# partner gets for it, and what the partner notes with its clicks.
COLUMNS: dict[str, tuple[str, ...]] = {
    "admin": (*_FOR_ALL, *_OF_PARTNERS, "payout_override_minor", *_OF_ADVERTISERS),
    "partner": (*_FOR_ALL, *_OF_PARTNERS),
    "advertiser": (*_FOR_ALL, *_OF_ADVERTISERS),
}
# What a list is not asked by: what is not shown, and orders by their names.
HIDDEN: lists.Hidden = {
    "partner": frozenset({"advertiser_id", "order_id"}),
    "advertiser": frozenset({"source_id", "click_ref", *(f"sub{n}" for n in range(1, 11))}),
}
# What a partner is told of the reasons: those that concern its traffic; all others are the operator's affair.
_FOR_PARTNERS = frozenset(
    {
        Held.DEFAULT, Held.SAID_PENDING, Held.SAID_REJECTED, Held.FLAGGED_CLICK, Held.OVER_CAP_CLICK, Held.OVER_CAP,
        Held.CLICK_NEVER_EARNS, Held.BEFORE_CLICK, Held.TOO_EARLY, Held.AFTER_WINDOW, Held.UNKNOWN_COUPON,
        Held.COUPON_NOT_VALID, Held.AFTER_DURATION, Held.REVERSED_BEFORE_APPROVAL,
    }
)  # fmt: skip
_CHANGE_COLUMNS: dict[str, tuple[str, ...]] = {
    "admin": ("at", "actor", "from_status", "to_status", "reason", "sale_amount_minor", "payout_minor"),
    "partner": ("at", "actor", "from_status", "to_status", "reason", "sale_amount_minor", "payout_minor"),
    "advertiser": ("at", "actor", "from_status", "to_status", "reason", "sale_amount_minor"),
}
# Under its own name, else as a receipt named it: an order may be kept by the name of its offer's former scope.
_CONVERSION = """
SELECT * FROM conversion WHERE conversion_id = coalesce(
    (SELECT conversion_id FROM conversion WHERE conversion_id = $1),
    (SELECT conversion_id FROM conversion_intake WHERE named_as = $1 ORDER BY intake_id LIMIT 1))
"""
_CHANGES = """
SELECT at, actor, from_status, to_status, reason, sale_amount_minor, payout_minor
FROM conversion_change WHERE conversion_id = $1 ORDER BY id LIMIT $2
"""
_STEPS = "SELECT event_id FROM conversion_step WHERE conversion_id = $1 ORDER BY intake_id, event_id LIMIT $2"
_ENTRIES = """
SELECT at, kind, actor, reason, lines
FROM ledger_entry CROSS JOIN LATERAL (
    SELECT jsonb_agg(jsonb_build_object('account', account, 'amount_minor', amount_minor, 'currency', currency)
                     ORDER BY account, currency) AS lines
    FROM ledger_line WHERE entry_id = ledger_entry.id AND account = coalesce($3, account)) AS line
WHERE conversion_id = $1 AND lines IS NOT NULL ORDER BY id LIMIT $2
"""
_INTAKES = """
SELECT intake_id, result, reason, door, dialect FROM conversion_intake
WHERE conversion_id = $1 AND advertiser_id = coalesce($3, advertiser_id) ORDER BY intake_id LIMIT $2
"""


# What an advertiser decides by itself. The rest is held for the operator's sake: what it says of these, the programme
# pays for.
_ADVERTISERS_OWN = frozenset({Held.DEFAULT, Held.SAID_PENDING, Held.PIXEL})
_AUDITED = (
    "status",
    "reason",
    "sale_amount_minor",
    "refunds_minor",
    "remaining_minor",
    "payout_minor",
    "revenue_minor",
)
EventId = Annotated[str, msgspec.Meta(min_length=1, max_length=limits.EVENT_ID_MAX, pattern=PLAIN)]
Decide = Callable[[Database, UUID, str], Awaitable[Changed]]  # what to do to a conversion, for this actor


class StatusChange(msgspec.Struct, forbid_unknown_fields=True):
    """Only an approval needs no reason."""

    status: Literal["approved", "rejected", "reversed"]
    reason: Name | None = None


class RefundBody(msgspec.Struct, forbid_unknown_fields=True):
    """A part is named by `event_id`, so that it is refunded once; what remains says for itself how much it is."""

    reason: Name
    amount_minor: Annotated[int, msgspec.Meta(ge=1, le=limits.AMOUNT_MINOR_MAX)] | None = None
    remaining_minor: Annotated[int, msgspec.Meta(ge=0, le=limits.AMOUNT_MINOR_MAX)] | None = None
    event_id: EventId | None = None


class ChargebackBody(msgspec.Struct, forbid_unknown_fields=True):
    reason: Name


async def listed(api: Api, request: web.Request) -> web.StreamResponse:
    """`GET /v1/conversions?from&to&timezone&date_basis&updated_since&<filters>&limit&cursor&format` -> `{data,
    complete_through, truncated, next_cursor}`, the latest first. With `updated_since` in the order of their changes,
    and `updated_through`: before it all changes are on these pages, from it on to ask the next time."""
    caller = request[CALLER]
    given = lists.read(request, (*CONVERSION_FILTERS, "date_basis", "updated_since"), HIDDEN)
    lists.check_reason(given, caller, _FOR_PARTNERS)
    zone, scope = await lists.programme_zone(api, given), lists.own(caller)
    more: dict[str, datetime | None] = {"complete_through": (await api.versions.state()).complete_through}
    if "updated_since" in given:
        async with acquire(api.pool) as db:
            through = more["updated_through"] = await changes_through(db)
        wanted = read_changed_conversions(given, scope, zone, through)
    else:
        wanted = read_conversions(given, scope, zone)
    tell = partial(_listed, caller.role)
    return await lists.respond(api, request, "conversions", wanted, COLUMNS[caller.role], tell, **more)


async def get(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/conversions/{id}` -> the conversion with its `changes`, `steps`, `ledger` and `intakes`, as far as they
    are the caller's; its version as ETag. 404 with Retry-After while it is not here: it may be on its way."""
    conversion_id, caller = path_uuid(request), request[CALLER]
    async with acquire(api.pool) as db, db.transaction(isolation="repeatable_read", readonly=True):
        row = await find(db, conversion_id, caller)
        conversion_id = row["conversion_id"] if row else conversion_id
        intakes = [] if caller.role == "partner" else await _intakes(db, conversion_id, caller)
        if row is None and not intakes:
            raise not_here()
        if row is None:
            return answer({"conversion_id": str(conversion_id), "status": None, "intakes": intakes})
        told = shown(row, caller.role) | await _history(db, conversion_id, caller)
    return answer(told | ({} if caller.role == "partner" else {"intakes": intakes}), version=row["version"])


async def patch(api: Api, request: web.Request) -> web.Response:
    """`PATCH /v1/conversions/{id} {status: approved | rejected | reversed, reason}`, `If-Match` -> the conversion as it
    is now. 409 for what it cannot become, or where a cap has no room."""
    body = await read_body(request, StatusChange)
    check_reason(body.status, body.reason)

    async def decide(db: Database, conversion_id: UUID, actor: str) -> Changed:
        return (await DECISIONS[body.status](db, [conversion_id], actor, body.reason))[0]

    return await _by_hand(api, request, f"change_conversion_to_{body.status}", body.status, decide, body.reason)


async def post_refund(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/conversions/{id}/refunds {amount_minor, event_id | remaining_minor, reason}`, `If-Match` -> the
    conversion as it is now. The same `event_id` once more refunds nothing; all of it is a reversal."""
    body = await read_body(request, RefundBody)
    _check_refund(body)

    async def decide(db: Database, conversion_id: UUID, actor: str) -> Changed:
        return await by_hand.refund(
            db, conversion_id, actor, body.reason,
            refund_minor=body.amount_minor, remaining_minor=body.remaining_minor, event_id=body.event_id or "",
        )  # fmt: skip

    return await _by_hand(api, request, "refund_conversion", None, decide, body.reason)


async def post_chargeback(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/conversions/{id}/chargeback {reason}`, `If-Match` -> the conversion, reversed: the buyer's bank took
    the money back."""
    body = await read_body(request, ChargebackBody)

    async def decide(db: Database, conversion_id: UUID, actor: str) -> Changed:
        return (await by_hand.reverse(db, [conversion_id], actor, body.reason, kind="chargeback"))[0]

    return await _by_hand(api, request, "charge_back_conversion", "reversed", decide, body.reason)


def check_reason(status: str, reason: str | None) -> None:
    """Raises Refused where nobody would know why."""
    if reason is None and status != "approved":
        raise Refused("missing_field", f"say why: reason is missing for {status}", "reason")


def check_decides(caller: Caller, row: Row, status: str | None) -> None:
    """Raises Refused where an advertiser would approve what is held for the operator's sake."""
    is_approval = status == "approved" and row["status"] == "pending"
    if caller.role == "advertiser" and is_approval and row["reason"] not in _ADVERTISERS_OWN:
        raise Refused("forbidden", f"this is held for {row['reason']}: the operator decides", "status")


async def find(db: Database, conversion_id: UUID, caller: Caller, *, locked: bool = False) -> Row | None:
    """The conversion, if it is here and the caller's."""
    row = await db.fetchrow(f"{_CONVERSION} FOR UPDATE" if locked else _CONVERSION, conversion_id)
    owner = OWNER[caller.role]
    return row if row is not None and (owner is None or row[owner] == getattr(caller, owner)) else None


def shown(row: Row, role: str) -> dict[str, Any]:
    """What a role may know of a conversion."""
    told = rows.shown(row, COLUMNS[role])
    return told | {"reason": _safe(told["reason"])} if role == "partner" else told


def _listed(role: str, row: Row) -> dict[str, Any]:
    return shown(row, role)


def path_uuid(request: web.Request) -> UUID:
    """The `{id}` of the path. Raises Refused("not_found") for what can be no id."""
    text = request.match_info["id"].lower()
    if not UUID_TEXT.fullmatch(text):
        raise Refused("not_found", "there is no such conversion")
    return UUID(text)


def not_here() -> Refused:
    return Refused("not_found", "there is no such conversion here, or not yet", retry_after_s=RETRY_AFTER_S)


async def _by_hand(
    api: Api, request: web.Request, action: str, status: str | None, decide: Decide, reason: str | None
) -> web.Response:
    """Decide something about a conversion, which stays locked: it is decided what was looked at, and by who may."""
    conversion_id, caller = path_uuid(request), request[CALLER]
    async with changing(api, request) as change:
        before = await find(change.db, conversion_id, caller, locked=True)
        if before is None:
            raise not_here()
        conversion_id = before["conversion_id"]
        rows.check_version(request, before["version"])
        check_decides(caller, before, status)
        changed = await decide(change.db, conversion_id, caller.actor)
        if changed.refused is not None:
            raise changed.refused
        after = await find(change.db, conversion_id, caller)
        assert after is not None
        if after["version"] != before["version"]:
            states = [rows.shown(row, _AUDITED) for row in (before, after)]
            await change.record(action, f"conversion:{conversion_id}", before=states[0], after=states[1], reason=reason)
        change.answers(shown(after, caller.role), 200, after["version"])
    return await respond(api, change)


def _check_refund(body: RefundBody) -> None:
    if (body.amount_minor is None) == (body.remaining_minor is None):
        raise Refused("bad_value", "say amount_minor, or remaining_minor", "amount_minor")
    if body.amount_minor is not None and body.event_id is None:
        raise Refused("missing_field", "event_id is missing: a refund that is sent twice is one refund", "event_id")


async def _history(db: Database, conversion_id: UUID, caller: Caller) -> dict[str, Any]:
    bound = conversion_id, limits.HISTORY_ROWS_MAX
    owner = OWNER[caller.role]
    account = f"{caller.role}:{getattr(caller, owner)}" if owner else None
    changes = [rows.shown(row, _CHANGE_COLUMNS[caller.role]) for row in await db.fetch(_CHANGES, *bound)]
    entries = [rows.shown(row, tuple(row.keys())) for row in await db.fetch(_ENTRIES, *bound, account)]
    return {
        "changes": [told_act(one, caller.role) for one in changes],
        "steps": [row["event_id"] for row in await db.fetch(_STEPS, *bound)],
        "ledger": [told_act(one, caller.role) for one in entries],
    }


async def _intakes(db: Database, conversion_id: UUID, caller: Caller) -> list[dict[str, Any]]:
    found = await db.fetch(_INTAKES, conversion_id, limits.HISTORY_ROWS_MAX, caller.advertiser_id)
    return [rows.shown(row, tuple(row.keys())) for row in found]


def told_act(act: dict[str, Any], role: str) -> dict[str, Any]:
    """A change or an entry as a role may know it: which key it was only the operator does."""
    if role == "admin":
        return act
    told = act | {"actor": act["actor"].partition(":")[0]}
    return told | {"reason": _safe(act["reason"])} if role == "partner" else told


def _safe(reason: str | None) -> str | None:
    return reason if reason in _FOR_PARTNERS else None
