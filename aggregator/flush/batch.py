"""What a consumer reads from the log and what becomes of it; the seam between the consumer and the log's kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

Positions = Mapping[tuple[str, int], int]  # (source, partition) -> the first offset not yet applied


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
    not met there any more lies before it, so the beats hold when all that is applied.
    """

    source: str
    partition: int
    first: int
    next: int
    records: list[Record]
    begun: list[Begun] | None = field(default_factory=list)
    end: int | None = None


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

    def seek(self, positions: Positions) -> None:
        """Go on from these positions, whatever was read before; a partition without one is read from its start."""

    async def read(self) -> Batch | None:
        """The next batch of any partition, following the one handed out before; None when there was nothing for a
        moment. Raises Moved."""
