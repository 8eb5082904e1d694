"""The door for tracking links: answer with a redirect that is durable before it leaves."""

from aiohttp import web

from schemas import limits
from schemas.errors import Refused
from schemas.links import CODE
from schemas.outcomes import Outcome, Reason, refused
from tracker.edge import Edge
from tracker.links import NotReady
from tracker.steps import Click, Decision, Target, decide


async def click(request: web.Request, edge: Edge) -> web.Response:
    """`GET|HEAD /c/{code}`: 302 to the destination; 404 for an unknown code, 503 while that cannot be told."""
    received = read_click(request, edge)
    try:
        target = await find(edge, request.match_info["code"], received)
        decision = decide(received, target, edge.keys.signing, edge.known)
    except ValueError:
        raise refuse(edge, received, Reason.BAD_REQUEST, Refused("bad_request", "too many parameters")) from None
    if decision.location is None:
        raise refuse(edge, received, decision.reason, Refused("not_found", "there is no such link"))
    await record(edge, received, decision)
    return redirect(decision.location)


def read_click(request: web.Request, edge: Edge) -> Click:
    headers = request.headers
    return Click(
        at_ms=edge.clock.now_ms(),
        ip=request.remote or "",
        user_agent=readable(headers.get("User-Agent", "")[: limits.USER_AGENT_MAX]),  # it is a key of our caches
        referer=readable(headers.get("Referer", "")),
        query=readable(request.raw_path.partition("?")[2]),
        head=request.method == "HEAD",
    )


async def find(edge: Edge, code: str, received: Click) -> Target:
    """The link's configs; a code or query that cannot be one of ours is refused unread."""
    if len(received.query) > limits.QUERY_BYTES_MAX:
        raise refuse(edge, received, Reason.BAD_REQUEST, Refused("too_long", "the query is too long"))
    if not CODE.fullmatch(code):
        raise refuse(edge, received, Reason.BAD_REQUEST, Refused("not_found", "there is no such link"))
    try:
        target = await edge.links.find(code)
    except NotReady:
        raise refuse(edge, received, Reason.NOT_READY, Refused("unavailable", "try again in a moment")) from None
    received.at_ms = edge.clock.now_ms()  # a watermark may have passed the first reading while we waited
    return target


async def record(edge: Edge, received: Click, decision: Decision) -> None:
    if decision.event is None:
        edge.tally.count(Outcome.UNCOUNTED, received.at_ms)
        return
    if decision.link_id:
        edge.counters.count_click(received.at_ms, decision.link_id, decision.partner_id)
    await edge.recorder.durable(decision.event, received.at_ms)


def redirect(location: str) -> web.Response:
    return web.Response(
        status=302,
        headers={"Location": location, "Cache-Control": "no-store", "X-Robots-Tag": "noindex, nofollow"},
    )


def refuse(edge: Edge, received: Click, reason: Reason, answer: Refused) -> Refused:
    """Count the refusal under its reason."""
    edge.tally.count(refused(reason), received.at_ms)
    return answer


def readable(text: str) -> str:
    """The text with bytes that are no UTF-8 replaced: aiohttp hands them on as lone surrogates."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
