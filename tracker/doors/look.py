"""Look at a link without following it: where it leads (`/c/{code}+`), and its QR code (`/c/{code}/qr.svg`).

Neither counts or logs anything. What a page shows, everybody may see.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from schemas import limits
from schemas.errors import Refused
from schemas.links import Link, check_destination
from schemas.outcomes import ClickClass, Reason
from schemas.two_tier import SecondTierAway
from tracker.doors import page
from tracker.doors.click import found, no_such_link, read_click, refusing, stored
from tracker.edge import Edge
from tracker.proxies import client_scheme
from tracker.steps import Click, Target, judge

# What is said of a link that does not lead to its offer; who is blocked, and why, is nobody's business.
_SAID = {
    Reason.LINK_PAUSED: "paused",
    Reason.OFFER_PAUSED: "paused",
    Reason.NOT_STARTED: "not started",
    Reason.EXPIRED: "expired",
}


async def inspect(request: web.Request, edge: Edge) -> web.Response:
    """`GET /c/{code}+`: where the link would lead this visitor now, as a page or as JSON."""
    link, target, received = await _found(request, edge)
    with refusing():
        judge(received, target, edge.known)
    facts = _facts(link, target, received)
    if page.wanted(request):
        shown = [(name.replace("_", " "), str(value)) for name, value in facts.items()]
        return page.page(f"The link {link.code}", "", shown, status=200, headers={})
    return web.json_response(facts, headers=page.HEADERS)


def _facts(link: Link, target: Target, received: Click) -> dict[str, Any]:
    leads = received.click_class is not ClickClass.FALLBACK
    return {
        "code": link.code,
        "offer": target.offer.name if target.offer else "",
        "status": "active" if leads else _SAID.get(received.reason, "stopped"),
        "leads_to": received.destination or "",
        "is_fallback": not leads,
    }


async def qr_code(request: web.Request, edge: Edge) -> web.Response:
    """`GET /c/{code}/qr.svg`: the link, under the host and scheme of this request, with `qr=1`."""
    link, _, _ = await _found(request, edge)
    try:
        svg = await edge.qr_codes.get(f"{_site(request, edge)}/c/{link.code}?qr=1")
    except SecondTierAway:
        raise Refused("unavailable", "try again in a moment") from None
    headers = page.HEADERS | {"Cache-Control": f"public, max-age={limits.QR_LIFE_S:.0f}"}
    return web.Response(body=svg, content_type="image/svg+xml", headers=headers)


def _site(request: web.Request, edge: Edge) -> str:
    """Scheme and host that the visitor asked. Raises Refused."""
    said, host = request.headers.get("X-Forwarded-Proto", ""), request.headers.get("Host", "").lower()
    site = f"{client_scheme(request.remote or '', request.scheme, said, edge.trusted_proxies)}://{host}"
    try:
        check_destination(site)
    except ValueError:
        host = ""
    if not host or set(host) & set("/?#"):
        raise Refused("bad_request", "the Host header names no host")
    return site


async def _found(request: web.Request, edge: Edge) -> tuple[Link, Target, Click]:
    received, code = read_click(request, edge), request.match_info["code"]
    with refusing():
        target = await found(edge, received, lambda edge, received: stored(edge, code, received.host))
    if target.link is None:
        raise no_such_link()
    return target.link, target, received
