"""A link can be looked at, as a page, as JSON or as a QR code, and nobody counts it."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import segno

from loadtests.faults import edges
from loadtests.faults.edges import Answer, Filled, RunningEdge, ask, get, request
from schemas import limits, redis_keys
from schemas.links import Partner

URL = "https://shop.example/buy?from={sub1}&p={click_id}"
GONE = "https://gone.example/?x=<script>"
LINKS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any], dict[str, Any]]] = {
    "an ordinary link": ({}, {}, {"status": "active", "leads_to": URL, "is_fallback": False}),
    "a paused link": ({"status": "paused"}, {}, {"status": "paused", "leads_to": "", "is_fallback": True}),
    "an archived offer": ({}, {"status": "archived"}, {"status": "paused", "leads_to": "", "is_fallback": True}),
    "an early link": ({"starts_ms": 2**50}, {}, {"status": "not started", "leads_to": "", "is_fallback": True}),
    "a late link": ({"ends_ms": 1}, {}, {"status": "expired", "leads_to": "", "is_fallback": True}),
    "a private offer": ({}, {"access": "private"}, {"status": "stopped", "leads_to": "", "is_fallback": True}),
    "one with a fallback": (
        {"status": "paused", "fallback_url": GONE}, {}, {"status": "paused", "leads_to": GONE, "is_fallback": True},
    ),
}  # fmt: skip


async def nothing_is_counted(running: RunningEdge, publisher: Filled) -> bool:
    await running.edge.recorder.drained()
    await running.edge.counters.flush(publisher.redis)
    found = [key async for key in publisher.redis.scan_iter("live:*")]
    return running.wrote() == [] and running.edge.tally.totals == {} and found == []


async def test_a_plus_behind_a_link_says_where_it_leads(running: RunningEdge, publisher: Filled) -> None:
    await publisher.write({redis_keys.partner(1): Partner(v=(1, 1), id=1, name="Secret partner", status="active")})
    for name, (of_link, of_offer, expected) in LINKS.items():
        link, offer = edges.link(**of_link), edges.offer(**of_offer)
        await publisher.write({redis_keys.link("demo"): link, redis_keys.offer(1): offer})
        running.edge.links.tier.void_all()
        found = await get(running.port, "/c/demo+")
        assert found.json() == {"code": "demo", "offer": "Shop"} | expected, name
        seen = await get(running.port, "/c/demo+", Accept="text/html")
        assert seen.status == 200, name
        assert seen.headers["content-type"].startswith("text/html"), name
        assert expected["status"].encode() in seen.body, name
        assert b"<script" not in seen.body, name
        assert b"Secret" not in seen.body + found.body, name
        assert (await ask(running.port, request("/c/demo+", "HEAD"))).status == 200
    assert await nothing_is_counted(running, publisher)


async def test_it_says_where_this_very_link_leads(running: RunningEdge, publisher: Filled) -> None:
    await publisher.write({redis_keys.offer(1): edges.offer(deep_link_hosts=frozenset({"shop.example"}))})
    running.edge.links.tier.void_all()
    found = (await get(running.port, "/c/demo+?path=/red&no_track=1")).json()
    assert found["leads_to"] == "https://shop.example/red"


REFUSED = [
    ("/c/nothing+", 404),
    ("/c/+", 404),
    ("/c/demo++", 404),
    ("/c/%00+", 404),
    ("/c/demo+?" + "&".join(f"a{n}=1" for n in range(65)), 400),
    ("/c/demo+?x=" + "y" * limits.QUERY_BYTES_MAX, 414),
    ("/c/nothing/qr.svg", 404),
    ("/c/%00/qr.svg", 404),
    ("/c/demo/qr.png", 404),
    ("/c/demo/qr.svg?x=" + "y" * limits.QUERY_BYTES_MAX, 414),
]


@pytest.mark.parametrize(("path", "status"), REFUSED)
async def test_there_is_nothing_to_see_of_what_is_no_link(
    running: RunningEdge, publisher: Filled, path: str, status: int
) -> None:
    assert (await get(running.port, path)).status == status
    assert await nothing_is_counted(running, publisher) or path == "/c/+"


def dark(svg: bytes) -> set[tuple[int, int]]:
    """The dark modules of a picture, (column, row), its quiet zone of 4 taken off."""
    found, column, row = set(), 0.0, 0.0
    path = ElementTree.fromstring(svg).find(".//*[@class='qrline']")
    assert path is not None
    for command, first, second in re.findall(r"([Mmh])(-?[\d.]+)(?: (-?[\d.]+))?", path.attrib["d"]):
        if command == "h":
            found |= {(int(column) + n - 4, int(row) - 4) for n in range(int(first))}
            column += int(first)
        else:
            from_column, from_row = (0.0, 0.0) if command == "M" else (column, row)
            column, row = from_column + float(first), from_row + float(second)
    return found


def says(found: Answer, text: str) -> bool:
    """Whether a picture is the QR code of a text."""
    rows = segno.make(text, error="m", micro=False).matrix
    return dark(found.body) == {(x, y) for y, row in enumerate(rows) for x, module in enumerate(row) if module}


async def test_a_qr_code_says_the_link_as_this_visitor_came_by_it_and_that_it_was_scanned(
    running: RunningEdge, publisher: Filled
) -> None:
    for host in ("go.example", "GO.example:8443", "127.0.0.1:80"):
        found = await ask(running.port, request("/c/demo/qr.svg?sub1=x", headers={"Host": host}))
        assert (found.status, found.headers["content-type"]) == (200, "image/svg+xml")
        assert found.headers["cache-control"] == "public, max-age=86400"
        assert ElementTree.fromstring(found.body).tag == "{http://www.w3.org/2000/svg}svg"
        assert says(found, f"http://{host.lower()}/c/demo?qr=1")
        assert not says(found, f"http://{host.lower()}/c/demo?qr=2")
    assert await nothing_is_counted(running, publisher)


async def test_only_a_proxy_that_we_trust_says_what_the_scheme_was(
    redis_url: str, publisher: Filled, tmp_path: Path
) -> None:
    asked = request("/c/demo/qr.svg", headers={"X-Forwarded-Proto": "https"})
    for trusted, scheme in (("127.0.0.0/8", "https"), ("10.0.0.0/8", "http")):
        settings = edges.settings(tmp_path / scheme, redis_url, trusted_proxies=trusted)
        async with edges.running_edge(settings) as running:
            assert says(await ask(running.port, asked), f"{scheme}://go.example/c/demo?qr=1")


@pytest.mark.parametrize("host", ["", "a b", "me@go.example", "go.example/x", "[", "go.example\\x"])
async def test_a_host_that_is_none_is_in_no_qr_code(running: RunningEdge, host: str) -> None:
    assert (await ask(running.port, request("/c/demo/qr.svg", headers={"Host": host}))).status == 400


async def test_a_crowd_that_wants_qr_codes_of_ever_new_hosts_is_told_to_come_back_and_clicks_go_on(
    running: RunningEdge,
) -> None:
    raws = [request("/c/demo/qr.svg", headers={"Host": f"h{n}.example"}) for n in range(100)]
    crowd = asyncio.gather(*(ask(running.port, raw) for raw in raws))
    clicks = [(await get(running.port, "/c/demo")).status for _ in range(20)]
    statuses = [found.status for found in await crowd]
    assert clicks == [302] * 20
    assert set(statuses) == {200, 503}
    assert 1 <= statuses.count(200) <= limits.QR_WAITING_MAX + 10
    assert running.edge.qr_codes.turned_away == statuses.count(503)


async def test_a_crowd_that_wants_one_qr_code_makes_one(running: RunningEdge) -> None:
    found = await edges.get_all(running.port, ["/c/demo/qr.svg"] * 200)
    assert {answer.status for answer in found} == {200}
    assert running.edge.qr_codes.fetches == 1
