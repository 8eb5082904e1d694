"""The doors of the edge are described as they are: its routes, what they read, and what they answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import msgspec
import pytest
from jsonschema import Draft202012Validator

from aggregator.api import edge_doors
from aggregator.api.app import ROUTES
from aggregator.api.edge_doors import ALIKE, CLICK, DOORS, PAIR, said_in
from aggregator.api.openapi import document
from loadtests.faults import edges
from loadtests.faults.edges import TOKEN, Answer, Filled, RunningEdge
from schemas.conversions.dialects import DIALECTS
from schemas.errors import STATUS
from tests.aggregator.api.conftest import PUBLIC_URL
from tests.aggregator.api.test_api_schemathesis import closed
from tracker import params
from tracker.app import CONVERSION_DOORS, routes
from tracker.doors import postbacks

PIXEL_KEY, PAGE = "pixel-key-of-the-test", "https://shop.example"
HTML = {"Accept": "text/html"}
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PAIR_SAID = "?offer_id=77&affiliate_id=acme"
# method, door, what is asked, headers, the status it is answered with
CLICKS: list[tuple[str, str, str, dict[str, str], int]] = [
    (method, door, asked, headers, status)
    for door, asked, headers, status in (
        ("/c/{code}", "/c/demo?sub1=a&gclid=b", {}, 302), ("/c/{code}", "/c/nobody", {}, 404),
        ("/c/{code}", "/c/nobody", HTML, 404), ("/c/{code}", f"/c/demo?{'a=1&' * 200}", {}, 400),
        ("/c/{code}", f"/c/demo?a={'a' * 9000}", {}, 414), ("/c/{code}+", "/c/demo+", {}, 200),
        ("/c/{code}+", "/c/demo+", HTML, 200), ("/c/{code}+", "/c/nobody+", {}, 404),
        ("/c/{code}/qr.svg", "/c/demo/qr.svg", {}, 200), ("/c/{code}/qr.svg", "/c/nobody/qr.svg", {}, 404),
        ("/c", f"/c{PAIR_SAID}", {}, 302), ("/c", "/c", {}, 400), ("/aff_c", f"/aff_c{PAIR_SAID}", {}, 302),
        ("/click", f"/click{PAIR_SAID}", {}, 302), ("/click.php", "/click.php?key=demo", {}, 302),
        ("/click.php", "/click.php?key=nobody", HTML, 404), ("/", "/", {}, 404),
        ("/tracking202/redirect/dl.php", "/tracking202/redirect/dl.php?t202id=demo", {}, 302),
        ("/{affiliate}/{offer}", "/acme/77/?sub1=a", {}, 302), ("/{affiliate}/{offer}", "/no/body", {}, 404),
    )
    for method in ("GET", "HEAD")
] + [
    ("GET", "/tag.js", "/tag.js", {}, 200), ("GET", "/live", "/live", {}, 200), ("GET", "/ready", "/ready", {}, 200),
]  # fmt: skip


@pytest.fixture
async def told(running: RunningEdge) -> dict[str, Any]:
    running.edge.warm = True
    return document(ROUTES, PUBLIC_URL)


def test_every_route_of_the_edge_is_described_and_every_door_described_is_routed(running: RunningEdge) -> None:
    router = routes(running.edge).router
    routed = {f"{one.method} {one.resource.canonical.replace('{end}', '')}" for one in router.routes() if one.resource}
    assert routed == {*DOORS, *ALIKE}


def test_a_click_is_described_with_our_own_names_of_what_the_edge_reads() -> None:
    ours = {*params.ALIASES.values(), *params.KEPT, "path", "bot"}
    assert set(PAIR) == ours
    assert set(CLICK) == ours - {"offer_id", "affiliate_id"}


def test_a_postback_is_described_in_the_dialect_that_the_edge_reads_it_in() -> None:
    for method, path, _ in CONVERSION_DOORS:
        if path in postbacks.PATHS or path in postbacks.SHARED:
            spoken = DIALECTS[postbacks.speaking(advertiser(), path).dialect]
            assert set(DOORS[f"{method} {path}"].query) >= set(said_in(spoken)), path


def advertiser() -> Any:
    (one, *_) = edges.advertiser(1).values()
    return one


def test_each_server_is_named_and_the_edge_is_another_one() -> None:
    told = document(ROUTES, PUBLIC_URL)
    assert told["servers"] == [{"url": "/"}]
    for path, methods in told["paths"].items():
        for method, call in methods.items():
            name = f"{method.upper()} {path}"
            servers = [one.get("variables", {}).get("edge", {}).get("default") for one in call.get("servers", [{}])]
            assert servers == ([PUBLIC_URL] if name in DOORS else [None, PUBLIC_URL] if name in ALIKE else [None])
            assert (call["tags"] == ["edge"]) == (name in DOORS)


def faults(told: dict[str, Any], method: str, door: str, answer: Answer) -> Iterator[str]:
    """What of an answer is not as described."""
    described = told["paths"][door][method.lower()]["responses"].get(str(answer.status))
    if described is None:
        yield f"status {answer.status}"
        return
    for name in described.get("headers", {}):
        if name.lower() not in answer.headers:
            yield f"no {name}"
    content = described.get("content", {})
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if method == "HEAD" or not (content or answer.body):
        return
    if kind not in content:
        yield f"a {kind}"
    elif kind == "application/json":
        schema = {"components": closed(told["components"]), **closed(content[kind]["schema"])}
        yield from (one.message for one in Draft202012Validator(schema).iter_errors(answer.json()))


async def ask(running: RunningEdge, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Answer:
    return await edges.ask(running.port, edges.request(path, method, headers, body))


async def test_clicks_and_looks_are_answered_as_described(running: RunningEdge, told: dict[str, Any]) -> None:
    wrong = []
    for method, door, path, headers, status in CLICKS:
        answer = await ask(running, method, path, headers, None)
        wrong += [(method, path, fault) for fault in faults(told, method, door, answer)]
        assert answer.status == status, (method, path, answer)
    assert wrong == []


async def test_conversions_are_answered_as_described(
    running: RunningEdge, told: dict[str, Any], publisher: Filled
) -> None:
    await publisher.write(edges.advertiser(1, TOKEN, pixel_key=PIXEL_KEY, pixel_origins=(PAGE,)))
    location = (await edges.get(running.port, "/c/demo")).headers["location"]
    (click,) = parse_qs(urlsplit(location).query)["p"]
    wrong, statuses = [], set()
    for method, door, path, headers, body in sent(click):
        answer = await ask(running, method, path, headers, body)
        wrong += [(method, path, answer.status, fault) for fault in faults(told, method, door, answer)]
        statuses.add((f"{method} {door}", answer.status))
    assert wrong == []
    assert {200, 400, 401} <= {status for _, status in statuses}
    taken = {name for name, status in statuses if status == 200}
    assert taken == {"GET /pixel.gif"} | {name for name, door in DOORS.items() if door.for_senders}


def sent(click: str) -> Iterator[tuple[str, str, str, dict[str, str], bytes | None]]:
    """Conversions at every door for them, as they should be and as they should not."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for name, door in DOORS.items():
        method, path = name.split()
        if door.for_senders and path != "/v1/conversions":
            dialect = DIALECTS[postbacks.speaking(advertiser(), path).dialect]
            called = {"nid": "1"} if path == "/" else {}
            for n, more in enumerate(({}, {"return": "OK"}, {"compat": "200", "status": "?"}, {"currency": "XXX"})):
                fields = {"click_id": click, "order_id": f"{path}-{method}-{n}", "amount": "9.00", "currency": "EUR"}
                said = {
                    dialect.parameters[field][0]: value
                    for field, value in fields.items()
                    if field in dialect.parameters
                }
                query = urlencode(said | called | more)
                at = path.replace("{token}", TOKEN)
                for headers in (BEARER, {}, {"Authorization": "Bearer nobody's"}):
                    yield (method, path, f"{at}?{query}", headers, None)
                    if method == "POST":
                        yield (method, path, at, headers | form, query.encode())
            if method == "POST":
                yield (method, path, at, BEARER | {"Content-Type": "text/plain"}, b"x")
    one = {"click_id": click, "order_id": "j", "amount": "9.00", "currency": "EUR"}
    for body in (one, {"conversions": [one, one | {"amount": 9}, {}]}, one | {"x": "y"}, {"conversions": []}, []):
        for headers in (BEARER, {}):
            yield ("POST", "/v1/conversions", "/v1/conversions", headers, msgspec.json.encode(body))
    for key in (PIXEL_KEY, "nobody's"):
        for origin in (PAGE, "https://other.example"):
            query = urlencode({"key": key, **one})
            yield ("GET", "/pixel.gif", f"/pixel.gif?{query}", {"Referer": f"{origin}/thanks"}, None)


def test_each_code_of_a_door_is_one_that_there_is() -> None:
    for name, door in DOORS.items():
        assert set(door.refused) <= STATUS.keys(), name
        assert not door.refused or door.refusal, name
    assert edge_doors.ERROR["properties"]["error"]["required"] == ["code", "message"]
