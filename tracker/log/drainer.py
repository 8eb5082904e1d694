"""From the spool to Kafka: what was written to the disk while Kafka was away, sent in order at a bounded rate.

By a producer of its own, so that a row which the broker refuses cannot disturb the live events. A row is sent to the
partition where it would have gone at once, because copies of one event are cheapest to remove where they meet. An
incarnation that did not end in order is closed when nothing of it is left.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog

from schemas import events, journal, limits
from schemas.events import Beat, Probe
from schemas.journal import Row, SegmentMeta
from tracker.clock import wall_ms
from tracker.log.kafka_out import KafkaOut, Portion, TooLarge, partition_of
from tracker.log.recorder import LogFailed
from tracker.log.spool import Spool

log = structlog.get_logger()
Acked = Callable[[str, Mapping[int, int]], None]


class Drainer:
    """Sends one slot's spool. `acked` hears of each source's last offsets, `closed` of each incarnation that is over,
    `removed` of the bytes given back to the disk."""

    def __init__(
        self,
        spool: Spool,
        connect: Callable[[], KafkaOut],
        acked: Acked = lambda source, offsets: None,
        closed: Callable[[str], None] = lambda incarnation: None,
        removed: Callable[[int], None] = lambda size_bytes: None,
    ) -> None:
        self._spool = spool
        self._connect = connect
        self._tell_acked, self._tell_closed, self._tell_removed = acked, closed, removed
        self._out: KafkaOut | None = None
        self._portion = Portion()
        self._next: dict[str, int] = {}  # source -> where to go on; a file's name may come again in a folder made again
        self._left: dict[Path, str | None] = {}  # of this round: segments with a refused event, and whose they are
        self._refused_from = 0  # of this round: an event of so many bytes was refused alone

    async def drain(self) -> bool:
        """Send everything there is; answers whether nothing is left. What is refused alone stays, and is tried again
        by the next call. Raises LogFailed."""
        self._left, self._refused_from = {}, 2**63
        while path := self._unfinished():
            last = await self._send_segment(path)
            if path in self._left:
                continue
            if path != self._spool.current:
                await self._finish(path)
            elif self._left:
                self._left[path] = self._spool.incarnation
            elif await self._spool.renew(path, last):
                self._next.clear()
                return True
        if self._spool.current and not self._left:
            await self._spool.prepare()  # somebody has removed the folder
            return False
        return not self._left

    async def disconnect(self) -> None:
        """Let go of the cluster in bounded time."""
        if self._out:
            await self._out.stop()
        self._out = None

    def _unfinished(self) -> Path | None:
        """The first segment that is not left. One after the current one is just being made."""
        current = self._spool.current
        known = (one for one in self._spool.segments() if current is None or one <= current)
        return next((one for one in known if one not in self._left), None)

    async def _send_segment(self, path: Path) -> int:
        """Send its rows; answers the last one's offset. One that is refused in part or cannot be read is left."""
        try:
            meta = await self._spool.meta(path)
            return await self._send_from(path, meta) if meta else 0
        except journal.Unreadable as error:
            log.error("spool_segment_unreadable", segment=path.name, error=str(error))
            self._left[path] = None
            return 0

    async def _send_from(self, path: Path, meta: SegmentMeta) -> int:
        first = self._next.get(meta.source, journal.FIRST_OFFSET)
        refused: int | None = None
        while rows := await self._spool.read(path, first):
            whole = await self._send_rows(meta, rows)
            if not whole:
                self._left[path] = meta.incarnation
                refused = refused or rows[0].offset
            first = rows[-1].offset + 1
            self._next[meta.source] = refused or first
        return first - 1

    async def _send_rows(self, meta: SegmentMeta, rows: Sequence[Row]) -> bool:
        """Whether all of them were taken."""
        began = time.monotonic()
        lines = [row.body.split(b"\n") for row in rows]
        while True:
            out = await self._connected()
            groups = self._groups(lines, out.partitions)
            try:
                offsets = await self._sent(out, groups)
                break
            except TooLarge as refusal:
                self._refuse(refusal)
        self._tell_acked(out.source, offsets)
        taken = sum(map(len, groups.values()))
        self._spool.drained_events += taken
        whole = taken == sum(map(len, lines))
        if whole and not self._left:
            self._spool.sent(meta.incarnation, rows[-1].latest_ms)
        pace_s = sum(len(row.body) for row in rows) / limits.DRAIN_BYTES_PER_S
        await asyncio.sleep(pace_s - (time.monotonic() - began))
        return whole

    def _groups(self, lines: Sequence[Sequence[bytes]], partitions: int) -> dict[int, list[bytes]]:
        """By partition, without those that would be refused."""
        groups: dict[int, list[bytes]] = defaultdict(list)
        for row in lines:
            groups[partition_of(row[0], partitions)] += [event for event in row if len(event) < self._refused_from]
        return {partition: group for partition, group in groups.items() if group}

    async def _sent(self, out: KafkaOut, groups: Mapping[int, Sequence[bytes]]) -> dict[int, int]:
        try:
            async with asyncio.timeout(limits.DRAIN_WAIT_S):
                offsets = await out.send(groups, self._portion.bytes_max)
                await out.verify()
        except TimeoutError:
            raise LogFailed("Kafka did not acknowledge in time") from None
        return offsets

    def _refuse(self, refusal: TooLarge) -> None:
        self._portion.refused(refusal.events)
        if len(refusal.events) > 1:
            return
        self._refused_from = len(refusal.events[0])
        self._spool.refused_events += 1
        log.error("event_refused_as_too_large", size_bytes=self._refused_from)

    async def _finish(self, path: Path) -> None:
        """Remove a segment that is sent and gets no more rows; close its incarnation if it is the last one of it."""
        meta = await self._spool.meta(path)
        if meta and await self._spool.read(path, self._next.get(meta.source, journal.FIRST_OFFSET)):
            return  # written after we had looked, just before the next segment was begun
        if meta and meta.incarnation != self._spool.incarnation:
            following = await self._incarnation_after(path)
            if following != meta.incarnation:
                if None in (following, *self._left.values()) or meta.incarnation in self._left.values():
                    self._left[path] = meta.incarnation  # the mark of an incarnation of which something may be left
                    return
                await self._close(meta)
        size_bytes = journal.size_bytes(path)
        await self._spool.remove(path)
        self._tell_removed(size_bytes)

    async def _incarnation_after(self, path: Path) -> str | None:
        """Of the next segment; empty where there is none, None where it cannot be read."""
        following = next((one for one in self._spool.segments() if one > path), None)
        if following is None:
            return ""
        try:
            meta = await self._spool.meta(following)
        except journal.Unreadable:
            return None
        return meta.incarnation if meta else ""

    async def _close(self, meta: SegmentMeta) -> None:
        """Whatever an incarnation had acknowledged lies before a record written now."""
        out, now = await self._connected(), wall_ms()
        probe = events.encode(Probe(v=1, edge=meta.edge, at_ms=now))
        offsets = await self._sent(out, {partition: [probe] for partition in range(out.partitions)})
        beat = Beat(
            v=1, edge=meta.edge, incarnation=meta.incarnation, state="closed", at_ms=now, complete_to_ms=now,
            acked=[(out.source, partition, offset) for partition, offset in offsets.items()],
        )  # fmt: skip
        await out.send_beats([events.encode(beat)])
        self._tell_closed(meta.incarnation)
        log.warning("closed_for_a_killed_edge", edge=meta.edge, incarnation=meta.incarnation)

    async def _connected(self) -> KafkaOut:
        if self._out is None or self._out.spent:
            await self.disconnect()
            self._out = self._connect()
            await self._out.start(limits.DRAIN_START_S)
        return self._out


async def drain_for_ever(drainer: Drainer, spool: Spool, alive: asyncio.Event) -> None:
    """Send what is spooled whenever Kafka is `alive`."""
    try:
        while True:
            await _something(drainer, spool)
            await alive.wait()
            try:
                whole = await drainer.drain()
                pause_s = 0.0 if whole else limits.REFUSED_RETRY_S
            except (LogFailed, journal.Unreadable, OSError) as error:
                log.warning("draining_stopped", error=str(error))
                await drainer.disconnect()
                pause_s = limits.BEAT_S
            await asyncio.sleep(pause_s)
    finally:
        await drainer.disconnect()


async def _something(drainer: Drainer, spool: Spool) -> None:
    """Return when something is to be sent; while nothing is, there is no producer."""
    if not spool.unsent.is_set():
        try:
            async with asyncio.timeout(limits.REFUSED_RETRY_S):
                await spool.unsent.wait()
        except TimeoutError:
            await drainer.disconnect()
            await spool.unsent.wait()
