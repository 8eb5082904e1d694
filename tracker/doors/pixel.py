"""The doors for pages: an image that reports a sale, and the script that asks for it.

Anybody can read a page's source and write any page's name into a request: what comes this way has a public key, comes
from one of the advertiser's own pages as far as can be seen, and waits to be looked at.
"""

from __future__ import annotations

from base64 import b64decode
from functools import partial
from pathlib import Path

import msgspec
from aiohttp import web

from schemas.conversions.dialects import DIALECTS, OWN
from schemas.conversions.reading import posted_form, without_secrets
from schemas.errors import Refused
from tracker import intakes, senders, visitor
from tracker.doors import postbacks, requests
from tracker.edge import Edge
from tracker.intakes import Sender
from tracker.links import NotReady

GIF = b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAICRAEAOw==")
_NEVER_KEPT = {"Cache-Control": "no-store, private", "X-Content-Type-Options": "nosniff"}
_SCRIPT = (Path(__file__).parent / "tag.js").read_bytes()
_KEPT = {"Cache-Control": "public, max-age=3600", "X-Content-Type-Options": "nosniff"}


async def pixel(request: web.Request, edge: Edge) -> web.Response:
    """`GET /pixel.gif?key&click_id&order_id&amount&currency`: an image, whatever becomes of the conversion; its status
    says whether it was taken, which pages do not look at."""
    try:
        receipt = await _taken(request, edge)
    except Refused as refusal:
        receipt = intakes.rejection(edge, refusal)
    return web.Response(
        body=GIF, status=receipt.status, headers={**_NEVER_KEPT, **receipt.headers}, content_type="image/gif"
    )


async def _taken(request: web.Request, edge: Edge) -> intakes.Receipt:
    form = postbacks.read(await requests.form(request))
    page = requests.page(request)
    try:
        advertiser = await senders.by_pixel(edge.links, form.said.get("key", ""), page)
    except NotReady:
        raise Refused("unavailable", "try again in a moment") from None
    network = visitor.network(requests.sender_ip(request, edge.trusted_proxies))
    edge.rates.take_page(advertiser, network, edge.clock.now_ms())
    sender = Sender(msgspec.structs.replace(advertiser, dialect=OWN), "pixel")
    sent = intakes.read(edge, without_secrets(form.text), partial(posted_form, form.said, DIALECTS[OWN], {}))
    return await intakes.take(edge, sender, sent)


async def tag(request: web.Request, edge: Edge) -> web.Response:
    """`GET /tag.js`: what a page of an advertiser's needs to keep click ids and to report sales by the pixel."""
    return web.Response(body=_SCRIPT, headers=_KEPT, content_type="text/javascript", charset="utf-8")
