"""Nothing in a request changes where a redirect leads: the Location's origin is that of the stored destination."""

import asyncio
from random import Random
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.faults import edges
from loadtests.faults.edges import Filled, RunningEdge, ask, request
from schemas import redis_keys
from schemas.click_id import ClickKey
from schemas.links import Partner, check_destination, origin
from schemas.outcomes import Reason
from tracker.macros import ALIASES
from tracker.steps import Click, Decision, Known, Target, decide

MACROS = [
    "{click_id}",
    "[[click_id]]",
    "{sub1}",
    "[[SUB1]]",
    "{sub2}",
    "{source_id}",
    "{unknown}",
    "{country}",
    "{}",
    "{{sub1}}",
]
MACROS += [f"{{{alias}}}" for alias in ALIASES]
HOSTILE = [
    "//evil.example",
    "\\\\evil.example",
    "https://evil.example",
    "@evil.example",
    ".evil.example",
    ":80@evil.example",
    "%2f%2fevil.example",
    "\r\nLocation: https://evil.example",
    "\n\nHTTP/1.1 200",
    "\t//evil.example",
    "/../../evil",
    "javascript:alert(1)",
    "#@evil.example",
    "?@evil.example",
    "{sub2}",
    "[[sub2]]",
    "{click_id}",
    "\0",
    "evil.example:443",
    "http://evil.example\\@",
    "%5c%5cevil.example",
    "。evil.example",
    "\u202eevil",
    "é",
    " //evil.example",
    ";//evil.example",
]
PIECES = st.one_of(
    st.sampled_from(MACROS), st.sampled_from(list("abc/?#&=.;:@!~%-_{}[]()$,'*+")), st.just("//"), st.just("é")
)
HOSTS = st.sampled_from(
    "shop.example SHOP.example shop.example:8443 127.0.0.1:9 [2001:db8::1] [::1]:80 xn--mnchen-3ya.example".split()
)


@st.composite
def destinations(draw: st.DrawFn) -> str:
    """Anything that `check_destination` lets through, macros wherever it allows them."""
    rest = "".join(draw(st.lists(PIECES, max_size=12)))
    url = f"{draw(st.sampled_from(['https', 'http', 'HTTPS']))}://{draw(HOSTS)}{rest}"
    try:
        check_destination(url)
    except ValueError:
        return draw(
            st.sampled_from(
                ["https://shop.example/{sub1}", "https://shop.example?{sub1}", "https://shop.example#{sub1}"]
            )
        )
    return url


VALUES = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=12))
QUERIES = st.lists(
    st.tuples(st.sampled_from(["sub1", "SUB2", "source_id", "click_id", "url", "redirect", "offer_id", "ip"]), VALUES),
    max_size=5,
).map(lambda pairs: "&".join(f"{name}={quote(value, errors='replace')}" for name, value in pairs))


def one_click(destination: str, query: str, agent: str = edges.BROWSER, referer: str = "") -> Decision:
    target = Target(
        edges.programme(), edges.link(), edges.offer(destination_url=destination, name="//evil.example"),
        Partner(v=(1, 1), id=1, name="@evil.example", status="active"),
    )  # fmt: skip
    click = Click(at_ms=1_795_399_200_000, ip="203.0.113.9", user_agent=agent, referer=referer, query=query)
    return decide(click, target, ClickKey(1, b"k" * 32), Known(b"s" * 16))


@settings(derandomize=True, max_examples=2_000, deadline=None)
@given(destination=destinations(), query=QUERIES, agent=VALUES, referer=VALUES)
def test_no_parameter_changes_the_origin_of_any_destination(
    destination: str, query: str, agent: str, referer: str
) -> None:
    decision = one_click(destination, query, agent, referer)
    assert decision.reason in (Reason.NONE, Reason.NO_USER_AGENT, Reason.KNOWN_BOT)
    location = decision.location or ""
    assert origin(location) == origin(destination)
    assert urlsplit(location).netloc == urlsplit(destination).netloc
    assert location.isascii()
    assert location.isprintable()
    assert " " not in location
    assert "\\" not in location


@settings(derandomize=True, max_examples=500, deadline=None)
@given(destination=destinations(), query=QUERIES)
def test_a_fallback_is_as_firm_as_a_destination(destination: str, query: str) -> None:
    target = Target(edges.programme(fallback_url=destination))
    click = Click(at_ms=1_795_399_200_000, ip="203.0.113.9", user_agent=edges.BROWSER, referer="", query=query)
    location = decide(click, target, ClickKey(1, b"k" * 32), Known(b"s" * 16)).location or ""
    assert urlsplit(location).netloc == urlsplit(destination).netloc


SPOOFS = {
    "Host": "evil.example",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "javascript",
    "X-Forwarded-For": "6.6.6.6",
    "X-Forwarded-Port": "666",
    "Forwarded": "host=evil.example;proto=http",
    "X-Original-URL": "//evil.example",
    "X-Rewrite-URL": "//evil.example",
    "X-Host": "evil.example",
    "Referer": "https://evil.example/",
    "Origin": "https://evil.example",
    "X-Forwarded-Prefix": "//evil.example",
    "Cookie": "url=https://evil.example",
    "User-Agent": "//evil.example",
}


async def test_no_header_and_no_path_changes_the_origin_over_a_real_connection(
    running: RunningEdge, publisher: Filled
) -> None:
    url = "https://shop.example:8443/{sub1}/x?a={sub2}&p={click_id}&u={source_id}#{sub1}"
    await publisher.write({redis_keys.offer(1): edges.offer(destination_url=url)})
    running.edge.links.tier.void_all()
    rng = Random(3)
    raws = []
    for _ in range(1_000):
        query = "&".join(
            f"{name}={quote(rng.choice(HOSTILE))}" for name in rng.sample(["sub1", "sub2", "source_id", "url"], 3)
        )
        path = rng.choice(
            [
                "/c/demo",
                "/c/demo",
                "http://evil.example/c/demo",
                "//evil.example/c/demo",
                "/c/demo//evil.example",
                "/c/demo@x",
            ]
        )
        raws.append(
            request(f"{path}?{query}", rng.choice(["GET", "HEAD"]), dict(rng.sample(sorted(SPOOFS.items()), 4)))
        )
    redirected = 0
    for first in range(0, len(raws), 50):
        for found in await asyncio.gather(*(ask(running.port, raw) for raw in raws[first : first + 50])):
            assert found.status in (302, 400, 404)
            assert (found.status == 302) == ("location" in found.headers)
            if found.status == 302:
                redirected += 1
                assert found.headers["location"].startswith("https://shop.example:8443/")
                assert found.headers["cache-control"] == "no-store"
    assert redirected > 400


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_value_arrives_as_a_value(hostile: str) -> None:
    location = one_click("https://shop.example/{sub1}", f"sub1={quote(hostile)}").location or ""
    assert location.startswith("https://shop.example/")
    assert "evil.example/" not in location.partition("?")[0].replace("shop.example/", "", 1).replace("%2F", "")
