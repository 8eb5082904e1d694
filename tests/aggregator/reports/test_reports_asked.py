from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import available_timezones

import pytest

from aggregator.reports.asked import QUARTER, Asked, buckets, read, read_cursor, write_cursor
from schemas.errors import Refused

NOW = datetime(2026, 11, 27, 23, 30, tzinfo=UTC)


def asked(zone: str = "UTC", **params: str) -> Asked:
    return read([(name.removesuffix("_"), value) for name, value in params.items()], zone, NOW)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def test_without_a_range_it_is_the_last_seven_days_today_included() -> None:
    query = asked()
    assert (query.starts, query.ends) == (at("2026-11-21T00:00Z"), at("2026-11-28T00:00Z"))


def test_today_is_that_of_the_programmes_zone() -> None:
    query = asked("Asia/Kathmandu")  # where it is the 28th already
    assert (query.starts, query.ends) == (at("2026-11-21T18:15Z"), at("2026-11-28T18:15Z"))


def test_a_date_is_midnight_in_the_asked_zone_and_to_is_not_in_it() -> None:
    query = asked(from_="2026-11-27", to="2026-11-28", timezone="Asia/Kathmandu")
    assert (query.starts, query.ends) == (at("2026-11-26T18:15Z"), at("2026-11-27T18:15Z"))
    assert [bucket.day for bucket in buckets(query)] == [date(2026, 11, 27)]


@pytest.mark.parametrize(
    "text", ["2026-11-27T01:00:00+01:00", "2026-11-27T01:00:00 01:00", "2026-11-27 00:00Z", "2026-11-26T19:00:00-05:00"]
)
def test_times_of_rfc_3339_are_read(text: str) -> None:
    assert asked(from_=text, to="2026-11-28").starts == at("2026-11-27T00:00Z")


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        ("America/New_York", "2026-03-08", 23),
        ("America/New_York", "2026-11-01", 25),
        ("Australia/Lord_Howe", "2026-10-04", 23.5),
        ("Australia/Lord_Howe", "2026-04-05", 24.5),
        ("Asia/Kathmandu", "2026-11-27", 24),
        ("Africa/Cairo", "2026-04-24", 23),  # summer time begins at midnight: the day has no 00:00
        ("America/Havana", "2026-11-01", 25),  # 00:00 comes twice
    ],
)
def test_a_day_is_as_long_as_its_zone_makes_it(zone: str, day: str, hours: float) -> None:
    begins = date.fromisoformat(day)
    around = asked(
        from_=str(begins - timedelta(days=1)), to=str(begins + timedelta(days=2)), timezone=zone, group_by="day"
    )
    before, bucket, after = buckets(around)
    assert bucket.day == begins
    assert bucket.ends - bucket.starts == timedelta(hours=hours)
    assert (before.ends, after.starts) == (bucket.starts, bucket.ends)


def test_every_midnight_of_many_zones_lies_on_a_quarter_hour_and_days_touch() -> None:
    for zone in sorted(available_timezones() - {"localtime", "Factory"})[::4]:
        days = buckets(asked(from_="2026-01-01", to="2027-01-01", timezone=zone))
        assert len(days) == 365
        assert all(not (day.starts - datetime(2026, 1, 1, tzinfo=UTC)) % QUARTER for day in days), zone
        assert all(one.ends == other.starts for one, other in pairwise(days)), zone


def test_a_year_and_a_day_may_be_asked_for_and_no_more() -> None:
    assert len(buckets(asked(from_="2024-01-01", to="2025-01-02", timezone="Europe/Berlin"))) == 367
    with pytest.raises(Refused, match="at most 367 days"):
        asked(from_="2024-01-01", to="2025-01-03")


BAD = {
    "from": ["", "yesterday", "2026-02-30", "2026-1-1", "20260101", "2026-11-27T00:00", "2026-11-27T00:07:00Z",
             "2026-11-27T00:00:00+25:00", "0001-01-01", "9999-12-31", "2026-11-27\x00", "٢٠٢٦-11-27", "1" * 5000,
             "2026-11-27T24:00Z", "2199-12-31"],
    "to": ["", "2026-11-01T00:00:01Z", "2026-11-20", "2026-11-19", "2030-01-01", "-0001-01-01"],
    "timezone": ["", "CET+1", "Europe/Atlantis", "../../etc/passwd", "Europe/Berlin\x00", "europe/berlin", "/UTC",
                 "x" * 5000],
    "group_by": ["", "country", "day,link", "DAY", "day\x00"],
    "metrics": ["", "revenue", "clicks,", "clicks,clicks", "clicks;payout", "clicks conversions", "*"],
    "link_id": ["", "0", "-1", "1.5", "99999999999", "9" * 400, "abc", "1,2", "\u0661", "1\x00"],
    "limit": ["", "0", "-1", "1001", "abc", "1e3", "9" * 400],
    "cursor": ["", "x", "W10", "bnVsbA", "!!!", "e30", "\x00", "WyIyMDI2LTExLTI3Iiwi4oKsIl0", "W1tb" * 1000, "ä"],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_parameter_is_refused_by_name(name: str) -> None:
    for value in BAD[name]:
        given = {"from": "2026-11-20", "to": "2026-11-28"} | {name: value}
        with pytest.raises(Refused) as refused:
            read(list(given.items()), "UTC", NOW)
        blamed = {name, "to"} if value == "2199-12-31" else {name}
        assert refused.value.field in blamed, value
        assert refused.value.status == 400
        assert len(refused.value.message) < 300


def test_an_unknown_or_repeated_parameter_is_refused_by_name() -> None:
    with pytest.raises(Refused) as unknown:
        read([("partner_id", "1")], "UTC", NOW)
    with pytest.raises(Refused) as repeated:
        read([("limit", "1"), ("limit", "1")], "UTC", NOW)
    assert unknown.value.field == "partner_id"
    assert repeated.value.field == "limit"


def test_a_cursor_comes_back_as_it_was() -> None:
    assert read_cursor("day", write_cursor(date(2026, 11, 27), "EUR")) == (date(2026, 11, 27), "EUR")
    assert read_cursor("link", write_cursor(7, "USD")) == (7, "USD")
    with pytest.raises(Refused):
        read_cursor("link", write_cursor(date(2026, 11, 27), "EUR"))
    with pytest.raises(Refused):
        read_cursor("day", write_cursor(7, "USD"))
