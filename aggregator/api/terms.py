"""What an offer pays, from when on: terms that have begun stay as they are, so nothing that was earned ever changes."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from aiohttp import web

from aggregator.api import rows
from aggregator.api.calling import Api, answer, path_id, read_body
from aggregator.api.dates import Instant, to_ms
from aggregator.api.writing import changing, respond
from aggregator.db.connect import Database, acquire
from schemas import limits, money
from schemas.errors import Refused

_PERCENT = re.compile(r"\d{1,3}(\.\d{1,6})?", re.ASCII)
_INSTANT = """to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""
# As they are shown. The first terms of an offer have no beginning.
_SHOWN = f"""
jsonb_strip_nulls(jsonb_build_object('model', model, 'amount_minor', amount_minor,
                                     'percent', trim_scale(percent)::text, 'currency', offer_terms.currency))
|| jsonb_build_object('valid_from', {_INSTANT.format(column="nullif(valid_from, '-infinity')")})
"""
IN_FORCE = f"""
(SELECT {_SHOWN} FROM offer_terms WHERE offer_id = offer.id AND valid_from <= now()
 ORDER BY valid_from DESC LIMIT 1) AS payout
"""  # noqa: S608
_LISTED = f"""
SELECT {_SHOWN} AS terms, valid_from <= now() AND lead(valid_from, 1, 'infinity') OVER (ORDER BY valid_from) > now()
       AS in_force
FROM offer_terms WHERE offer_id = $1 ORDER BY valid_from
"""  # noqa: S608
# terms that have not begun may still be other ones
_ADD = f"""
INSERT INTO offer_terms (offer_id, model, amount_minor, percent, currency, valid_from)
VALUES ($1, $2, $3, $4, $5, coalesce($6::timestamptz, '-infinity'))
ON CONFLICT (offer_id, side, partner_id, event, valid_from) DO UPDATE
    SET model = excluded.model, amount_minor = excluded.amount_minor, percent = excluded.percent,
        currency = excluded.currency
RETURNING {_SHOWN}
"""  # noqa: S608


class Cpa(msgspec.Struct, tag_field="model", tag="cpa", forbid_unknown_fields=True):
    """A fixed amount for each conversion."""

    amount_minor: Annotated[int, msgspec.Meta(ge=0, le=limits.AMOUNT_MINOR_MAX)]
    currency: str


class Cps(msgspec.Struct, tag_field="model", tag="cps", forbid_unknown_fields=True):
    """A share of each sale; `percent` is a decimal string."""

    percent: str
    currency: str


class CpaFrom(Cpa, tag="cpa"):
    valid_from: Instant | None = None


class CpsFrom(Cps, tag="cps"):
    valid_from: Instant | None = None


TERMS: Any = CpaFrom | CpsFrom  # told apart by their model


async def post(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/offers/{id}/terms {model, amount_minor | percent, currency, valid_from?}`, `If-Match` -> the terms.

    They hold from now on, or from a later time; the same time once more replaces what has not begun.
    """
    offer_id = path_id(request, "offer")
    body: CpaFrom | CpsFrom = await read_body(request, TERMS)
    check_payout(body)
    async with changing(api, request) as change:
        offer = await rows.one(change.db, "offer", offer_id, locked=True)
        rows.check_version(request, offer["version"])
        added = await _add(change.db, offer_id, body, await _begins(change.db, body))
        await rows.touch(change, "offer", offer_id)
        await change.record("change_terms", f"offer:{offer_id}", after=added)
        change.answers(added, 201, offer["version"] + 1)
    return await respond(api, change)


async def listed(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/offers/{id}/terms` -> `{data}`, the oldest first; `in_force` says which hold now."""
    offer_id = path_id(request, "offer")
    async with acquire(api.pool) as db:
        offer = await rows.one(db, "offer", offer_id)
        found = await db.fetch(_LISTED, offer_id)
    data = [row["terms"] | {"in_force": row["in_force"]} for row in found]
    return answer({"data": data}, version=offer["version"])


async def add_first(db: Database, offer_id: int, payout: Cpa | Cps) -> None:
    """The terms of a new offer, which have no beginning."""
    await _add(db, offer_id, payout, None)


def check_currency(code: str | None, field: str = "currency") -> None:
    """Raises Refused naming the field for what is no currency; None is none."""
    if code is not None and code not in money.EXPONENT:
        raise Refused("bad_value", "currency must be an ISO 4217 code, such as EUR", field)


def check_payout(payout: Cpa | Cps, within: str = "") -> None:
    """Raises Refused for an unknown currency, a percent out of range; `within` comes before the names of its fields."""
    check_currency(payout.currency, f"{within}currency")
    if isinstance(payout, Cps) and not _is_percent(payout.percent):
        raise Refused(
            "bad_value",
            "percent must be a decimal string above 0 and at most 100, with at most 6 decimals",
            f"{within}percent",
        )


def _is_percent(text: str) -> bool:
    return _PERCENT.fullmatch(text) is not None and 0 < Decimal(text) <= 100


async def _begins(db: Database, body: CpaFrom | CpsFrom) -> datetime:
    """When new terms begin, by the clock of Postgres. Raises Refused for a time that has passed."""
    now: datetime = await db.fetchval("SELECT clock_timestamp()")
    if body.valid_from is None:
        return now
    begins = to_ms("valid_from", body.valid_from)
    if begins <= now:
        raise Refused("bad_value", "valid_from must lie ahead: what was earned stays as it is", "valid_from")
    return begins


async def _add(db: Database, offer_id: int, payout: Cpa | Cps, begins: datetime | None) -> dict[str, Any]:
    added: dict[str, Any] = await db.fetchval(
        _ADD,
        offer_id,
        "cpa" if isinstance(payout, Cpa) else "cps",
        payout.amount_minor if isinstance(payout, Cpa) else None,
        Decimal(payout.percent) if isinstance(payout, Cps) else None,
        payout.currency,
        begins,
    )
    if await db.fetchval("SELECT count(*) FROM offer_terms WHERE offer_id = $1", offer_id) > limits.TERMS_PER_OFFER_MAX:
        raise Refused("conflict", f"an offer has at most {limits.TERMS_PER_OFFER_MAX} terms")
    return added
