"""Visitors and buyers while something breaks, and whether what they were told is what Postgres then holds."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlencode
from uuid import UUID

import asyncpg
import orjson
from aiokafka import AIOKafkaConsumer

from loadtests.faults.drift import order_rollup_rows_wrong
from loadtests.faults.edges import read_answer, request
from loadtests.faults.house import CODES, TOKEN, House
from loadtests.heard import click_id_of, uuid_of

ANSWER_S = 20.0
ORDER_EVERY = 20  # clicks of one connection between two orders
COMPLETE_S = 90.0
EVENTS_TOPIC = "clickdam.events"
_COMPLETE = """
SELECT CASE WHEN EXISTS (SELECT FROM edge) THEN (SELECT complete_through FROM complete_through) END
"""
_BEFORE = """
SELECT (SELECT count(*) FROM click WHERE id < $1) + (SELECT count(*) FROM conversion_intake WHERE intake_id < $1)
"""


@dataclass(slots=True)
class Heard:
    """What visitors and buyers were told. `took` holds (when it was asked on the monotonic clock, seconds to the
    answer) of each click."""

    clicks: set[UUID] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    took: list[tuple[float, float]] = field(default_factory=list)
    orders: dict[UUID, str] = field(default_factory=dict)  # conversion id -> order id, receipts with 200 or 202
    receipts: list[tuple[float, int]] = field(default_factory=list)  # when asked, status

    def between(self, first: float, last: float = float("inf")) -> list[float]:
        """The seconds of the clicks asked between two moments."""
        return [took for at, took in self.took if first <= at < last]


@asynccontextmanager
async def visited(house: House, *, connections: int = 8, pause_s: float = 0.02) -> AsyncIterator[Heard]:
    """Click warm links, and buy now and then, until this ends. Each connection pauses `pause_s` between clicks."""
    heard, over = Heard(), asyncio.Event()
    numbers = itertools.count()
    visitors = [asyncio.create_task(_visit(house, heard, over, numbers, pause_s)) for _ in range(connections)]
    try:
        yield heard
    finally:
        over.set()
        await asyncio.wait_for(asyncio.gather(*visitors), ANSWER_S + 5)


async def _visit(
    house: House, heard: Heard, over: asyncio.Event, numbers: itertools.count[int], pause_s: float
) -> None:
    while not over.is_set():
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", house.edge_port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        with contextlib.suppress(OSError):
            await _visit_on(reader, writer, heard, over, numbers, pause_s)
        writer.close()


async def _visit_on(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    heard: Heard,
    over: asyncio.Event,
    numbers: itertools.count[int],
    pause_s: float,
) -> None:
    """Until the connection ends: status 0 in `statuses` is a click whose answer never came."""
    while not over.is_set():
        number = next(numbers)
        click_id = await _click(reader, writer, heard, f"/c/{CODES[number % len(CODES)]}?sub1={number}")
        if click_id is None:
            return
        if number % ORDER_EVERY == 0 and not await _buy(reader, writer, heard, click_id, f"order-{number}"):
            return
        await asyncio.sleep(pause_s)


async def _click(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Heard, path: str) -> str | None:
    began = time.monotonic()
    writer.write(request(path))
    async with asyncio.timeout(ANSWER_S):
        answer = await read_answer(reader)
    heard.statuses[answer.status] += 1
    heard.took.append((began, time.monotonic() - began))
    click_id = click_id_of(answer.headers.get("location", ""))
    if click_id is not None:
        heard.clicks.add(uuid_of(click_id))
    return click_id


async def _buy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Heard, click_id: str, order_id: str
) -> bool:
    began = time.monotonic()
    said = {"click_id": click_id, "order_id": order_id, "amount": "10.00", "currency": "EUR", "token": TOKEN}
    writer.write(request(f"/postback?{urlencode(said)}"))
    async with asyncio.timeout(ANSWER_S):
        answer = await read_answer(reader)
    heard.receipts.append((began, answer.status))
    if answer.status in (200, 202):
        heard.orders[UUID(answer.json()["conversion_id"])] = order_id
    return answer.status != 0


@dataclass(slots=True)
class Shown:
    """What the reports promised meanwhile: (complete_through, clicks and intakes of conversions in Postgres that were
    received before it, when asked)."""

    promises: list[tuple[datetime, int]] = field(default_factory=list)


@asynccontextmanager
async def watched(house: House, every_s: float = 0.2) -> AsyncIterator[Shown]:
    """Look at `complete_through` all the time. A Postgres that is away is asked again."""
    shown = Shown()
    looking = asyncio.create_task(_look(house, shown, every_s))
    try:
        yield shown
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def _look(house: House, shown: Shown, every_s: float) -> None:
    while True:
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            async with connected(house) as db:
                while True:
                    await _look_once(db, shown)
                    await asyncio.sleep(every_s)
        await asyncio.sleep(every_s)


async def _look_once(db: asyncpg.Connection[asyncpg.Record], shown: Shown) -> None:
    async with db.transaction(isolation="repeatable_read", readonly=True):
        promised = await db.fetchval(_COMPLETE)
        if isinstance(promised, datetime) and promised.year > 2000:
            shown.promises.append((promised, await db.fetchval(_BEFORE, first_id(promised))))


def first_id(at: datetime) -> UUID:
    """The least UUIDv7 of a moment."""
    return UUID(int=int(at.timestamp() * 1000) << 80)


@asynccontextmanager
async def connected(house: House) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    db = await asyncpg.connect(house.database_url, timeout=5)
    try:
        yield db
    finally:
        db.terminate()


async def complete_now(house: House, within_s: float = COMPLETE_S) -> float:
    """Wait until everything received up to now is promised to be in the reports. Answers how long it took (s)."""
    began, now = time.monotonic(), datetime.now(UTC)
    async with asyncio.timeout(within_s):
        while True:
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                async with connected(house) as db:
                    promised = await db.fetchval(_COMPLETE)
                if isinstance(promised, datetime) and promised >= now:
                    return time.monotonic() - began
            await asyncio.sleep(0.2)


@dataclass(frozen=True, slots=True)
class Verdict:
    """By id. `missing` answered clicks or receipts that Postgres does not have; `extra` rows that nobody was told of;
    `not_as_logged` clicks that are in the log and not in Postgres, or the other way round; `wrong_rollups` rollup rows
    that are not the sum of their rows; `broken_promises` of `complete_through`."""

    answered: int
    rows: int
    missing: int
    extra: int
    missing_orders: int
    not_as_logged: int
    wrong_rollups: int
    broken_promises: int

    @property
    def exact(self) -> bool:
        return not (self.missing or self.missing_orders or self.drift or self.broken_promises)

    @property
    def drift(self) -> int:
        return self.not_as_logged + self.wrong_rollups


async def clicks_in_kafka(servers: str, topic: str) -> set[UUID]:
    """The ids of all clicks that the topic holds, read without the product's code."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        ends = await consumer.end_offsets(consumer.assignment())
        found: set[UUID] = set()
        while any([await consumer.position(one) < end for one, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                events = [orjson.loads(record.value) for record in records]
                found |= {UUID(event["id"]) for event in events if event["kind"] == "click"}
        return found
    finally:
        await consumer.stop()


async def _sums(db: asyncpg.Connection[asyncpg.Record], query: str) -> dict[int, int]:
    return {row[0]: row[1] for row in await db.fetch(query)}


async def rows_of(house: House) -> set[UUID]:
    """The ids of all clicks in Postgres."""
    async with connected(house) as db:
        return {UUID(int=row["id"].int) for row in await db.fetch("SELECT id FROM click")}


async def verdict(
    house: House, heard: Heard, shown: Shown | None = None, *, known: Set[UUID] = frozenset(), gone: bool = False
) -> Verdict:
    """Hold what was told against what Postgres has, and that against the log. Call when `complete_now` has returned.
    `known` were there before; `gone`: the log has lost what came before, so only what it has is looked for."""
    logged = await clicks_in_kafka(house.kafka_servers, EVENTS_TOPIC)
    rows = await rows_of(house)
    async with connected(house) as db:
        orders = {UUID(int=row[0].int) for row in await db.fetch("SELECT conversion_id FROM conversion")}
        rolled = await _sums(db, "SELECT link_id, sum(clicks)::bigint FROM click_rollup GROUP BY 1")
        raw = await _sums(db, "SELECT link_id, count(*) FROM click GROUP BY 1")
        promises = shown.promises if shown else []
        broken = [at for at, before in promises if await db.fetchval(_BEFORE, first_id(at)) != before]
    found = Verdict(
        answered=len(heard.clicks), rows=len(rows), missing=len(heard.clicks - rows),
        extra=len(rows - heard.clicks - known),
        missing_orders=len(heard.orders.keys() - orders),
        not_as_logged=len(logged - rows if gone else logged ^ rows),
        wrong_rollups=sum(rolled.get(link) != raw.get(link) for link in rolled.keys() | raw.keys())
        + await order_rollup_rows_wrong(house.database_url),
        broken_promises=len(broken),
    )  # fmt: skip
    print(found)
    return found
