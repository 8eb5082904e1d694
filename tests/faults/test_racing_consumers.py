"""Consumers race on one log while their connections are ended, their commits cut and they themselves killed."""

from __future__ import annotations

import asyncio
import random

import asyncpg
import pytest

from aggregator.flush.run import consume
from loadtests.faults.journals import clicks, conversion
from schemas.settings import AggregatorSettings
from tests.faults.conftest import OnTrial
from tests.faults.test_unknown_commit import before, through

CONSUMERS = 3
FAULTS = 40
CUTS = 5
_END_ONE = """
WITH chosen AS MATERIALIZED (
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'clickdam-consumer' ORDER BY random() LIMIT 1)
SELECT pg_terminate_backend(pid) FROM chosen
"""


class Racers:
    """Consumers that can be killed, and are then started again."""

    def __init__(self, of: AggregatorSettings) -> None:
        self._of = of
        self._tasks = [self._start() for _ in range(CONSUMERS)]

    def _start(self) -> asyncio.Task[None]:
        return asyncio.create_task(consume(self._of, asyncio.Event()))

    async def kill(self, number: int) -> None:
        assert not self._tasks[number].done()
        self._tasks[number].cancel()
        await asyncio.gather(self._tasks[number], return_exceptions=True)
        self._tasks[number] = self._start()

    async def stop(self) -> None:
        assert not any(task.done() for task in self._tasks)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_totals_equal_the_log_after_any_faults(seed: int, log: OnTrial, database_url: str) -> None:
    dice = random.Random(seed)
    shared = clicks(2_000)
    direct = await asyncpg.connect(database_url)
    async with before(log) as proxy:
        racers = Racers(through(proxy, log.settings))
        faults = 0
        while faults < FAULTS or proxy.cuts < CUTS:
            faults += 1
            for partition in (0, 1):
                repeated = dice.sample(shared, dice.randrange(100))
                more = [*clicks(dice.randrange(200)), *repeated, conversion(), b"no event"]
                await log.append(more, partition, row_events=40)
            match dice.randrange(4):
                case 0:
                    await direct.execute(_END_ONE)
                case 1:
                    await racers.kill(dice.randrange(CONSUMERS))
                case choice:
                    proxy.cut_on(b"COMMIT\0", forward=choice == 2)
            await asyncio.sleep(dice.random() * 0.12)
        await log.consumed()
        await racers.stop()
        print(f"seed {seed}: {faults} faults, {proxy.cuts} of them commits cut")
    # nothing but the fence keeps these from being written twice; ids do it for all else
    dead = await direct.fetchval("SELECT count(*) FROM dead_letter")
    await direct.close()
    assert (await log.drift()).drift == 0
    assert dead == 2 * faults
