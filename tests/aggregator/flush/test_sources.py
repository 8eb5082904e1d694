"""What has to become of positions, decided without a broker."""

import pytest

from aggregator.flush.batch import EARLIEST, Change, Position, digest
from aggregator.flush.sources import Held, beginnings, change_of, changed_before


def test_a_topic_that_was_never_consumed_begins_with_what_there_is() -> None:
    positions = {("other@1", 0): Position(5), ("t.more@1", 0): Position(5), ("0011", 0): Position(5)}
    assert beginnings("t", "a", [0, 1], positions) == [
        Change("t@a", 0, None, EARLIEST),
        Change("t@a", 1, None, EARLIEST),
    ]


def test_a_partition_that_was_added_begins_with_what_there_is() -> None:
    positions = {("t@a", 0): Position(5), ("t@former", 1): Position(9)}
    assert beginnings("t", "a", [0, 1], positions) == [Change("t@a", 1, None, EARLIEST)]


def test_a_topic_that_is_known_needs_nothing() -> None:
    assert beginnings("t", "a", [0], {("t@a", 0): Position(5)}) == []


def test_a_topic_that_was_made_again_stands_still_and_names_both() -> None:
    (change,) = beginnings("t", "b", [0], {("t@a", 0): Position(5)})
    assert change == Change("t@b", 0, None, EARLIEST, "topic t was recreated: its id is b, and was a")


@pytest.mark.parametrize(
    ("position", "change"),
    [
        (Position(EARLIEST), (EARLIEST, 10, None)),
        (Position(10), None),
        (Position(20), None),
        (Position(9), (9, 9, "offsets 9 to 9 are gone unread: the retention has overtaken")),
        (Position(21), (21, 21, "the log ends at offset 20, though everything before 21 was applied")),
        (Position(0, stopped="why"), None),
        (Position(EARLIEST, stopped="why"), None),
    ],
)
def test_a_partition_is_read_on_only_from_what_the_broker_has(
    position: Position, change: tuple[int, int, str | None] | None
) -> None:
    assert change_of("t@a", 3, position, Held(10, 20)) == (Change("t@a", 3, *change) if change else None)


def test_another_record_than_the_one_applied_last_is_another_log() -> None:
    position = Position(10, None, digest(b"applied"))
    assert changed_before("t@a", 0, position, b"applied") is None
    assert changed_before("t@a", 0, position, None) is None
    assert changed_before("t@a", 0, Position(10), b"whatever") is None
    reason = "the record at offset 9 is not the one that was applied from there"
    assert changed_before("t@a", 0, position, b"another") == Change("t@a", 0, 10, 10, reason)
