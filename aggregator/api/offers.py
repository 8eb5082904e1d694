"""Offers: where a link leads and what it pays."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated

import msgspec
from aiohttp import web

from aggregator.api.calling import Api, Id, Name, answer, read_body
from aggregator.api.writing import changing
from aggregator.db.connect import Database
from aggregator.publish.outbox import enqueue, publish_now
from schemas import limits, money
from schemas.errors import Refused
from schemas.links import check_destination

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
    async with changing(api.pool) as db:
        offer_id = await _insert(db, body)
        await enqueue(db, "offer", offer_id)
    await publish_now(api.pool, api.redis, "offer", offer_id)
    return answer({"id": offer_id}, 201)


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


async def _insert(db: Database, body: OfferBody) -> int:
    offer_id: int = await db.fetchval(
        "INSERT INTO offer (advertiser_id, name, destination_url, currency) VALUES ($1, $2, $3, $4) RETURNING id",
        body.advertiser_id,
        body.name,
        body.destination_url,
        body.payout.currency,
    )
    payout = body.payout
    await db.execute(
        "INSERT INTO offer_terms (offer_id, model, amount_minor, percent, currency) VALUES ($1, $2, $3, $4, $5)",
        offer_id,
        "cpa" if isinstance(payout, Cpa) else "cps",
        payout.amount_minor if isinstance(payout, Cpa) else None,
        Decimal(payout.percent) if isinstance(payout, Cps) else None,
        payout.currency,
    )
    return offer_id
