"""The OpenAPI 3.1 document of this API, made of its routes, of the structs that handlers read, and of `described`; and
of the edge's doors, which are another server's."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import msgspec

from aggregator.api.calling import ID_MAX
from aggregator.api.described import DESCRIBED, JSON, Described
from aggregator.api.edge_doors import ALIKE, DOORS, Content, Door
from aggregator.api.shapes import TEXT, UUID, Schema, record
from aggregator.api.sheets import CONTENT_TYPES
from schemas.errors import REJECTIONS, STATUS

Route = tuple[str, str, frozenset[str], str, Callable[..., Any]]  # method, path, roles, subject of its scope, handler

_REF = "#/components/schemas/{name}"
_API = {"url": "/"}
_CODE: Schema = {"type": "string", "enum": sorted(STATUS.keys() - REJECTIONS.keys())}
_ERROR = record("Error", (), error=record("", ("code", "message"), sometimes="field", code=_CODE))
_EVERY = ("bad_request", "too_long", "internal", "unavailable")
_WITH_A_KEY = ("unauthorized", "forbidden", "too_many_requests")
_CHANGES = ("conflict", "too_large")
_HEADERS: dict[str, Schema] = {
    "Idempotency-Key": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    "If-Match": TEXT | {"description": 'The `ETag` of what is changed, such as `"7"`: refused if it is another now.'},
}
_IDS: dict[str, Schema] = {
    "id": {"type": "integer", "minimum": 1, "maximum": ID_MAX},
    "partner_id": {"type": "integer", "minimum": 1, "maximum": ID_MAX},
    "period": {"type": "string", "pattern": "^20[0-9]{2}-(0[1-9]|1[0-2])$"},
    "incarnation": TEXT,
}


def document(routes: Sequence[Route], public_url: str) -> dict[str, Any]:
    """The document; `public_url` is where the edge is. Raises KeyError for a route that is not described."""
    calls = [(route, DESCRIBED[f"{route[0]} {route[1]}"]) for route in routes]
    bodies = list(dict.fromkeys(call.body for _, call in calls if call.body is not None))
    read, components = msgspec.json.schema_components(bodies, ref_template=_REF)
    body_of = {body: _plain(schema) for body, schema in zip(bodies, read, strict=True)}
    parts: dict[str, Schema] = {name: _plain(schema) for name, schema in components.items()}
    paths: dict[str, dict[str, Any]] = {}
    edge = {"url": "{edge}", "description": "The edge.", "variables": {"edge": {"default": public_url}}}
    for route, call in calls:
        told = _operation(route, call, body_of, parts)
        told |= {"servers": [_API, edge]} if f"{route[0]} {route[1]}" in ALIKE else {}
        paths.setdefault(route[1], {})[route[0].lower()] = told
    for name, door in DOORS.items():
        method, path = name.split()
        paths.setdefault(path, {})[method.lower()] = _door(method, path, door, parts) | {"servers": [edge]}
    _named(_ERROR, parts)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Clickdam", "version": version("clickdam"), "license": {"name": "Apache-2.0"}},
        "servers": [_API],
        "paths": paths,
        "components": {
            "responses": _refusals(),
            "schemas": dict(sorted(parts.items())),
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key: `cd_…`."},
                "token": {"type": "http", "scheme": "bearer", "description": "An advertiser's token."},
            },
            "parameters": {name: {"name": name, "in": "header", "schema": kind} for name, kind in _HEADERS.items()},
        },
    }


def _operation(
    route: Route, call: Described, body_of: Mapping[Any, Schema], parts: dict[str, Schema]
) -> dict[str, Any]:
    method, path, roles, subject, handler = route
    operation: dict[str, Any] = {
        "operationId": "_".join(re.findall(r"[a-z]+", f"{method.lower()} {path.removeprefix('/v1')}")),
        "tags": [path.removeprefix("/v1/").strip("/").partition("/")[0]],
        "description": _sentences(handler, roles),
        "parameters": list(_parameters(method, path, call)),
        "responses": {f"{STATUS[code]}": _refused(code) for code in _codes(method, path, roles, call)}
        | _responses(call, parts),
    }
    if content := _content(call, body_of):
        operation["requestBody"] = {"required": not call.is_body_optional, "content": content}
    if roles:
        operation["security"] = [{"key": [f"{subject}.{'read' if method == 'GET' else 'write'}"]}]
    return operation


def _door(method: str, path: str, door: Door, parts: dict[str, Schema]) -> dict[str, Any]:
    """What a HEAD answers has no body."""
    words = re.findall(r"[a-z0-9]+", f"edge {method.lower()} {path.replace('+', 'look')}")
    signed = [{"name": "X-Clickdam-Signature", "in": "header", "schema": TEXT}] if door.for_senders else []
    operation: dict[str, Any] = {
        "operationId": "_".join(words),
        "tags": ["edge"],
        "description": door.says,
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": TEXT} for name in re.findall(r"{(\w+)}", path)),
            *({"name": name, "in": "query", "schema": kind} for name, kind in door.query.items()),
            *signed,
        ],
        "responses": {
            str(status): {"description": said}
            | ({} if method == "HEAD" else _contents(content, parts))
            | _led_to(status)
            for status, said, content in _door_answers(door)
        },
    }
    if door.body:
        operation["requestBody"] = {"required": False} | _contents(door.body, parts)
    if door.for_senders:
        operation["security"] = [{"token": []}, {}]
    return operation


def _door_answers(door: Door) -> Iterator[tuple[int, str, Content]]:
    """Each status with what it says: a door's refusal may have the status of what is done, as its sender asked."""
    for status, content in door.done.items():
        yield status, "Done.", content
    for status in sorted({STATUS[code] for code in door.refused} - door.done.keys()):
        codes = [code for code in door.refused if STATUS[code] == status]
        yield status, ", ".join(f"`{code}`" for code in codes), door.refusal


def _contents(content: Content, parts: dict[str, Schema]) -> dict[str, Any]:
    return {"content": {form: {"schema": _named(schema, parts)} for form, schema in content.items()}} if content else {}


def _led_to(status: int) -> dict[str, Any]:
    return {"headers": {"Location": {"required": True, "schema": TEXT}}} if status == 302 else {}


def _sentences(handler: Callable[..., Any], roles: frozenset[str]) -> str:
    said = inspect.getdoc(handler) or ""
    return f"{said}\n\nFor keys with the role {' or '.join(sorted(roles))}." if roles else said


def _parameters(method: str, path: str, call: Described) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", path):
        kind = UUID if path.startswith("/v1/conversions/") else _IDS[name]
        yield {"name": name, "in": "path", "required": True, "schema": kind}
    for name, kind in call.query.items():
        yield {"name": name, "in": "query", "schema": kind}
    if method == "POST":
        yield {"$ref": "#/components/parameters/Idempotency-Key"}
    if call.is_versioned:
        yield {"$ref": "#/components/parameters/If-Match"}


def _content(call: Described, body_of: Mapping[Any, Schema]) -> dict[str, Any]:
    if call.takes_file:
        return {kind: {"schema": TEXT} for kind in CONTENT_TYPES}
    return {} if call.body is None else {JSON[0]: {"schema": body_of[call.body]}}


def _refused(code: str) -> Schema:
    return {"$ref": f"#/components/responses/{STATUS[code]}"}


def _responses(call: Described, parts: dict[str, Schema]) -> dict[str, Any]:
    answer = _named(call.answer, parts)
    content = {form: {"schema": answer if form in JSON else TEXT} for form in call.forms}
    done = {str(status): {"description": "Done.", "content": content} for status in call.statuses}
    same: dict[str, Any] = {"304": {"description": "As the `ETag` of `If-None-Match` says."}}
    return done | (same if call.is_remembered else {})


def _codes(method: str, path: str, roles: frozenset[str], call: Described) -> Iterator[str]:
    """What may be refused, by what kind of a call it is."""
    if not roles:
        yield from ("too_long", "internal")
        return
    yield from (*_EVERY, *_WITH_A_KEY, *call.errors)
    if "{" in path:
        yield "not_found"
    if method != "GET":
        yield from _CHANGES
    if method == "POST":
        yield "idempotency_key_reused"
    if call.is_versioned:
        yield "precondition_failed"
    if call.takes_file:
        yield "unsupported_media_type"


def _refusals() -> dict[str, Any]:
    """Each status with all its codes, which are told apart in the answer."""
    codes = {code: status for code, status in STATUS.items() if code not in REJECTIONS}
    content = {JSON[0]: {"schema": {"$ref": _REF.format(name="Error")}}}
    return {
        str(status): {
            "description": ", ".join(f"`{code}`" for code in codes if codes[code] == status),
            "content": content,
        }
        for status in sorted(set(codes.values()))
    }


def _named(schema: Any, parts: dict[str, Schema]) -> Any:
    """The same with what has a title put among the components, and named instead."""
    if isinstance(schema, list):
        return [_named(one, parts) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: _named(one, parts) for name, one in schema.items()}
    if not isinstance(schema.get("title"), str):
        return inner
    parts[schema["title"]] = inner
    return {"$ref": _REF.format(name=schema["title"])}


def _plain(schema: Any) -> Any:
    """What msgspec says, as JSON Schema has it: patterns in its dialect, without the fields that are read only to be
    refused by name."""
    if isinstance(schema, list | tuple):
        return [_plain(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {name: _plain(one) for name, one in schema.items()}
    if isinstance(pattern := plain.get("pattern"), str):
        plain["pattern"] = pattern.replace(r"\A", "^").replace(r"\Z", "$")
    if isinstance(fields := plain.get("properties"), dict):
        plain["properties"] = {name: kind for name, kind in fields.items() if kind}
    return plain
