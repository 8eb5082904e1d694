"""Targeting: who passes, why not, and when; of an offer, and of each of its landings."""

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.faults.edges import BROWSER, offer, programme
from schemas.links import Asked, Hours, Landing, Targeting
from schemas.outcomes import ClickClass, Reason
from tests.tracker.test_steps import event, id_in, run, target
from tracker.targeting import off_target

SEEN: dict[Asked, str] = {
    "country": "de", "device": "mobile", "os": "android", "browser": "chrome mobile", "language": "de",
}  # fmt: skip
UNKNOWN: dict[Asked, str] = dict.fromkeys(SEEN, "")
FIELDS: list[Asked] = list(SEEN)
NOON = 1_795_777_200_000  # Friday, 2026-11-27, 12:00 in Berlin


def rules(**fields: str) -> dict[Any, frozenset[str]]:
    return {asked: frozenset(values.split()) for asked, values in fields.items()}


def judged(targeting: Targeting, seen: dict[Asked, str] = SEEN, at_ms: int = NOON) -> Reason:
    return off_target(targeting, seen, "Europe/Berlin", at_ms)


@pytest.mark.parametrize("asked", FIELDS)
def test_each_field_has_its_own_reason_and_what_is_unknown_is_neither_included_nor_excluded(asked: Asked) -> None:
    included, excluded = (
        Targeting(include={asked: frozenset({SEEN[asked], "x"})}),
        Targeting(exclude={asked: frozenset({SEEN[asked], "x"})}),
    )
    reason = Reason(f"off_target_{asked}")
    other = SEEN | {asked: "other"}
    assert [judged(included), judged(included, other), judged(included, UNKNOWN)] == [Reason.NONE, reason, reason]
    assert [judged(excluded), judged(excluded, other), judged(excluded, UNKNOWN)] == [reason, Reason.NONE, Reason.NONE]


@given(
    st.dictionaries(st.sampled_from(FIELDS), st.frozensets(st.sampled_from("abcd")), max_size=5),
    st.dictionaries(st.sampled_from(FIELDS), st.frozensets(st.sampled_from("abcd")), max_size=5),
    st.fixed_dictionaries({asked: st.sampled_from(["", *"abcd"]) for asked in FIELDS}),
)
def test_all_of_include_has_to_match_and_none_of_exclude(
    include: dict[Asked, frozenset[str]], exclude: dict[Asked, frozenset[str]], seen: dict[Asked, str]
) -> None:
    passes = all(seen[asked] in values for asked, values in include.items()) and not any(
        seen[asked] in values for asked, values in exclude.items()
    )
    assert (judged(Targeting(include=include, exclude=exclude), seen) is Reason.NONE) == passes


WORK = Hours(days=frozenset({1, 2, 3, 4, 5}), since=9 * 60, until=17 * 60)


@pytest.mark.parametrize(
    ("hours", "at", "is_open"),
    [
        ((WORK,), "2026-11-27T09:00:00+01:00", True),
        ((WORK,), "2026-11-27T08:59:59.999+01:00", False),
        ((WORK,), "2026-11-27T16:59:59.999+01:00", True),
        ((WORK,), "2026-11-27T17:00:00+01:00", False),
        ((WORK,), "2026-11-28T12:00:00+01:00", False),
        ((WORK, Hours(days=frozenset({6}))), "2026-11-28T00:00:00+01:00", True),
        ((Hours(since=22 * 60), Hours(until=6 * 60)), "2026-11-28T02:00:00+01:00", True),
        ((Hours(since=22 * 60), Hours(until=6 * 60)), "2026-11-28T06:00:00+01:00", False),
        ((Hours(since=120, until=180),), "2026-10-25T02:30:00+02:00", True),  # an hour that is there twice
        ((Hours(since=120, until=180),), "2026-10-25T02:30:00+01:00", True),
        ((Hours(since=120, until=180),), "2026-10-25T03:00:00+01:00", False),
        ((Hours(since=120, until=180),), "2026-03-29T03:00:00+02:00", False),  # and one that is not
        ((), "2026-11-28T02:00:00+01:00", True),
    ],
)
def test_hours_are_those_of_the_zones_clocks(hours: tuple[Hours, ...], at: str, is_open: bool) -> None:
    at_ms = round(datetime.fromisoformat(at).timestamp() * 1000)
    assert judged(Targeting(hours=hours), at_ms=at_ms) is (Reason.NONE if is_open else Reason.OFF_HOURS)


def test_hours_are_in_the_offers_zone_where_it_has_one() -> None:
    """At noon in Berlin it is 16:45 in Kathmandu."""
    of = Targeting(hours=(Hours(since=16 * 60, until=17 * 60),))
    assert event(run(to=target(offer=offer(targeting=of)), at_ms=NOON)).reason == Reason.OFF_HOURS
    assert event(run(to=target(offer=offer(targeting=of, timezone="Asia/Kathmandu")), at_ms=NOON)).reason == ""


GERMAN = {"ip": "91.0.0.1", "languages": "de-AT,en;q=0.7"}


@pytest.mark.parametrize(
    ("include", "reason"),
    [
        (rules(country="de at"), ""),
        (rules(country="us"), "off_target_country"),
        (rules(device="desktop"), ""),
        (rules(device="mobile tablet"), "off_target_device"),
        (rules(os="windows"), ""),
        (rules(os="ios"), "off_target_os"),
        (rules(browser="chrome"), ""),
        (rules(browser="firefox"), "off_target_browser"),
        (rules(language="de"), ""),
        (rules(language="en"), "off_target_language"),
    ],
)
def test_an_offer_asks_what_a_click_told(include: dict[Any, frozenset[str]], reason: str) -> None:
    to = target(offer=offer(targeting=Targeting(include=include)))
    decision = run(to=to, user_agent=BROWSER, **GERMAN)
    assert event(decision).reason == reason
    assert event(decision).click_class == (ClickClass.FALLBACK if reason else ClickClass.NORMAL)


A, B, ELSE = "https://a.example/?p={click_id}", "https://b.example/?p={click_id}", "https://else.example/?p={click_id}"


def leads(**fields: Any) -> str:
    decision = run(to=target(offer=offer(destination_url=ELSE, **fields)), **GERMAN)
    assert id_in(decision).click_class is ClickClass.NORMAL
    return (decision.location or "").partition("?")[0]


def test_a_landing_that_is_not_meant_for_a_visitor_gets_none() -> None:
    swiss = Targeting(include=rules(country="ch"))
    assert leads(landings=(Landing(url=A, targeting=swiss, weight=1000), Landing(url=B))) == "https://b.example/"
    assert leads(landings=(Landing(url=A, targeting=swiss),)) == "https://else.example/"
    assert leads() == "https://else.example/"


def test_a_link_with_a_destination_of_its_own_goes_there() -> None:
    of = target(offer=offer(landings=(Landing(url=A),)))
    assert of.link is not None
    own = target(offer=of.offer, link=type(of.link)(v=(1, 1), id=1, code="x", offer_id=1, partner_id=1,
                 status="active", destination_url="https://own.example/?p={click_id}"))  # fmt: skip
    assert (run(to=of).location or "").startswith("https://a.example/")
    assert (run(to=own).location or "").startswith("https://own.example/")


def test_a_visitor_sees_one_landing_all_day_and_others_see_others() -> None:
    to = target(offer=offer(landings=(Landing(url=A), Landing(url=B))), programme=programme(timezone="UTC"))
    seen = [
        {(run(to=to, ip=f"203.0.113.{host}", at_ms=NOON + hour * 3_600_000).location or "")[8] for hour in range(12)}
        for host in range(40)
    ]
    assert {len(one) for one in seen} == {1}
    assert set().union(*seen) == {"a", "b"}
