"""Which ids are within the days that are kept."""

import pytest

from aggregator.db.instants import at, to_ms
from aggregator.flush.batch import Record
from aggregator.flush.decode import DAY_MS, Decoded, Window, decode
from loadtests.faults.journals import click
from schemas import events
from schemas.limits import DEAD_BYTES_MAX, EVENT_AHEAD_MAX_S

NOW_MS = 20_000 * DAY_MS + 12_345_678  # some time in a day
WINDOW = Window.at(NOW_MS, retention_days=100)


def decoded(*bodies: bytes) -> Decoded:
    return decode([Record(1, line, body) for line, body in enumerate(bodies, 1)], WINDOW)


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
    assert (len(found.good), [dead.reason for dead in found.dead]) == ((1, []) if kept else (0, ["outside_kept_days"]))


def test_the_days_of_the_clicks_are_those_of_their_ids() -> None:
    midnight = 20_000 * DAY_MS
    found = decoded(*(events.encode(click(at_ms)) for at_ms in (midnight - 1, midnight, midnight + 1)))
    assert sorted(day.toordinal() - 719_163 for day in found.days()) == [19_999, 20_000]


def test_good_and_dead_keep_the_order_of_the_log() -> None:
    lines = [events.encode(click(NOW_MS)), b"{", events.encode(click(NOW_MS)), b"[]", b"x" * (DEAD_BYTES_MAX + 1)]
    found = decoded(*lines)
    assert [good.record.line for good in found.good] == [1, 3]
    assert [dead.record.line for dead in found.dead] == [2, 4, 5]


def test_to_ms_is_exact() -> None:
    assert all(to_ms(at(ms)) == ms for ms in (0, 1, NOW_MS, NOW_MS + 999, 253_402_300_799_999))
