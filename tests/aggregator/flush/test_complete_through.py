"""`complete_through` is true: what was received before it is never applied after it was shown, whatever order edges,
partitions and registrations come in."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from aggregator.db.instants import to_ms
from aggregator.flush.batch import Batch, Begun, Entry
from aggregator.flush.commit import commit
from aggregator.flush.session import Session, open_session
from loadtests.faults.journals import beat, now_ms, settings
from schemas import events

TELLING = (51, 58, 60, 77, 122, 756)  # each found one of the rules when it was left out on purpose
HISTORIES = [*TELLING, *range(50)]
HISTORIES_MIN = 20  # of a machine that is busy elsewhere
STEPS = 200
EDGES_MAX = 4
TEST_S = 9.0
BEATS = ("beats", 0)


@dataclass(eq=False)
class Event:
    """What an edge received; its copies in the log count once."""

    received_ms: int
    applied: bool = False


@dataclass(eq=False)
class Edge:
    """One incarnation. `acked` is where its events lie in the log, `spool` what is not there yet, `stray` what it gave
    up waiting for, and what lands some time all the same."""

    incarnation: str
    reaches_log: bool
    in_redis: bool = False
    opened: bool = False
    killed: bool = False
    acked: dict[int, int] = field(default_factory=dict)
    spool: list[Event] = field(default_factory=list)
    stray: list[Event | events.Beat] = field(default_factory=list)


class World:
    """Edges, a log with a partition of beats, a Redis of registrations, and one consumer that does one thing at a time
    while everybody else goes on."""

    def __init__(self, seed: int, session: Session) -> None:
        self.chance = random.Random(seed)
        self.session = session
        self.now = now_ms() - 3_600_000
        self.log: list[list[Event]] = [[] for _ in range(self.chance.randint(1, 3))]
        self.beats: list[events.Beat] = []
        self.redis: dict[str, int] = {}
        self.redis_answers = True
        self.pace = 0.5  # how much of what happens the consumer does
        self.names = itertools.count()
        self.edges: list[Edge] = []
        self.edges_max = self.chance.randint(1, EDGES_MAX)
        self.received: list[Event] = []
        self.applied = [0] * len(self.log)
        self.heard = 0
        self.reading: Batch | None = None
        self.asked = False
        self.shown = 0
        self.advanced = 0

    # what edges do

    def start(self) -> None:
        edge = Edge(f"e{next(self.names)}", reaches_log=self.chance.random() < 0.3)
        if edge.reaches_log:
            self.open(edge)
        elif self.redis_answers:
            self.redis[edge.incarnation] = self.now
            edge.in_redis = True
        else:
            return  # not ready: it may not receive anything
        self.edges.append(edge)

    def receive(self, edge: Edge) -> None:
        event = Event(self.now)
        self.received.append(event)
        if edge.reaches_log and edge.opened and self.chance.random() < 0.8:
            self.send(edge, event)
        else:
            edge.spool.append(event)
            if edge.reaches_log:
                edge.stray.append(event)

    def send(self, edge: Edge, event: Event) -> None:
        partition = self.chance.randrange(len(self.log))
        edge.acked[partition] = len(self.log[partition])
        self.log[partition].append(event)

    def open(self, edge: Edge) -> None:
        self.beats.append(self.said(edge, "open"))
        edge.opened = True

    def beat(self, edge: Edge) -> None:
        if edge.reaches_log and edge.opened:
            target = self.beats if self.chance.random() < 0.9 else edge.stray
            target.append(self.said(edge, "beat"))

    def said(self, edge: Edge, state: str) -> events.Beat:
        complete_to = min([self.now, *(event.received_ms for event in edge.spool)])
        acked = [("events", partition, offset) for partition, offset in edge.acked.items()]
        return beat(edge.incarnation, state, at_ms=self.now, complete_to_ms=complete_to, acked=acked)

    def land(self, edge: Edge) -> None:
        if edge.stray:
            one = edge.stray.pop(self.chance.randrange(len(edge.stray)))
            if isinstance(one, Event):
                self.log[self.chance.randrange(len(self.log))].append(one)
            else:
                self.beats.append(one)

    def turn(self, edge: Edge) -> None:
        edge.reaches_log = not edge.reaches_log
        if edge.reaches_log and not edge.opened:
            self.open(edge)

    def unregister(self, edge: Edge) -> None:
        if edge.in_redis and edge.opened and self.redis_answers:
            del self.redis[edge.incarnation]
            edge.in_redis = False

    def drain(self, edge: Edge) -> None:
        if edge.reaches_log and edge.opened and edge.spool:
            self.send(edge, edge.spool.pop(0))

    def close(self, edge: Edge) -> None:
        if edge.reaches_log and edge.opened and not edge.spool and not edge.in_redis:
            self.beats.append(self.said(edge, "closed"))
            self.edges.remove(edge)

    def follow(self, edge: Edge) -> None:
        """The next in a killed edge's slot has sent what it found there, and closes for it."""
        for event in edge.spool:
            self.send(edge, event)
        edge.spool.clear()
        edge.acked = {partition: len(lying) - 1 for partition, lying in enumerate(self.log) if lying}
        self.beats.append(self.said(edge, "closed"))
        if self.redis_answers:
            self.redis.pop(edge.incarnation, None)
        self.edges.remove(edge)

    # what the consumer does

    async def apply_events(self) -> None:
        partition = self.chance.randrange(len(self.log))
        first, lying = self.applied[partition], self.log[partition]
        following = min(len(lying), first + self.chance.choice((1, 3, 10)))
        for event in lying[first:following]:
            assert event.applied or event.received_ms >= self.shown, "applied after it was shown as complete"
            event.applied = True
        self.applied[partition] = following
        await self.session.db.execute(
            "UPDATE log_position SET next = $1 WHERE source = 'events' AND partition = $2", following, partition
        )
        await self.look()

    async def hear(self) -> None:
        """One of: read beats; ask Redis who has registered; ask where the beats end now; apply. Or forget it all."""
        if self.reading is None:
            self.reading, self.asked = self.read(), False
        elif self.chance.random() < 0.05:
            self.reading = None
        elif not self.asked:
            begun = [Begun(incarnation, "edge", at_ms) for incarnation, at_ms in self.redis.items()]
            self.reading = replace(self.reading, begun=begun if self.redis_answers else None)
            self.asked = True
        elif self.reading.end is None:
            self.reading = replace(self.reading, end=len(self.beats))
        else:
            await commit(self.reading, self.session)
            self.heard, self.reading = self.reading.next, None
            await self.look()

    def read(self) -> Batch | None:
        following = min(len(self.beats), self.heard + self.chance.choice((1, 3, 10, 30)))
        entries = [Entry(n, events.encode(self.beats[n])) for n in range(self.heard, following)]
        return Batch(*BEATS, self.heard, following, entries) if entries else None

    async def look(self) -> None:
        through = await self.session.db.fetchval("SELECT complete_through FROM complete_through")
        shown = to_ms(through) if through else 0
        assert shown <= self.now
        self.advanced += shown > self.shown > 0
        self.shown = max(self.shown, shown)
        missing = [event for event in self.received if not event.applied and event.received_ms < self.shown]
        assert missing == [], "shown as complete, and still to be applied"

    async def step(self) -> None:
        self.now += self.chance.choice((0, 0, 1, 10, 1_000, 9_000))
        if self.chance.random() < 0.1:
            self.pace, self.redis_answers = self.chance.choice((0.1, 0.5, 0.9)), self.chance.random() < 0.7
        if self.chance.random() < self.pace:
            await self.chance.choice((self.apply_events, self.hear, self.hear, self.hear))()
        elif self.chance.random() < 0.3:
            self.beat_all()
        elif len(self.edges) < self.edges_max and self.chance.random() < 0.2:
            self.start()
        elif self.edges:
            edge = self.chance.choice(self.edges)
            self.chance.choice(self.acts(edge))(edge)

    def acts(self, edge: Edge) -> list[Callable[[Edge], None]]:
        if edge.killed:
            return [self.land, self.follow]
        if not edge.reaches_log:
            return [self.receive, self.receive, self.land, self.turn, self.kill]
        return [*(self.receive, self.drain, self.unregister, self.land, self.close) * 4, self.turn, self.kill]

    def beat_all(self) -> None:
        for edge in self.edges:
            if not edge.killed:
                self.beat(edge)

    def kill(self, edge: Edge) -> None:
        edge.killed = True

    async def settle(self) -> None:
        """Everything is well again: edges reach the log, the dead are followed, and all that lies there is read."""
        self.redis_answers = True
        self.start()
        for edge in list(self.edges):
            if edge.killed:
                self.follow(edge)
                continue
            if not edge.reaches_log:
                self.turn(edge)
            while edge.spool:
                self.drain(edge)
            self.unregister(edge)
            self.beats.append(self.said(edge, "beat"))
        while self.heard < len(self.beats) or self.applied != [len(lying) for lying in self.log]:
            await self.hear()
            await self.apply_events()


async def begin(session: Session, seed: int) -> World:
    world = World(seed, session)
    await session.db.execute("SET synchronous_commit = off; DELETE FROM edge; DELETE FROM log_position")
    await session.db.execute("INSERT INTO log_position VALUES ('beats', 0, 0)")
    for partition in range(len(world.log)):
        await session.db.execute("INSERT INTO log_position VALUES ('events', $1, 0)", partition)
    return world


async def test_nothing_is_applied_that_was_received_before_what_was_shown_as_complete(
    database_url: str, tmp_path: Path
) -> None:
    began, tried, advanced = time.monotonic(), 0, 0
    async with open_session(settings(database_url, tmp_path)) as session:
        for tried, seed in enumerate(HISTORIES, 1):
            world = await begin(session, seed)
            try:
                await live(world)
            except AssertionError as error:
                error.add_note(f"seed {seed}")
                raise
            advanced += world.advanced
            if tried >= HISTORIES_MIN and time.monotonic() - began > TEST_S:
                break
    print(f"{tried} histories, completeness advanced {advanced} times")
    assert advanced > tried


async def live(world: World) -> None:
    for _ in range(STEPS):
        await world.step()
    await world.settle()
    assert world.shown == world.now
