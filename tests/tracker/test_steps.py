"""What becomes of a click: each step, the order they run in, and the event that follows."""

import re
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import orjson
import pytest

from loadtests.faults.edges import BROWSER, link, offer, programme
from schemas import click_id, events
from schemas.click_id import ClickKey, ClickKeys
from schemas.limits import QUERY_PARAMS_MAX, USER_AGENT_MAX, VALUE_MAX
from schemas.links import Block, Cap, Domain, Partner, Programme
from schemas.outcomes import ClickClass, Reason
from tracker.params import KEPT
from tracker.steps import Click, Decision, Known, Target, decide

KEY = ClickKey(1, b"k" * 32)
SECRET = b"s" * 16
NOW = 1_795_399_200_000
FALLBACK = "https://fallback.example/?c={click_id}"
ROBOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"


def target(url: str = "https://shop.example/?p={click_id}", **fields: Any) -> Target:
    whole = {
        "programme": programme(fallback_url=FALLBACK),
        "link": link(),
        "offer": offer(destination_url=url, name="Größe & more"),
        "partner": Partner(v=(1, 1), id=1, name="Partner", status="active"),
    }
    return Target(**(whole | fields))


def partner(**fields: Any) -> Partner:
    return Partner(**({"v": (1, 1), "id": 1, "name": "Partner", "status": "active"} | fields))


def run(query: str = "", to: Target | None = None, **fields: Any) -> Decision:
    wanted = {"at_ms": NOW, "ip": "203.0.113.77", "user_agent": BROWSER, "referer": ""} | fields
    return decide(Click(query=query, **wanted), to or target(), KEY, Known(SECRET))


def event(decision: Decision) -> events.Click:
    assert decision.event is not None
    found = events.decode(decision.event)
    assert isinstance(found, events.Click)
    return found


def id_in(decision: Decision) -> click_id.ClickId:
    params = parse_qs(urlsplit(decision.location or "").query)
    return click_id.read(ClickKeys((KEY,)), (params.get("p") or params["c"])[0])


def test_a_click_leads_to_its_offer_with_its_own_id() -> None:
    decision = run()
    found = id_in(decision)
    assert (found.link_id, found.offer_id, found.partner_id) == (1, 1, 1)
    assert (found.click_class, found.at_ms) == (ClickClass.NORMAL, NOW)
    assert found.uuid == event(decision).id
    assert (decision.reason, decision.link_id, decision.partner_id) == (Reason.NONE, 1, 1)
    assert id_in(run()).uuid != found.uuid


def test_the_event_that_is_built_by_hand_is_the_event_of_the_schema_in_every_field() -> None:
    params = {"source_id": "news", "click_ref": "r-1"} | {name: f"v-{name}" for name in KEPT}
    query = "&".join(f"{name}={value}" for name, value in params.items())
    found = event(run(query, ip="8.8.8.8", user_agent=ROBOT, referer="https://blog.example/about/me?x"))
    other = event(run(query, ip="8.8.8.8"))
    empty = {name for name in events.Click.__struct_fields__ if not getattr(found, name) and not getattr(other, name)}
    assert empty == set()
    assert (found.v, found.click_class, found.reason, found.device) == (1, 1, "known_bot", "robot")
    assert (found.country, found.ip, found.referer) == ("US", "8.8.8.0", "blog.example")
    assert (other.device, other.os, other.browser) == ("desktop", "Windows", "Chrome")
    assert found.subs == {name: f"v-{name}" for name in KEPT}
    assert (found.source_id, found.click_ref) == ("news", "r-1")
    assert set(orjson.loads(run(query).event or b"")) <= {"kind", *events.Click.__struct_fields__}


def test_sub_ids_are_taken_in_any_case_and_alphabet_and_the_first_of_a_repeated_one() -> None:
    query = f"SUB1={quote('Привет')}&Sub2={quote('日本 語')}&sub3=a&sub3=b&sub11=no&utm=x&sub4="
    found = event(run(query))
    assert found.subs == {"sub1": "Привет", "sub2": "日本 語", "sub3": "a", "sub4": ""}


def test_a_nul_is_removed_and_what_is_too_long_is_cut_never_the_click() -> None:
    found = event(run(f"sub1=a%00b&sub2={'x' * 1000}&source_id={'y' * 1000}&sub3=%ff%fe"))
    assert found.subs == {"sub1": "ab", "sub2": "x" * VALUE_MAX, "sub3": "\ufffd\ufffd"}
    assert len(found.source_id) == VALUE_MAX


def test_more_parameters_than_anybody_needs_are_refused() -> None:
    assert run("&".join(f"p{n}=1" for n in range(QUERY_PARAMS_MAX))).location
    with pytest.raises(ValueError, match="fields"):
        run("&".join(f"p{n}=1" for n in range(QUERY_PARAMS_MAX + 1)))


@pytest.mark.parametrize("macro", ["{sub1}", "[[sub1]]", "{user_agent}"])
def test_no_request_makes_a_location_many_times_its_size(macro: str) -> None:
    """Nor one that takes the edge long to write."""
    to = target(offer=offer(deep_link_hosts=frozenset({"shop.example"})))
    query = f"url=https://shop.example/?{macro * (1_900 // len(macro))}&sub1={quote('😀' * VALUE_MAX)}"
    location = run(query, to, user_agent="😀" * USER_AGENT_MAX).location or ""
    assert len(location) < 10 * len(query)


PAUSED_LINK = target(link=link(status="paused"))
PAUSED_OFFER = target(offer=offer(status="paused"))
BLOCKED = target(partner=Partner(v=(1, 1), id=1, name="P", status="blocked"))
PENDING = target(partner=Partner(v=(1, 1), id=1, name="P", status="pending"))
DROPPED = [
    (target(link=None, offer=None, partner=None), Reason.UNKNOWN_LINK),
    (target(offer=None), Reason.UNKNOWN_LINK),
    (target(partner=None), Reason.UNKNOWN_LINK),
    (PAUSED_LINK, Reason.LINK_PAUSED),
    (PAUSED_OFFER, Reason.OFFER_PAUSED),
    (BLOCKED, Reason.PARTNER_BLOCKED),
    (PENDING, Reason.PARTNER_BLOCKED),
    (target(link=link(status="paused"), partner=BLOCKED.partner), Reason.PARTNER_BLOCKED),
    (target(link=link(status="paused"), offer=PAUSED_OFFER.offer), Reason.LINK_PAUSED),
]


@pytest.mark.parametrize(("to", "reason"), DROPPED)
def test_what_is_dropped_goes_to_the_fallback_and_is_recorded_with_its_reason(to: Target, reason: Reason) -> None:
    decision = run(to=to)
    assert (decision.location or "").startswith("https://fallback.example/?c=")
    assert id_in(decision).click_class is ClickClass.FALLBACK
    found = event(decision)
    assert (found.reason, found.click_class) == (reason, ClickClass.FALLBACK)
    assert (found.link_id, found.offer_id) == (to.link.id if to.link else 0, to.offer.id if to.offer else 0)


@pytest.mark.parametrize(("to", "reason"), DROPPED)
def test_without_a_fallback_there_is_nowhere_to_go_and_nothing_to_record(to: Target, reason: Reason) -> None:
    bare = Target(Programme(v=(1, 1), timezone="UTC", currency="EUR"), to.link, to.offer, to.partner)
    assert run(to=bare) == Decision(reason)


def test_a_robot_on_a_paused_link_is_a_fallback_like_anybody() -> None:
    assert event(run(to=PAUSED_LINK, user_agent=ROBOT)).reason == Reason.LINK_PAUSED


@pytest.mark.parametrize(("agent", "reason"), [(ROBOT, Reason.KNOWN_BOT), ("", Reason.NO_USER_AGENT)])
def test_a_robot_is_flagged_redirected_and_kept(agent: str, reason: Reason) -> None:
    decision = run(user_agent=agent)
    assert (decision.location or "").startswith("https://shop.example/")
    assert id_in(decision).click_class is ClickClass.FLAGGED
    assert (event(decision).reason, event(decision).click_class) == (reason, ClickClass.FLAGGED)


TESTED = target(
    link=link(test=True), offer=offer(caps=(Cap(id=1, period="total", clicks=1),)),
    partner=partner(caps=(Cap(id=2, period="total", clicks=1),)),
)  # fmt: skip


@pytest.mark.parametrize("agent", [BROWSER, ROBOT])
def test_a_click_on_a_test_link_leads_where_all_do_and_is_counted_nowhere(agent: str) -> None:
    known = Known(SECRET)
    for of in ((1, 0), (2, 0)):
        known.caps.count(of)  # both caps are reached
    click = Click(NOW, "203.0.113.77", agent, "", "sub1=x")
    decision = decide(click, TESTED, KEY, known)
    assert (decision.location or "").startswith("https://shop.example/buy?from=x&p=")
    assert id_in(decision).click_class is ClickClass.TEST
    found = event(decision)
    assert (found.click_class, found.link_id, found.offer_id, found.partner_id) == (ClickClass.TEST, 1, 1, 1)
    assert (decision.partner_id, run().partner_id) == (0, 1)  # nor does its partner see it among its clicks
    assert (decision.link_id, decision.partner_id, click.caps) == (0, 0, ())


def test_it_is_a_test_also_where_it_goes_to_the_fallback_and_uncounted_where_it_would_be() -> None:
    paused = target(link=link(test=True, status="paused"))
    decision = run(to=paused)
    assert (decision.location or "").startswith("https://fallback.example/?c=")
    assert id_in(decision).click_class is ClickClass.TEST
    assert (event(decision).click_class, event(decision).reason) == (ClickClass.TEST, Reason.LINK_PAUSED)
    assert (decision.link_id, decision.partner_id) == (0, 0)
    assert id_in(run(to=paused, uncounted=True)).click_class is ClickClass.UNCOUNTED


@pytest.mark.parametrize("to", [target(), PAUSED_LINK])
def test_head_is_answered_with_an_uncounted_id_and_recorded_nowhere(to: Target) -> None:
    decision = run(to=to, uncounted=True)
    assert id_in(decision).click_class is ClickClass.UNCOUNTED
    assert decision.event is None


def test_a_visitor_cannot_name_what_only_we_know() -> None:
    url = "https://shop.example/?p={click_id}&o={offer_id}&i={ip}&x={other}"
    found = parse_qs(urlsplit(run("offer_id=9&ip=1.2.3.4&click_id=forged&other=z", target(url)).location or "").query)
    assert (found["o"], found["i"], "x" in found) == (["1"], ["203.0.113.0"], False)
    assert found["p"] != ["forged"]


def test_a_link_may_have_a_destination_of_its_own() -> None:
    own = link(destination_url="https://shop.example/sale?p={click_id}")
    assert (run(to=target(link=own)).location or "").startswith("https://shop.example/sale?p=")


def test_an_offer_names_the_parameter_that_its_clicks_arrive_with() -> None:
    to = target(offer=offer(destination_url="https://shop.example/?a=1", click_id_parameter="irclickid"))
    assert (run(to=to).location or "").startswith("https://shop.example/?a=1&irclickid=")


def test_a_fallback_gets_no_click_id_that_is_not_written_into_it_and_no_parameters() -> None:
    to = target(
        programme=programme(fallback_url="https://fallback.example/?s={sub1}"),
        link=link(status="paused"), offer=offer(pass_parameters=True),
    )  # fmt: skip
    assert run("sub1=news&x=y", to).location == "https://fallback.example/?s=news"


STOPPED = [
    (target(link=link(starts_ms=NOW + 1)), Reason.NOT_STARTED),
    (target(offer=offer(starts_ms=NOW + 1)), Reason.NOT_STARTED),
    (target(link=link(ends_ms=NOW)), Reason.EXPIRED),
    (target(offer=offer(ends_ms=NOW)), Reason.EXPIRED),
    (target(offer=offer(access="approval")), Reason.NOT_APPROVED),
    (target(offer=offer(access="private")), Reason.NOT_APPROVED),
    (target(offer=offer(access="private"), partner=partner(offers=frozenset({2}))), Reason.NOT_APPROVED),
]
PASSING = [
    target(link=link(starts_ms=NOW, ends_ms=NOW + 1)),
    target(offer=offer(starts_ms=NOW, ends_ms=NOW + 1)),
    target(offer=offer(access="approval"), partner=partner(offers=frozenset({1, 2}))),
    target(offer=offer(access="private"), partner=partner(offers=frozenset({1}))),
]


@pytest.mark.parametrize(("to", "reason"), STOPPED)
def test_what_has_not_begun_is_over_or_is_not_approved_goes_to_the_fallback(to: Target, reason: Reason) -> None:
    decision = run(to=to)
    assert (decision.location or "").startswith("https://fallback.example/")
    assert event(decision).reason == reason
    assert id_in(decision).click_class is ClickClass.FALLBACK


@pytest.mark.parametrize("to", PASSING)
def test_what_runs_and_is_approved_leads_to_the_offer(to: Target) -> None:
    assert run(to=to).reason is Reason.NONE


BLOCKS: list[tuple[Block, str, Reason]] = [
    ((0, "partner", ""), "", Reason.PARTNER_BLOCKED),
    ((1, "partner", ""), "", Reason.PARTNER_BLOCKED),
    ((2, "partner", ""), "", Reason.NONE),
    ((0, "source_id", "spam"), "source_id=spam", Reason.BLOCKED_SOURCE),
    ((1, "source_id", "spam"), "utm_source=spam", Reason.BLOCKED_SOURCE),
    ((2, "source_id", "spam"), "source_id=spam", Reason.NONE),
    ((0, "source_id", "spam"), "source_id=SPAM&sub1=spam", Reason.NONE),
    ((0, "sub1", "spam"), "c1=spam", Reason.BLOCKED_SOURCE),
    ((1, "sub1", "spam"), "sub1=spam", Reason.BLOCKED_SOURCE),
    ((0, "sub1", "spam"), "sub1=spam2&sub2=spam", Reason.NONE),
    ((0, "sub1", "spam"), "", Reason.NONE),
]


@pytest.mark.parametrize(("block", "query", "reason"), BLOCKS)
def test_unwanted_traffic_is_blocked_for_its_partner_or_for_everybody(block: Block, query: str, reason: Reason) -> None:
    assert run(query, target(partner=partner(blocks=frozenset({block})))).reason is reason
    if block[1] != "partner":
        blocked = programme(fallback_url=FALLBACK, blocks=frozenset({block}))
        assert run(query, target(programme=blocked)).reason is reason


def test_the_nearest_fallback_is_taken() -> None:
    places: dict[str, Any] = {
        "link": link(status="paused", fallback_url="https://link.example/"),
        "offer": offer(fallback_url="https://offer.example/"),
        "domain": Domain(fallback_url="https://domain.example/"),
        "programme": programme(fallback_url="https://programme.example/"),
    }
    bare = {"link": link(status="paused"), "offer": offer(), "domain": Domain(), "programme": programme()}
    for name in list(places):
        assert run(to=target(**places)).location == f"https://{name}.example/"
        places[name] = bare[name]
    assert run(to=target(**places)).location is None


def test_a_click_without_a_stored_link_has_its_offer_and_partner() -> None:
    decision = run(to=target(link=None))
    found = id_in(decision)
    assert (found.link_id, found.offer_id, found.partner_id, found.click_class) == (0, 1, 1, ClickClass.NORMAL)
    assert (event(decision).link_id, event(decision).offer_id, event(decision).partner_id) == (0, 1, 1)


@pytest.mark.parametrize("query", ["no_track=1", "NO_TRACK=true", "dub-no-track=1"])
def test_who_asks_not_to_be_counted_is_not(query: str) -> None:
    decision = run(query)
    assert id_in(decision).click_class is ClickClass.UNCOUNTED
    assert decision.event is None


def test_a_tester_may_call_itself_a_robot() -> None:
    assert event(run("bot=1")).reason == Reason.KNOWN_BOT
    assert event(run("bot=0")).reason == Reason.NONE


def test_a_scan_says_that_it_is_one() -> None:
    assert event(run("qr=1&creative_id=b&promo_code=X&url_id=7")).subs == {
        "qr": "1", "creative_id": "b", "coupon_code": "X", "uid": "7",
    }  # fmt: skip


DEEP = offer(
    destination_url="https://shop.example/buy?p={click_id}&o=1", deep_link_hosts=frozenset({"shop.example"}),
    click_id_parameter="p",
)  # fmt: skip


@pytest.mark.parametrize(
    ("said", "location"),
    [
        ("url=" + quote("https://shop.example/red?size=4#top"), "https://shop.example/red?size=4&p=CLICK#top"),
        ("u=" + quote("https://shop.example/?s={sub1}&x={affiliate_name}"), "https://shop.example/?s=a%26b&x=&p=CLICK"),
        ("desturl=" + quote("https://shop.example/?c={click_id}"), "https://shop.example/?c=CLICK"),
        ("url=" + quote("https://shop.example/?p=old&P=older"), "https://shop.example/?p=CLICK"),
        ("path=/red/shoes", "https://shop.example/red/shoes?p=CLICK"),
        ("url=https%3A%2F%2Fevil.example", "https://shop.example/buy?p=CLICK&o=1"),
        ("url=https%253A%252F%252Fshop.example%252Fred", "https://shop.example/buy?p=CLICK&o=1"),
        ("redir_url=https%3A%2F%2Fshop.example%2Fred", "https://shop.example/buy?p=CLICK&o=1"),
    ],
)
def test_a_link_may_ask_for_a_page_of_a_host_that_the_offer_names(said: str, location: str) -> None:
    decision = run(f"sub1=a%26b&{said}", target(offer=DEEP))
    assert re.sub(r"[\w-]{51}", "CLICK", decision.location or "") == location
    assert event(decision).click_class == ClickClass.NORMAL


def test_an_offer_that_names_no_host_has_no_deep_links() -> None:
    plain = run("url=" + quote("https://shop.example/red") + "&path=/red").location or ""
    assert plain.startswith("https://shop.example/?p=")


def test_a_deep_link_does_not_open_what_is_stopped() -> None:
    to = target(offer=DEEP, link=link(status="paused"))
    assert (run("path=/red", to).location or "").startswith("https://fallback.example/")


def test_parameters_pass_only_to_an_offer_that_wants_them() -> None:
    url = "https://shop.example/?p={click_id}&color=blue"
    assert (run("color=red&size=4", target(url)).location or "").endswith("&color=blue")
    wanting = target(offer=offer(destination_url=url, pass_parameters=True))
    assert (run("color=red&size=4&sub1=x", wanting).location or "").endswith("&color=blue&size=4")
