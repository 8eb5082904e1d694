"""The programme, its domains and its blocks: each change is in the config that edges read when its answer is there."""

import asyncio
from typing import Any

import msgspec
import pytest

from aggregator.db.connect import Connection
from schemas import limits, links, redis_keys
from schemas.redis import Redis, done
from tests.aggregator.api.conftest import Client, Made, state


async def published(redis: Redis, key: str = redis_keys.PROGRAMME) -> Any:
    return links.decode(key, await done(redis.get(key)))


async def test_a_change_of_the_programme_is_live_audited_and_has_a_version(admin: Client, redis: Redis) -> None:
    _, before = await admin("GET", "/v1/programme")
    assert before == {"timezone": "UTC", "currency": "EUR", "fallback_url": None}
    change = {"timezone": "Asia/Kathmandu", "currency": "USD", "fallback_url": "https://shop.example/?id={click_id}"}
    status, after = await admin("PATCH", "/v1/programme", json=change, headers={"If-Match": '"1"'})
    assert (status, after) == (200, change | {"live": True})
    config = await published(redis)
    assert (config.timezone, config.currency, config.fallback_url) == tuple(change.values())
    assert (await admin("PATCH", "/v1/programme", json=change, headers={"If-Match": '"1"'}))[0] == 412
    _, audit = await admin("GET", "/v1/audit?subject=programme:1")
    assert [(act["before"], act["after"]) for act in audit["data"]] == [(before, change)]
    _, none = await admin("PATCH", "/v1/programme", json={"fallback_url": None})
    assert none["fallback_url"] is None


async def test_the_currency_stays_once_something_was_sold(admin: Client, db: Connection) -> None:
    await db.execute(
        "INSERT INTO conversion (conversion_id, intake_id, click_id, link_id, offer_id, partner_id, advertiser_id,"
        " event, event_at, received_at, status, sale_currency, currency, booked_payout_minor) SELECT gen_random_uuid(),"
        " gen_random_uuid(), gen_random_uuid(), 1, 1, 1, 1, 'sale', now(), now(), 'approved', 'EUR', 'EUR', 0"
    )
    before = await state(db)
    status, answer = await admin("PATCH", "/v1/programme", json={"currency": "USD", "timezone": "Asia/Tokyo"})
    assert (status, answer["error"]["field"]) == (409, "currency")
    assert await state(db) == before
    assert (await admin("PATCH", "/v1/programme", json={"currency": "EUR", "timezone": "Asia/Tokyo"}))[0] == 200


async def test_a_domain_is_known_to_edges_when_its_answer_is_there(admin: Client, redis: Redis) -> None:
    body = {"host": "go.brand.example", "own_links": True, "fallback_url": "https://brand.example/"}
    status, domain = await admin("POST", "/v1/domains", json=body)
    assert (status, domain["live"], domain["status"]) == (201, True, "active")
    expected = links.Domain(own_links=True, fallback_url="https://brand.example/")
    assert (await published(redis)).domains == {"go.brand.example": expected}
    path = f"/v1/domains/{domain['id']}"
    assert (await admin("PATCH", path, json={"own_links": False, "fallback_url": None}))[0] == 200
    assert (await published(redis)).domains == {"go.brand.example": links.Domain()}
    assert (await admin("DELETE", path))[1]["status"] == "archived"
    assert (await published(redis)).domains == {}
    assert (await admin("GET", "/v1/domains"))[1]["data"] == []
    assert (await admin("PATCH", path, json={"status": "active"}))[1]["status"] == "active"
    _, listed = await admin("GET", "/v1/domains?host=go.brand.example")
    assert [row["id"] for row in listed["data"]] == [domain["id"]]
    _, audit = await admin("GET", f"/v1/audit?subject=domain:{domain['id']}")
    assert [act["action"] for act in audit["data"]] == [
        "change_domain", "archive_domain", "change_domain", "create_domain",
    ]  # fmt: skip


async def test_an_archived_domain_with_codes_of_its_own_stays_known_to_edges(admin: Client, redis: Redis) -> None:
    """Its host would else have the codes of the public URL, which lead to others' links."""
    _, domain = await admin("POST", "/v1/domains", json={"host": "go.brand.example", "own_links": True})
    path = f"/v1/domains/{domain['id']}"
    assert (await admin("DELETE", path))[0] == 200
    assert (await published(redis)).domains == {"go.brand.example": links.Domain(own_links=True, archived=True)}
    assert (await admin("PATCH", path, json={"status": "active"}))[0] == 200
    assert (await published(redis)).domains == {"go.brand.example": links.Domain(own_links=True)}


async def test_own_links_of_a_domain_stay_while_there_are_links_on_it(
    admin: Client, made: Made, db: Connection
) -> None:
    _, domain = await admin("POST", "/v1/domains", json={"host": "go.brand.example", "own_links": True})
    body = {"offer_id": made.offer_id, "partner_id": made.partner_id, "domain_id": domain["id"]}
    assert (await admin("POST", "/v1/links", json=body))[0] == 201
    before = await state(db)
    status, answer = await admin("PATCH", f"/v1/domains/{domain['id']}", json={"own_links": False})
    assert (status, answer["error"]["field"]) == (409, "own_links")
    assert await state(db) == before
    same = {"own_links": True, "fallback_url": "https://brand.example/"}
    assert (await admin("PATCH", f"/v1/domains/{domain['id']}", json=same))[0] == 200


async def test_there_is_room_for_so_many_domains_also_at_once(
    admin: Client, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DOMAINS_MAX", 3)
    answers = await asyncio.gather(*(admin("POST", "/v1/domains", json={"host": f"d{n}.example"}) for n in range(8)))
    assert sorted(status for status, _ in answers) == [201] * 3 + [409] * 5
    made = next(body["id"] for status, body in answers if status == 201)
    await admin("DELETE", f"/v1/domains/{made}")
    assert (await admin("POST", "/v1/domains", json={"host": "other.example"}))[0] == 201
    assert (await admin("PATCH", f"/v1/domains/{made}", json={"status": "active"}))[0] == 409


async def test_a_block_lies_with_its_partner_else_with_the_programme(admin: Client, made: Made, redis: Redis) -> None:
    partner, offer = made.partner_id, made.offer_id
    bodies: list[dict[str, Any]] = [
        {"partner_id": partner},
        {"partner_id": partner, "offer_id": offer, "source_id": "Ä b"},
        {"sub1": "spam"},
        {"offer_id": offer, "source_id": "x" * 255},
    ]
    made_blocks = []
    for body in bodies:
        status, block = await admin("POST", "/v1/blocks", json=body)
        assert (status, block["live"]) == (201, True)
        assert {name: block[name] for name in body} == body
        made_blocks.append(block)
    config = await published(redis, redis_keys.partner(partner))
    assert config.blocks == {(0, "partner", ""), (offer, "source_id", "Ä b")}
    assert (await published(redis)).blocks == {(0, "sub1", "spam"), (offer, "source_id", "x" * 255)}
    for query, expected in ((f"partner_id={partner}", [0, 1]), ("sub1=spam", [2]), (f"offer_id={offer}", [1, 3])):
        _, listed = await admin("GET", f"/v1/blocks?{query}")
        assert [row["id"] for row in listed["data"]] == [made_blocks[n]["id"] for n in expected]
    for block in made_blocks:
        path = f"/v1/blocks/{block['id']}"
        shown = {name: value for name, value in block.items() if name != "live"}
        assert (await admin("GET", path))[1] == shown
        assert (await admin("DELETE", path, headers={"If-Match": '"2"'}))[0] == 412
        assert await admin("DELETE", path) == (200, block)
        assert (await admin("DELETE", path))[0] == 404
    assert (
        (await published(redis)).blocks == (await published(redis, redis_keys.partner(partner))).blocks == frozenset()
    )
    _, audit = await admin("GET", "/v1/audit?action=delete_block")
    assert [act["before"]["id"] for act in audit["data"]] == [block["id"] for block in reversed(made_blocks)]


async def test_a_block_is_there_once_and_there_is_room_for_so_many(
    admin: Client, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = await asyncio.gather(*(admin("POST", "/v1/blocks", json={"sub1": "spam"}) for _ in range(8)))
    assert sorted(status for status, _ in answers) == [201] + [409] * 7
    monkeypatch.setattr(limits, "BLOCKS_MAX", 3)
    answers = await asyncio.gather(*(admin("POST", "/v1/blocks", json={"sub1": f"s{n}"}) for n in range(8)))
    assert sorted(status for status, _ in answers) == [201] * 2 + [409] * 6
    assert (await admin("POST", "/v1/blocks", json={"partner_id": made.partner_id}))[0] == 201


BAD_HOSTS: list[Any] = [
    "", "localhost", "GO.example", "*.example.com", "https://go.example.com", "go.example.com:8080", "go.example.com/",
    "go.example.com.", ".example.com", "a..b.com", "-a.com", "a-.com", "a_b.com", "10.0.0.1", "[::1]", "ä.example",
    "x" * 64 + ".com", "a." * 130 + "com", "go.example", "a b.com", "a.com\n", 5, None, True,
]  # fmt: skip
BAD_URLS: list[Any] = [
    "", "shop.example", "ftp://shop.example/", "javascript:alert(1)", "https://a:b@shop.example/", "https://x/\r\n",
    "https://{sub1}.example/", "https://go.example/c/loop", "http://go.example/c/loop",
    "https://go.brand.example/", "http://GO.brand.example/x",
    "https://x.example/" + "x" * 2048, 7,
]  # fmt: skip
BAD: list[tuple[str, str, Any, str]] = [
    *(("PATCH", "/v1/programme", {"timezone": zone}, "timezone") for zone in ("", "CET+1", "utc ", "Mars/X", 5, None)),
    *(("PATCH", "/v1/programme", {"currency": code}, "currency") for code in ("", "eur", "XXX", "EURO", 978, None)),
    *(("PATCH", "/v1/programme", {"fallback_url": url}, "fallback_url") for url in BAD_URLS),
    ("PATCH", "/v1/programme", {"id": 2}, "id"),
    *(("POST", "/v1/domains", {"host": host}, "host") for host in BAD_HOSTS),
    *(("POST", "/v1/domains", {"host": "a.example", "fallback_url": url}, "fallback_url") for url in BAD_URLS),
    ("POST", "/v1/domains", {"host": "a.example", "fallback_url": "https://a.example/x"}, "fallback_url"),
    *(("POST", "/v1/domains", {"host": "a.example", "own_links": one}, "own_links") for one in (1, "true", None)),
    *(("PATCH", "/v1/domains/1", {"fallback_url": url}, "fallback_url") for url in BAD_URLS),
    *(("PATCH", "/v1/domains/1", {"status": status}, "status") for status in ("paused", "", None)),
    ("PATCH", "/v1/domains/1", {"host": "b.example"}, "host"),
    ("POST", "/v1/blocks", {}, "partner_id"),
    ("POST", "/v1/blocks", {"offer_id": 1}, "partner_id"),
    ("POST", "/v1/blocks", {"partner_id": 404}, "partner_id"),
    ("POST", "/v1/blocks", {"partner_id": 0}, "partner_id"),
    ("POST", "/v1/blocks", {"sub1": "x", "offer_id": 404}, "offer_id"),
    ("POST", "/v1/blocks", {"sub1": "x", "source_id": "y"}, "sub1"),
    ("POST", "/v1/blocks", {"sub2": "x"}, "sub2"),
    *(
        ("POST", "/v1/blocks", {name: value}, name)
        for name in ("source_id", "sub1")
        for value in ("", "x" * 256, "\x00", 5)
    ),
    *(
        ("POST", "/v1/advertisers", {"name": "x", "external_id": one}, "external_id")
        for one in ("", "a b", "ä", "x" * 65, 5)
    ),
    *(("PATCH", "/v1/advertisers/1", {"status": status}, "status") for status in ("paused", "pending", None)),
    *(("PATCH", "/v1/partners/1", {"status": status}, "status") for status in ("paused", "", None)),
    ("PATCH", "/v1/advertisers/1", {"token": "x"}, "token"),
]


async def test_what_cannot_be_is_refused_by_field_and_changes_nothing(
    admin: Client, made: Made, db: Connection
) -> None:
    assert (await admin("POST", "/v1/domains", json={"host": "go.brand.example"}))[1]["id"] == 1
    before = await state(db)
    for method, path, body, field in BAD:
        status, answer = await admin(method, path, json=body)
        assert (status, answer["error"].get("field")) == (400, field), (path, body, answer)
    status, answer = await admin("POST", "/v1/domains", json={"host": "go.brand.example"})
    assert (status, answer["error"]["field"]) == (409, "host")
    for path in ("/v1/domains/404", "/v1/blocks/404", "/v1/advertisers/404"):
        for method in ("GET", "DELETE"):
            assert (await admin(method, path))[0] == 404, path
    assert (await admin("PATCH", "/v1/domains/404", json={"own_links": True}))[0] == 404
    assert await state(db) == before


def test_configs_of_a_full_programme_stay_small() -> None:
    domains = {f"{n:03}.{'x' * 60}.example": links.Domain(own_links=True) for n in range(limits.DOMAINS_MAX)}
    blocks: frozenset[links.Block] = frozenset((0, "sub1", f"{n:040}") for n in range(limits.BLOCKS_MAX))
    full = links.Programme(v=(1, 1), timezone="UTC", currency="EUR", domains=domains, blocks=blocks)
    assert len(msgspec.json.encode(full)) < 100_000
