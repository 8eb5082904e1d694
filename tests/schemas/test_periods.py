"""When a cap's period began, on real calendars: clock changes, odd offsets, the end of a year."""

from datetime import UTC, datetime, timedelta
from typing import get_args
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.links import Period
from schemas.periods import begins_s

QUARTER_S = 900
ZONES = sorted(available_timezones() - {"localtime", "Factory"})
LENGTH_S = {"hour": (1800, 5400), "day": (23 * 3600, 25 * 3600), "week": (167 * 3600, 169 * 3600)}


def begins(period: Period, zone: str, at: str) -> str:
    """Both times as the zone's clocks show them, with their offset from UTC."""
    found = begins_s(period, zone, round(datetime.fromisoformat(at).timestamp() * 1000))
    return datetime.fromtimestamp(found, UTC).astimezone(ZoneInfo(zone)).isoformat(timespec="minutes")


@pytest.mark.parametrize(
    ("period", "zone", "at", "expected"),
    [
        ("hour", "UTC", "2026-11-27T13:59:59.999Z", "2026-11-27T13:00+00:00"),
        ("hour", "Asia/Kathmandu", "2026-11-27T13:20:00+05:45", "2026-11-27T13:00+05:45"),
        ("day", "Asia/Kathmandu", "2026-11-26T18:14:59.999Z", "2026-11-26T00:00+05:45"),
        ("day", "Asia/Kathmandu", "2026-11-26T18:15:00Z", "2026-11-27T00:00+05:45"),
        ("week", "Europe/Berlin", "2026-11-29T23:59:59+01:00", "2026-11-23T00:00+01:00"),
        ("week", "Europe/Berlin", "2026-11-30T00:00:00+01:00", "2026-11-30T00:00+01:00"),
        ("week", "Europe/Berlin", "2027-01-01T12:00:00+01:00", "2026-12-28T00:00+01:00"),
        ("week", "Europe/Berlin", "2026-10-25T12:00:00+01:00", "2026-10-19T00:00+02:00"),
        ("month", "America/New_York", "2026-12-01T04:59:59Z", "2026-11-01T00:00-04:00"),
        ("month", "America/New_York", "2026-12-01T05:00:00Z", "2026-12-01T00:00-05:00"),
        ("day", "Europe/Berlin", "2026-03-29T23:00:00+02:00", "2026-03-29T00:00+01:00"),  # of 23 hours
        ("day", "Europe/Berlin", "2026-10-25T23:00:00+01:00", "2026-10-25T00:00+02:00"),  # of 25
        ("hour", "Europe/Berlin", "2026-10-25T02:30:00+02:00", "2026-10-25T02:00+02:00"),
        ("hour", "Europe/Berlin", "2026-10-25T02:30:00+01:00", "2026-10-25T02:00+01:00"),  # the same hour again
        ("hour", "Europe/Berlin", "2026-03-29T03:10:00+02:00", "2026-03-29T03:00+02:00"),
        ("day", "Africa/Cairo", "2026-04-24T12:00:00+03:00", "2026-04-24T01:00+03:00"),  # has no midnight
        ("hour", "Australia/Lord_Howe", "2026-04-05T01:45:00+10:30", "2026-04-05T01:00+11:00"),  # of 90 minutes
    ],
)
def test_a_period_begins_as_the_zones_clocks_say(period: Period, zone: str, at: str, expected: str) -> None:
    assert begins(period, zone, at) == expected


def test_a_total_never_begins_anew() -> None:
    assert begins_s("total", "Asia/Kathmandu", 1_795_399_200_000) == 0


@given(
    st.sampled_from([period for period in get_args(Period) if period != "total"]),
    st.sampled_from(ZONES),
    st.integers(1_577_836_800, 2_114_380_800),  # 2020 to 2036
)
def test_periods_follow_each_other_without_a_gap_in_every_zone(period: Period, zone: str, at_s: int) -> None:
    """Postgres counts from a period's beginning on: it may hold nothing of another."""
    begun = begins_s(period, zone, at_s * 1000)
    assert begun <= at_s
    assert begun % QUARTER_S == 0
    assert begins_s(period, zone, begun * 1000) == begun
    assert begins_s(period, zone, begun * 1000 - 1) < begun
    longest = LENGTH_S.get(period, (0, int(timedelta(days=31, hours=1).total_seconds())))[1]
    assert at_s - begun < longest
