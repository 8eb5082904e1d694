"""So many calls a minute by key, counted in Redis; without it, calls are not limited."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog

from aggregator.api import keys
from aggregator.api.keys import Wanted
from aggregator.api.rates import Rates, counting_calls
from aggregator.db.connect import Connection
from loadtests.faults.proxy import Mode
from schemas import limits, redis_keys
from schemas.redis import Redis, done
from schemas.settings import ApiSettings
from tests.aggregator.api.conftest import Client, proxied, proxy_of


async def answered(client: Client, path: str = "/v1/programme", **request: Any) -> tuple[int, dict[str, str]]:
    headers = {"Authorization": f"Bearer {client.key}"}
    async with client.session.request(request.pop("method", "GET"), path, headers=headers, **request) as answer:
        return answer.status, {
            name: value for name, value in answer.headers.items() if "Rate" in name or "Retry" in name
        }


@asynccontextmanager
async def counting_calls_at(redis: Redis, window_s: float = 60.0) -> AsyncIterator[Rates]:
    rates = Rates(redis, window_s)
    yield rates
    await rates.close()


async def limited_to(admin: Client, db: Connection, per_minute: int) -> Client:
    return admin.with_key((await keys.create(db, Wanted("admin", requests_per_minute=per_minute))).key)


async def test_each_answer_tells_what_is_left_and_the_first_too_many_when_to_come_back(
    admin: Client, db: Connection, redis: Redis
) -> None:
    client = await limited_to(admin, db, 3)
    found = [await answered(client) for _ in range(5)]
    assert [status for status, _ in found] == [200, 200, 200, 429, 429]
    assert [told["X-RateLimit-Remaining"] for _, told in found] == ["2", "1", "0", "0", "0"]
    for status, told in found:
        assert told["X-RateLimit-Limit"] == "3"
        assert 1 <= int(told["X-RateLimit-Reset"]) <= 60
        assert told.get("Retry-After") == (told["X-RateLimit-Reset"] if status == 429 else None)
    status, body = await client("GET", "/v1/programme")
    assert (status, body["error"]["code"]) == (429, "too_many_requests")
    assert (await answered(admin))[0] == 200


async def test_refusals_count_and_are_told_of_too(admin: Client, db: Connection) -> None:
    client = await limited_to(admin, db, 100)
    calls = [("GET", "/v1/me", 403), ("GET", "/v1/partners/404", 404), ("POST", "/v1/partners", 400)]
    for left, (method, path, expected) in zip((99, 98, 97), calls, strict=True):
        status, told = await answered(client, path, method=method)
        assert (status, told["X-RateLimit-Remaining"]) == (expected, str(left))
    assert await answered(client.with_key("cd_nonsense")) == (401, {})


async def test_of_many_calls_at_once_just_so_many_pass_and_each_has_its_place(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RATE_TIMEOUT_S", 10.0)  # of a busy machine
    async with counting_calls_at(redis) as one, counting_calls_at(redis) as other:
        found = await asyncio.gather(*(rates.spend(7, 20) for rates in (one, other) for _ in range(50)))
    spent = [found for found in found if found]
    assert sorted(one.used for one in spent) == list(range(1, 101))
    assert sorted(one.used for one in spent if not one.is_too_much) == list(range(1, 21))


async def test_a_call_that_was_not_waited_for_is_counted_all_the_same(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with counting_calls_at(redis) as rates:
        monkeypatch.setattr(limits, "RATE_TIMEOUT_S", 0.0)
        assert [await rates.spend(7, 1) for _ in range(5)] == [None] * 5
        monkeypatch.setattr(limits, "RATE_TIMEOUT_S", 10.0)
        async with asyncio.timeout(5):
            while (spent := await rates.spend(7, 1)) is None:
                await asyncio.sleep(0.01)
    assert spent.used >= 6
    assert spent.is_too_much


async def test_a_new_minute_begins_when_the_old_one_is_over(redis: Redis) -> None:
    async with counting_calls_at(redis, 0.3) as rates:
        assert await rates.spend(7, 2)
        await asyncio.sleep(0.4)
        spent = await rates.spend(7, 2)
    assert spent
    assert (spent.used, spent.reset_s, spent.is_too_much) == (1, 1, False)


async def test_a_count_that_has_no_end_gets_one(redis: Redis) -> None:
    await done(redis.set(redis_keys.rate(7), 5))
    async with counting_calls_at(redis) as rates:
        spent = await rates.spend(7, 10)
    assert spent
    assert (spent.used, spent.reset_s) == (6, 60)
    assert 0 < await done(redis.pttl(redis_keys.rate(7))) <= 60_000


@pytest.mark.parametrize("mode", ["refuse", "blackhole"])
async def test_without_redis_nothing_is_limited_nobody_waits_and_it_is_said_once(
    settings: ApiSettings, mode: Mode
) -> None:
    async with proxy_of(settings.redis_url) as proxy, counting_calls(proxied(settings.redis_url, proxy)) as rates:
        assert await rates.spend(7, 1)
        proxy.mode = mode
        with structlog.testing.capture_logs() as told:
            took_s = [await timed(rates) for _ in range(20)]
        assert [line["event"] for line in told] == ["rate_limits_off"]
        assert sorted(took_s)[10] < 0.25, took_s
        proxy.mode = "pass"
        async with asyncio.timeout(10):
            while await rates.spend(7, 1) is None:
                await asyncio.sleep(0.05)
        print(f"\nredis {mode}: a call waits {sorted(took_s)[10] * 1000:.0f} ms, at most {max(took_s) * 1000:.0f}")


async def timed(rates: Rates) -> float:
    started = time.monotonic()
    assert await rates.spend(7, 1) is None
    return time.monotonic() - started


async def test_a_value_that_is_no_count_limits_nothing(redis: Redis) -> None:
    await done(redis.set(redis_keys.rate(7), "x"))
    async with counting_calls_at(redis) as rates:
        assert await rates.spend(7, 1) is None
