"""From bytes to events. What is no event, or lies outside the days that are kept, becomes a dead letter. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import NamedTuple
from uuid import UUID

import msgspec

from aggregator.db.instants import LATEST_MS, at
from aggregator.flush.batch import Record
from schemas import events, limits
from schemas.click_id import uuid_ms
from schemas.events import Beat, Click, Conversion, Event
from schemas.outcomes import ClickClass

DAY_MS = 86_400_000
_CLASSES = frozenset(ClickClass)


class Refused(ValueError):
    """The event parses, but cannot be applied. The message is the reason on its dead letter."""


class Good(NamedTuple):
    record: Record
    event: Event


class Dead(NamedTuple):
    record: Record
    reason: str


@dataclass(frozen=True, slots=True)
class Window:
    """The times (ms since 1970) that an id may have: a partition for them exists or can be made, and will be kept."""

    first_ms: int
    last_ms: int

    @classmethod
    def at(cls, now_ms: int, retention_days: int) -> Window:
        # one day inside the retention, so that no partition is dropped under a batch that was decoded before midnight
        first_day = now_ms // DAY_MS - retention_days + 1
        return cls(first_day * DAY_MS, now_ms + limits.EVENT_AHEAD_MAX_S * 1000)


@dataclass(slots=True)
class Decoded:
    good: list[Good] = field(default_factory=list)
    dead: list[Dead] = field(default_factory=list)

    def days(self) -> set[date]:
        """The days (UTC) that the clicks need partitions for."""
        numbers = {uuid_ms(event.id) // DAY_MS for _, event in self.good if isinstance(event, Click)}
        return {at(number * DAY_MS).date() for number in numbers}


def decode(records: list[Record], window: Window) -> Decoded:
    """The good and the dead, each in the order of the log."""
    decoded = Decoded()
    for record in records:
        try:
            event = events.decode(record.body)
            _check(event, window)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            decoded.dead.append(Dead(record, f"undecodable: {error}"))
        except Refused as error:
            decoded.dead.append(Dead(record, str(error)))
        else:
            decoded.good.append(Good(record, event))
    return decoded


def hour(text: str) -> datetime:
    """The hour (UTC) of a beat's counter, `2026-11-23T01`. Raises Refused."""
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H").replace(tzinfo=UTC)
    except ValueError:
        raise Refused("bad_hour") from None


def _check(event: Event, window: Window) -> None:
    match event:
        case Click():
            _check_id(event.id, window)
            _check_class(event.click_class)
        case Conversion():
            _check_id(event.intake_id, window)
            _check_class(event.click_class)
            _check_times(event.event_at_ms, uuid_ms(event.click_uuid))
        case Beat():
            _check_times(event.at_ms, event.complete_to_ms)
            _check_acked(event.acked)
            for text in event.counters:
                hour(text)


def _check_id(uuid: UUID, window: Window) -> None:
    if uuid.version != 7:
        raise Refused("not_uuid7")
    if not window.first_ms <= uuid_ms(uuid) <= window.last_ms:
        raise Refused("outside_kept_days")


def _check_class(click_class: int) -> None:
    if click_class not in _CLASSES:
        raise Refused("unknown_class")


def _check_acked(acked: list[tuple[str, int, int]]) -> None:
    if not all(0 <= partition < 2**31 and 0 <= offset < 2**63 for _, partition, offset in acked):
        raise Refused("impossible_offset")


def _check_times(*times_ms: int) -> None:
    if not all(0 <= time_ms <= LATEST_MS for time_ms in times_ms):
        raise Refused("impossible_time")
