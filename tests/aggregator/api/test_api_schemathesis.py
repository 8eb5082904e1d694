"""Whatever the OpenAPI document lets be asked, by a key of any role: no fault of ours, and no status, type or shape
that is not in it."""

import asyncio
from collections import Counter
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from aggregator.api import keys
from aggregator.api.app import ROUTES
from aggregator.api.keys import Wanted
from aggregator.api.openapi import document
from aggregator.db.connect import Connection
from schemas import limits
from tests.aggregator.api.conftest import PUBLIC_URL, Client, Made, sold

EXAMPLES = 5  # of each call and role
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
# these would end the keys that the others are asked with
LEFT_OUT = {("PATCH", "/v1/keys/{id}"), ("DELETE", "/v1/keys/{id}"), ("POST", "/v1/keys/{id}/rotate")}


def closed(schema: Any) -> Any:
    """The same with no field besides those described."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(one) for name, one in schema.items()}
    return inner | ({"additionalProperties": False} if schema.get("properties") else {})


def asked_of(role: str, ids: dict[str, Any]) -> dict[str, Any]:
    """The document with the calls of a role, about rows that are there."""
    told = document(ROUTES, PUBLIC_URL)
    may = {(method, path) for method, path, roles, *_ in ROUTES if role in roles or not roles} - LEFT_OUT
    paths: dict[str, Any] = {}
    for path, methods in told["paths"].items():
        for method, call in methods.items():
            if (method.upper(), path) in may:
                paths.setdefault(path, {})[method] = call
                for one in call["parameters"]:
                    if one.get("in") == "path":
                        one["schema"] = {"enum": there(path, one["name"], ids)}
    return told | {"paths": paths, "components": closed(told["components"])}


def there(path: str, name: str, ids: dict[str, Any]) -> list[Any]:
    if name == "incarnation":
        return ["gone", "x"]
    if name == "period":
        return ["2026-01", "x"]
    return [ids.get("conversions")] if path.startswith("/v1/conversions") else [1, 2, 2**31]


def run(told: dict[str, Any], url: str, key: str) -> tuple[Counter[int], list[str]]:
    """How often each status was answered, and what is wrong."""
    statuses: Counter[int] = Counter()
    wrong: list[str] = []

    def ask(case: Any) -> None:
        answer = case.call(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=20)
        statuses[answer.status_code] += 1
        if "there is no parameter" in answer.text:
            wrong.append(f"{case.method} {case.path} takes no {case.query}: {answer.text}")
        try:
            case.validate_response(answer, checks=CHECKS)
        except (Failure, FailureGroup) as failure:
            wrong.append(f"{case.method} {case.path} {answer.status_code}: {failure}")

    for found in schemathesis.openapi.from_dict(told).get_all_operations():
        tried = given(case=found.ok().as_strategy())(ask)
        settings(
            max_examples=EXAMPLES, database=None, deadline=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(tried)()  # fmt: skip
    return statuses, wrong


async def test_every_answer_is_one_that_the_document_has(admin: Client, made: Made, db: Connection) -> None:
    ids = {"conversions": str(await sold(db, made))}
    many = limits.REQUESTS_PER_MINUTE_MAX
    owner: dict[str, Any] = {"partner_id": made.partner_id}
    asking = {
        "partner": (await keys.create(db, Wanted("partner", **owner, requests_per_minute=many))).key,
        "advertiser": (
            await keys.create(db, Wanted("advertiser", advertiser_id=made.advertiser_id, requests_per_minute=many))
        ).key,
        "admin": admin.key,
    }
    for role, key in asking.items():
        statuses, wrong = await asyncio.to_thread(run, asked_of(role, ids), str(admin.session._base_url), key)
        assert wrong == [], "\n\n".join(wrong[:20])
        assert statuses[200] > len(ROUTES) // 10, statuses
