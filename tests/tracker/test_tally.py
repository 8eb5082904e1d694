"""Outcomes are counted by the event's hour and in total."""

from tracker.tally import HOUR_MS, Tally

HOUR = 1_795_399_200_000  # 2026-11-23T02:00 UTC


def test_outcomes_are_counted_by_the_hour_of_the_event() -> None:
    tally = Tally()
    tally.count("recorded", HOUR)
    tally.count("recorded", HOUR + HOUR_MS - 1, 2)
    tally.count("late", HOUR + HOUR_MS)
    assert tally.by_hour() == {"2026-11-23T02": {"recorded": 3}, "2026-11-23T03": {"late": 1}}
    assert dict(tally.totals) == {"recorded": 3, "late": 1}


def test_only_the_latest_hours_are_carried() -> None:
    tally = Tally()
    for hour in range(50):
        tally.count("recorded", HOUR + hour * HOUR_MS)
        tally.by_hour()
    assert list(tally.by_hour()) == ["2026-11-25T01", "2026-11-25T02", "2026-11-25T03"]
    assert tally.totals["recorded"] == 50


def test_an_incarnation_begins_with_no_counts_by_hour_and_the_totals_stay() -> None:
    tally = Tally()
    tally.count("recorded", HOUR)
    tally.begin_incarnation()
    assert tally.by_hour() == {}
    assert tally.totals["recorded"] == 1
