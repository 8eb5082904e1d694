"""From bytes to events. What is no event, or lies outside the days that are kept, becomes a dead letter. Pure.

Clicks are read in bulk, straight to rows. Wherever anything is out of the ordinary, the same entries are read again
event by event, and that reading decides. Two things the one leaves to Postgres that the other does not: whether what
`subs` holds is well-formed, and whether it is text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from itertools import chain
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import msgspec

from aggregator.db.instants import LATEST_MS, at
from aggregator.flush import rollup
from aggregator.flush.batch import Entry, Record, records
from aggregator.flush.click_rows import CLASS, ClickRow, are_uuid7, id_ms, id_of, row_of, sorted_once, spans
from schemas import events, limits
from schemas.click_id import uuid_ms
from schemas.events import NO_CLICK, Beat, Click, Conversion, Event, Intake, Probe
from schemas.outcomes import EARNING, ClickClass

DAY_MS = 86_400_000
_CLASSES = frozenset(ClickClass)
# Not made into objects that the row would only take apart again. Text that is there is not empty.
_AS_ROWS = {UUID: str, dict[str, str]: msgspec.Raw, str: Annotated[str, msgspec.Meta(min_length=1)]}
_FIELDS = [(one.name, _AS_ROWS.get(one.type, one.type), one.required) for one in msgspec.structs.fields(Click)]
_Line = msgspec.defstruct(
    "_Line",
    [(name, kind) if required else (name, kind, None) for name, kind, required in _FIELDS],
    tag_field="kind", tag="click", kw_only=True, frozen=True, gc=False,
)  # fmt: skip
_decode = msgspec.json.Decoder(_Line | Conversion | Intake | Beat | Probe).decode


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
class Part:
    """What some entries hold, in the order of the log."""

    clicks: list[ClickRow] = field(default_factory=list)
    conversions: list[Conversion | Intake] = field(default_factory=list)
    beats: list[Beat] = field(default_factory=list)
    dead: list[Dead] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a batch holds: its clicks sorted by id, each once, and what they add to the rollups if all are new."""

    window: Window
    clicks: list[ClickRow]
    counted: rollup.Counts
    conversions: list[Conversion | Intake]
    beats: list[Beat]
    dead: list[Dead]

    def days(self) -> set[date]:
        """The days (UTC) that the clicks need partitions for."""
        return {at(day_ms).date() for day_ms, _ in spans(self.clicks, DAY_MS)}


def decode(entries: Sequence[Entry], window: Window) -> Decoded:
    """What they hold, all at once."""
    return joined((decode_part(some, window) for some in parts(entries)), window)


def parts(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """About DECODE_BYTES_MAX of them at a time."""
    first = size_bytes = 0
    for end, entry in enumerate(entries, 1):
        size_bytes += len(entry.body)
        if size_bytes >= limits.DECODE_BYTES_MAX or end == len(entries):
            yield entries[first:end]
            first, size_bytes = end, 0


def decode_part(entries: Sequence[Entry], window: Window) -> Part:
    """In bulk where that is possible."""
    part = _in_bulk(entries, window)
    if part is None:
        good, dead = one_by_one(records(entries), window)
        part = part_of(good)
        part.dead = dead
    return part


def joined(of: Iterable[Part], window: Window) -> Decoded:
    """Parts of a batch as a whole."""
    found = list(of)
    clicks = sorted_once(chain.from_iterable(part.clicks for part in found))
    conversions, beats, dead = (
        [*chain.from_iterable(getattr(part, name) for part in found)] for name in ("conversions", "beats", "dead")
    )
    return Decoded(window, clicks, rollup.count(clicks), conversions, beats, dead)


def part_of(good: Iterable[Good]) -> Part:
    """The events, parted by kind."""
    part = Part()
    for _, event in good:
        match event:
            case Click():
                part.clicks.append(row_of(event))
            case Conversion() | Intake():
                part.conversions.append(event)
            case Beat():
                part.beats.append(event)
    return part


def one_by_one(of: Iterable[Record], window: Window) -> tuple[list[Good], list[Dead]]:
    """The good and the dead, each in the order of the log."""
    good: list[Good] = []
    dead: list[Dead] = []
    for record in of:
        try:
            event = events.decode(record.body)
            _check(event, window)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            dead.append(Dead(record, f"undecodable: {error}"))
        except Refused as error:
            dead.append(Dead(record, str(error)))
        else:
            good.append(Good(record, event))
    return good, dead


def _in_bulk(entries: Sequence[Entry], window: Window) -> Part | None:
    """None where one of the events may be a bad one."""
    lines = [line for entry in entries for line in entry.lines()]
    try:
        found = [*map(_decode, lines)]
        others = [one for one in found if type(one) is not _Line]
        for one in others:
            _check(one, window)
        rows = _rows([one for one in found if type(one) is _Line])
    except (msgspec.DecodeError, UnicodeDecodeError, Refused):
        return None
    if not _are_ordinary(rows, window):
        return None
    conversions = [one for one in others if type(one) in (Conversion, Intake)]
    return Part(rows, conversions, [one for one in others if type(one) is Beat])


def _rows(lines: Iterable[Any]) -> list[ClickRow]:
    return [
        (
            one.id, one.link_id, one.offer_id, one.partner_id, one.click_class, one.reason, one.country, one.device,
            one.os, one.browser, one.visitor, one.ip, one.referer, one.source_id, one.click_ref,
            str(one.subs, "utf-8") if one.subs else None,
        )
        for one in lines
    ]  # fmt: skip


def _are_ordinary(rows: Sequence[ClickRow], window: Window) -> bool:
    if not rows:
        return True
    ids = [*map(id_of, rows)]
    subs = [row[-1] for row in rows if row[-1]] or ['{"']
    return (
        are_uuid7(ids)
        and window.first_ms <= id_ms(min(ids))
        and id_ms(max(ids)) <= window.last_ms
        and {row[CLASS] for row in rows} <= _CLASSES
        and '{"' <= min(subs) <= max(subs) < "{#"  # each an object that holds something
    )


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
            _check_whose(event)
            _check_times(event.event_at_ms, uuid_ms(event.click_uuid))
        case Intake():
            _check_id(event.intake_id, window)
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


def _check_whose(event: Conversion) -> None:
    """To accounts of nobody nothing can be booked."""
    earns = event.click_uuid != NO_CLICK and event.click_class in EARNING
    if event.advertiser_id < 1 or event.partner_id < (1 if earns else 0):
        raise Refused("impossible_id")


def _check_acked(acked: list[tuple[str, int, int]]) -> None:
    if not all(0 <= partition < 2**31 and 0 <= offset < 2**63 for _, partition, offset in acked):
        raise Refused("impossible_offset")


def _check_times(*times_ms: int) -> None:
    if not all(0 <= time_ms <= LATEST_MS for time_ms in times_ms):
        raise Refused("impossible_time")
