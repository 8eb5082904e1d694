"""Journals to try a consumer with, and a consumer to try them on."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from aggregator.flush.run import consume
from loadtests.faults.drift import Figures, drift, fetch
from schemas import events, journal
from schemas.click_id import uuid7_bytes
from schemas.events import Beat, Click, Conversion
from schemas.settings import AggregatorSettings

CONSUMED_S = 60.0


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def uuid7(at_ms: int | None = None) -> UUID:
    return UUID(bytes=uuid7_bytes(now_ms() if at_ms is None else at_ms, os.urandom(10)))


def click(at_ms: int | None = None, **fields: Any) -> Click:
    wanted: dict[str, Any] = {
        "id": uuid7(at_ms),
        "link_id": 1,
        "offer_id": 1,
        "partner_id": 1,
        "click_class": 0,
    } | fields
    return Click(v=1, **wanted)


def clicks(count: int, **fields: Any) -> list[Click]:
    """Clicks of the last half hour on 50 links, so that rollup rows are shared."""
    now = now_ms()
    return [
        click(now - n * 7919 % 1_800_000, link_id=n % 50 + 1, country=("DE", "FR", "")[n % 3], device="phone", **fields)
        for n in range(count)
    ]


def conversion(at_ms: int | None = None, **fields: Any) -> Conversion:
    at_ms = now_ms() if at_ms is None else at_ms
    wanted: dict[str, Any] = {
        "intake_id": uuid7(), "conversion_id": uuid7(), "click_uuid": uuid7(at_ms - 60_000), "click_class": 0,
        "link_id": 1, "offer_id": 1, "partner_id": 1, "advertiser_id": 1, "event": "sale", "order_id": "o-1",
        "event_at_ms": at_ms, "amount_minor": 4990, "currency": "EUR",
    } | fields  # fmt: skip
    return Conversion(v=1, **wanted)


def beat(incarnation: str, state: str = "beat", **fields: Any) -> Beat:
    at_ms = now_ms()
    wanted: dict[str, Any] = {
        "edge": "edge",
        "incarnation": incarnation,
        "state": state,
        "at_ms": at_ms,
        "complete_to_ms": at_ms,
    }
    return Beat(v=1, **(wanted | fields))


def body(of: Iterable[events.Event | bytes]) -> bytes:
    return b"\n".join(one if isinstance(one, bytes) else events.encode(one) for one in of)


def new_segment(folder: Path, slot: int = 0, incarnation: str = "incarnation") -> journal.Segment:
    place = journal.slot_folder(folder, slot)
    place.mkdir(parents=True, exist_ok=True)
    return journal.Segment.create(place, "edge", incarnation)


def append(segment: journal.Segment, of: Iterable[events.Event | bytes], *, row_events: int = 100) -> None:
    """Write events, `row_events` to a row."""
    lines = list(of)
    for first in range(0, len(lines), row_events):
        segment.append(body(lines[first : first + row_events]), now_ms())


def settings(database_url: str, folder: Path, **fields: Any) -> AggregatorSettings:
    urls: dict[str, Any] = {
        "database_url": database_url,
        "log_url": f"journal://{folder}",
        "redis_url": "redis://127.0.0.1:1/0",
    }
    return AggregatorSettings(**(urls | {"admin_port": 0} | fields))


@asynccontextmanager
async def consuming(of: AggregatorSettings) -> AsyncIterator[asyncio.Task[None]]:
    """A consumer in this process. Raises what it died of."""
    task = asyncio.create_task(consume(of, asyncio.Event()))
    try:
        yield task
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def consumed(database_url: str, folder: Path, within_s: float = CONSUMED_S) -> None:
    """Wait until Postgres has passed everything that lies in the journal."""
    async with asyncio.timeout(within_s):
        while await _behind(database_url, folder):
            await asyncio.sleep(0.02)


async def consume_all(of: AggregatorSettings) -> None:
    """Start a consumer, let it apply everything, stop it."""
    async with consuming(of):
        await consumed(of.database_url, of.journal_folder)


@dataclass(slots=True)
class JournalOnTrial:
    """A journal with a slot for each partition, and the settings of a consumer. What `kafkas.KafkaOnTrial` is for
    Kafka, so that one test can try both."""

    settings: AggregatorSettings
    _segments: dict[int, journal.Segment] = field(default_factory=dict)

    async def append(self, of: Iterable[events.Event | bytes], partition: int = 0, *, row_events: int = 100) -> None:
        folder = self.settings.journal_folder
        segment = self._segments.get(partition) or new_segment(folder, partition)
        self._segments[partition] = segment
        append(segment, of, row_events=row_events)

    async def consumed(self, within_s: float = CONSUMED_S) -> None:
        await consumed(self.settings.database_url, self.settings.journal_folder, within_s)

    async def drift(self) -> Figures:
        return await drift(self.settings.database_url, self.settings.journal_folder)


async def _behind(database_url: str, folder: Path) -> bool:
    rows = await fetch(database_url, "SELECT source, partition, next FROM log_position")
    applied = {(row["source"], row["partition"]): row["next"] for row in rows}
    for path in folder.glob("edge-*/*.journal"):
        slot = int(path.parent.name.removeprefix("edge-"))
        with closing(sqlite3.connect(path)) as db:
            (source,) = db.execute("SELECT source FROM meta").fetchone()
            (last,) = db.execute("SELECT coalesce(max(id), 0) FROM batch").fetchone()
        if applied.get((source, slot), 1) <= last:
            return True
    return False
