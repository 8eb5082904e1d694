"""`GET /openapi.json`, and the same to read: `GET /docs`, one page without a script and without anything from
elsewhere. Both need no key and are made once, when the API begins."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

import orjson
from aiohttp import web

from aggregator.api.calling import Api
from aggregator.api.openapi import Route, document

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
details { border-top: 1px solid #8884; padding: .4rem 0; }
summary { cursor: pointer; }
code { font-family: ui-monospace, monospace; }
.description { white-space: pre-wrap; }
td { padding: 0 1.5rem 0 0; vertical-align: top; }
"""
# nothing is loaded or run, but this style; nobody frames the page
_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'"
)
_SAFE = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class Docs(NamedTuple):
    """Both as they are sent."""

    json: bytes
    html: bytes


DOCS = web.AppKey("docs", Docs)


def docs(routes: Sequence[Route], public_url: str) -> Docs:
    """The document of these routes, and its page."""
    told = document(routes, public_url)
    return Docs(orjson.dumps(told), _page(told).encode())


async def openapi(api: Api, request: web.Request) -> web.Response:
    """This document."""
    return web.Response(body=request.app[DOCS].json, content_type="application/json", charset="utf-8")


async def page(api: Api, request: web.Request) -> web.Response:
    """This document as a page."""
    return web.Response(body=request.app[DOCS].html, content_type="text/html", charset="utf-8", headers=_SAFE)


def _page(told: dict[str, Any]) -> str:
    calls = [(path, method, call) for path, methods in told["paths"].items() for method, call in methods.items()]
    schemas, refusals = (told["components"][name] for name in ("schemas", "responses"))
    tags = dict.fromkeys(call["tags"][0] for *_, call in calls)
    sections = [
        f"<h2>{escape(tag)}</h2>{''.join(_call(*one, refusals) for one in calls if one[2]['tags'][0] == tag)}"
        for tag in tags
    ]
    shapes = "".join(_folded(name, escape(name), _table(_fields(schema))) for name, schema in schemas.items())
    info = told["info"]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])} API</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(info['title'])} API {escape(info['version'])}</h1>"
        '<p>The same for programs: <a href="/openapi.json">openapi.json</a>. Calls below <code>/v1</code> need'
        " <code>Authorization: Bearer cd_…</code>; those of the edge go to another server, and know no such keys.</p>"
        f"{''.join(sections)}<h2>Shapes</h2>{shapes}</body></html>"
    )


def _call(path: str, method: str, call: dict[str, Any], refusals: dict[str, Any]) -> str:
    body = [media["schema"] for media in call.get("requestBody", {}).get("content", {}).values()][:1]
    parts = [
        f'<p class="description">{escape(call["description"])}</p>',
        _titled("Parameters", [(one["name"], _kind(one["schema"])) for one in call["parameters"] if "name" in one]),
        *(_titled("Body", list(_fields(one))) for one in body),
        *(_titled("Answer", list(_fields(one))) for one in _answers(call)),
        _titled("Refusals", [(status, escape(said)) for status, said in _refusals(call, refusals)]),
    ]
    return _folded(call["operationId"], f"<b>{method.upper()}</b> {escape(path)}", "".join(parts))


def _folded(name: str, title: str, inside: str) -> str:
    return f'<details id="{escape(name)}"><summary><code>{title}</code></summary>{inside}</details>'


def _refusals(call: dict[str, Any], refusals: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for status, one in call["responses"].items():
        if status >= "400":
            yield status, (refusals[status] if "$ref" in one else one)["description"]


def _answers(call: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for status, answer in call["responses"].items():
        media = answer.get("content", {}).get("application/json")
        if status.startswith("2") and media:
            yield media["schema"]
            return


def _titled(title: str, rows: list[tuple[str, str]]) -> str:
    return f"<h4>{title}</h4>{_table(rows)}" if rows else ""


def _table(rows: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><td><code>{escape(name)}</code></td><td>{kind}</td></tr>" for name, kind in rows)
    return f"<table>{lines}</table>"


def _fields(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each field of an object with what it is, as HTML; what is no object is one line of its own."""
    if "properties" not in schema:
        yield "", _kind(schema)
    for name, kind in schema.get("properties", {}).items():
        yield name, _kind(kind) + ("" if name in schema.get("required", ()) else " (optional)")


def _kind(schema: dict[str, Any]) -> str:
    """What a value is, as HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " | ".join(_kind(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f"<code>{escape(str(one))}</code>" for one in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    if schema.get("type") == "object" and schema.get("properties"):
        return f"{{{', '.join(f'{escape(name)}: {_kind(kind)}' for name, kind in schema['properties'].items())}}}"
    kinds = schema.get("type", "any")
    said = kinds if isinstance(kinds, str) else " | ".join(kinds)
    return escape(" ".join(filter(None, (said, schema.get("format"), schema.get("description")))))
