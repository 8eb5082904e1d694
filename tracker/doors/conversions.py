"""The door for conversions as JSON: one, or many at once with a receipt for each."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
import orjson
from aiohttp import web

from schemas import limits
from schemas.conversions.dialects import OWN
from schemas.conversions.reading import posted_json, without_secrets_json
from schemas.errors import Refused
from schemas.links import Advertiser
from tracker import intakes, senders
from tracker.doors import answers, requests
from tracker.edge import Edge
from tracker.intakes import Receipt, Sender, Sent
from tracker.links import NotReady


async def conversions(request: web.Request, edge: Edge) -> web.Response:
    """`POST /v1/conversions`, `Authorization: Bearer <advertiser token>`: one conversion as a JSON object, or up to
    1,000 as `{"conversions": […]}`, answered with `{"receipts": […]}`. Raises Refused for all of them."""
    token = requests.bearer(request)
    advertiser = await _whose(request, edge, token)
    body = await requests.whole(request, limits.CONVERSIONS_BYTES_MAX)
    senders.check_signature(advertiser, body, requests.signature(request))
    items, are_many = _items(body)
    edge.rates.take(advertiser, senders.SERVERS, len(items), edge.clock.now_ms())
    sender = Sender(msgspec.structs.replace(advertiser, dialect=OWN), "json")
    if are_many:
        return _answer_all(await intakes.take_many(edge, sender, items, partial(_sent, edge, token)))
    return answers.answer(await intakes.take(edge, sender, _sent(edge, token, items[0])), {})


async def _whose(request: web.Request, edge: Edge, token: str) -> Advertiser:
    """Asked before the body is read: whoever is nobody's does not get to send one of that size."""
    try:
        return await senders.by_token(edge.links, token, requests.sender_ip(request, edge.trusted_proxies))
    except NotReady:
        raise Refused("unavailable", "try again in a moment") from None


def _items(body: bytes) -> tuple[list[Any], bool]:
    """The conversions of a body, and whether they came as a list. What is none of both is one refusal."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return [Refused("bad_parameters", f"the body is not JSON: {error}")], False
    if not (isinstance(said, dict) and "conversions" in said):
        return [said], False
    items, most = said["conversions"], limits.CONVERSIONS_PER_POST_MAX
    if not isinstance(items, list) or not 1 <= len(items) <= most or len(said) > 1:
        said = f"conversions is a list of 1 to {most}, alone in its object"
        return [Refused("bad_parameters", said, "conversions")], False
    return items, True


def _sent(edge: Edge, token: str, item: Any) -> Sent:
    if isinstance(item, Refused):
        return Sent("", refusal=item)
    return intakes.read(edge, without_secrets_json(item, (token,)), partial(posted_json, item))


def _answer_all(receipts: list[Receipt]) -> web.Response:
    """503 if any is to be sent again (repeating the others is harmless), else the best."""
    again = next((receipt for receipt in receipts if receipt.is_to_be_sent_again), None)
    status = again.status if again else min(receipt.status for receipt in receipts)
    return answers.json({"receipts": [receipt.body for receipt in receipts]}, status, again.headers if again else {})
