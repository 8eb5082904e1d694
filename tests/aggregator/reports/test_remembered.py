"""Expensive answers: made once however many ask, given until they expire, never to whom they are not for."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import orjson
import pytest

from aggregator.reports.asked import Scope, read
from aggregator.reports.remembered import Remembered, digest
from aggregator.reports.report import Report
from loadtests.faults.proxy import FaultProxy
from schemas import limits
from schemas.errors import Refused
from schemas.redis import Redis, done, reading


@dataclass(frozen=True)
class Question:
    about: str
    partner_id: int | None = None


class Maker:
    """Makes answers, counts and holds them up; and a clock that the test turns."""

    def __init__(self) -> None:
        self.made: list[Question] = []
        self.now = 1_000_000.0
        self.slow: set[str] = set()
        self.open = asyncio.Event()
        self.fails = False
        self.times = 1

    def remembered(self, redis: Redis, life: float = 60.0) -> Remembered[Question]:
        return Remembered("test", self.make, lambda _: life, redis, clock=lambda: self.now)

    async def make(self, question: Question) -> dict[str, Any]:
        self.made.append(question)
        if question.about in self.slow:
            await self.open.wait()
        if self.fails:
            raise Refused("unavailable", "the database does not answer")
        return {"about": question.about * self.times, "partner_id": question.partner_id, "n": len(self.made)}


@pytest.fixture
async def maker() -> Maker:
    return Maker()


@pytest.fixture
async def redis(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Redis]:
    """One that no busy machine makes anybody give up on."""
    monkeypatch.setattr(limits, "READ_TIMEOUT_S", 5.0)
    async with reading(redis_url) as client:
        yield client


async def ask(remembered: Remembered[Question], about: str = "x", partner_id: int | None = None) -> dict[str, Any]:
    answer: dict[str, Any] = orjson.loads((await remembered.answer(Question(about, partner_id))).body)
    return answer


async def test_200_who_ask_at_once_cause_one_computation(maker: Maker, redis: Redis) -> None:
    remembered = maker.remembered(redis)
    answers = await asyncio.gather(*(ask(remembered) for _ in range(200)))
    assert answers == [{"about": "x", "partner_id": None, "n": 1}] * 200
    assert len(maker.made) == 1


async def test_what_one_process_made_another_gives_until_it_expires_for_both(maker: Maker, redis: Redis) -> None:
    one, other = maker.remembered(redis), maker.remembered(redis)
    assert (await ask(one))["n"] == 1
    maker.now += 50
    assert (await ask(other))["n"] == 1
    maker.now += 10
    assert (await ask(other))["n"] == 2
    assert (await ask(one))["n"] == 2


async def test_nobody_is_given_what_is_for_another(maker: Maker, redis: Redis) -> None:
    remembered = maker.remembered(redis)
    for partner_id in (None, 1, 2, 1, None, 2):
        assert (await ask(remembered, "x", partner_id))["partner_id"] == partner_id
    assert len(maker.made) == 3


async def test_one_that_takes_long_does_not_hold_up_another(maker: Maker, redis: Redis) -> None:
    remembered = maker.remembered(redis)
    maker.slow.add("slow")
    slow = asyncio.create_task(ask(remembered, "slow"))
    while not maker.made:
        await asyncio.sleep(0)
    assert (await ask(remembered, "other"))["about"] == "other"
    assert not slow.done()
    maker.open.set()
    assert (await slow)["about"] == "slow"


@pytest.mark.parametrize("mode", ["refuse", "blackhole"])
async def test_without_redis_it_is_slower_and_not_broken(maker: Maker, redis_url: str, mode: Any) -> None:
    parts = urlsplit(redis_url)
    near = FaultProxy(str(parts.hostname), parts.port or 0)
    async with near as proxy, reading(redis_url.replace(f":{parts.port}/", f":{proxy.port}/")) as redis:
        proxy.mode = mode
        remembered = maker.remembered(redis)
        assert [(await ask(remembered))["n"] for _ in range(3)] == [1, 1, 1]
        maker.now += 60
        assert (await ask(remembered))["n"] == 2
        proxy.mode = "pass"


async def test_a_large_answer_is_remembered_here_and_takes_no_room_in_redis(maker: Maker, redis: Redis) -> None:
    remembered = maker.remembered(redis)
    maker.times = limits.REMEMBERED_BYTES_MAX
    assert [(await ask(remembered))["n"] for _ in range(2)] == [1, 1]
    assert await done(redis.keys("remembered:*")) == []
    assert (await ask(maker.remembered(redis)))["n"] == 2


async def test_what_lies_broken_in_redis_is_made_again(maker: Maker, redis: Redis) -> None:
    await ask(maker.remembered(redis))
    (key,) = await done(redis.keys("remembered:*"))
    await done(redis.set(key, b'{"until_s": "soon"'))
    assert (await ask(maker.remembered(redis)))["n"] == 2


async def test_a_failure_is_told_to_all_who_wait_and_not_remembered(maker: Maker, redis: Redis) -> None:
    remembered = maker.remembered(redis)
    maker.fails = True
    told = await asyncio.gather(*(ask(remembered) for _ in range(5)), return_exceptions=True)
    assert {type(error) for error in told} == {Refused}
    maker.fails = False
    assert (await ask(remembered))["n"] == len(maker.made)


async def test_an_expired_answer_is_never_given_though_no_new_one_can_be_made(maker: Maker, redis: Redis) -> None:
    remembered = maker.remembered(redis)
    await ask(remembered)
    maker.fails = True
    maker.now += 61
    with pytest.raises(Refused):
        await ask(remembered)


def test_every_part_of_a_question_is_in_its_digest() -> None:
    def report(
        query: dict[str, str], currency: str = "EUR", partner_id: int | None = None, zone: str = "UTC"
    ) -> Report:
        asked = read(list(query.items()), zone, datetime(2026, 11, 27, 12, tzinfo=UTC), "admin")
        return Report(asked, currency, Scope(partner_id))

    plain = {"from": "2026-11-01", "to": "2026-11-08"}
    questions = [
        report(plain), report(plain, "USD"), report(plain, partner_id=1), report(plain, partner_id=2),
        report(plain, zone="Europe/Berlin"), report(plain | {"to": "2026-11-09"}), report(plain | {"limit": "5"}),
        report(plain | {"metrics": "clicks"}), report(plain | {"group_by": "link"}), report(plain | {"link_id": "1"}),
    ]  # fmt: skip
    assert len({digest(question) for question in questions}) == len(questions)
    assert digest(questions[0]) == digest(report(dict(reversed(plain.items()))))
    assert ZoneInfo("UTC") is questions[0].asked.zone
