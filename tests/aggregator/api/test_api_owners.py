"""Advertisers and partners: their tokens, their names elsewhere, their lists, and what the audit tells of them."""

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta

import pytest

from aggregator.db.connect import Connection
from aggregator.publish.agreement import settle_source
from aggregator.publish.outbox import drain
from aggregator.publish.refill import refill
from aggregator.publish.write import write
from schemas import links, redis_keys
from schemas.redis import Redis, done
from schemas.settings import ApiSettings
from tests.aggregator.api.conftest import Client, Made, answering, proxied, proxy_of, state


def token_key(token: str) -> str:
    return redis_keys.advertiser(hashlib.sha256(token.encode()).hexdigest())


async def status_of(redis: Redis, token: str) -> str | None:
    value = await done(redis.get(token_key(token)))
    if value is None:
        return None
    config = links.decode(token_key(token), value)
    assert isinstance(config, links.Advertiser)
    return config.status


async def test_a_replaced_token_is_over_and_the_new_one_good_when_the_answer_is_there(
    admin: Client, made: Made, redis: Redis, db: Connection
) -> None:
    path = f"/v1/advertisers/{made.advertiser_id}/token"
    assert (await admin("POST", path, headers={"If-Match": '"9"'}))[0] == 412
    status, second = await admin("POST", path, headers={"If-Match": '"1"'})
    assert (status, second["live"]) == (201, True)
    assert [await status_of(redis, token) for token in (made.token, second["token"])] == ["archived", "active"]
    _, third = await admin("POST", path)
    tokens = (made.token, second["token"], third["token"])
    assert [await status_of(redis, token) for token in tokens] == ["archived", "archived", "active"]
    _, audit = await admin("GET", f"/v1/audit?subject=advertiser:{made.advertiser_id}")
    assert [act["action"] for act in audit["data"]] == ["replace_token", "replace_token", "create_advertiser"]
    told = str(audit) + str((await admin("GET", "/v1/advertisers"))[1])
    for token in tokens:
        assert token not in told
        assert hashlib.sha256(token.encode()).hexdigest() not in told


async def test_nothing_that_was_published_before_brings_a_replaced_token_back(
    admin: Client, made: Made, redis: Redis, db: Connection
) -> None:
    old = links.decode(token_key(made.token), await done(redis.get(token_key(made.token))))
    await admin("POST", f"/v1/advertisers/{made.advertiser_id}/token")
    assert await write(redis, {token_key(made.token): old}) == 0
    await admin("PATCH", f"/v1/advertisers/{made.advertiser_id}", json={"name": "Later"})
    await drain(db, redis)
    assert await status_of(redis, made.token) == "archived"
    # a Redis that comes back from a backup holds the value of then
    await done(redis.flushall())
    await write(redis, {token_key(made.token): old})
    assert await refill(db, redis, await settle_source(db, redis))
    assert await status_of(redis, made.token) == "archived"


async def test_a_token_replaced_while_redis_is_away_goes_through_the_queue(
    admin: Client, made: Made, settings: ApiSettings, redis: Redis, db: Connection
) -> None:
    async with proxy_of(settings.redis_url) as proxy:
        proxy.mode = "refuse"
        away = settings.model_copy(update={"redis_url": proxied(settings.redis_url, proxy)})
        async with answering(away) as session:
            _, second = await Client(session, admin.key)("POST", f"/v1/advertisers/{made.advertiser_id}/token")
    assert second["live"] is False
    assert await status_of(redis, made.token) == "active"
    await drain(db, redis)
    assert [await status_of(redis, token) for token in (made.token, second["token"])] == ["archived", "active"]


@pytest.mark.parametrize("kind", ["advertisers", "partners"])
async def test_owners_are_made_changed_archived_and_listed(admin: Client, kind: str) -> None:
    ids = []
    for n in range(5):
        status, row = await admin("POST", f"/v1/{kind}", json={"name": f"n{n}", "external_id": f"old-{n}"})
        assert (status, row["external_id"], row["live"]) == (201, f"old-{n}", True)
        ids.append(row["id"])
    path = f"/v1/{kind}/{ids[0]}"
    assert (await admin("PATCH", path, json={"status": "blocked", "name": "x"}, headers={"If-Match": '"1"'}))[0] == 200
    assert (await admin("PATCH", path, json={"name": "y"}, headers={"If-Match": '"1"'}))[0] == 412
    assert (await admin("DELETE", path, headers={"If-Match": '"1"'}))[0] == 412
    assert (await admin("DELETE", path))[1]["status"] == "archived"
    status, taken = await admin("PATCH", f"/v1/{kind}/{ids[1]}", json={"external_id": "old-2"})
    assert (status, taken["error"]["code"], taken["error"]["field"]) == (409, "conflict", "external_id")
    seen, cursor = [], ""
    while True:
        _, page = await admin("GET", f"/v1/{kind}?limit=2{cursor}")
        seen += [row["id"] for row in page["data"]]
        if not page["truncated"]:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == ids[1:]
    assert [row["id"] for row in (await admin("GET", f"/v1/{kind}?status=archived"))[1]["data"]] == ids[:1]
    assert [row["id"] for row in (await admin("GET", f"/v1/{kind}?external_id=old-3"))[1]["data"]] == [ids[3]]


async def reference(db: Connection, name: str) -> int | None:
    found: int | None = await db.fetchval("SELECT target_id FROM reference WHERE kind = 'partner' AND name = $1", name)
    return found


async def test_no_change_moves_a_name_that_another_partner_has(admin: Client, db: Connection) -> None:
    first, second, third = [
        (await admin("POST", "/v1/partners", json=body))[1]["id"]
        for body in ({"name": "a", "external_id": "77"}, {"name": "b"}, {"name": "c", "external_id": "2"})
    ]
    assert (first, second, third) == (1, 2, 3)
    assert [await reference(db, name) for name in ("77", "1", "2", "3")] == [1, 1, 3, 3]
    await admin("PATCH", "/v1/partners/2", json={"name": "still not 2"})
    assert await reference(db, "2") == 3
    assert (await admin("PATCH", "/v1/partners/1", json={"external_id": "78"}))[0] == 200
    before = await state(db)
    for body in ({"external_id": "77"}, {"external_id": "2"}):
        status, answer = await admin("PATCH", "/v1/partners/2", json=body)
        assert (status, answer["error"]["field"]) == (409, "external_id")
        assert (await admin("POST", "/v1/partners", json={"name": "d"} | body))[0] == 409
    assert await state(db) == before
    answers = await asyncio.gather(*(admin("PATCH", f"/v1/partners/{n}", json={"external_id": "z"}) for n in (1, 2, 3)))
    assert sorted(status for status, _ in answers) == [200, 409, 409]
    winner = next(body["id"] for status, body in answers if status == 200)
    assert [await reference(db, name) for name in ("z", "77", "78")] == [winner, 1, 1]


async def test_the_audit_is_read_by_whom_what_and_when(admin: Client, made: Made, db: Connection) -> None:
    key_id = await db.fetchval("SELECT id FROM api_key")
    await admin("PATCH", f"/v1/partners/{made.partner_id}", json={"name": "New"})
    await db.execute("UPDATE audit SET at = '2026-01-01T00:00:00Z' WHERE action = 'create_partner'")
    await db.execute("INSERT INTO audit (actor, action, subject) VALUES ('cli', 'create_key', 'key:9')")
    subject = f"partner:{made.partner_id}"

    async def found(query: str) -> list[str]:
        status, answer = await admin("GET", f"/v1/audit?{query}")
        assert status == 200, answer
        return [act["action"] for act in answer["data"]]

    assert await found(f"subject={subject}") == ["change_partner", "create_partner"]
    assert await found(f"subject={subject}&action=change_partner&actor=admin:{key_id}") == ["change_partner"]
    assert await found("actor=cli") == ["create_key"]
    assert await found(f"subject={subject}&to=2026-01-01T00:00:00Z") == []
    assert await found(f"subject={subject}&from=2026-01-01&to=2026-01-01T00:00:01Z") == ["create_partner"]
    soon = (datetime.now(UTC) + timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert await found(f"from={soon}") == []
    _, first = await admin("GET", "/v1/audit?limit=2")
    _, rest = await admin("GET", f"/v1/audit?limit=200&cursor={first['next_cursor']}")
    assert len(first["data"] + rest["data"]) == await db.fetchval("SELECT count(*) FROM audit")
    for query, field in {"from=x": "from", "to=2026-13-01": "to", "subject=%00": "subject", "who=x": "who"}.items():
        status, answer = await admin("GET", f"/v1/audit?{query}")
        assert (status, answer["error"]["field"]) == (400, field)


async def test_text_that_is_no_unicode_is_no_fault_of_ours(admin: Client) -> None:
    for path in ("/v1/audit?subject=", "/v1/partners?name=", "/v1/blocks?sub1="):
        for text in ("%ff", "%ED%A0%80", "%F4%90%80%80"):
            status, _ = await admin("GET", path + text)
            assert status in (200, 400), path + text
