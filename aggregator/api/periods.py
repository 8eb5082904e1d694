"""Months are closed, ranges are re-rated, partners get a bonus: each an adjustment in the ledger, never an edit."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from aiohttp import web

from aggregator.api import rows
from aggregator.api.calling import Api, Id, Name, flag, path_id, read_body
from aggregator.api.terms import check_currency, read_span, shown_difference
from aggregator.api.writing import Change, changing, respond
from aggregator.conversions import periods
from aggregator.conversions.change import adjust
from aggregator.conversions.periods import Difference
from schemas import limits
from schemas.errors import Refused

COLUMNS = ("id", "at", "partner_id", "offer_id", "period", "amount_minor", "currency", "reason", "actor")
FILTERS: rows.Filters = {"partner_id": int, "offer_id": int, "period": str, "currency": str}
_ADJUSTMENT = """
(SELECT id, at, split_part(account, ':', 2)::int AS partner_id, offer_id, period, amount_minor, currency, reason, actor
 FROM ledger_entry JOIN ledger_line ON entry_id = id
 WHERE kind = 'adjustment' AND conversion_id IS NULL AND account LIKE 'partner:%') AS adjustment
"""


class AdjustmentBody(msgspec.Struct, forbid_unknown_fields=True):
    """For the partner, or against it where the amount is negative."""

    partner_id: Id
    amount_minor: Annotated[int, msgspec.Meta(ge=-limits.AMOUNT_MINOR_MAX, le=limits.AMOUNT_MINOR_MAX)]
    currency: str
    reason: Name
    offer_id: Id | None = None
    period: str | None = None


class RangeBody(msgspec.Struct, forbid_unknown_fields=True, rename={"since": "from", "until": "to"}):
    """Days or times; `until` is not included."""

    since: str
    until: str
    reason: Name


async def close(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/periods/{2026-10}/close?dry_run=1` -> `{period, dry_run, data}`: what the volume tiers of that month
    add for each partner and offer, and what has changed of months that were closed before. Once is enough; once more
    books only what is not booked yet."""
    dry_run, period = flag(request, "dry_run"), request.match_info["period"]
    async with changing(api, request) as change:
        settled = await periods.close(change.db, period, change.caller.actor, dry_run=dry_run)
        if not dry_run:
            await change.record("close_period", f"period:{period}", after=_sums(settled))
        change.answers({"period": period, "dry_run": dry_run, "data": _shown(settled)})
    return await respond(api, change)


async def rerate(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/offers/{id}/rerate?dry_run=1 {from, to, reason}` -> `{from, to, dry_run, data}`: what was sold in that
    time is paid as the terms that hold now would have; one adjustment for each partner."""
    offer_id, dry_run = path_id(request, "offer"), flag(request, "dry_run")
    body = await read_body(request, RangeBody)
    async with changing(api, request) as change:
        await rows.one(change.db, "offer", offer_id)
        since, until = await read_span(change.db, {"from": body.since, "to": body.until})
        actor = change.caller.actor
        settled = await periods.rerate(change.db, offer_id, since, until, actor, body.reason, dry_run=dry_run)
        if not dry_run:
            after = {"from": body.since, "to": body.until} | _sums(settled)
            await change.record("rerate", f"offer:{offer_id}", after=after, reason=body.reason)
        change.answers({"from": body.since, "to": body.until, "dry_run": dry_run, "data": _shown(settled)})
    return await respond(api, change)


async def post_adjustment(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/adjustments {partner_id, amount_minor, currency, reason, offer_id?, period?}` -> the adjustment: a
    bonus, or something taken back. It stays; a mistake is put right by another one."""
    body = await read_body(request, AdjustmentBody)
    check_currency(body.currency)
    if body.amount_minor == 0:
        raise Refused("bad_value", "amount_minor is not 0", "amount_minor")
    if body.period is not None:
        periods.check(body.period)
    async with changing(api, request) as change:
        await _check_there(change, body)
        entry_id = await adjust(
            change.db, body.partner_id, body.amount_minor, body.currency, body.reason, change.caller.actor,
            body.period, offer_id=body.offer_id,
        )  # fmt: skip
        row = await change.db.fetchrow(f"SELECT * FROM {_ADJUSTMENT} WHERE id = $1", entry_id)  # noqa: S608
        assert row is not None
        await change.record("adjust", f"partner:{body.partner_id}", after=rows.shown(row, COLUMNS), reason=body.reason)
        change.answers(rows.shown(row, COLUMNS), 201)
    return await respond(api, change)


async def listed(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/adjustments?partner_id&offer_id&period&currency&limit&cursor` -> `{data, truncated, next_cursor}`."""
    return await rows.listing(api, request, _ADJUSTMENT, COLUMNS, FILTERS)


async def _check_there(change: Change, body: AdjustmentBody) -> None:
    """Raises Refused naming what is not there."""
    for kind, row_id in (("partner", body.partner_id), ("offer", body.offer_id)):
        if row_id and not await change.db.fetchval(f"SELECT EXISTS (SELECT FROM {kind} WHERE id = $1)", row_id):  # noqa: S608
            raise Refused("bad_value", f"there is no such {kind}", f"{kind}_id")


def _shown(settled: list[Difference]) -> list[dict[str, Any]]:
    return [shown_difference(one) | {"entry_id": one.entry_id} for one in settled]


def _sums(settled: list[Difference]) -> dict[str, Any]:
    """For the audit."""
    sums: dict[str, int] = {}
    for one in settled:
        sums[one.currency] = sums.get(one.currency, 0) + one.difference_minor
    return {"differences": len(settled), "difference_minor": sums}
