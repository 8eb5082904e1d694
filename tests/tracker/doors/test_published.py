"""Links that are published out there, in every format of the trackers people come from, at a running edge."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from loadtests.faults import edges
from loadtests.faults.edges import Filled, RunningEdge, ask, get, request
from schemas import redis_keys
from schemas.events import Click
from schemas.links import Config, Domain

FORMATS = [
    "/c?offer_id=77&affiliate_id=acme",
    "/c?offer_id=1&affiliate_id=1",
    "/aff_c?offer_id=77&aff_id=acme",
    "/aff_c?OFFER_ID=77&AFF_ID=acme",
    "/aff_c?offer_id=77&amp;aff_id=acme",
    "/aff_c?offer_id=77%20&aff_id=+acme",
    "/click?pid=acme&offer_id=77",
    "/click.php?offer_id=77&aff_id=acme",
    "/tracking202/redirect/dl.php?t202id=77&t202pubid=acme",
    "/acme/77/",
    "/acme/77",
    "/1/1/",
    *(f"/c?{name}=77&affiliate_id=acme" for name in "offer_id oid o offerid campaign_id t202id".split()),
    *(f"/c?offer_id=77&{name}=acme" for name in "affiliate_id aff_id affid pid a_aid a ref via partner_id".split()),
]
ADDED = "ref=newsletter&via=x&a=1&pid=2&campaign_id=9&o=3"  # by a mailing tool, a network, an ad
BY_CODE = [
    "/c/demo",
    "/c/demo/",
    "/click.php?key=demo",
    "/tracking202/redirect/dl.php?t202id=demo",
    *(f"{path}{ADDED}" for path in ("/c/demo?", "/click.php?key=demo&", "/tracking202/redirect/dl.php?t202id=demo&")),
]


@pytest.fixture(scope="module")
async def running(
    shared_redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[RunningEdge, Filled]]:
    folder: Path = tmp_path_factory.mktemp("published")
    async with (
        edges.filled(shared_redis_url) as publisher,
        edges.running_edge(edges.settings(folder, shared_redis_url)) as running,
    ):
        await edges.follows(running.edge)
        yield running, publisher


@asynccontextmanager
async def changed(edge: RunningEdge, publisher: Filled, key: str, value: Config) -> AsyncIterator[None]:
    """One config is another while this lasts."""
    await publisher.write({key: value})
    edge.edge.links.tier.void_all()
    yield
    await publisher.write({key: edges.configs()[key]})
    edge.edge.links.tier.void_all()


def with_sub(path: str) -> str:
    return f"{path}{'&' if '?' in path else '?'}sub1=n%26ws"


async def last_click(running: RunningEdge) -> Click:
    await running.edge.recorder.drained()
    found = running.wrote()[-1]
    assert isinstance(found, Click)
    return found


@pytest.mark.parametrize(("path", "link_id"), [*((path, 0) for path in FORMATS), *((path, 1) for path in BY_CODE)])
async def test_a_published_link_leads_to_its_offer(
    running: tuple[RunningEdge, Filled], path: str, link_id: int
) -> None:
    edge, _ = running
    found = await get(edge.port, with_sub(path))
    assert found.status == 302
    assert found.headers["location"].startswith("https://shop.example/buy?from=n%26ws&p=")
    event = await last_click(edge)
    assert (event.link_id, event.offer_id, event.partner_id, event.reason) == (link_id, 1, 1, "")
    before = edge.edge.tally.totals.get("uncounted", 0)
    head = await ask(edge.port, request(with_sub(path), "HEAD"))
    assert (head.status, head.headers["location"][:36]) == (302, found.headers["location"][:36])
    assert edge.edge.tally.totals["uncounted"] == before + 1


UNKNOWN = [
    "/c?offer_id=78&affiliate_id=acme",
    "/c?offer_id=77&affiliate_id=nobody",
    "/c?offer_id=77",
    "/c?affiliate_id=acme",
    "/c?offer_id=%00&affiliate_id=acme",
    "/aff_c?offer_id=ACME&aff_id=x",
    "/acme/78/",
    "/nobody/77",
    "/c/nothing",
    "/c/demo.",
    "/c/demo%20",
    "/c/%c3%a9",
    "/c/" + "x" * 65,
    "/click.php?key=nothing",
    "/click.php?key=%2e%2e",
    "/c?offer_id=a%20b&affiliate_id=acme",
    "/c?offer_id=77&affiliate_id={aff_id}",
    "/c?offer_id=77&affiliate_id=" + "x" * 65,
]


@pytest.mark.parametrize("path", UNKNOWN)
async def test_who_is_not_known_goes_to_the_fallback(running: tuple[RunningEdge, Filled], path: str) -> None:
    edge, publisher = running
    assert (await get(edge.port, path)).status == 404
    fallback = edges.programme(fallback_url="https://fallback.example/")
    async with changed(edge, publisher, redis_keys.PROGRAMME, fallback):
        assert (await get(edge.port, path)).headers["location"] == "https://fallback.example/"
        assert (await last_click(edge)).reason == "unknown_link"


REFUSED = [
    ("/c", 400, "bad_request"),
    ("/c?offer_id=&affiliate_id=", 400, "bad_request"),
    ("/click.php", 400, "bad_request"),
    ("/c?offer_id=%20&affiliate_id=", 400, "bad_request"),
    ("/?offer_id=77&affiliate_id=acme", 404, "not_found"),
    ("/click.php?key=demo&" + "&".join(f"p{n}=" for n in range(64)), 400, "bad_request"),
    ("/nobody/nothing/", 404, "not_found"),
    ("/wp-admin/setup.php", 404, "not_found"),
    ("/c/demo//", 404, "not_found"),
    ("/acme/77/more", 404, "not_found"),
    ("/acme", 404, "not_found"),
    ("/acme//77", 404, "not_found"),
    ("/a%20b/77", 404, "not_found"),
    ("/" + "x" * 65 + "/77", 404, "not_found"),
    ("/v1/conversions", 405, "method_not_allowed"),
    ("/v1/77", 404, "not_found"),
    ("/live/77", 404, "not_found"),
    ("/ready/77/", 404, "not_found"),
    ("/postback/77", 404, "not_found"),
]


@pytest.mark.parametrize("path", [*UNKNOWN, *FORMATS, *(path for path, *_ in REFUSED if path.startswith("/cl"))])
async def test_each_request_at_a_click_door_ends_in_one_outcome(running: tuple[RunningEdge, Filled], path: str) -> None:
    edge, _ = running
    before = sum(edge.edge.tally.totals.values())
    await get(edge.port, path)
    await edge.edge.recorder.drained()
    assert sum(edge.edge.tally.totals.values()) == before + 1


@pytest.mark.parametrize(("path", "status", "code"), REFUSED)
async def test_what_is_no_link_is_refused_and_leaves_no_trace(
    running: tuple[RunningEdge, Filled], path: str, status: int, code: str
) -> None:
    edge, publisher = running
    before = edge.wrote()
    fallback = edges.programme(fallback_url="https://fallback.example/")
    async with changed(edge, publisher, redis_keys.PROGRAMME, fallback):
        found = await get(edge.port, path)
    assert found.status == status
    error = found.json()
    assert (error.get("error") or {"code": error.get("reason")})["code"] == code
    await edge.edge.recorder.drained()
    assert edge.wrote() == before


@pytest.mark.parametrize("path", ["/live", "/ready"])
async def test_our_own_doors_stay_open(running: tuple[RunningEdge, Filled], path: str) -> None:
    assert (await get(running[0].port, path)).status == 200


HOSTS = [
    ("own.example", "https://own.example.net/"),
    ("OWN.example.", "https://own.example.net/"),
    ("own.example:8443", "https://own.example.net/"),
    ("alias.example", "https://shop.example/"),
    ("go.example", "https://shop.example/"),
    ("[::1]:80", "https://shop.example/"),
    ("[", "https://shop.example/"),
    ("own.example.evil.example", "https://shop.example/"),
    ("x" * 5000, "https://shop.example/"),
    ("own.example/", "https://shop.example/"),
    ("\xe9", "https://shop.example/"),
    ("own.example@x", "https://shop.example/"),
    ("", "https://shop.example/"),
]


@pytest.mark.parametrize(("host", "destination"), HOSTS)
async def test_the_host_decides_whose_codes_are_meant(
    running: tuple[RunningEdge, Filled], host: str, destination: str
) -> None:
    edge, publisher = running
    domains = {"own.example": Domain(own_links=True), "alias.example": Domain()}
    await publisher.change(
        redis_keys.link("demo", "own.example"), edges.link(id=9, destination_url="https://own.example.net/")
    )
    async with changed(edge, publisher, redis_keys.PROGRAMME, edges.programme(domains=domains)):
        found = await ask(edge.port, request("/c/demo", headers={"Host": host}))
    if found.status != 400:  # some hosts are none, and aiohttp says so
        assert found.headers["location"].startswith(destination)


async def test_a_domain_has_its_own_fallback_and_does_not_fall_back_to_the_codes_of_others(
    running: tuple[RunningEdge, Filled],
) -> None:
    edge, publisher = running
    domains = {"own.example": Domain(own_links=True, fallback_url="https://domain.example/")}
    programme = edges.programme(domains=domains, fallback_url="https://fallback.example/")
    async with changed(edge, publisher, redis_keys.PROGRAMME, programme):
        answers = [
            await ask(edge.port, request("/c/paused", headers={"Host": host})) for host in ("own.example", "go.example")
        ]
        pair = await ask(edge.port, request("/acme/77/", headers={"Host": "own.example"}))
    assert [found.headers["location"] for found in answers] == ["https://domain.example/", "https://fallback.example/"]
    assert pair.headers["location"].startswith("https://shop.example/")


async def test_an_archived_domain_does_not_hand_its_visitors_to_the_links_of_others(
    running: tuple[RunningEdge, Filled],
) -> None:
    edge, publisher = running
    of = Domain(own_links=True, fallback_url="https://domain.example/", archived=True)
    async with changed(edge, publisher, redis_keys.PROGRAMME, edges.programme(domains={"own.example": of})):
        found = await ask(edge.port, request("/c/demo", headers={"Host": "own.example"}))
        pair = await ask(edge.port, request("/acme/77/", headers={"Host": "own.example"}))
    assert found.headers["location"] == "https://domain.example/"
    assert pair.headers["location"].startswith("https://shop.example/")


@pytest.mark.parametrize("accept", ["text/html,application/xhtml+xml,*/*;q=0.8", "*/*", ""])
async def test_a_person_reads_a_page_and_a_program_json(running: tuple[RunningEdge, Filled], accept: str) -> None:
    for path in ("/c/nothing", "/nobody/nothing/", "/c", "/favicon.ico", "/c/<script>"):
        found = await get(running[0].port, path, Accept=accept)
        assert found.status in (400, 404)
        if "text/html" not in accept:
            assert found.json()["error"]["message"]
            continue
        assert found.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in found.headers["content-security-policy"]
        assert b"<h1>" in found.body
        assert b"script" not in found.body
