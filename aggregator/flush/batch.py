"""What a consumer reads from the log and what becomes of it; the seam between the consumer and the log's kind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

EARLIEST = -1  # the `next` of a partition that is to be read from the first record its broker still has


class Position(NamedTuple):
    """How far a partition is applied: `next` is the first offset that is not. A partition that is `stopped`, and why,
    is not read. `last_digest` names the record at `next - 1`, so that another log can be told by it."""

    next: int
    stopped: str | None = None
    last_digest: bytes | None = None


Positions = Mapping[tuple[str, int], Position]  # by source and partition


class Change(NamedTuple):
    """What a position has to become before its partition can be read: `next` and `stopped`, while its `next` still is
    `expected`. None makes a position where there is none."""

    source: str
    partition: int
    expected: int | None
    next: int
    stopped: str | None = None


class Entry(NamedTuple):
    """What lies at one offset of the log: a group commit in the journal, one event in each line; in Kafka one event,
    which is `whole` whatever it holds."""

    offset: int
    body: bytes
    whole: bool = False

    @property
    def events(self) -> int:
        return 1 if self.whole else self.body.count(b"\n") + 1

    def lines(self) -> list[bytes]:
        return [self.body] if self.whole else self.body.split(b"\n")


class Record(NamedTuple):
    """One event as it lies in the log: `offset` names the log's entry, `line` (from 1) the event within it."""

    offset: int
    line: int
    body: bytes


class Begun(NamedTuple):
    """An edge that has written to the log, and the time (ms since 1970) of the first it wrote."""

    incarnation: str
    edge: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The events of one partition at offsets `first` to `next - 1`, to be applied together or not at all.

    `begun` are the edges, of any partition, that were met after these events were read, in the order of the log; None
    when that could not be looked up, and then the beats among the events must not advance anything. Where an edge is
    met elsewhere only until the log has it, `end` is where this partition ended after `begun` was looked up: who is
    not met there any more lies before it, so the beats hold when all that is applied. `begins`: nothing lies before
    these events, and Postgres may not know the partition yet.
    """

    source: str
    partition: int
    first: int
    next: int
    entries: Sequence[Entry]
    begun: list[Begun] | None = field(default_factory=list)
    end: int | None = None
    begins: bool = False

    @property
    def last_digest(self) -> bytes | None:
        """Names the entry at `next - 1`."""
        return digest(self.entries[-1].body) if self.entries else None


@dataclass(frozen=True, slots=True)
class Applied:
    """What one batch came to: rows that were new, and records that went to the dead letters."""

    next: int
    clicks: int = 0
    conversions: int = 0
    beats: int = 0
    dead: int = 0


class Moved(RuntimeError):
    """What this reader reads has changed (another consumer came or went): read the positions and seek."""


class Reader(Protocol):
    """A log as the consumer sees it."""

    async def seek(self, positions: Positions) -> list[Change]:
        """Go on from these positions, whatever was read before. Answers what they have to become first; what that
        concerns is not read until this was called again with the positions as they are then."""

    async def read(self) -> Batch | None:
        """The next batch of any partition, following the one handed out before; None when there was nothing for a
        moment. Raises Moved. What a cancelled call had in hand is found again after `seek`."""

    async def close(self) -> None:
        """Let go of the log, in bounded time."""


def records(entries: Iterable[Entry]) -> list[Record]:
    """The events one by one."""
    return [Record(entry.offset, n, line) for entry in entries for n, line in enumerate(entry.lines(), 1)]


def digest(body: bytes) -> bytes:
    """Eight bytes that tell a record from another one at the same place."""
    return hashlib.blake2b(body, digest_size=8).digest()
