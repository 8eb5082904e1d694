"""The door for tracking links: answer with a redirect that is durable before it leaves."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

from aiohttp import web

from schemas import limits
from schemas.errors import Refused
from schemas.links import CODE
from schemas.outcomes import Outcome, Reason, refused
from tracker.edge import Edge
from tracker.links import NotReady
from tracker.proxies import client_ip
from tracker.steps import Click, Decision, Target, decide

HEADERS = {"Cache-Control": "no-store", "X-Robots-Tag": "noindex, nofollow"}
Find = Callable[[Edge, Click], Awaitable[Target]]
_REASONS = {"not_found": Reason.UNKNOWN_LINK, "unavailable": Reason.NOT_READY}


async def click(request: web.Request, edge: Edge) -> web.Response:
    """`GET|HEAD /c/{code}`: 302 to the destination; 404 for an unknown code, 503 while that cannot be told."""
    code = request.match_info["code"]
    return await follow(request, edge, lambda edge, received: stored(edge, code, received.host))


async def follow(request: web.Request, edge: Edge, find: Find) -> web.Response:
    """Answer a click. Each ends in exactly one counted outcome: a redirect, or a refusal under its reason."""
    received = read_click(request, edge)
    try:
        decision = await _decided(edge, received, find)
    except Refused as refusal:
        reason = _REASONS.get(refusal.code, Reason.BAD_REQUEST)
        edge.tally.count(refused(reason), received.at_ms)
        raise
    if decision.location is None:
        edge.tally.count(refused(decision.reason), received.at_ms)
        raise no_such_link()
    event = to_record(edge, received, decision)
    if event is not None:
        await edge.recorder.durable(event, received.at_ms)
    return redirect(decision.location)


async def _decided(edge: Edge, received: Click, find: Find) -> Decision:
    with refusing():
        target = await found(edge, received, find)
        received.at_ms = edge.clock.now_ms()  # a watermark may have passed the first reading while we waited
        decision = decide(received, target, edge.keys.signing, edge.known)
    count_caps(edge, received)
    return decision


async def found(edge: Edge, received: Click, find: Find) -> Target:
    """Where a request leads, by this way of finding it. Raises Refused, NotReady."""
    if len(received.query) > limits.QUERY_BYTES_MAX:
        raise Refused("too_long", "the query is too long")
    return await find(edge, received)


@contextmanager
def refusing() -> Iterator[None]:
    """What can be wrong in here with a request on a link is a refusal."""
    try:
        yield
    except NotReady:
        raise Refused("unavailable", "try again in a moment") from None
    except ValueError:
        raise Refused("bad_request", "too many parameters") from None


async def stored(edge: Edge, code: str, host: str) -> Target:
    """The configs of a stored link; a code that cannot be one of ours is asked of nobody. Raises NotReady."""
    return await edge.links.find(code if CODE.fullmatch(code) else "", host)


def no_such_link() -> Refused:
    return Refused("not_found", "there is no such link")


def read_click(request: web.Request, edge: Edge) -> Click:
    headers = request.headers
    return asked(
        edge,
        edge.clock.now_ms(),
        method=request.method,
        query=readable(request.raw_path.partition("?")[2]),
        peer=request.remote or "",
        forwarded_for=",".join(headers.getall("X-Forwarded-For", ())),
        user_agent=readable(headers.get("User-Agent", "")),
        referer=readable(headers.get("Referer", "")),
        host=headers.get("Host", ""),
        languages=headers.get("Accept-Language", ""),
    )


def asked(
    edge: Edge, at_ms: int, method: str, query: str, peer: str, forwarded_for: str, user_agent: str, referer: str,
    host: str, languages: str,
) -> Click:  # fmt: skip
    """What a request says, by whichever door it came: its query, who is connected, and headers, empty where absent."""
    return Click(  # in their order: names take half as long again
        at_ms,
        client_ip(peer, forwarded_for, edge.trusted_proxies),
        user_agent[: limits.USER_AGENT_MAX],  # it is a key of our caches
        referer,
        query,
        host_name(host),
        languages[: limits.LANGUAGES_MAX],
        method == "HEAD",
    )


@lru_cache(maxsize=1_024)
def host_name(header: str) -> str:
    """The host of a Host header as domains are written: in lower case, without a port or a last dot."""
    host = header.lower()
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.removesuffix(".")


def count_caps(edge: Edge, click: Click) -> None:
    """Count a click that was judged, at once: the next may be over a cap by it."""
    for of in () if click.uncounted else click.caps:
        edge.counters.caps.count(of)


def to_record(edge: Edge, click: Click, decision: Decision) -> bytes | None:
    """The event of a click that is redirected, counted where its partner looks; None for one that leaves no trace."""
    if decision.event is None:
        edge.tally.count(Outcome.UNCOUNTED, click.at_ms)
    elif decision.partner_id:
        edge.counters.count_click(click.at_ms, decision.link_id, decision.partner_id)
    return decision.event


def redirect(location: str) -> web.Response:
    return web.Response(status=302, headers={"Location": location} | HEADERS)


def readable(text: str) -> str:
    """The text with bytes that are no UTF-8 replaced: aiohttp hands them on as lone surrogates."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
