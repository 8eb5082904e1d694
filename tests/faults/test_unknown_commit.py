"""The connection is cut between COMMIT and its answer: nobody can tell whether it happened, and nothing drifts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from loadtests.faults.drift import drift, value
from loadtests.faults.journals import append, clicks, consumed, consuming, conversion, new_segment, settings
from loadtests.faults.proxy import FaultProxy

OUR_COMMIT = b"COMMIT\0"  # the one of a batch; partitions are made with the driver's own "COMMIT;"


def through(proxy: FaultProxy, database_url: str) -> str:
    parts = urlsplit(database_url)
    return parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{proxy.port}").geturl()


@pytest.mark.parametrize("happened", [True, False], ids=["it happened", "it did not"])
async def test_a_commit_whose_answer_is_lost_leaves_no_drift(happened: bool, database_url: str, tmp_path: Path) -> None:
    parts = urlsplit(database_url)
    segment = new_segment(tmp_path)
    async with FaultProxy("127.0.0.1", parts.port or 5432) as proxy:
        async with consuming(settings(through(proxy, database_url), tmp_path)):
            for part in range(8):
                proxy.cut_on(OUR_COMMIT, forward=happened, times=part % 4)
                append(segment, [*clicks(200), *(conversion() for _ in range(20))])
                await consumed(database_url, tmp_path)
                assert await value(database_url, "SELECT count(*) FROM click") == 200 * (part + 1)
        print(f"{proxy.cuts} commits cut")
        assert proxy.cuts >= 6
    figures = await drift(database_url, tmp_path)
    assert (figures.drift, figures.in_postgres, figures.orders_in_postgres) == (0, 1_600, 160)
    assert await value(database_url, "SELECT sum(clicks) FROM click_rollup") == 1_600


async def test_a_connection_cut_inside_the_copy_leaves_no_drift(database_url: str, tmp_path: Path) -> None:
    parts = urlsplit(database_url)
    append(new_segment(tmp_path), clicks(3_000))
    async with FaultProxy("127.0.0.1", parts.port or 5432) as proxy:
        proxy.cut_on(b"PGCOPY\n\xff\r\n\0", forward=False, times=3)
        async with consuming(settings(through(proxy, database_url), tmp_path)):
            await consumed(database_url, tmp_path)
        assert proxy.cuts == 3
    assert (await drift(database_url, tmp_path)).drift == 0


async def test_nothing_is_lost_while_postgres_is_away(database_url: str, tmp_path: Path) -> None:
    parts = urlsplit(database_url)
    segment = new_segment(tmp_path)
    async with (
        FaultProxy("127.0.0.1", parts.port or 5432) as proxy,
        consuming(settings(through(proxy, database_url), tmp_path)) as consumer,
    ):
        for mode in ("refuse", "reset", "pass"):
            proxy.mode = mode
            append(segment, clicks(500))
            await asyncio.sleep(0.3)
        await consumed(database_url, tmp_path, within_s=10)
        assert not consumer.done()
    figures = await drift(database_url, tmp_path)
    assert (figures.drift, figures.in_postgres) == (0, 1_500)
