"""A partner's own view: itself, what it may run, its links; never anything of another partner's."""

import asyncio
import itertools
from dataclasses import dataclass
from typing import Any

import pytest

from aggregator.db.connect import Connection
from schemas import limits, redis_keys
from schemas.redis import Redis, done

CPA = {"model": "cpa", "amount_minor": 425, "currency": "EUR"}


@dataclass(frozen=True)
class Own:
    """A partner with its key."""

    id: int
    call: Any


async def partner_with_key(admin: Any, name: str, **body: Any) -> Own:
    _, partner = await admin("POST", "/v1/partners", json={"name": name} | body)
    _, key = await admin("POST", "/v1/keys", json={"role": "partner", "partner_id": partner["id"], "name": f"{name}'s"})
    return Own(partner["id"], admin.with_key(key["key"]))


@pytest.fixture
async def blog(admin: Any, made: Any) -> Own:
    return await partner_with_key(admin, "Own blog")


async def offer_of(admin: Any, made: Any, **changed: Any) -> int:
    body = {
        "advertiser_id": made.advertiser_id,
        "name": "x",
        "destination_url": "https://secret.example/",
        "payout": CPA,
    }
    status, offer = await admin("POST", "/v1/offers", json=body | changed)
    assert status == 201, offer
    return int(offer["id"])


async def approve(admin: Any, offer_id: int, partner_id: int, status: str = "approved") -> None:
    assert (await admin("PUT", f"/v1/offers/{offer_id}/partners/{partner_id}", json={"status": status}))[0] == 200


async def test_a_key_tells_whose_it_is_and_what_it_may(admin: Any, made: Any, blog: Own) -> None:
    await admin("POST", "/v1/caps", json={"partner_id": blog.id, "kind": "clicks", "period": "day", "clicks": 9})
    await admin(
        "POST", "/v1/caps",
        json={"partner_id": blog.id, "kind": "revenue", "period": "day", "amount_minor": 9, "currency": "EUR"},
    )  # fmt: skip
    status, me = await blog.call("GET", "/v1/me")
    assert status == 200
    assert (me["role"], me["id"], me["name"], me["status"]) == ("partner", blog.id, "Own blog", "active")
    assert me["programme"] == {"timezone": "UTC", "currency": "EUR"}
    assert (me["key"]["name"], me["key"]["scopes"], me["key"]["expires_at"]) == ("Own blog's", None, None)
    assert me["caps"] == [{"kind": "clicks", "period": "day", "clicks": 9, "over_cap": "fallback"}]
    _, key = await admin("POST", "/v1/keys", json={"role": "advertiser", "advertiser_id": made.advertiser_id})
    shop = admin.with_key(key["key"])
    status, me = await shop("GET", "/v1/me")
    assert (status, me["role"], me["id"], me["name"], "caps" in me) == (
        200,
        "advertiser",
        made.advertiser_id,
        "Shop",
        False,
    )
    for path in ("/v1/me/offers", "/v1/me/links"):
        assert (await shop("GET", path))[0] == 403
        assert (await admin("GET", path))[0] == 403


async def test_a_partner_sees_open_offers_those_to_apply_for_and_those_it_was_approved_for(
    admin: Any, made: Any, blog: Own
) -> None:
    rival = await partner_with_key(admin, "Rival")
    to_ask = await offer_of(admin, made, access="approval")
    rejected = await offer_of(admin, made, access="approval")
    hidden = await offer_of(admin, made, access="private")
    shown = await offer_of(admin, made, access="private")
    asked = await offer_of(admin, made, access="private")
    paused = await offer_of(admin, made, status="paused")
    gone = await offer_of(admin, made)
    await admin("DELETE", f"/v1/offers/{gone}")
    await approve(admin, rejected, blog.id, "rejected")
    await approve(admin, shown, blog.id)
    await approve(admin, asked, blog.id, "pending")
    for offer_id in (hidden, to_ask):
        await approve(admin, offer_id, rival.id)
    listed = (await blog.call("GET", "/v1/me/offers"))[1]["data"]
    assert {row["id"]: (row["approval"], row["status"]) for row in listed} == {
        made.offer_id: (None, "active"), to_ask: (None, "active"), rejected: ("rejected", "active"),
        shown: ("approved", "active"), paused: (None, "paused"),
    }  # fmt: skip
    for offer_id in (hidden, asked, gone, 404):
        assert (await blog.call("GET", f"/v1/me/offers/{offer_id}"))[0] == 404
        assert (await blog.call("POST", f"/v1/me/offers/{offer_id}/apply"))[0] == 404
        status, answer = await blog.call("POST", "/v1/me/links", json={"offer_id": offer_id})
        assert (status, answer["error"]["field"]) == (400, "offer_id")
    assert (await blog.call("GET", f"/v1/me/offers/{shown}"))[1] in listed
    for query, found in (("access=private", 1), ("approval=rejected", 1), ("status=paused", 1), ("limit=2", 2)):
        assert len((await blog.call("GET", f"/v1/me/offers?{query}"))[1]["data"]) == found, query


async def test_an_offer_shows_its_payout_and_the_caps_that_concern_the_partner_and_nothing_of_the_advertisers(
    admin: Any, made: Any, blog: Own
) -> None:
    caps = (
        {"offer_id": made.offer_id, "kind": "clicks", "period": "day", "clicks": 1},
        {"offer_id": made.offer_id, "kind": "revenue", "period": "day", "amount_minor": 2, "currency": "EUR"},
        {"offer_id": made.offer_id, "partner_id": blog.id, "kind": "conversions", "period": "week", "conversions": 3},
        {"offer_id": made.offer_id, "partner_id": made.partner_id, "kind": "clicks", "period": "week", "clicks": 4},
        {"partner_id": made.partner_id, "kind": "clicks", "period": "hour", "clicks": 5},
    )
    for cap in caps:
        assert (await admin("POST", "/v1/caps", json=cap))[0] == 201
    _, offer = await blog.call("GET", f"/v1/me/offers/{made.offer_id}")
    assert offer["payout"] == CPA | {"valid_from": None}
    assert offer["caps"] == [
        {"kind": "clicks", "period": "day", "clicks": 1, "over_cap": "fallback"},
        {"kind": "conversions", "period": "week", "conversions": 3, "over_cap": "fallback"},
    ]
    for word in ("advertiser_id", "destination_url", "fallback_url", "landings", "click_id_parameter", "revenue"):
        assert word not in offer


async def test_applying_is_pending_until_an_operator_decides(admin: Any, made: Any, blog: Own, db: Connection) -> None:
    offer_id = await offer_of(admin, made, access="approval")
    path = f"/v1/me/offers/{offer_id}/apply"
    answers = await asyncio.gather(*(blog.call("POST", path) for _ in range(10)))
    assert all(answer == (200, {"offer_id": offer_id, "status": "pending"}) for answer in answers)
    assert await db.fetchval("SELECT count(*) FROM audit WHERE action = 'change_approval'") == 1
    assert (await blog.call("POST", "/v1/me/links", json={"offer_id": offer_id}))[1]["error"]["code"] == "not_approved"
    for decision in ("rejected", "approved"):
        await approve(admin, offer_id, blog.id, decision)
        assert (await blog.call("POST", path))[1]["status"] == decision
    status, link = await blog.call("POST", "/v1/me/links", json={"offer_id": offer_id})
    assert (status, link["live"]) == (201, True)
    status, answer = await blog.call("POST", f"/v1/me/offers/{made.offer_id}/apply")
    assert (status, answer["error"]["code"]) == (409, "conflict")


async def test_a_partner_makes_links_of_its_own_under_the_rules_of_everybody(
    admin: Any, made: Any, blog: Own, redis: Redis
) -> None:
    status, link = await blog.call("POST", "/v1/me/links", json={"offer_id": made.offer_id, "code": "my-blog"})
    assert (status, link["url"], link["live"]) == (201, "https://go.example/c/my-blog", True)
    assert await done(redis.exists(redis_keys.link("my-blog")))
    for field, body, expected in (
        ("code", {"code": "my-blog"}, 409), ("code", {"code": "a b"}, 400), ("partner_id", {"partner_id": 1}, 400),
        ("destination_url", {"destination_url": "https://a.example/"}, 400), ("domain_id", {"domain_id": 1}, 400),
        ("ends_at", {"ends_at": None}, 400), ("offer_id", {"offer_id": 404}, 400),
        ("status", {"status": "paused"}, 400),
    ):  # fmt: skip
        status, answer = await blog.call("POST", "/v1/me/links", json={"offer_id": made.offer_id} | body)
        assert (status, answer["error"]["field"]) == (expected, field)
    listed = (await blog.call("GET", "/v1/me/links"))[1]["data"]
    assert [row["code"] for row in listed] == ["my-blog"]
    assert await blog.call("GET", f"/v1/me/links/{link['id']}") == (200, listed[0])
    assert {"destination_url", "fallback_url", "partner_id", "external_id"} & set(listed[0]) == set()


async def test_fifty_posts_with_one_idempotency_key_make_one_link(made: Any, blog: Own, db: Connection) -> None:
    body, headers = {"offer_id": made.offer_id}, {"Idempotency-Key": "once"}
    answers = await asyncio.gather(*(blog.call("POST", "/v1/me/links", json=body, headers=headers) for _ in range(50)))
    assert all(answer == answers[0] for answer in answers)
    assert await db.fetchval("SELECT count(*) FROM link WHERE partner_id = $1", blog.id) == 1


async def test_a_partner_makes_only_so_many_links_also_at_once_but_an_operator_more(
    admin: Any, made: Any, blog: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LINKS_PER_PARTNER_MAX", 3)
    body = {"offer_id": made.offer_id}
    answers = await asyncio.gather(*(blog.call("POST", "/v1/me/links", json=body) for _ in range(8)))
    assert sorted(status for status, _ in answers) == [201] * 3 + [409] * 5
    assert (await admin("POST", "/v1/links", json=body | {"partner_id": blog.id}))[0] == 201


async def test_a_partner_lets_go_on_what_it_paused_itself_and_nothing_that_the_operator_stopped(
    admin: Any, made: Any, blog: Own, db: Connection
) -> None:
    _, link = await blog.call("POST", "/v1/me/links", json={"offer_id": made.offer_id})
    own, operators = f"/v1/me/links/{link['id']}", f"/v1/links/{link['id']}"

    async def tries(status: str) -> int:
        return int((await blog.call("PATCH", own, json={"status": status}))[0])

    assert [await tries(status) for status in ("active", "paused", "paused", "active")] == [200] * 4
    await admin("PATCH", operators, json={"status": "paused"})
    assert [await tries("paused"), await tries("active")] == [200, 409]
    await admin("PATCH", operators, json={"status": "active"})
    assert await tries("paused") == 200
    await admin("PATCH", operators, json={"status": "paused"})  # the operator's from now on
    assert await tries("active") == 409
    await admin("PATCH", operators, json={"status": "active"})
    assert await tries("paused") == 200
    await admin("DELETE", operators)
    assert [await tries("active"), await tries("paused")] == [409, 409]
    assert (await blog.call("GET", own))[1]["status"] == "archived"
    for body in ({"status": "archived"}, {"status": None}, {}, {"code": "x"}, {"status": "active", "ends_at": None}):
        assert (await blog.call("PATCH", own, json=body))[0] == 400, body
    actors = await db.fetch(
        "SELECT DISTINCT split_part(actor, ':', 1) AS role FROM audit WHERE subject = $1", f"link:{link['id']}"
    )
    assert {row["role"] for row in actors} == {"partner", "admin"}


async def test_of_twenty_patches_of_one_version_exactly_one_wins(made: Any, blog: Own, db: Connection) -> None:
    _, link = await blog.call("POST", "/v1/me/links", json={"offer_id": made.offer_id})
    request = {"json": {"status": "paused"}, "headers": {"If-Match": '"1"'}}
    answers = await asyncio.gather(*(blog.call("PATCH", f"/v1/me/links/{link['id']}", **request) for _ in range(20)))
    assert sorted(status for status, _ in answers) == [200] + [412] * 19
    assert await db.fetchval("SELECT version FROM link WHERE id = $1", link["id"]) == 2


async def test_a_pending_partner_sees_itself_and_no_offers_and_makes_nothing(admin: Any, made: Any) -> None:
    new = await partner_with_key(admin, "New", status="pending")
    offer_id = await offer_of(admin, made, access="approval")
    await approve(admin, offer_id, new.id)
    assert (await new.call("GET", "/v1/me"))[1]["status"] == "pending"
    assert (await new.call("GET", "/v1/me/offers"))[1]["data"] == []
    for one in (offer_id, made.offer_id):
        assert (await new.call("GET", f"/v1/me/offers/{one}"))[0] == 404
        assert (await new.call("POST", f"/v1/me/offers/{one}/apply"))[0] == 403
        assert (await new.call("POST", "/v1/me/links", json={"offer_id": one}))[0] == 403
    await admin("PATCH", f"/v1/partners/{new.id}", json={"status": "active"})
    assert len((await new.call("GET", "/v1/me/offers"))[1]["data"]) == 2
    assert (await new.call("POST", "/v1/me/links", json={"offer_id": offer_id}))[0] == 201


ROUNDS = 12


async def test_two_partners_at_once_on_every_call_see_nothing_of_each_other(
    admin: Any, made: Any, blog: Own, db: Connection
) -> None:
    rival = await partner_with_key(admin, "Rival")
    offers = {one.id: await offer_of(admin, made, access="private", name=f"of {one.id}") for one in (blog, rival)}
    ask = await offer_of(admin, made, access="approval")
    for one in (blog, rival):
        await approve(admin, offers[one.id], one.id)
    links = {
        one.id: (await one.call("POST", "/v1/me/links", json={"offer_id": offers[one.id]}))[1]["id"]
        for one in (blog, rival)
    }

    async def round_of(own: Own, other: Own, number: int) -> None:
        code = f"p{own.id}-{number}"
        visible = {made.offer_id, ask, offers[own.id]}
        assert (await own.call("GET", "/v1/me"))[1]["id"] == own.id
        listed = (await own.call("GET", "/v1/me/offers"))[1]["data"]
        assert {row["id"] for row in listed} == visible
        assert (await own.call("GET", f"/v1/me/offers/{offers[own.id]}"))[1]["approval"] == "approved"
        assert (await own.call("GET", f"/v1/me/offers/{offers[other.id]}"))[0] == 404
        assert (await own.call("POST", f"/v1/me/offers/{offers[other.id]}/apply"))[0] == 404
        assert (await own.call("POST", f"/v1/me/offers/{ask}/apply"))[1]["status"] == "pending"
        foreign = await own.call("POST", "/v1/me/links", json={"offer_id": offers[other.id], "code": code})
        assert (foreign[0], foreign[1]["error"]["field"]) == (400, "offer_id")
        headers = {"Idempotency-Key": f"same-{number}"}  # the keys of two partners are two
        body = {"offer_id": made.offer_id, "code": code}
        assert (await own.call("POST", "/v1/me/links", json=body, headers=headers))[1]["code"] == code
        mine = (await own.call("GET", "/v1/me/links?limit=1000"))[1]["data"]
        assert all(row["id"] == links[own.id] or row["code"].startswith(f"p{own.id}-") for row in mine)
        for path in (f"/v1/me/links?code=p{other.id}-0", f"/v1/me/links?offer_id={offers[other.id]}"):
            assert (await own.call("GET", path))[1]["data"] == []
        assert (await own.call("GET", f"/v1/me/links?partner_id={other.id}"))[0] == 400
        assert (await own.call("GET", f"/v1/me/links/{links[other.id]}"))[0] == 404
        for request in ({}, {"headers": {"If-Match": '"1"'}}, {"headers": {"If-Match": '"99"'}}):
            path = f"/v1/me/links/{links[other.id]}"
            assert (await own.call("PATCH", path, json={"status": "paused"}, **request))[0] == 404
        assert (await own.call("PATCH", f"/v1/me/links/{links[own.id]}", json={"status": "active"}))[0] == 200

    pairs = ((blog, rival), (rival, blog))
    for begin in range(0, ROUNDS, 4):
        async with asyncio.TaskGroup() as rounds:
            for pair, n in itertools.product(pairs, range(4)):
                rounds.create_task(round_of(*pair, begin + n))
    held = await db.fetch("SELECT partner_id, count(*) AS links, max(version) AS version FROM link GROUP BY 1")
    assert {row["partner_id"]: (row["links"], row["version"]) for row in held} == {
        made.partner_id: (1, 1), blog.id: (ROUNDS + 1, 1), rival.id: (ROUNDS + 1, 1),
    }  # fmt: skip
