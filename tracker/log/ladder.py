"""The ladder under an event: Kafka in time, else this machine's disk, else it is lost and counted.

The circuit to Kafka opens when an acknowledgement is late or refused; from then on everything goes to the spool at
once. Heartbeats, never clicks, find out whether Kafka is back: acknowledged in time, they close the circuit; late, they
let the drainer work; not at all, they end the producer, and a later one begins another. So nothing that a failed
producer holds on to outlives a heartbeat.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping

import structlog

from schemas import events, limits
from schemas.events import Beat, Probe
from schemas.outcomes import Outcome
from tracker.clock import wall_ms
from tracker.log.kafka_out import KafkaOut, Portion, TooLarge, partition_of
from tracker.log.recorder import Batch, LogFailed
from tracker.log.registry import Registry
from tracker.log.spool import Spool

log = structlog.get_logger()


class Ladder:
    """Kafka as the edge's log, with the spool beneath it. `alive` is set while heartbeats are acknowledged."""

    def __init__(self, edge: str, spool: Spool, registry: Registry, connect: Callable[[], KafkaOut]) -> None:
        self._edge = edge
        self.spool = spool
        self._registry = registry
        self._connect = connect
        self._out: KafkaOut | None = None
        self._portion = Portion()
        self._acked: dict[tuple[str, int], int] = {}  # (source, partition) -> offset
        self._unheard: list[Beat] = []  # beginnings that the log has not heard of
        self._failures = 0
        self._retry_at = 0.0
        self.alive = asyncio.Event()
        self.is_closed = False  # the circuit
        self.builds = 0

    @property
    def deadline_s(self) -> float:
        return limits.ACK_DEADLINE_S + limits.SPOOL_WAIT_S

    async def write(self, batch: Batch) -> Outcome:
        """Raises LogFailed when the spool is full or broken."""
        if batch.is_watermark:
            await self._begin(batch)
            return Outcome.RECORDED
        if self.is_closed and await self._in_kafka(batch):
            return Outcome.RECORDED
        return await self.spool.write(batch)

    def acked(self) -> list[tuple[str, int, int]]:
        """Of the topic as it is now."""
        source = self._out.source if self._out else ""
        return [(source, partition, offset) for (of, partition), offset in self._acked.items() if of == source]

    def oldest_ms(self) -> int | None:
        return self.spool.oldest_ms()

    def note(self, source: str, offsets: Mapping[int, int]) -> None:
        """Events of this edge lie in the log up to these offsets."""
        for partition, offset in offsets.items():
            self._acked[source, partition] = max(offset, self._acked.get((source, partition), -1))

    async def register(self, opening: Beat) -> None:
        """Return when the log, or else Redis, knows this incarnation."""
        self._unheard.append(opening)
        while not await self.heartbeat(None):
            await asyncio.sleep(limits.BEAT_S)

    async def heartbeat(self, compose: Callable[[], Beat | None] | None) -> bool:
        """Say what `compose` returns, find out how Kafka is, and have a producer that works. Answers whether the log,
        or else Redis, knows all our beginnings."""
        if self._failures:
            await self._registry.hold(self._unheard)
        try:
            took_s = await self._asked(compose)
        except LogFailed as error:
            await self._abandon(error)
        else:
            self._failures = 0
            self.alive.set()
            self._close_circuit(took_s)
        return await self._registry.hold(self._unheard) or not self._unheard

    async def close(self, compose: Callable[[], Beat]) -> None:
        """Say goodbye in Kafka, if it has everything and answers in time; else whoever opens the spool next does."""
        if self._out is None or not self.alive.is_set() or self.spool.oldest_ms() is not None:
            log.warning("left_for_the_next_in_the_slot")
            return
        try:
            goodbye = compose()
            await self._out.verify()
            await self._tell([goodbye])
            await self.spool.discard(goodbye.incarnation)
        except LogFailed as error:
            log.warning("left_for_the_next_in_the_slot", error=str(error))
            return
        self._registry.over(goodbye.incarnation)
        await self._registry.hold(())

    async def stop(self) -> None:
        """Let go of the cluster in bounded time."""
        self.alive.clear()
        if self._out:
            await self._out.stop()
        self._out = None

    async def _in_kafka(self, batch: Batch) -> bool:
        out, rest_s = self._out, batch.opened + limits.ACK_DEADLINE_S - time.monotonic()
        if out is None or rest_s <= 0:
            return False
        try:
            async with asyncio.timeout(rest_s):
                partition = partition_of(batch.events[0], out.partitions)
                offsets = await out.send({partition: batch.events}, self._portion.bytes_max)
        except TimeoutError:
            self._open_circuit("not acknowledged in time")
        except TooLarge as refusal:
            self._portion.refused(refusal.events)
            self._open_circuit(str(refusal))
        except LogFailed as error:
            self._open_circuit(str(error))
        else:
            self.note(out.source, offsets)
            return True
        return False

    def _open_circuit(self, reason: str) -> None:
        if self.is_closed:
            self.is_closed = False
            log.warning("circuit_opened", reason=reason)

    def _close_circuit(self, took_s: float) -> None:
        in_time = took_s <= limits.ACK_DEADLINE_S / 2  # a batch waits for the one before it
        if not self.is_closed and in_time and not self._unheard:  # a clock may have jumped meanwhile
            self.is_closed = True
            log.info("circuit_closed")

    async def _begin(self, batch: Batch) -> None:
        """The clock jumped: its new incarnation is announced before anything of it is written."""
        beats = [beat for beat in map(events.decode, batch.events) if isinstance(beat, Beat)]
        for beat in beats:
            if beat.state == "open":
                self._unheard.append(beat)
                try:
                    await self.spool.begin(beat.incarnation)
                except LogFailed as error:
                    log.error("incarnation_without_mark", incarnation=beat.incarnation, error=str(error))
        try:
            async with asyncio.timeout(limits.ACK_DEADLINE_S):
                await self._tell([beat for beat in beats if beat not in self._unheard])
        except (LogFailed, TimeoutError) as error:
            self._open_circuit(f"incarnation not announced: {error}")
            await self._registry.hold(self._unheard)

    async def _asked(self, compose: Callable[[], Beat | None] | None) -> float:
        """How long Kafka takes to acknowledge (s); a producer that has failed is replaced first. Raises LogFailed."""
        if self._out is not None and self._out.spent:
            await self.stop()
        if self._out is None:
            await self._build()
            compose = None  # what lies in a topic that was made again is not known before its probes are acknowledged
        out = self._out
        assert out is not None
        beat = compose() if compose else None
        await out.verify()  # what the beat says was acknowledged lies in the topic that it names
        await self._tell([beat] if beat else [])
        return 0.0 if self.is_closed else await self._probed(out)

    async def _build(self) -> None:
        if time.monotonic() < self._retry_at:
            raise LogFailed("not tried again yet")
        self.builds += 1
        self._out = self._connect()
        await self._out.start()

    async def _tell(self, beats: list[Beat]) -> None:
        """Beginnings first: others' beats are held against them in the order of the topic. Raises LogFailed."""
        told = [*self._unheard, *beats]
        if self._out is None:
            raise LogFailed("there is no producer")
        if told:
            async with _bounded():
                await self._out.send_beats([events.encode(beat) for beat in told])
            self._unheard = [beat for beat in self._unheard if beat not in told]

    async def _probed(self, out: KafkaOut) -> float:
        probe = events.encode(Probe(v=1, edge=self._edge, at_ms=wall_ms()))
        began = time.monotonic()
        async with _bounded():
            probes = {partition: [probe] for partition in range(out.partitions)}
            self.note(out.source, await out.send(probes, self._portion.bytes_max))
        return time.monotonic() - began

    async def _abandon(self, error: LogFailed) -> None:
        """What it has not acknowledged lies in the spool."""
        self._open_circuit(str(error))
        await self.stop()
        if time.monotonic() < self._retry_at:
            return
        if not self._failures:
            log.warning("kafka_away", error=str(error))
        pause_s = min(limits.REBUILD_PAUSE_MAX_S, limits.BEAT_S * 2**self._failures)
        self._failures += 1
        self._retry_at = time.monotonic() + pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - only not all at once


@contextlib.asynccontextmanager
async def _bounded() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(limits.PROBE_S):
            yield
    except TimeoutError:
        raise LogFailed("a heartbeat was not acknowledged") from None
