"""The doors for conversions: every intake is answered with a receipt that says what happened to it."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from schemas import events, limits
from schemas.click_id import uuid7_bytes
from schemas.conversions import judging, reading
from schemas.conversions.dialects import DIALECTS, OWN
from schemas.conversions.posted import Posted
from schemas.errors import Refused
from schemas.events import Conversion
from schemas.outcomes import ClickClass, Outcome, Result
from tracker.doors.click import readable
from tracker.edge import Edge
from tracker.links import NotReady

COUNTED_AS = "conversion_"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a sender is told of one conversion, and the status it alone is answered with."""

    body: dict[str, Any]
    status: int


async def postback(request: web.Request, edge: Edge) -> web.Response:
    """`GET|POST /postback?click_id&order_id&amount&currency&token`, parameters in the query or a form."""
    form = await _form(request)
    params = reading.read_form(form)
    try:
        posted = reading.posted_form(params, DIALECTS[OWN], {})
        receipt = await take(edge, params.get("token", ""), posted, "postback", reading.without_secrets(form))
    except Refused as refusal:
        receipt = rejection(edge, refusal)
    return answer(receipt, compat=params.get("compat") == "200")


async def conversions(request: web.Request, edge: Edge) -> web.Response:
    """`POST /v1/conversions`, `Authorization: Bearer <advertiser token>`: one conversion as a JSON object, or up to
    100 as `{"conversions": […]}`, answered with `{"receipts": […]}`."""
    body = await _json(request)
    token = _bearer(request.headers.get("Authorization", ""))
    if not (isinstance(body, dict) and "conversions" in body):
        return answer(await receive(edge, token, body))
    items = body["conversions"]
    if not isinstance(items, list) or not 1 <= len(items) <= limits.CONVERSIONS_PER_POST_MAX or len(body) > 1:
        most = limits.CONVERSIONS_PER_POST_MAX
        raise Refused("bad_parameters", f"conversions is a list of 1 to {most}, alone in its object", "conversions")
    receipts = await asyncio.gather(*(receive(edge, token, item) for item in items))
    return web.Response(
        body=orjson.dumps({"receipts": [receipt.body for receipt in receipts]}),
        status=_status_of_all([receipt.status for receipt in receipts]),
        content_type="application/json",
    )


async def receive(edge: Edge, token: str, item: Any) -> Receipt:
    """One JSON conversion and its receipt."""
    try:
        return await take(edge, token, reading.posted_json(item), "json", reading.without_secrets_json(item, {token}))
    except Refused as refusal:
        return rejection(edge, refusal)


async def take(edge: Edge, token: str, posted: Posted, door: str, raw: str) -> Receipt:
    """Judge one conversion, make it durable and say so. Raises Refused."""
    try:
        advertiser = await edge.links.advertiser(reading.token_digest(token))
        if advertiser is None or advertiser.status != "active":
            raise Refused("wrong_token", "this token is not known", "token")
        click = reading.read_click(edge.keys, posted.click_id)
        if click and click.click_class is ClickClass.TEST:
            raise Refused("click_never_earns", "the click was a test", "click_id")
        offer = await edge.links.offer(click.offer_id) if click else None
    except NotReady:
        raise Refused("unavailable", "try again in a moment") from None
    now_ms = edge.clock.now_ms()
    intake_id = uuid7_bytes(now_ms, os.urandom(10))
    event = judging.judge(posted, click, offer, advertiser, intake_id, now_ms, door=door, raw=raw)
    return await record(edge, event, now_ms)


async def record(edge: Edge, event: Conversion, now_ms: int) -> Receipt:
    """Always written, also when the hint says duplicate: Postgres has the last word."""
    outcome = await edge.recorder.durable(events.encode(event), now_ms, COUNTED_AS)
    if outcome not in _DURABLE:
        raise Refused("not_durable", "not stored in time: send it again")
    result = Result.DUPLICATE if event.conversion_id in edge.durable_conversions else Result.ACCEPTED
    edge.remember_durable(event.conversion_id)
    body = {"result": result, "reason": event.reason or None, "conversion_id": str(event.conversion_id)}
    return Receipt(body, _DURABLE[outcome])


_DURABLE = {Outcome.RECORDED: 200, Outcome.SPOOLED: 202}


def rejection(edge: Edge, refusal: Refused) -> Receipt:
    edge.tally.count(f"{COUNTED_AS}refused_{refusal.code}", edge.clock.now_ms())
    body = {
        "result": Result.REJECTED, "reason": refusal.code, "conversion_id": None,
        "message": refusal.message, "field": refusal.field,
    }  # fmt: skip
    return Receipt(body, refusal.status)


def answer(receipt: Receipt, *, compat: bool = False) -> web.Response:
    """A receipt with its status; `compat` is for senders that know only 200, and never hides a 503."""
    headers = Refused(receipt.body["reason"]).headers if receipt.status >= 400 else {}
    status = 200 if compat and receipt.status != 503 else receipt.status
    return web.Response(
        body=orjson.dumps(receipt.body), status=status, headers=headers, content_type="application/json"
    )


def _bearer(header: str) -> str:
    """The token of an Authorization header; the scheme's name has no case (RFC 9110)."""
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _status_of_all(statuses: list[int]) -> int:
    """503 if any is to be sent again (repeating the others is harmless), else the best."""
    return 503 if 503 in statuses else min(statuses)


async def _form(request: web.Request) -> str:
    query = readable(request.raw_path.partition("?")[2])
    if len(query) > limits.QUERY_BYTES_MAX:
        raise Refused("too_long", "the query is too long")
    if request.method != "POST" or not request.body_exists:
        return query
    if request.content_type != "application/x-www-form-urlencoded":
        raise Refused("unsupported_media_type", "a postback's body is a form (application/x-www-form-urlencoded)")
    body = await _body(request)
    try:
        return "&".join(part for part in (query, body.decode("ascii")) if part)
    except UnicodeDecodeError:
        raise Refused("bad_parameters", "a form's body is ASCII, other characters percent-encoded") from None


async def _json(request: web.Request) -> Any:
    try:
        return orjson.loads(await _body(request))
    except orjson.JSONDecodeError as error:
        raise Refused("bad_parameters", f"the body is not JSON: {error}") from None


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(limits.SLOW_BODY_S):
            return await request.read()
    except TimeoutError:
        raise Refused("too_slow", "the body took too long") from None
    except web.RequestPayloadError:
        raise Refused("bad_parameters", "the body is not what its headers say") from None
