import asyncio
import time
from typing import Any

import aiohttp
import pytest

from aggregator.api import keys
from aggregator.db.connect import Connection
from loadtests.faults.proxy import Mode
from schemas.settings import ApiSettings
from tests.aggregator.api.conftest import answering, proxied, proxy_of


async def call(settings: ApiSettings, key: str, path: str, body: Any) -> tuple[int, Any, float, Any]:
    async with answering(settings) as session:
        started = time.monotonic()
        async with session.post(path, json=body, headers={"Authorization": f"Bearer {key}"}) as answer:
            return answer.status, await answer.json(), time.monotonic() - started, answer.headers


_QUEUED = "SELECT count(*) FROM outbox JOIN link ON link.id = row_id AND kind = 'link' WHERE code = 'later'"


@pytest.mark.parametrize("mode", ["refuse", "blackhole"])
async def test_a_link_made_while_redis_is_away_is_kept_and_said_not_to_be_live(
    settings: ApiSettings, db: Connection, made: Any, mode: Mode
) -> None:
    key = (await keys.create(db, keys.Wanted("admin"))).key
    async with proxy_of(settings.redis_url) as proxy:
        proxy.mode = mode
        away = settings.model_copy(update={"redis_url": proxied(settings.redis_url, proxy)})
        body = {"offer_id": made.offer_id, "partner_id": made.partner_id, "code": "later"}
        status, answer, took_s, _ = await call(away, key, "/v1/links", body)
    assert (status, answer["live"]) == (201, False)
    assert took_s < 3
    assert await db.fetchval(_QUEUED) == 1


@pytest.mark.parametrize("mode", ["refuse", "blackhole"])
async def test_postgres_away_is_a_503_that_says_when_to_repeat(
    settings: ApiSettings, db: Connection, mode: Mode
) -> None:
    key = (await keys.create(db, keys.Wanted("admin"))).key
    async with proxy_of(settings.database_url) as proxy:
        proxy.mode = mode
        away = settings.model_copy(update={"database_url": proxied(settings.database_url, proxy)})
        status, answer, took_s, headers = await call(away, key, "/v1/partners", {"name": "x"})
    assert (status, answer["error"]["code"]) == (503, "unavailable")
    assert int(headers["Retry-After"]) > 0
    assert took_s < 8


async def test_a_full_pool_is_a_503(admin: Any, db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    from schemas import limits

    monkeypatch.setattr(limits, "API_ACQUIRE_S", 0.3)
    async with db.transaction():
        await db.execute("LOCK TABLE partner")
        answers = await asyncio.gather(
            *(_unless_late(admin("POST", "/v1/partners", json={"name": "x"})) for _ in range(limits.API_POOL_MAX + 4))
        )
    assert 503 in [status for status, _ in filter(None, answers)]


async def _unless_late(answer: Any) -> Any:
    try:
        async with asyncio.timeout(2):
            return await answer
    except TimeoutError:
        return None


async def test_health_needs_no_key_and_ready_follows_postgres(session: aiohttp.ClientSession) -> None:
    async with session.get("/live") as live:
        assert (live.status, await live.json()) == (200, {"live": True})
    for _ in range(50):
        async with session.get("/ready") as ready:
            if ready.status == 200:
                break
        await asyncio.sleep(0.05)
    assert ready.status == 200


async def test_a_crash_is_a_500_that_says_nothing_of_what_was_sent(
    admin: Any, db: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    await db.execute("ALTER TABLE partner ADD CHECK (name <> 'secret-name')")
    status, answer = await admin("POST", "/v1/partners", json={"name": "secret-name"})
    assert (status, answer["error"]["code"]) == (500, "internal")
    told = capsys.readouterr()
    assert "secret-name" not in str(answer) + told.out + told.err
    assert "CheckViolationError" in told.out + told.err
    assert admin.key not in told.out + told.err
