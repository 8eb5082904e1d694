"""Links through the API: what they are, what of them may change, and who may have one."""

import asyncio
from typing import Any

import msgspec

from aggregator.db.connect import Connection
from schemas import links, redis_keys
from schemas.redis import Redis, done

FULL = {
    "external_id": "l-1",
    "destination_url": "https://deals.example/?x={sub1}",
    "fallback_url": "https://deals.example/over",
    "starts_at": "2026-11-01T00:00:00.000Z",
    "ends_at": "2026-12-01T00:00:00.000Z",
}


async def config(redis: Redis, key: str) -> links.Link:
    return msgspec.json.decode(await done(redis.get(key)), type=links.Link)


async def test_a_link_comes_back_as_it_was_typed_in_and_edges_know_all_of_it(
    admin: Any, made: Any, redis: Redis
) -> None:
    body = FULL | {"offer_id": made.offer_id, "partner_id": made.partner_id, "code": "deal"}
    status, link = await admin("POST", "/v1/links", json=body)
    assert (status, link.pop("live"), link["url"]) == (201, True, "https://go.example/c/deal")
    assert {name: link[name] for name in body} == body
    assert await admin("GET", f"/v1/links/{link['id']}") == (200, link)
    value = await config(redis, redis_keys.link("deal"))
    assert (value.destination_url, value.fallback_url) == (FULL["destination_url"], FULL["fallback_url"])
    assert (value.ends_ms or 0) - (value.starts_ms or 0) == 30 * 86_400_000


async def test_a_domain_with_codes_of_its_own_has_the_link_alone(
    admin: Any, made: Any, db: Connection, redis: Redis
) -> None:
    rows = await db.fetch(
        "INSERT INTO domain (host, own_links, status) VALUES ('own.example', true, 'active'),"
        " ('shared.example', false, 'active'), ('gone.example', true, 'archived') RETURNING id"
    )
    own, shared, gone = (row["id"] for row in rows)
    body = {"offer_id": made.offer_id, "partner_id": made.partner_id, "code": made.code}
    status, link = await admin("POST", "/v1/links", json=body | {"domain_id": own})
    assert (status, link["url"]) == (201, f"https://own.example/c/{made.code}")
    assert (await config(redis, redis_keys.link(made.code, "own.example"))).id == link["id"]
    assert (await config(redis, redis_keys.link(made.code))).id == made.link_id
    listed = (await admin("GET", f"/v1/links?domain_id={own}"))[1]["data"]
    assert [(row["id"], row["url"]) for row in listed] == [(link["id"], link["url"])]
    for domain_id in (shared, gone, 404):
        status, answer = await admin("POST", "/v1/links", json=body | {"code": "x", "domain_id": domain_id})
        assert (status, answer["error"]["field"]) == (400, "domain_id")
    status, answer = await admin("POST", "/v1/links", json=body | {"domain_id": own})
    assert (status, answer["error"]["field"]) == (409, "code")


async def test_a_patch_changes_what_it_names_and_null_takes_back(admin: Any, made: Any, redis: Redis) -> None:
    path = f"/v1/links/{made.link_id}"
    status, link = await admin("PATCH", path, json=FULL | {"status": "paused"})
    assert (status, link["status"], link["live"]) == (200, "paused", True)
    assert {name: link[name] for name in FULL} == FULL
    status, link = await admin("PATCH", path, json=dict.fromkeys(FULL) | {"status": "active"})
    assert (status, {name: link[name] for name in FULL}) == (200, dict.fromkeys(FULL))
    value = await config(redis, redis_keys.link(made.code))
    assert value == links.Link(
        v=(value.v[0], 3), id=made.link_id, code=made.code, offer_id=made.offer_id, partner_id=made.partner_id,
        status="active",
    )  # fmt: skip


async def test_code_offer_partner_and_domain_never_change_and_the_answer_says_why(admin: Any, made: Any) -> None:
    for name in ("code", "offer_id", "partner_id", "domain_id"):
        for value in ("x", 1, None):
            status, answer = await admin("PATCH", f"/v1/links/{made.link_id}", json={name: value})
            assert (status, answer["error"]["field"]) == (400, name)
            assert "make another" in answer["error"]["message"]


async def test_an_archived_link_keeps_its_code_and_a_patch_brings_it_back(admin: Any, made: Any, redis: Redis) -> None:
    path = f"/v1/links/{made.link_id}"
    assert (await admin("DELETE", path))[1]["status"] == "archived"
    assert (await admin("GET", "/v1/links"))[1]["data"] == []
    assert (await config(redis, redis_keys.link(made.code))).status == "archived"
    body = {"offer_id": made.offer_id, "partner_id": made.partner_id, "code": made.code}
    assert (await admin("POST", "/v1/links", json=body))[0] == 409
    assert (await admin("PATCH", path, json={"status": "active"}))[1]["status"] == "active"
    assert (await config(redis, redis_keys.link(made.code))).status == "active"


async def test_links_are_listed_by_what_is_asked_for(admin: Any, made: Any) -> None:
    _, partner = await admin("POST", "/v1/partners", json={"name": "Other"})
    for number in range(3):
        body = {
            "offer_id": made.offer_id,
            "partner_id": partner["id"],
            "code": f"c{number}",
            "external_id": f"x{number}",
        }
        assert (await admin("POST", "/v1/links", json=body))[0] == 201
    for query, found in (
        (f"partner_id={partner['id']}", 3), (f"partner_id={made.partner_id}", 1), (f"offer_id={made.offer_id}", 4),
        ("code=c1", 1), ("code=C1", 0), ("external_id=x2", 1), ("status=paused", 0), ("domain_id=1", 0), ("limit=2", 2),
    ):  # fmt: skip
        assert len((await admin("GET", f"/v1/links?{query}"))[1]["data"]) == found, query
    for query in ("partner_id=x", "host=a.example", "limit=0", "cursor=-1", "code=%00"):
        assert (await admin("GET", f"/v1/links?{query}"))[0] == 400, query


BAD: list[tuple[str, Any]] = [
    *(("destination_url", url) for url in ("", "ftp://a.example", "https://go.example/x", "https://track.example/", 5)),
    *(("fallback_url", url) for url in ("javascript:alert(1)", "http://track.example/c/x", "https://a b/")),
    *(("starts_at", at) for at in ("2026-11-01", "2026-11-01T00:00:00", 1_700_000_000, "1999-01-01T00:00:00Z")),
    *(("external_id", value) for value in ("", "a b", "x" * 65)),
    *(("status", status) for status in ("deleted", "", None)),
]


async def test_what_a_link_cannot_be_is_refused_by_field_and_changes_nothing(
    admin: Any, made: Any, db: Connection
) -> None:
    await db.execute("INSERT INTO domain (host) VALUES ('track.example')")
    good = {"offer_id": made.offer_id, "partner_id": made.partner_id}
    backwards = {"starts_at": FULL["ends_at"], "ends_at": FULL["starts_at"]}
    for field, body in (*((field, {field: value}) for field, value in BAD), ("ends_at", backwards)):
        for method, path, sent in (("POST", "/v1/links", good), ("PATCH", f"/v1/links/{made.link_id}", {})):
            status, answer = await admin(method, path, json=sent | body)
            assert (status, answer.get("error", {}).get("field")) == (400, field), (method, body, answer)
    assert await db.fetchrow("SELECT count(*), max(version) FROM link") == (1, 1)


async def test_who_is_not_approved_has_no_link_to_an_offer_that_is_not_open(admin: Any, made: Any) -> None:
    body = {"offer_id": made.offer_id, "partner_id": made.partner_id}
    approval = f"/v1/offers/{made.offer_id}/partners/{made.partner_id}"
    for access in ("approval", "private"):
        await admin("PATCH", f"/v1/offers/{made.offer_id}", json={"access": access})
        for decision, expected in (("pending", 409), ("approved", 201), ("rejected", 409)):
            assert (await admin("PUT", approval, json={"status": decision}))[0] == 200
            status, answer = await admin("POST", "/v1/links", json=body)
            assert status == expected, (access, decision)
            assert status == 201 or answer["error"]["code"] == "not_approved"


async def test_what_is_archived_gets_no_new_links(admin: Any, made: Any) -> None:
    body = {"offer_id": made.offer_id, "partner_id": made.partner_id}
    for kind, row_id in (("offer", made.offer_id), ("partner", made.partner_id)):
        await admin("DELETE", f"/v1/{kind}s/{row_id}")
        status, answer = await admin("POST", "/v1/links", json=body)
        assert (status, answer["error"]["field"]) == (409, f"{kind}_id")
        await admin("PATCH", f"/v1/{kind}s/{row_id}", json={"status": "active"})
    assert (await admin("POST", "/v1/links", json=body))[0] == 201


async def test_of_fifty_posts_with_one_idempotency_key_there_is_one_link_and_one_answer(
    admin: Any, made: Any, db: Connection
) -> None:
    body = {"offer_id": made.offer_id, "partner_id": made.partner_id}
    answers = await asyncio.gather(
        *(admin("POST", "/v1/links", json=body, headers={"Idempotency-Key": "once"}) for _ in range(50))
    )
    assert all(answer == answers[0] for answer in answers)
    assert answers[0][0] == 201
    assert await db.fetchval("SELECT count(*) FROM link") == 2
    assert await db.fetchval("SELECT count(*) FROM audit WHERE action = 'create_link'") == 2


async def test_of_twenty_patches_of_one_version_exactly_one_wins(admin: Any, made: Any, db: Connection) -> None:
    async def patch(number: int) -> int:
        body, headers = {"destination_url": f"https://{number}.example/"}, {"If-Match": '"1"'}
        return int((await admin("PATCH", f"/v1/links/{made.link_id}", json=body, headers=headers))[0])

    assert sorted(await asyncio.gather(*(patch(number) for number in range(20)))) == [200] + [412] * 19
    assert await db.fetchval("SELECT version FROM link WHERE id = $1", made.link_id) == 2
