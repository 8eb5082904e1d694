"""The connection is cut between COMMIT and its answer: nobody can tell whether it happened, and nothing drifts."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import pytest

from loadtests.faults.drift import value
from loadtests.faults.journals import clicks, consuming, conversion
from loadtests.faults.proxy import FaultProxy
from schemas.settings import AggregatorSettings
from tests.faults.conftest import OnTrial

OUR_COMMIT = b"COMMIT\0"  # the one of a batch; partitions are made with the driver's own "COMMIT;"


def before(log: OnTrial) -> FaultProxy:
    parts = urlsplit(log.settings.database_url)
    return FaultProxy("127.0.0.1", parts.port or 5432)


def through(proxy: FaultProxy, of: AggregatorSettings) -> AggregatorSettings:
    parts = urlsplit(of.database_url)
    url = parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{proxy.port}").geturl()
    return of.model_copy(update={"database_url": url})


@pytest.mark.parametrize("happened", [True, False], ids=["it happened", "it did not"])
async def test_a_commit_whose_answer_is_lost_leaves_no_drift(happened: bool, log: OnTrial, database_url: str) -> None:
    async with before(log) as proxy:
        async with consuming(through(proxy, log.settings)):
            for part in range(8):
                proxy.cut_on(OUR_COMMIT, forward=happened, times=part % 4)
                await log.append([*clicks(200), *(conversion() for _ in range(20))])
                await log.consumed()
                assert await value(database_url, "SELECT count(*) FROM click") == 200 * (part + 1)
        print(f"{proxy.cuts} commits cut")
        assert proxy.cuts >= 6
    figures = await log.drift()
    assert (figures.drift, figures.in_postgres, figures.orders_in_postgres) == (0, 1_600, 160)
    assert await value(database_url, "SELECT sum(clicks) FROM click_rollup") == 1_600


async def test_a_connection_cut_inside_the_copy_leaves_no_drift(log: OnTrial) -> None:
    await log.append(clicks(3_000))
    async with before(log) as proxy:
        proxy.cut_on(b"PGCOPY\n\xff\r\n\0", forward=False, times=3)
        async with consuming(through(proxy, log.settings)):
            await log.consumed()
        assert proxy.cuts == 3
    assert (await log.drift()).drift == 0


async def test_nothing_is_lost_while_postgres_is_away(log: OnTrial) -> None:
    async with before(log) as proxy, consuming(through(proxy, log.settings)) as consumer:
        for mode in ("refuse", "reset", "pass"):
            proxy.mode = mode
            await log.append(clicks(500))
            await asyncio.sleep(0.3)
        await log.consumed(within_s=10)
        assert not consumer.done()
    figures = await log.drift()
    assert (figures.drift, figures.in_postgres) == (0, 1_500)
