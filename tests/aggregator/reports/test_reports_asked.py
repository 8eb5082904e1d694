from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import available_timezones

import pytest

from aggregator.reports import buckets as times
from aggregator.reports.asked import After, Asked, Filter, QueryBody, read, read_query, write_cursor
from aggregator.reports.buckets import QUARTER, Bucket
from schemas.errors import Refused

NOW = datetime(2026, 11, 27, 23, 30, tzinfo=UTC)


def asked(zone: str = "UTC", role: str = "admin", **params: str) -> Asked:
    return read([(name.removesuffix("_"), value) for name, value in params.items()], zone, NOW, role)


def buckets(asked: Asked) -> list[Bucket]:
    return times.buckets(asked.starts, asked.ends, asked.zone, asked.granularity)


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
    assert [bucket.label for bucket in buckets(query)] == ["2026-11-27"]


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
    assert bucket.label == str(begins)
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
    "group_by": ["", "link_id", "day,hour", "link,link", "link,offer,partner", "DAY", "day\x00", "currency", "day,"],
    "granularity": ["", "year", "DAY", "link"],
    "metrics": ["", "Revenue", "clicks,", "clicks,clicks", "clicks;payout", "clicks conversions", "*"],
    "link_id": ["", "0", "-", "--1", "1.5", "99999999999", "9" * 400, "abc", "1,", "1,-2", "\u0661", "1\x00",
                ",".join(map(str, range(1, 102)))],
    "offer_id": ["x"], "partner_id": ["0"], "advertiser_id": ["-0"],
    "country": ["", "Germany", "D", "DE,", "de-DE", "-", "D\x00", "DE,-US", "\u0130\u0130"],
    "device": ["", "phone", "Mobile", "-phone"],
    "os": ["", "-", "x\x00", "x" * 256, "\ud800"],
    "sub1": ["", "a,,b", "-a,b", "x\x00"],
    "event": ["", "-"],
    "status": ["", "paid", "APPROVED", "-open"],
    "currency": ["", "eur", "XXX", "EURO"],
    "date_basis": ["", "event", "LEDGER", "CLICK"],
    "sort": ["", "-", "clicks,payout", "revenue", "day,clicks", "--clicks", "country"],
    "totals": ["", "true", "2"],
    "live": ["", "true", "2"],
    "limit": ["", "0", "-1", "1001", "abc", "1e3", "9" * 400],
    "cursor": ["", "x", "W10", "bnVsbA", "!!!", "e30", "\x00", "WyIyMDI2LTExLTI3Iiwi4oKsIl0", "W1tb" * 1000, "ä"],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_parameter_is_refused_by_name(name: str) -> None:
    for value in BAD[name]:
        given = {"from": "2026-11-20", "to": "2026-11-28"} | {name: value}
        with pytest.raises(Refused) as refused:
            read(list(given.items()), "UTC", NOW, "admin")
        blamed = {name, "to"} if value == "2199-12-31" else {name}
        assert refused.value.field in blamed, value
        assert refused.value.status == 400
        assert len(refused.value.message) < 300


def test_an_unknown_or_repeated_parameter_is_refused_by_name() -> None:
    with pytest.raises(Refused) as unknown:
        read([("visitor", "1")], "UTC", NOW, "admin")
    with pytest.raises(Refused) as repeated:
        read([("limit", "1"), ("limit", "1")], "UTC", NOW, "admin")
    assert unknown.value.field == "visitor"
    assert repeated.value.field == "limit"


def test_a_cursor_comes_back_as_it_was_for_the_same_order_of_rows_alone() -> None:
    by_day = asked()
    by_link = asked(group_by="link,country", sort="-clicks")
    for one, after in (
        (by_day, After(None, at("2026-11-27T00:00Z"), (), "EUR")),
        (by_link, After("7.5", at("2026-11-21T00:00Z"), (7, "DE"), "USD")),
        (by_link, After(None, at("2026-11-21T00:00Z"), (0, ""), "USD")),
    ):
        cursor = write_cursor(one, after)
        words = {"group_by": "link,country", "sort": "-clicks"} if one is by_link else {}
        assert asked(cursor=cursor, **words).after == after
        for others in ({"group_by": "link"}, {"granularity": "hour"}, {"sort": "clicks"}, {"group_by": "country,link"}):
            with pytest.raises(Refused, match="not one of this report's"):
                asked(cursor=cursor, **others)


@pytest.mark.parametrize(
    ("words", "granularity", "groups"),
    [
        ({}, "day", ()),
        ({"group_by": "day"}, "day", ()),
        ({"group_by": "link"}, "total", ("link_id",)),
        ({"group_by": "hour,source,sub10"}, "hour", ("source_id", "sub10")),
        ({"group_by": "offer,week"}, "week", ("offer_id",)),
        ({"granularity": "month"}, "month", ()),
        ({"granularity": "total"}, "total", ()),
        ({"granularity": "quarter", "group_by": "device"}, "quarter", ("device",)),
        ({"granularity": "day", "group_by": "day,event"}, "day", ("event",)),
    ],
)
def test_time_is_a_granularity_wherever_it_is_named(
    words: dict[str, str], granularity: str, groups: tuple[str, ...]
) -> None:
    query = asked(**words)
    assert (query.granularity, query.groups) == (granularity, groups)


def test_two_times_that_differ_are_refused() -> None:
    with pytest.raises(Refused) as refused:
        asked(granularity="hour", group_by="day")
    assert refused.value.field == "granularity"


def test_quarter_hours_are_of_a_hundred_days_at_most() -> None:
    words = {"granularity": "quarter", "from_": "2026-01-01"}
    assert len(buckets(asked(to="2026-04-11", **words))) == 9_600
    with pytest.raises(Refused, match="at most 100 days"):
        asked(to="2026-04-12", **words)


def test_weeks_begin_on_monday_and_months_on_the_first_and_are_cut_to_the_range() -> None:
    span = {"from_": "2026-10-20", "to": "2026-12-02", "timezone": "Europe/Berlin"}
    weeks, months = buckets(asked(granularity="week", **span)), buckets(asked(granularity="month", **span))
    assert [one.label for one in weeks[:3]] == ["2026-10-19", "2026-10-26", "2026-11-02"]
    assert (weeks[0].starts, weeks[1].starts) == (at("2026-10-20T00:00+02:00"), at("2026-10-26T00:00+01:00"))
    assert [one.label for one in months] == ["2026-10-01", "2026-11-01", "2026-12-01"]
    for cuts in (weeks, months):
        assert (cuts[0].starts, cuts[-1].ends) == (at("2026-10-20T00:00+02:00"), at("2026-12-02T00:00+01:00"))
        assert all(one.ends == other.starts for one, other in pairwise(cuts))


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Asia/Kathmandu", "2026-11-27", 24),
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        ("Australia/Lord_Howe", "2026-10-04", 24),  # of half an hour, the one that is cut
        ("Australia/Lord_Howe", "2026-04-05", 25),  # of half an hour, the one that comes again
    ],
)
def test_an_hour_is_one_of_the_wall_clock(zone: str, day: str, hours: int) -> None:
    end = str(date.fromisoformat(day) + timedelta(days=1))
    cuts = buckets(asked(granularity="hour", from_=day, to=end, timezone=zone))
    assert len(cuts) == hours
    assert all(one.ends - one.starts <= timedelta(hours=1) for one in cuts)
    assert all(one.ends == other.starts for one, other in pairwise(cuts))


def test_a_day_that_a_zone_left_out_is_none() -> None:
    labels = [one.label for one in buckets(asked(from_="2011-12-29", to="2012-01-01", timezone="Pacific/Apia"))]
    assert labels == ["2011-12-29", "2011-12-31"]


def test_values_are_in_or_not_in_and_in_one_order() -> None:
    query = asked(country="us,DE,US", link_id="-3,-2", sub1="-a")
    assert query.filters == (
        Filter("country", ("DE", "US"), excluded=False),
        Filter("link_id", (2, 3), excluded=True),
        Filter("sub1", ("a",), excluded=True),
    )


def test_a_body_says_the_same_as_a_query_and_values_of_any_kind() -> None:
    body = QueryBody(
        from_="2026-11-20", to="2026-11-28", group_by=["link", "country"], metrics=["clicks", "epc"],
        filters={"country": ["US", "DE"]}, exclusions={"link_id": [2, 3]}, sort="-epc", limit=5, totals=True,
    )  # fmt: skip
    words = {"from_": "2026-11-20", "to": "2026-11-28", "group_by": "link,country", "metrics": "clicks,epc"}
    query = asked(country="US,DE", link_id="-2,-3", sort="-epc", limit="5", totals="1", **words)
    assert read_query(body, "UTC", NOW, "admin") == query
    odd = read_query(QueryBody(filters={"sub1": ["-a,b", "c"]}), "UTC", NOW, "admin")
    assert odd.filters == (Filter("sub1", ("-a,b", "c"), excluded=False),)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (QueryBody(filters={"visitor": ["x"]}), "visitor"),
        (QueryBody(filters={"country": []}), "country"),
        (QueryBody(exclusions={"link_id": [0]}), "link_id"),
        (QueryBody(exclusions={"link_id": ["x"]}), "link_id"),
        (QueryBody(metrics=[]), "metrics"),
        (QueryBody(limit=0), "limit"),
        (QueryBody(limit=-1), "limit"),
        (QueryBody(timezone=""), "timezone"),
    ],
)
def test_a_bad_body_is_refused_by_name(body: QueryBody, field: str) -> None:
    with pytest.raises(Refused) as refused:
        read_query(body, "UTC", NOW, "admin")
    assert (refused.value.status, refused.value.field) == (400, field)


HIDDEN = {
    "partner": ["metrics=revenue", "metrics=clicks,profit", "group_by=advertiser", "advertiser_id=1"],
    "advertiser": ["metrics=payout", "metrics=payout_pending", "metrics=payout_reversed", "metrics=profit",
                   "metrics=epc", "group_by=link", "group_by=sub1", "group_by=day,source", "group_by=os",
                   "sub3=-x", "link_id=1", "browser=Firefox", "source_id=x"],
}  # fmt: skip


@pytest.mark.parametrize(("role", "words"), [(role, one) for role, words in HIDDEN.items() for one in words])
def test_what_is_not_for_a_role_is_forbidden(role: str, words: str) -> None:
    name, _, value = words.partition("=")
    with pytest.raises(Refused) as refused:
        read([(name, value)], "UTC", NOW, role)
    assert (refused.value.code, refused.value.field) == ("forbidden", name)
    assert read([(name, value)], "UTC", NOW, "admin")


def test_metrics_that_nobody_named_are_those_a_role_may_see() -> None:
    assert "payout" not in asked(role="advertiser").metrics
    assert "revenue" not in asked(role="partner").metrics


def test_what_edges_count_may_be_asked_for_and_nothing_else_with_it() -> None:
    assert asked(live="1").metrics == ("clicks",)
    assert asked(live="1", metrics="clicks", group_by="day,link,partner", link_id="-1", partner_id="2").live
    assert not asked(live="0", metrics="payout").live
    for words in (
        {"metrics": "clicks,payout"}, {"metrics": "unique_clicks"}, {"metrics": "payout"}, {"group_by": "country"},
        {"group_by": "link,offer"}, {"device": "mobile"}, {"offer_id": "1"}, {"date_basis": "ledger"},
    ):  # fmt: skip
        with pytest.raises(Refused) as refused:
            asked(live="1", **words)
        assert (refused.value.status, words) == (400, words)
    with pytest.raises(Refused) as refused:
        asked(role="advertiser", live="1")
    assert (refused.value.code, refused.value.field) == ("forbidden", "live")


def test_the_ledger_has_metrics_of_its_own_and_of_them_those_a_role_may_see() -> None:
    booked = {role: asked(role=role, date_basis="ledger").metrics for role in ("admin", "partner", "advertiser")}
    assert booked == {
        "admin": ("payout", "payout_reversed", "revenue", "profit"),
        "partner": ("payout", "payout_reversed"),
        "advertiser": ("revenue",),
    }
    assert asked(date_basis="ledger", group_by="event,partner", currency="EUR", advertiser_id="-1").metrics
    for role, metric in (("partner", "revenue"), ("partner", "profit"), ("advertiser", "payout")):
        with pytest.raises(Refused) as refused:
            asked(role=role, date_basis="ledger", metrics=metric)
        assert refused.value.code == "forbidden"


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ({"metrics": "payout,clicks"}, "metrics"), ({"metrics": "conversions"}, "metrics"),
        ({"metrics": "payout_pending"}, "metrics"), ({"metrics": "epc"}, "metrics"), ({"group_by": "link"}, "group_by"),
        ({"group_by": "day,status"}, "group_by"), ({"country": "DE"}, "country"), ({"sub1": "-x"}, "sub1"),
    ],
)  # fmt: skip
def test_what_the_ledger_does_not_know_is_refused_with_what_it_does(words: dict[str, str], field: str) -> None:
    with pytest.raises(Refused, match=r"date_basis=ledger (has payout|goes by partner)") as refused:
        asked(date_basis="ledger", **words)
    assert (refused.value.code, refused.value.field) == ("bad_value", field)


@pytest.mark.parametrize("words", [{"group_by": "event"}, {"group_by": "status"}, {"currency": "EUR"}, {"event": "-x"}])
def test_clicks_are_refused_where_they_have_no_such_thing(words: dict[str, str]) -> None:
    assert "clicks" not in asked(**words).metrics
    for metric in ("clicks", "unique_clicks", "cr", "epc"):
        with pytest.raises(Refused, match="clicks have no"):
            asked(metrics=metric, **words)


@pytest.mark.parametrize(
    ("span", "begun"),
    [
        ({"from_": "2026-11-20", "to": "2026-11-25"}, "2026-11-25T00:00Z"),
        ({"from_": "2026-11-20", "to": "2026-12-25"}, "2026-11-28T00:00Z"),
        ({"from_": "2026-12-20", "to": "2026-12-25"}, "2026-12-20T00:00Z"),
    ],
)
def test_days_that_lie_ahead_have_not_begun(span: dict[str, str], begun: str) -> None:
    assert asked(**span).begun == at(begun)
