"""The call for what clicks of a kind are expected to bring."""

from __future__ import annotations

import re

from aiohttp import web

from aggregator.api.calling import CALLER, ID_MAX, Api, Caller, given_answer, parameters, path_id
from aggregator.db.connect import Database, acquire
from aggregator.reports.asked import number
from aggregator.reports.scores import Segment
from schemas.errors import Refused

_PARAMETERS = ("partner_id", "country", "device")
DEVICES = ("desktop", "mobile", "other", "robot", "tablet")
_SEEN = """
SELECT EXISTS (
    SELECT FROM offer LEFT JOIN approval ON approval.offer_id = id AND approval.partner_id = $2
    WHERE id = $1 AND ($2::int IS NULL OR (offer.status <> 'archived'
                                           AND (access <> 'private' OR approval.status = 'approved'))))
"""


async def get(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/offers/{id}/score?partner_id&country&device`: conversions and payout to expect of 1,000 valid clicks on
    an offer. A partner asks for its own."""
    caller = request[CALLER]
    given = parameters(request, _PARAMETERS)
    segment = _segment(path_id(request, "offer"), given, caller)
    async with acquire(api.pool) as db:
        await _check(db, segment, caller)
    return given_answer(request, await api.scores.answer(segment))


def _segment(offer_id: int, given: dict[str, str], caller: Caller) -> Segment:
    partner_id = number("partner_id", given["partner_id"], ID_MAX) if "partner_id" in given else caller.partner_id
    if caller.partner_id is not None and partner_id != caller.partner_id:
        raise Refused("forbidden", "a partner may ask for its own scores", "partner_id")
    country, device = given.get("country"), given.get("device")
    if country is not None and not re.fullmatch(r"[A-Za-z]{2}", country, re.ASCII):
        raise Refused("bad_value", "country must be an ISO 3166 code of two letters, such as DE", "country")
    if device is not None and device not in DEVICES:
        raise Refused("bad_value", f"device must be one of {', '.join(DEVICES)}", "device")
    return Segment(offer_id, partner_id, country and country.upper(), device)


async def _check(db: Database, segment: Segment, caller: Caller) -> None:
    if not await db.fetchval(_SEEN, segment.offer_id, caller.partner_id):
        raise Refused("not_found", "there is no such offer")
