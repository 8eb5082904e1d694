"""What is read in bulk is what is read one by one, and which ids are within the days that are kept."""

from collections.abc import Sequence
from itertools import product
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.db.instants import at, to_ms
from aggregator.flush import decode as decoding
from aggregator.flush.batch import Entry, records
from aggregator.flush.decode import DAY_MS, Decoded, Window, decode, one_by_one, part_of
from loadtests.faults.journals import beat, click, conversion, uuid7
from schemas import events
from schemas.limits import DEAD_BYTES_MAX, EVENT_AHEAD_MAX_S

NOW_MS = 20_000 * DAY_MS + 12_345_678  # some time in a day
WINDOW = Window.at(NOW_MS, retention_days=100)


def decoded(*bodies: bytes) -> Decoded:
    return decode([Entry(1, b"\n".join(bodies))], WINDOW)


@pytest.mark.parametrize(
    ("at_ms", "kept"),
    [
        (NOW_MS, True),
        (NOW_MS + EVENT_AHEAD_MAX_S * 1000, True),
        (NOW_MS + EVENT_AHEAD_MAX_S * 1000 + 1, False),
        (19_901 * DAY_MS, True),
        (19_901 * DAY_MS - 1, False),  # its partition is dropped at midnight
        (0, False),
        (2**48 - 1, False),
    ],
)
def test_a_click_is_kept_only_within_the_days_that_are_kept(at_ms: int, kept: bool) -> None:
    found = decoded(events.encode(click(at_ms)))
    assert (len(found.clicks), [dead.reason for dead in found.dead]) == (
        (1, []) if kept else (0, ["outside_kept_days"])
    )


def test_the_days_of_the_clicks_are_those_of_their_ids() -> None:
    midnight = 20_000 * DAY_MS
    found = decoded(*(events.encode(click(at_ms)) for at_ms in (midnight - 1, midnight, midnight + 1)))
    assert sorted(day.toordinal() - 719_163 for day in found.days()) == [19_999, 20_000]


def test_good_and_dead_keep_the_order_of_the_log() -> None:
    lines = [events.encode(click(NOW_MS)), b"{", events.encode(click(NOW_MS)), b"[]", b"x" * (DEAD_BYTES_MAX + 1)]
    good, dead = one_by_one(records([Entry(1, b"\n".join(lines))]), WINDOW)
    assert [one.record.line for one in good] == [1, 3]
    assert [one.record.line for one in dead] == [2, 4, 5]


BARE = b'{"kind":"click","v":1,"id":"%s","link_id":0,"offer_id":0,"partner_id":0,"click_class":0%s}'
ORDINARY = [
    events.encode(click(NOW_MS, link_id=7, subs={"sub1": 'a"},{"'})),
    events.encode(click(NOW_MS - DAY_MS, country="DE", source_id="{}", reason="known_bot")),
    events.encode(conversion(NOW_MS, intake_id=uuid7(NOW_MS))),
    events.encode(beat("one", at_ms=NOW_MS, complete_to_ms=NOW_MS)),
    b'{"kind":"probe","v":1,"edge":"e","at_ms":1}',
    BARE % (str(uuid7(NOW_MS)).encode(), b',"country":"","source_id":"{}","subs":{}'),
]
ODD = [
    BARE % (str(uuid7(NOW_MS)).upper().encode(), b""),
    BARE % (uuid7(NOW_MS).hex.encode(), b""),
    BARE % (b"0192558fe-14e-70a0-8ff0-f5077e885b83", b""),
    BARE % (b"0192558f-e14e-70a0-8ff0-f5077e885b83-", b""),
    BARE % (str(uuid7(NOW_MS)).encode(), b',"subs":[]'),
    events.encode(click(NOW_MS, id=UUID(int=uuid7(NOW_MS).int & ~(0xF << 76)))),
    events.encode(click(NOW_MS, id=UUID(int=uuid7(NOW_MS).int & ~(0xF << 60)))),
    events.encode(click(NOW_MS + 2 * DAY_MS)),
    events.encode(click(NOW_MS - 200 * DAY_MS)),
    events.encode(click(NOW_MS, click_class=9)),
    events.encode(click(NOW_MS)) + events.encode(click(NOW_MS)),
    b"", b" ", b"{", b"[]", b"\xff", b'{"kind":"click","v":2}',
]  # fmt: skip
LINES = [*ORDINARY, *ODD]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("size", [1, 2])
def test_in_bulk_the_same_is_found_as_one_by_one(size: int, whole: bool) -> None:
    for lines in [*((line,) for line in LINES), *product(LINES, LINES)]:
        _same_in_bulk(lines, size, whole=whole)


@given(lines=st.lists(st.sampled_from(LINES), max_size=6), size=st.integers(1, 6), whole=st.booleans())
def test_in_bulk_the_same_is_found_of_many_as_one_by_one(lines: list[bytes], size: int, whole: bool) -> None:
    _same_in_bulk(lines, size, whole=whole)


def _same_in_bulk(lines: Sequence[bytes], size: int, *, whole: bool) -> None:
    entries = [Entry(n, b"\n".join(lines[n : n + size]), whole) for n in range(0, len(lines), size)]
    good, dead = one_by_one(records(entries), WINDOW)
    alone = part_of(good)
    found = decode(entries, WINDOW)
    assert found.clicks == sorted({row[0]: row for row in reversed(alone.clicks)}.values())
    assert (found.conversions, found.beats, found.dead) == (alone.conversions, alone.beats, dead)


def test_ordinary_events_are_found_in_bulk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(decoding, "one_by_one")
    lines = [events.encode(one) for one in (click(NOW_MS), beat("one"), click(NOW_MS - DAY_MS, subs={"sub1": ""}))]
    assert len(decoded(*lines).clicks) == 2


def test_to_ms_is_exact() -> None:
    assert all(to_ms(at(ms)) == ms for ms in (0, 1, NOW_MS, NOW_MS + 999, 253_402_300_799_999))
