"""Nothing in a request changes where a redirect leads: the Location's origin is that of the stored destination, or of a
deep link to a host that the offer names."""

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.faults import edges
from loadtests.faults.edges import Filled, RunningEdge, ask, get, request
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
NAMES = "sub1 SUB2 source_id click_id url U desturl path redir_url redirect offer_id aff_id ip s1 code qr bot".split()
QUERIES = st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=5).map(
    lambda pairs: "&".join(f"{name}={quote(value, errors='replace')}" for name, value in pairs)
)


def one_click(destination: str, query: str, agent: str = edges.BROWSER, referer: str = "", **of_offer: Any) -> Decision:
    target = Target(
        edges.programme(), edges.link(),
        edges.offer(destination_url=destination, name="//evil.example", **of_offer),
        Partner(v=(1, 1), id=1, name="@evil.example", status="active"),
    )  # fmt: skip
    click = Click(at_ms=1_795_399_200_000, ip="203.0.113.9", user_agent=agent, referer=referer, query=query)
    return decide(click, target, ClickKey(1, b"k" * 32), Known(b"s" * 16))


@settings(derandomize=True, max_examples=1_000, deadline=None)
@given(destination=destinations(), query=QUERIES, agent=VALUES, referer=VALUES)
def test_no_parameter_changes_the_origin_of_any_destination(
    destination: str, query: str, agent: str, referer: str
) -> None:
    decision = one_click(destination, query, agent, referer, pass_parameters=True)
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


ALLOWED = frozenset({"shop.example", "*.brand.example", "dev.example:8443"})


@st.composite
def deep_links(draw: st.DrawFn) -> str:
    """What looks like a URL, near what is allowed."""
    scheme = draw(st.sampled_from(["https://", "http://", "HTTPS://", "https:", "//", "https:/", "javascript:", ""]))
    host = draw(st.lists(st.sampled_from([*HOSTS_NEAR, *HOSTILE, *"@.:/\\?#%[]{}*"]), max_size=4).map("".join))
    return scheme + host + "".join(draw(st.lists(PIECES, max_size=6)))


@settings(derandomize=True, max_examples=1_000, deadline=None)
@given(
    said=st.sampled_from(["url", "u", "desturl", "path"]), deep_link=st.one_of(deep_links(), VALUES), query=QUERIES,
    passing=st.booleans(),
)  # fmt: skip
def test_a_deep_link_leads_to_a_host_that_the_offer_names_or_nowhere(
    said: str, deep_link: str, query: str, passing: bool
) -> None:
    location = one_click(
        "https://shop.example/{sub1}",
        f"{said}={quote(deep_link, safe='', errors='replace')}&{query}",
        deep_link_hosts=ALLOWED,
        pass_parameters=passing,
    ).location
    assert location is not None
    scheme, host, port = origin(location)
    assert (scheme, port) in {("https", 443), ("http", 80), ("https", 8443), ("http", 8443)}
    assert host == "dev.example" if port == 8443 else host == "shop.example" or host.endswith(".brand.example")
    assert "@" not in urlsplit(location).netloc
    assert location.isascii()
    assert location.isprintable()
    assert not set(location) & {" ", "\\", "\r", "\n"}


HOSTS_NEAR = ["shop.example", "a.brand.example", "brand.example", "dev.example:8443", "evil.example"]
# Payloads for open redirects after OWASP's testing guide (WSTG-CLNT-04), its cheat sheet on unvalidated redirects and
# the usual collections, their hosts set to evil.example, and to shop.example where they want one that is allowed.
OWASP = [
    "http://evil.example",
    "https://evil.example",
    "//evil.example",
    "///evil.example",
    "////evil.example",
    "/////evil.example",
    "//evil.example/%2f..",
    "//evil.example/%2e%2e",
    "//evil.example/%2f%2e%2e",
    "///evil.example/%2f..",
    "////evil.example/%2e%2e%2f",
    "https:evil.example",
    "http:evil.example",
    "https:/evil.example",
    "https:///evil.example",
    "https:////evil.example",
    "/\\evil.example",
    "\\evil.example",
    "\\\\evil.example",
    "\\/\\/evil.example/",
    "/\\/evil.example/",
    "/\t/evil.example/",
    "/\n/evil.example/",
    "/\r/evil.example",
    "/%09/evil.example",
    "/%5cevil.example",
    "//%5cevil.example",
    "/%2f%2fevil.example",
    "%2f%2fevil.example",
    "/%0a/evil.example",
    "/%0d/evil.example",
    "%0d%0aLocation:%20https://evil.example",
    "\r\nLocation: https://evil.example",
    "\r\n\r\n<script>alert(1)</script>",
    "https://shop.example@evil.example",
    "https://shop.example:pass@evil.example",
    "https://shop.example%40evil.example",
    "https://shop.example%00@evil.example",
    "https://shop.example\x00@evil.example",
    "https://shop.example\\@evil.example",
    "https://shop.example\\.evil.example",
    "https://shop.example%5c@evil.example",
    "https://shop.example%2f@evil.example",
    "https://shop.example%23@evil.example",
    "https://shop.example%3f@evil.example",
    "https://shop.example.evil.example",
    "https://shop.example-evil.example",
    "https://evil.example/shop.example",
    "https://evil.example/?shop.example",
    "https://evil.example/#shop.example",
    "https://evil.example?https://shop.example/",
    "https://evil.example#https://shop.example/",
    "https://evil.example\\shop.example",
    "https://evil.example;shop.example",
    "https://evil.example&shop.example",
    "https://evil.example,shop.example",
    "https://evilshop.example",
    "https://shop.example.",
    "https://shop.example:80@evil.example",
    "https://shop.example:8443",
    "https://shop.example:22",
    "https://shop.example:",
    "https://shop.example:0",
    "https://shop.example:99999",
    "https://shop.example:80#@evil.example/",
    "https://[evil.example]",
    "https://[::1]",
    "https://[::ffff:7f00:1]/",
    "https://127.0.0.1",
    "https://2130706433",
    "https://0x7f000001",
    "https://0177.0.0.1",
    "https://127.1",
    "https://localhost",
    "https://169.254.169.254/latest/meta-data/",
    "https://evil。example",
    "https://evil%E3%80%82example",
    "//evil%E3%80%82example",
    "https://\uff45\uff56\uff49\uff4c.example",
    "https://shop。example",
    "https://\u017fhop.example",
    "https://shop.example\uff0f@evil.example",
    "https://shop.example\u202e.evil.example",
    "https://shop.example\u2028@evil.example",
    "\u00a0https://evil.example",
    "\x01https://evil.example",
    " https://evil.example",
    "\thttps://evil.example",
    "ht\ntps://evil.example",
    "〱evil.example",
    "〵evil.example",
    "ーevil.example",
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "java%0d%0ascript%0d%0a:alert(0)",
    "java\nscript:alert(1)",
    "\x19javascript:alert(1)",
    "javascript://shop.example/%0aalert(1)",
    "javascript://%0aalert(1)",
    "//javascript:alert(1);",
    "/javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==",
    "data://shop.example/,x",
    "vbscript:msgbox(1)",
    "file:///etc/passwd",
    "ftp://shop.example/",
    "ws://shop.example/",
    "blob:https://shop.example/x",
    "intent://shop.example#Intent;scheme=https;end",
    "view-source:https://shop.example",
    "@evil.example",
    ".evil.example",
    ":@evil.example",
    "/.evil.example",
    "/@evil.example",
    "//@evil.example",
    "///@evil.example",
    "<>//evil.example",
    "/<>//evil.example",
    "//;@evil.example",
    "//shop.example@evil.example/%2f..",
    "///shop.example@evil.example/%2e%2e",
    "..//evil.example",
    "/..//evil.example",
    "/../../evil.example",
    "?//evil.example",
    "#//evil.example",
    "evil.example",
    "https://{sub1}",
    "https://{sub1}.brand.example/",
    "https://shop.example{sub1}",
    "[[sub1]]",
    "https://go.example/c/demo",
    "http://go.example/c/demo",
    "https://go.example:443/c/demo",
]


def test_the_list_is_long_and_has_no_row_twice() -> None:
    assert len(OWASP) == len(set(OWASP)) > 120


@pytest.mark.parametrize(
    "said", ["url", "u", "desturl", "path", "redir_url", "redirect", "next", "sub1", "s1", "aff_sub2"]
)
async def test_no_payload_of_owasp_leads_anywhere_else_over_a_real_connection(
    shared_edge: RunningEdge, said: str
) -> None:
    paths = [
        f"{path}?{said}={written}&sub1=.evil.example&sub2=@evil.example"
        for payload in OWASP
        for written in (quote(payload, safe=""), quote(quote(payload, safe=""), safe=""))
        for path in ("/c/demo", "/acme/77/")
    ]
    for found in await edges.get_all(shared_edge.port, paths, connections=4):
        assert found.status == 302
        assert found.headers["location"].startswith(f"https://shop.example/{'' if said == 'path' else 'x/'}")


async def test_no_payload_of_owasp_in_a_path_leads_anywhere(shared_edge: RunningEdge) -> None:
    paths = [
        path
        for payload in OWASP
        for written in (quote(payload, safe=""), quote(payload, safe=ASCII))
        for path in (
            f"/c/{written}", f"/c/demo/{written}", f"/{written}", f"/{written}/77/", f"/acme/{written}",
            f"/tracking202/redirect/{written}",
        )
    ]  # fmt: skip
    for first in range(0, len(paths), 50):
        some = paths[first : first + 50]
        for path, found in zip(
            some, await asyncio.gather(*(get(shared_edge.port, path) for path in some)), strict=True
        ):
            if path.startswith(("/c/demo/?", "/c/demo/#")):  # the link itself
                assert found.headers["location"].startswith("https://shop.example/x/"), path
                continue
            assert found.status in (400, 404), path
            assert "location" not in found.headers, path


ASCII = "".join(chr(c) for c in range(0x21, 0x7F))


@pytest.fixture(scope="module")
async def shared_edge(shared_redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningEdge]:
    """An offer that takes deep links to itself alone."""
    offer = edges.offer(
        destination_url="https://shop.example/x/{sub1}?a={sub2}&p={click_id}", deep_link_hosts=ALLOWED,
        pass_parameters=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("redirects")
    async with (
        edges.filled(shared_redis_url, edges.configs() | {redis_keys.offer(1): offer}),
        edges.running_edge(edges.settings(folder, shared_redis_url)) as running,
    ):
        yield running


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
