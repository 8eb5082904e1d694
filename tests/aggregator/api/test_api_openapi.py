"""The OpenAPI document is what the API does: its routes, the bodies it reads, the answers it gives."""

import ast
import inspect
import pkgutil
import textwrap
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import import_module
from typing import Any

import aiohttp
import openapi_spec_validator
from jsonschema import Draft202012Validator

import aggregator.api
from aggregator.api import docs_page
from aggregator.api.app import ROUTES
from aggregator.api.described import DESCRIBED
from aggregator.api.edge_doors import DOORS
from aggregator.api.openapi import document
from aggregator.api.shapes import record
from aggregator.db.connect import Connection
from aggregator.db.instants import at
from aggregator.db.partitions import ensure
from aggregator.reports.figures import METRICS
from tests.aggregator.api.conftest import PUBLIC_URL, Client, Made
from tests.aggregator.api.test_api_every_call import GUARDED, Programme, programme
from tests.aggregator.api.test_api_lists import NOW_MS, callers_of, clicked
from tests.aggregator.api.test_api_schemathesis import closed

__all__ = ["programme"]  # a fixture
ORDER = ("GET", "PUT", "POST", "PATCH", "DELETE")
# what cannot be done any more to what was done before
REFUSED = {
    ("POST", "/v1/conversions/{id}/chargeback"): 409,
    ("PATCH", "/v1/conversions/{id}"): 409,
    ("POST", "/v1/me/offers/{id}/apply"): 409,
}


def test_every_route_is_described_and_everything_described_is_a_route() -> None:
    assert sorted(DESCRIBED) == sorted(f"{method} {path}" for method, path, *_ in ROUTES)


def test_the_document_is_openapi_3_1() -> None:
    told = document(ROUTES, PUBLIC_URL)
    assert told["openapi"].startswith("3.1.")
    openapi_spec_validator.validate(told)


def read_bodies(function: Any) -> list[Any]:
    """What a function reads with `read_body`."""
    calls = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function))))
    named = [one for one in calls if isinstance(one, ast.Call) and getattr(one.func, "id", "") == "read_body"]
    return [eval(ast.unparse(one.args[1]), function.__globals__) for one in named]


def functions() -> Iterator[Any]:
    for found in pkgutil.iter_modules(aggregator.api.__path__, "aggregator.api."):
        module = import_module(found.name)
        yield from (one for _, one in inspect.getmembers(module, inspect.isfunction) if one.__module__ == found.name)


def test_the_bodies_declared_are_those_read() -> None:
    for method, path, _, _, handler in ROUTES:
        body = DESCRIBED[f"{method} {path}"].body
        assert read_bodies(handler) == ([] if body is None else [body]), (method, path)
    elsewhere = {one.__name__ for one in functions() if read_bodies(one)} - {route[-1].__name__ for route in ROUTES}
    assert elsewhere == set(), "bodies that are read where this test does not look"


def test_a_field_that_may_be_null_is_one_that_is_there() -> None:
    assert record("", ("id", "reason"), null="reason") == {
        "type": "object",
        "properties": {"id": {"type": "integer"}, "reason": {"type": ["string", "null"]}},
        "required": ["id", "reason"],
    }


async def test_the_document_and_its_page_need_no_key(session: aiohttp.ClientSession) -> None:
    async with session.get("/openapi.json") as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
        told = await answer.json()
        assert set(told["paths"]) == {path for _, path, *_ in ROUTES} | {name.split()[1] for name in DOORS}
    async with session.get("/docs") as answer:
        assert (answer.status, answer.content_type) == (200, "text/html")
        policy, page = answer.headers["Content-Security-Policy"], await answer.text()
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for method, path, *_ in ROUTES:
        assert f"<b>{method}</b> {path}<" in page


class Tags(HTMLParser):
    """What a page consists of, and where it leads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.targets: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.targets |= {value or "" for name, value in attrs if name in ("href", "src")}


def test_the_page_has_nothing_from_elsewhere_and_nothing_that_runs() -> None:
    tags = Tags(docs_page.docs(ROUTES, PUBLIC_URL).html.decode())
    assert tags.names.isdisjoint({"script", "img", "link", "iframe", "form", "base", "object"})
    assert tags.attributes == {"lang", "charset", "name", "content", "id", "class", "href"}
    assert "/openapi.json" in tags.targets
    assert all(target == "/openapi.json" or target.startswith("#") for target in tags.targets)


def answer_schema(told: dict[str, Any], method: str, path: str, status: int) -> Any:
    """What an answer in JSON has to be, and nothing besides."""
    answer = told["paths"][path][method.lower()]["responses"][str(status)]
    if "$ref" in answer:
        answer = told["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    return {"components": closed(told["components"]), **closed(answer["content"]["application/json"]["schema"])}


async def test_what_every_call_answers_is_as_described(
    admin: Client, programme: Programme, made: Made, db: Connection
) -> None:
    callers = await callers_of(admin, db, made)
    await ensure(db, [at(NOW_MS).date()])
    await clicked(db, made)
    await db.execute("UPDATE edge SET heard_at = registered_at")
    programme.bodies["POST", "/v1/reports/query"] = {
        "group_by": ["day", "offer"],
        "metrics": list(METRICS),
        "totals": True,
    }
    told, refused, wrong = document(ROUTES, PUBLIC_URL), {}, []
    for method, path, who, _ in sorted(GUARDED, key=lambda call: ORDER.index(call[0])):
        if path.startswith("/v1/export/"):
            continue
        for role in who.split(",") if method == "GET" else who.split(",")[:1]:
            body = {"data": b"", "headers": {"Content-Type": "application/x-ndjson"}} if "/import" in path else {}
            asked = body or {"json": programme.body(method, path)}
            account = (
                f"?partner_id={made.partner_id}" if role == "admin" and path in ("/v1/balance", "/v1/ledger") else ""
            )
            status, answer = await getattr(callers, role)(method, programme.path(path) + account, **asked)
            if status >= 300:
                refused[method, path] = status
            faults = Draft202012Validator(answer_schema(told, method, path, status)).iter_errors(answer)
            wrong += [(method, path, role, fault.json_path, fault.message) for fault in faults]
    assert wrong == []
    assert refused == REFUSED
