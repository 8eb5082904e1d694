"""What a request at a door for conversions brings, read within its limits, and who brings it."""

from __future__ import annotations

import asyncio

from aiohttp import web

from schemas import limits
from schemas.errors import Refused
from tracker.doors.click import readable
from tracker.proxies import Networks, client_ip


async def form(request: web.Request) -> str:
    """The query, and the form that was posted with it, as one text."""
    query = readable(request.raw_path.partition("?")[2])
    if len(query) > limits.QUERY_BYTES_MAX:
        raise Refused("too_long", "the query is too long")
    if request.method != "POST" or not request.body_exists:
        return query
    if request.content_type != "application/x-www-form-urlencoded":
        raise Refused("unsupported_media_type", "a postback's body is a form (application/x-www-form-urlencoded)")
    body = await whole(request, limits.FORM_BYTES_MAX)
    try:
        return "&".join(part for part in (query, body.decode("ascii")) if part)
    except UnicodeDecodeError:
        raise Refused("bad_parameters", "a form's body is ASCII, other characters percent-encoded") from None


async def whole(request: web.Request, bytes_max: int) -> bytes:
    """The body, if it is not too large and comes in time."""
    too_large = Refused("too_large", f"a body has at most {bytes_max} bytes here")
    if (request.content_length or 0) > bytes_max:
        raise too_large
    try:
        async with asyncio.timeout(limits.SLOW_BODY_S):
            body = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None
    except TimeoutError:
        raise Refused("too_slow", "the body took too long") from None
    except web.RequestPayloadError:
        raise Refused("bad_parameters", "the body is not what its headers say") from None
    if len(body) > bytes_max:  # in chunks or packed it did not say so
        raise too_large
    return body


def bearer(request: web.Request) -> str:
    """The token of an Authorization header; the scheme's name has no case (RFC 9110)."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def signature(request: web.Request) -> str:
    return request.headers.get("X-Clickdam-Signature") or ""


def sender_ip(request: web.Request, trusted: Networks) -> str:
    return client_ip(request.remote or "", ",".join(request.headers.getall("X-Forwarded-For", ())), trusted)


def page(request: web.Request) -> str:
    """The origin of the page that asks, as its browser says; empty where it does not."""
    said = request.headers.get("Origin") or request.headers.get("Referer") or ""
    parts = said.split("/", 3)
    return f"{parts[0]}//{parts[2]}".lower() if len(parts) > 2 and not parts[1] else ""
