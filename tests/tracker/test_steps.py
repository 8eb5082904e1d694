"""What becomes of a click: each step, the order they run in, and the event that follows."""

from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import orjson
import pytest

from loadtests.faults.edges import BROWSER, link, offer, programme
from schemas import click_id, events
from schemas.click_id import ClickKey, ClickKeys
from schemas.limits import QUERY_PARAMS_MAX, VALUE_MAX
from schemas.links import Partner, Programme
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


@pytest.mark.parametrize("to", [target(), PAUSED_LINK])
def test_head_is_answered_with_an_uncounted_id_and_recorded_nowhere(to: Target) -> None:
    decision = run(to=to, uncounted=True)
    assert id_in(decision).click_class is ClickClass.UNCOUNTED
    assert decision.event is None


def test_every_macro_brings_what_it_says() -> None:
    names = (
        "offer_id offer_name affiliate_id affiliate_name advertiser_id country device os browser ip timestamp "
        "sub1 sub10 source_id click_ref source aff_sub"
    ).split()
    url = "https://shop.example/?p={click_id}&" + "&".join(f"{name}={{{name}}}" for name in names)
    found = parse_qs(
        urlsplit(run("sub1=%26x&sub10=t&source_id=s&click_ref=r", target(url), ip="8.8.8.8").location or "").query
    )
    del found["p"]
    assert {name: values[0] for name, values in found.items()} == {
        "offer_id": "1", "offer_name": "Größe & more", "affiliate_id": "1", "affiliate_name": "Partner",
        "advertiser_id": "1", "country": "US", "device": "desktop", "os": "Windows", "browser": "Chrome",
        "ip": "8.8.8.0", "timestamp": str(NOW // 1000), "sub1": "&x", "sub10": "t", "source_id": "s", "click_ref": "r",
        "source": "s",
        "aff_sub": "&x",
    }  # fmt: skip


def test_a_visitor_cannot_name_what_only_we_know() -> None:
    url = "https://shop.example/?p={click_id}&o={offer_id}&i={ip}&x={other}"
    found = parse_qs(urlsplit(run("offer_id=9&ip=1.2.3.4&click_id=forged&other=z", target(url)).location or "").query)
    assert (found["o"], found["i"], "x" in found) == (["1"], ["203.0.113.0"], False)
    assert found["p"] != ["forged"]


@pytest.mark.parametrize(
    ("referer", "host"),
    [
        ("https://blog.example/a/b?name=me#x", "blog.example"),
        ("https://me:secret@Blog.example:8080/", "blog.example"),
        ("", ""),
        ("nonsense", ""),
        ("http://[::1", ""),
        ("https://" + "x" * 5000, "x" * VALUE_MAX),
        ("android-app://com.x/", "com.x"),
    ],
)
def test_of_a_referer_the_host_is_kept_and_nothing_more(referer: str, host: str) -> None:
    assert event(run(referer=referer)).referer == host
