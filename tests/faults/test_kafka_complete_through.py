"""`complete_through` is true on Kafka: while earlier events are held up somewhere and later ones are in the reports
already, nothing that an edge received before it appears later, in the tables or in what the API answers."""

from __future__ import annotations

import asyncio
import csv
import io
import os
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import pytest

from aggregator.api import keys
from deploy.run.children import free_port
from loadtests.faults.broken import EVENTS, Broken, broken
from loadtests.faults.house import House
from loadtests.faults.ridden import outcomes
from loadtests.faults.traffic import Heard, complete_now, connected, rows_of, verdict, visited, watched
from schemas.settings import ApiSettings
from tests.aggregator.api.conftest import PUBLIC_URL, Client, answering

BEHIND = timedelta(seconds=2)  # of events held up, behind others that are in Postgres: two beats
HELD_UP_S = 40.0
PAUSE_S = 0.05
LENGTHS = [pytest.param(1, id="short"), pytest.param(5, id="long", marks=pytest.mark.long)]  # how often
_STOP = """
UPDATE log_position SET stopped = 'held up by a test', stopped_at = now()
WHERE source LIKE $1 AND partition = 0 RETURNING source
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A house with two aggregators and a second edge, and who may ask its API anything."""

    whole: Broken
    second: House
    admin: Client

    @property
    def house(self) -> House:
        return self.whole.house


@pytest.fixture(scope="module")
async def place(
    tmp_path_factory: pytest.TempPathFactory, shared_database_url: str, shared_redis_url: str
) -> AsyncIterator[Place]:
    settings = ApiSettings(database_url=shared_database_url, redis_url=shared_redis_url, public_url=PUBLIC_URL)
    folder = tmp_path_factory.mktemp("held-up")
    async with (
        broken(folder, shared_database_url, shared_redis_url, aggregators=2) as whole,
        second_edge(whole.house) as second,
        answering(settings) as session,
    ):
        async with connected(whole.house) as db:
            key = await keys.create(db, keys.Wanted("admin", requests_per_minute=60_000))
        yield Place(whole, second, Client(session, key.key))


@asynccontextmanager
async def second_edge(of: House) -> AsyncIterator[House]:
    """Another edge before the same log, with a spool of its own."""
    port = free_port()
    own = {
        "CLICKDAM_EDGE_NAME": "second", "CLICKDAM_EDGE_PORT": str(port),
        "CLICKDAM_SPOOL_FOLDER": str(of.folder / "second-spool"),
    }  # fmt: skip
    second = replace(of, env=of.env | own, edge_port=port, admin_port=free_port(), edge=None, aggregators=[])
    try:
        await second.start_edge()
        yield second
    finally:
        await second.stop()


class Told(NamedTuple):
    """What the API said of all time up to now, and which rows its lists have before `through`."""

    through: str
    clicks: int
    conversions: int
    clicks_listed: frozenset[str]
    conversions_listed: frozenset[str]


@asynccontextmanager
async def asked(admin: Client) -> AsyncIterator[list[Told]]:
    """Ask the API all the time; everything it said is held against what it says at the end, by `broken_answers`."""
    told: list[Told] = []
    asking = asyncio.create_task(_ask(admin, told))
    try:
        yield told
    finally:
        asking.cancel()
        (ended,) = await asyncio.gather(asking, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), ended


async def _ask(admin: Client, told: list[Told]) -> None:
    while True:
        status, report = await admin("GET", "/v1/reports?granularity=total&metrics=clicks,conversions")
        assert status == 200, report
        if through := report["complete_through"]:
            clicks, conversions = (sum(row[name] or 0 for row in report["data"]) for name in ("clicks", "conversions"))
            lists = [frozenset(await rows_listed(admin, path, through)) for path in ("/v1/clicks", "/v1/conversions")]
            told.append(Told(through, clicks, conversions, *lists))
        await asyncio.sleep(0.3)


async def rows_listed(admin: Client, path: str, through: str) -> dict[str, str]:
    """The rows of a list before a time: by id, their times."""
    asking = {"headers": {"Authorization": f"Bearer {admin.key}"}, "params": {"format": "csv", "to": through}}
    async with admin.session.get(path, **asking) as answer:  # type: ignore[arg-type]
        assert answer.status == 200, await answer.text()
        rows = csv.DictReader(io.StringIO(await answer.text(), newline=""))
    names = ("id", "clicked_at") if path == "/v1/clicks" else ("conversion_id", "event_at")
    return {row[names[0]]: row[names[1]] for row in rows}


async def broken_answers(admin: Client, told: Iterable[Told]) -> list[str]:
    """The times up to which an answer said that it is complete, and was not."""
    now = f"{datetime.now(UTC) + timedelta(seconds=1):%Y-%m-%dT%H:%M:%S}Z"
    clicks, conversions = [await rows_listed(admin, path, now) for path in ("/v1/clicks", "/v1/conversions")]
    found = []
    for one in told:
        before = [{key for key, at in rows.items() if at < one.through} for rows in (clicks, conversions)]
        has_all = one.clicks >= len(before[0]) and one.conversions >= len(before[1])
        if before != [one.clicks_listed, one.conversions_listed] or not has_all:
            found.append(one.through)
    return found


async def held_up(house: House, *heard: Heard) -> datetime:
    """Wait until clicks that were answered are not in Postgres, and much later ones are. Answers when the first of
    those missing was received."""
    async with asyncio.timeout(HELD_UP_S):
        while True:
            answered = set().union(*(one.clicks for one in heard))
            rows = await rows_of(house)
            missing = answered - rows
            if missing and received_at(max(rows)) - received_at(min(missing)) > BEHIND:
                return received_at(min(missing))
            await asyncio.sleep(0.2)


def received_at(click: UUID) -> datetime:
    return datetime.fromtimestamp((click.int >> 80) / 1000, UTC)


async def complete_through(house: House) -> datetime:
    async with connected(house) as db:
        found = await db.fetchval("SELECT complete_through FROM complete_through")
    assert isinstance(found, datetime)
    return found


@asynccontextmanager
async def nothing_comes_later(place: Place) -> AsyncIterator[tuple[Heard, Heard]]:
    """Visitors at both edges while something is held up; when it is over and all is complete, every time that was
    promised meanwhile is held against what there is then."""
    house = place.house
    async with watched(house, every_s=0.1) as shown, asked(place.admin) as told:
        async with visited(house, pause_s=PAUSE_S) as first, visited(place.second, pause_s=PAUSE_S) as second:
            await asyncio.sleep(1)
            yield first, second
        took_s = await complete_now(house)
        heard = Heard(first.clicks | second.clicks, orders=first.orders | second.orders)
        found = await verdict(house, heard, shown)
    assert found.drift == found.broken_promises == found.missing_orders == 0
    assert await broken_answers(place.admin, told) == []
    times = {at for at, _ in shown.promises}
    assert len(times) > 1, "complete_through stood still"
    print(f"{len(shown.promises)} looks at {len(times)} times, {len(told)} answers, all kept; whole in {took_s:.1f} s")


@pytest.mark.parametrize("rounds", LENGTHS)
async def test_a_frozen_edge_that_holds_a_spool_holds_complete_through_back(place: Place, rounds: int) -> None:
    house, broker = place.house, place.whole
    for _ in range(rounds):
        async with nothing_comes_later(place) as heard:
            spooled = (await outcomes(house))["spooled"]
            await broker.freeze()
            while (await outcomes(house))["spooled"] < spooled + 20:
                await asyncio.sleep(0.1)
            assert house.edge is not None
            frozen = [house.edge.pid, *house.worker_pids()]
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            try:
                await broker.thaw()
                first = await held_up(house, *heard)
                assert await complete_through(house) <= first
            finally:
                for pid in frozen:
                    os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("rounds", LENGTHS)
async def test_a_partition_that_stands_still_holds_complete_through_back(place: Place, rounds: int) -> None:
    for _ in range(rounds):
        async with nothing_comes_later(place) as heard:
            async with connected(place.house) as db:
                source = await db.fetchval(_STOP, f"{EVENTS}@%")
            first = await held_up(place.house, *heard)
            assert await complete_through(place.house) <= first
            body = {"source": source, "partition": 0}
            status, answer = await place.admin("POST", "/v1/system/partitions/resume", json=body)
            assert status == 200, answer


@pytest.mark.parametrize("rounds", LENGTHS)
async def test_an_aggregator_frozen_and_then_killed_holds_complete_through_back(place: Place, rounds: int) -> None:
    house = place.house
    for _ in range(rounds):
        async with nothing_comes_later(place) as heard:
            dying = house.aggregators.pop(0)
            dying.send_signal(signal.SIGSTOP)
            first = await held_up(house, *heard)
            assert await complete_through(house) <= first
            dying.kill()
            await dying.wait()
            await house.start_aggregator()
