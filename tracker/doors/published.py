"""Doors for links that are published out there, in the formats of the trackers people come from: they name an offer and
a partner, by our ids or by those they had elsewhere, and no link is stored for each pair."""

import re

from aiohttp import web

from schemas.errors import Refused
from schemas.limits import EXTERNAL_ID_MAX
from tracker import params
from tracker.doors import postbacks
from tracker.doors.click import Find, follow, no_such_link, stored
from tracker.edge import Edge
from tracker.steps import Click, Target

NAME = rf"[A-Za-z0-9._~-]{{1,{EXTERNAL_ID_MAX}}}"
_NAME = re.compile(NAME, re.ASCII)


async def by_parameters(request: web.Request, edge: Edge) -> web.Response:
    """`GET|HEAD /c`, `/aff_c`, `/click` `?offer_id=&affiliate_id=`, or what others call them."""
    return await _or_postback(request, edge, _pair)


async def click_php(request: web.Request, edge: Edge) -> web.Response:
    """`GET|HEAD /click.php`: `?key=` with a link's code, whatever else is said, or `?offer_id=&affiliate_id=`."""
    return await _or_postback(request, edge, _by_key)


async def root(request: web.Request, edge: Edge) -> web.Response:
    """`GET /`: no link leads through here."""
    return await _or_postback(request, edge, _nowhere)


async def _or_postback(request: web.Request, edge: Edge, find: Find) -> web.Response:
    """Some trackers take conversions where they take clicks."""
    if postbacks.is_postback(request):
        return await postbacks.postback(request, edge)
    return await follow(request, edge, find)


async def prosper202(request: web.Request, edge: Edge) -> web.Response:
    """`GET|HEAD /tracking202/redirect/dl.php?t202id=`: a link's code; an offer where `t202pubid` names a partner."""
    return await follow(request, edge, _by_t202id)


async def by_path(request: web.Request, edge: Edge) -> web.Response:
    """`GET|HEAD /{affiliate}/{offer}/`. Where neither is known it is no link: scanners walk such paths all day."""
    names = request.match_info["offer"], request.match_info["affiliate"]

    async def find(edge: Edge, received: Click) -> Target:
        target = await edge.links.find_pair(*names, received.host)
        if target.offer is None and target.partner is None:
            raise no_such_link()
        return target

    return await follow(request, edge, find)


async def _by_key(edge: Edge, received: Click) -> Target:
    said = received.params = params.read(received.query)
    return await stored(edge, said["key"], received.host) if "key" in said else await _pair(edge, received)


async def _nowhere(edge: Edge, received: Click) -> Target:
    raise no_such_link()


async def _by_t202id(edge: Edge, received: Click) -> Target:
    """`ref`, `a`, `via` and their like, which anybody may have added, name no partner beside a code."""
    said = received.params = params.read(received.query)
    if "t202id" in said and "t202pubid" not in said:
        return await stored(edge, said["t202id"], received.host)
    return await _pair(edge, received)


async def _pair(edge: Edge, received: Click) -> Target:
    said = received.params = received.params or params.read(received.query)
    offer, partner = said.get("offer_id", "").strip(), said.get("affiliate_id", "").strip()
    if not (offer or partner):
        raise Refused("bad_request", "offer_id and affiliate_id say whose link this is", "offer_id")
    return await edge.links.find_pair(_possible(offer), _possible(partner), received.host)


def _possible(name: str) -> str:
    """The name, or none where it cannot be one, and is not worth a question."""
    return name if _NAME.fullmatch(name) else ""
