"""A broker behind a proxy, and the parts of an edge process on it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deploy.run import kafka
from deploy.run.children import free_port
from loadtests.faults import edges, topics
from loadtests.faults.proxy import FaultProxy
from schemas import limits
from schemas.outcomes import Outcome
from schemas.settings import EdgeSettings
from tests.conftest import KafkaTopics
from tracker.background import running
from tracker.clock import EdgeClock, wall_ms
from tracker.log.ladder import Ladder
from tracker.log.on_kafka import kafka_log
from tracker.log.recorder import recording
from tracker.tally import Tally

WITHIN_S = 30.0


@pytest.fixture(scope="module")
async def proxy(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FaultProxy]:
    """In front of a broker of its own; each test leaves it whole."""
    port = free_port()
    async with FaultProxy("127.0.0.1", port) as proxy:
        advertised = {"advertised.listeners": f"PLAINTEXT://127.0.0.1:{proxy.port}"}
        server = await asyncio.to_thread(kafka.start_kafka, tmp_path_factory.mktemp("kafka"), port, advertised)
        yield proxy
        proxy.mode = "pass"
        await asyncio.to_thread(kafka.stop_kafka, server)


@dataclass
class Process:
    """An edge process without its doors, on a clock that the test may turn back."""

    settings: EdgeSettings
    slot: int = 0
    back_ms: int = 0
    told: dict[bytes, Outcome] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.clock = EdgeClock(lambda: wall_ms() - self.back_ms)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Process]:
        """Registered and beating; ends in order."""
        async with kafka_log(self.settings, self.slot, self.clock, self.tally) as heartbeat:
            assert isinstance(heartbeat.log, Ladder)
            self.ladder = heartbeat.log
            async with (
                recording(self.ladder, self.tally) as self.recorder,
                running("heartbeat", heartbeat.beat(self.recorder)),
            ):
                yield self

    @asynccontextmanager
    async def killed(self) -> AsyncIterator[Process]:
        """The same, but it ends as after kill -9: nothing is said or sent any more."""
        async with AsyncExitStack() as stack:
            yield await stack.enter_async_context(self.running())
            self.ladder.close = _say_nothing  # type: ignore[method-assign]
            self.ladder.alive.clear()

    async def clicks(self, n: int, name: str = "click") -> list[Outcome]:
        """Record events together."""
        return list(await asyncio.gather(*(self.click(f"{name}-{number}") for number in range(n))))

    async def click(self, name: str) -> Outcome:
        event = b'{"kind":"click","name":"%s","pad":"%s"}' % (name.encode(), os.urandom(100).hex().encode())
        outcome = await self.recorder.durable(event, self.clock.now_ms())
        self.told[event] = outcome
        return outcome

    def durable(self) -> set[bytes]:
        return {event for event, outcome in self.told.items() if outcome in (Outcome.RECORDED, Outcome.SPOOLED)}

    async def whole(self) -> None:
        """Return when the circuit is closed and nothing is spooled."""
        async with asyncio.timeout(WITHIN_S):
            while not self.ladder.is_closed or self.ladder.spool.unsent.is_set():
                await asyncio.sleep(0.02)


async def _say_nothing(*_: Any) -> None:
    pass


@pytest.fixture
async def settings(
    tmp_path: Path, proxy: FaultProxy, kafka_topics: KafkaTopics, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[EdgeSettings]:
    """An edge on the broker behind the proxy, with topics of its own."""
    monkeypatch.setattr(limits, "ACK_DEADLINE_S", 0.5)  # a busy machine takes its time
    made = edges.settings(
        tmp_path, redis_url, log_url=f"kafka://127.0.0.1:{proxy.port}", spool_folder=tmp_path / "spool",
        kafka_events_topic=kafka_topics.events, kafka_beats_topic=kafka_topics.beats,
    )  # fmt: skip
    await topics.make(made)
    yield made
    proxy.mode = "pass"
