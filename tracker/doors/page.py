"""Small pages for people: no scripts, nothing loaded from anywhere, everything escaped."""

from collections.abc import Iterable, Mapping
from html import escape

from aiohttp import web

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex, nofollow",
}
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body{{font:18px/1.5 system-ui,sans-serif;max-width:40rem;margin:15vh auto;padding:0 1rem;color:#222;background:#fff}}
h1{{font-size:1.5rem}}dt{{color:#666;font-size:.9rem}}dd{{margin:0 0 1rem;overflow-wrap:anywhere}}</style>
<h1>{title}</h1>
{content}
"""


def wanted(request: web.Request) -> bool:
    """Whether a person looks at the answer, and not a program."""
    return "text/html" in request.headers.get("Accept", "")


def page(
    title: str, text: str = "", facts: Iterable[tuple[str, str]] = (), *, status: int, headers: Mapping[str, str]
) -> web.Response:
    """A page with a sentence, and facts by name."""
    rows = "".join(f"<dt>{escape(name)}<dd>{escape(value)}\n" for name, value in facts)
    content = (f"<p>{escape(text)}" if text else "") + (f"<dl>\n{rows}</dl>" if rows else "")
    body = _PAGE.format(title=escape(title), content=content)
    return web.Response(text=body, status=status, headers=HEADERS | dict(headers), content_type="text/html")
