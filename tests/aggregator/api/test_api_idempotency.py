"""A POST that is repeated under its Idempotency-Key is carried out once, and answered the same."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from aggregator.api.app import application, open_api
from aggregator.db.connect import Connection, connect
from aggregator.db.partitions import keep_once
from schemas import limits
from schemas.http import serving
from schemas.settings import ApiSettings
from tests.aggregator.api.conftest import Client, Made, state

KEY = {"Idempotency-Key": "order-66"}


@pytest.fixture
async def second(settings: ApiSettings, admin: Client) -> AsyncIterator[Client]:
    """The same key at another process of the API."""
    sock = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    async with open_api(settings) as api, serving(application(api), sock), aiohttp.ClientSession(url) as session:
        yield Client(session, admin.key)


async def sent(client: Client, path: str, body: Any, key: dict[str, str] = KEY) -> tuple[int, Any, str | None]:
    headers = {"Authorization": f"Bearer {client.key}"} | key
    async with client.session.post(path, json=body, headers=headers) as answer:
        return answer.status, await answer.json(), answer.headers.get("Idempotent-Replayed")


def bodies(made: Made) -> list[tuple[str, Any, str]]:
    """Path, body, and the table that gets a row."""
    return [
        ("/v1/advertisers", {"name": "x"}, "advertiser"),
        (f"/v1/advertisers/{made.advertiser_id}/token", {}, "replaced_token"),
        ("/v1/domains", {"host": "go.other.example"}, "domain"),
        ("/v1/blocks", {"sub1": "spam"}, "block"),
        ("/v1/keys/1/rotate", {}, "api_key"),
    ]


async def test_fifty_at_once_at_two_processes_make_one_row_and_one_answer(
    admin: Client, second: Client, made: Made, db: Connection
) -> None:
    for n, (path, body, table) in enumerate(bodies(made)):
        rows = (await state(db))[table][0]
        key = {"Idempotency-Key": f"key-{n}"}
        answers = await asyncio.gather(
            *(sent(client, path, body, key) for client in (admin, second) for _ in range(25))
        )
        assert {(status, str(answer)) for status, answer, _ in answers} == {(201, str(answers[0][1]))}, path
        assert sorted(replayed or "" for *_, replayed in answers) == [""] + ["true"] * 49, path
        assert (await state(db))[table][0] == rows + 1, path
    assert [answer for _, answer, _ in answers if len(answer["key"]) != 41] == []


async def test_the_same_secret_is_told_again_and_kept_nowhere(admin: Client, db: Connection) -> None:
    _, first, _ = await sent(admin, "/v1/keys", {"role": "admin"})
    _, again, replayed = await sent(admin, "/v1/keys", {"role": "admin"})
    assert (again["key"], replayed) == (first["key"], "true")
    assert (await admin.with_key(again["key"])("GET", "/v1/programme"))[0] == 200
    kept = str(await db.fetch("SELECT * FROM idempotency")) + str(await db.fetch("SELECT * FROM audit"))
    assert first["key"] not in kept


async def test_a_key_is_its_callers_own(admin: Client) -> None:
    _, other, _ = await sent(admin, "/v1/keys", {"role": "admin"}, {})
    _, first, _ = await sent(admin, "/v1/partners", {"name": "x"})
    status, second, replayed = await sent(admin.with_key(other["key"]), "/v1/partners", {"name": "x"})
    assert (status, replayed) == (201, None)
    assert second["id"] != first["id"]


async def test_another_request_under_the_same_key_is_refused(admin: Client, db: Connection) -> None:
    await sent(admin, "/v1/partners", {"name": "x"})
    before = await state(db)
    for path, body in (
        ("/v1/partners", {"name": "y"}),
        ("/v1/advertisers", {"name": "x"}),
        ("/v1/partners?a", {"name": "x"}),
    ):
        status, answer, replayed = await sent(admin, path, body)
        assert (status, answer["error"]["code"], replayed) == (422, "idempotency_key_reused", None), path
    assert await state(db) == before


async def test_what_was_refused_may_be_put_right_under_the_same_key(admin: Client, made: Made, db: Connection) -> None:
    link = {"offer_id": made.offer_id, "partner_id": made.partner_id}
    for body, refused in (
        ({"code": "?"} | link, 400),
        (link | {"offer_id": 404}, 400),
        ({"code": made.code} | link, 409),
    ):
        status, _, _ = await sent(admin, "/v1/links", body)
        assert status == refused
        assert await db.fetchval("SELECT count(*) FROM idempotency") == 0
    status, _, replayed = await sent(admin, "/v1/links", link)
    assert (status, replayed) == (201, None)


async def test_a_first_that_fails_lets_a_waiting_one_be_the_first(
    admin: Client, second: Client, database_url: str, db: Connection
) -> None:
    """The first has taken the key in a transaction that is rolled back."""
    digest_of = await connect(database_url, command_timeout_s=5)
    try:
        first = digest_of.transaction()
        await first.start()
        key_id = await db.fetchval("SELECT id FROM api_key")
        await digest_of.execute(
            "INSERT INTO idempotency (api_key_id, key, request_sha256, nonce) VALUES ($1, $2, '', '')",
            key_id, KEY["Idempotency-Key"],
        )  # fmt: skip
        waiting = [asyncio.create_task(sent(client, "/v1/partners", {"name": "x"})) for client in (admin, second)]
        _, pending = await asyncio.wait(waiting, timeout=0.5)
        assert len(pending) == 2
        await first.rollback()
        answers = [await one for one in waiting]
    finally:
        await digest_of.close()
    assert sorted(str(replayed) for *_, replayed in answers) == ["None", "true"]
    assert await db.fetchval("SELECT count(*) FROM partner") == 1


async def test_repetitions_that_wait_leave_the_pool_to_others(
    admin: Client, db: Connection, database_url: str, made: Made
) -> None:
    holder = await connect(database_url, command_timeout_s=5)
    async with holder.transaction():
        await holder.execute("LOCK TABLE link IN EXCLUSIVE MODE")
        body = {"offer_id": made.offer_id, "partner_id": made.partner_id}
        waiting = [asyncio.create_task(sent(admin, "/v1/links", body)) for _ in range(50)]
        await asyncio.sleep(0.5)
        assert not any(one.done() for one in waiting)
        async with asyncio.timeout(3):
            assert (await admin("GET", "/v1/programme"))[0] == 200
    answers = [await one for one in waiting]
    await holder.close()
    assert {(status, answer["id"]) for status, answer, _ in answers} == {(201, answers[0][1]["id"])}
    assert await db.fetchval("SELECT count(*) FROM link") == 2


@pytest.mark.parametrize("key", ["", " ", "ä", "a b", "x" * 256, "tab\tin"])
async def test_a_key_that_can_be_none_is_refused(admin: Client, key: str) -> None:
    status, answer, _ = await sent(admin, "/v1/partners", {"name": "x"}, {"Idempotency-Key": key})
    assert (status, answer["error"]["field"]) == (400, "Idempotency-Key")


async def test_only_posts_are_remembered(admin: Client, made: Made, db: Connection) -> None:
    for name in ("a", "b"):
        status, _ = await admin("PATCH", f"/v1/partners/{made.partner_id}", json={"name": name}, headers=KEY)
        assert status == 200
    assert await db.fetchval("SELECT count(*) FROM idempotency") == 0


async def test_the_hourly_keeper_forgets_what_is_older_than_a_day(
    admin: Client, db: Connection, database_url: str
) -> None:
    for key in ("old", "new"):
        await sent(admin, "/v1/partners", {"name": key}, {"Idempotency-Key": key})
    await db.execute(
        "UPDATE idempotency SET created_at = now() - make_interval(hours => $1, secs => 1) WHERE key = 'old'",
        limits.IDEMPOTENCY_KEEP_H,
    )
    await keep_once(database_url, 400)
    assert [row["key"] for row in await db.fetch("SELECT key FROM idempotency")] == ["new"]
    assert (await sent(admin, "/v1/partners", {"name": "other"}, {"Idempotency-Key": "old"}))[0] == 201
