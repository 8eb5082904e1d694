"""Offers: where a link leads and what it pays."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated

import msgspec
from aiohttp import web

from aggregator.api import rows
from aggregator.api.calling import Api, Id, Name, read_body
from aggregator.api.references import refer
from aggregator.api.writing import changing, respond
from aggregator.db.connect import Database
from schemas import limits, money
from schemas.errors import Refused
from schemas.links import check_destination

COLUMNS = ("id", "advertiser_id", "name", "status", "destination_url", "currency", "created_at")
_PERCENT = re.compile(r"\d{1,3}(\.\d{1,6})?", re.ASCII)


class Cpa(msgspec.Struct, tag_field="model", tag="cpa", forbid_unknown_fields=True):
    """A fixed amount for each conversion."""

    amount_minor: Annotated[int, msgspec.Meta(ge=0, le=limits.AMOUNT_MINOR_MAX)]
    currency: str


class Cps(msgspec.Struct, tag_field="model", tag="cps", forbid_unknown_fields=True):
    """A share of each sale; `percent` is a decimal string."""

    percent: str
    currency: str


class OfferBody(msgspec.Struct, forbid_unknown_fields=True):
    advertiser_id: Id
    name: Name
    destination_url: str
    payout: Cpa | Cps


async def post(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/offers {advertiser_id, name, destination_url, payout}` -> `{id}`."""
    body = await read_body(request, OfferBody)
    check(body, api.public_url)
    async with changing(api, request) as change:
        values = {
            "advertiser_id": body.advertiser_id,
            "name": body.name,
            "destination_url": body.destination_url,
            "currency": body.payout.currency,
        }
        row = await rows.create(change, "offer", values, COLUMNS)
        await refer(change, "offer", row["id"], None)
        await _insert_terms(change.db, row["id"], body.payout)
    return await respond(api, change)


def check(body: OfferBody, public_url: str) -> None:
    """Raises Refused for a destination that must not be, an unknown currency, a percent out of range."""
    try:
        check_destination(body.destination_url, own_urls=(public_url,))
    except ValueError as error:
        raise Refused("bad_value", f"destination_url {error}", "destination_url") from None
    if body.payout.currency not in money.EXPONENT:
        raise Refused("bad_value", "currency must be an ISO 4217 code, such as EUR", "payout.currency")
    if isinstance(body.payout, Cps) and not _is_percent(body.payout.percent):
        raise Refused(
            "bad_value",
            "percent must be a decimal string above 0 and at most 100, with at most 6 decimals",
            "payout.percent",
        )


def _is_percent(text: str) -> bool:
    return _PERCENT.fullmatch(text) is not None and 0 < Decimal(text) <= 100


async def _insert_terms(db: Database, offer_id: int, payout: Cpa | Cps) -> None:
    await db.execute(
        "INSERT INTO offer_terms (offer_id, model, amount_minor, percent, currency) VALUES ($1, $2, $3, $4, $5)",
        offer_id,
        "cpa" if isinstance(payout, Cpa) else "cps",
        payout.amount_minor if isinstance(payout, Cpa) else None,
        Decimal(payout.percent) if isinstance(payout, Cps) else None,
        payout.currency,
    )
