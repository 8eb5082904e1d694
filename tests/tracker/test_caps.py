"""What an edge knows of a cap: never more than was counted, all of it soon after, and what it does at the cap."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadtests.faults.edges import offer
from schemas import limits, redis_keys
from schemas.links import Cap, Partner
from schemas.outcomes import ClickClass, Reason
from schemas.redis import Redis, done, publishing
from tests.tracker.test_steps import FALLBACK, KEY, NOW, ROBOT, SECRET, event, id_in, target
from tracker.caps import COUNT, Batch, CapPeriod, CapTotals, concerning
from tracker.steps import Click, Decision, Known, Target, decide

DAY: CapPeriod = (7, 1_795_734_000)
EDGES = 3


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with publishing(redis_url) as client:
        yield client


async def send(redis: Redis, batch: Batch) -> list[int]:
    return list(await done(redis.eval(COUNT, len(batch.keys), *batch.keys, *map(str, batch.arguments))))


async def flush(redis: Redis, totals: CapTotals) -> None:
    batch = totals.batch()
    if batch:
        totals.answered(await send(redis, batch))


def count(totals: CapTotals, clicks: int, of: CapPeriod = DAY) -> None:
    for _ in range(clicks):
        totals.count(of)


async def test_edges_hear_from_each_other_with_their_next_flush(redis: Redis) -> None:
    one, other = CapTotals(), CapTotals()
    count(one, 30)
    count(other, 12)
    await flush(redis, one)
    await flush(redis, other)
    assert (one.total(DAY), other.total(DAY)) == (30, 42)
    count(one, 1)
    await flush(redis, one)
    assert one.total(DAY) == 43
    assert 0 < await done(redis.ttl(redis_keys.cap(*DAY))) <= limits.COUNTER_TTL_S


async def test_a_batch_without_an_answer_is_sent_again_and_counts_once(redis: Redis) -> None:
    totals = CapTotals()
    count(totals, 5)
    lost = totals.batch()
    assert lost is not None
    await send(redis, lost)  # it arrived, and its answer was lost
    count(totals, 3)
    assert totals.batch() is lost
    await flush(redis, totals)
    await flush(redis, totals)
    await send(redis, lost)  # and arrives once more, out of a frozen server's buffers
    assert await done(redis.hget(redis_keys.cap(*DAY), "counted")) == b"8"
    assert totals.total(DAY) == 8


async def test_what_postgres_has_settled_is_known_with_the_next_flush(redis: Redis) -> None:
    totals = CapTotals()
    await done(redis.hset(redis_keys.cap(*DAY), "settled", 100))
    count(totals, 1)
    await flush(redis, totals)
    assert totals.total(DAY) == 100
    count(totals, 1)
    await flush(redis, totals)
    assert totals.total(DAY) == 100, "Postgres may have counted that click, too"


act = st.tuples(
    st.sampled_from(["count", "flush", "lose request", "lose answer", "send late", "settle", "empty"]),
    st.integers(0, EDGES - 1),
    st.integers(1, 20),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(act, max_size=40))
async def test_no_edge_ever_knows_of_more_clicks_than_there_were(
    redis: Redis, acts: list[tuple[str, int, int]]
) -> None:
    """Nor does it forget its own; and where Redis was not emptied, all know of all in the end."""
    await done(redis.flushall())
    edges, late, own, settled = [CapTotals() for _ in range(EDGES)], list[Batch](), [0] * EDGES, 0
    for act, number, n in acts:
        edge, batch = edges[number], edges[number].batch() if act in ("lose request", "lose answer") else None
        if act == "count":
            count(edge, n)
            own[number] += n
        elif act == "flush":
            await flush(redis, edge)
        elif batch is not None:
            late.append(batch)
            if act == "lose answer":
                await send(redis, batch)
        elif act == "send late" and late:
            await send(redis, late[n % len(late)])
        elif act == "settle":  # Postgres has some of them
            settled = max(settled, sum(own) * n // 20)
            await done(redis.hset(redis_keys.cap(*DAY), "settled", settled))
        elif act == "empty":
            await done(redis.flushall())
            late.clear()  # what was under way went with it
        assert all(own[i] <= edges[i].total(DAY) <= sum(own) for i in range(EDGES))
    for _ in range(3):
        for number, edge in enumerate(edges):
            count(edge, 1)
            own[number] += 1
            await flush(redis, edge)
            assert edge.total(DAY) <= sum(own)
    if "empty" not in {name for name, _, _ in acts}:
        assert edges[-1].total(DAY) == sum(own)


async def test_an_edge_forgets_nothing_when_redis_is_emptied_and_goes_on_hearing(redis: Redis) -> None:
    one, other = CapTotals(), CapTotals()
    count(one, 100)
    count(other, 100)
    for edge in (one, other, one):
        await flush(redis, edge)
        count(edge, 1)
    await done(redis.flushall())
    for edge in (one, other, one, other, one):
        await flush(redis, edge)
        count(edge, 10)
    assert one.total(DAY) >= 200 + 20
    assert one.total(DAY) <= 203 + 50


async def test_what_is_held_is_bounded_and_what_was_forgotten_is_heard_again(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CAPS_HELD_MAX", 10)
    monkeypatch.setattr(limits, "CAPS_SENT_MAX", 3)
    totals = CapTotals()
    for cap_id in range(50):
        count(totals, 2, (cap_id, 0))
        count(totals, 1)
    assert len(totals._young) + len(totals._old) <= 10
    assert totals.total(DAY) == 50
    assert totals.total((0, 0)) == 0
    while totals.batch():
        await flush(redis, totals)
    count(totals, 1, (0, 0))
    await flush(redis, totals)
    assert totals.total((0, 0)) == 3
    assert await done(redis.hget(redis_keys.cap(*DAY), "counted")) == b"50"


def partner(*caps: Cap) -> Partner:
    return Partner(v=(1, 1), id=1, name="P", status="active", caps=caps)


def cap(cap_id: int = 1, clicks: int = 2, **fields: Any) -> Cap:
    return Cap(id=cap_id, clicks=clicks, **({"period": "total"} | fields))


def capped(*of_offer: Cap, of_partner: tuple[Cap, ...] = (), **fields: Any) -> Target:
    return target(offer=offer(caps=of_offer, **fields), partner=partner(*of_partner))


def clicked(to: Target, caps: CapTotals, user_agent: str = "", **fields: Any) -> Decision:
    """Decided, and counted as its door does."""
    wanted: dict[str, Any] = {"ip": "203.0.113.7", "referer": "", "query": "", "at_ms": NOW} | fields
    agent = user_agent or "Mozilla/5.0 (Windows NT 10.0) Chrome/131.0.0.0 Safari/537.36"
    click = Click(user_agent=agent, **wanted)
    decision = decide(click, to, KEY, Known(SECRET, caps))
    for of in click.caps if decision.event else ():
        caps.count(of)
    return decision


def test_at_the_cap_a_click_goes_to_the_fallback_and_says_why() -> None:
    caps = CapTotals()
    decisions = [clicked(capped(cap()), caps) for _ in range(4)]
    assert [event(decision).reason for decision in decisions] == ["", "", "over_cap", "over_cap"]
    assert [id_in(decision).click_class for decision in decisions[1:3]] == [ClickClass.NORMAL, ClickClass.FALLBACK]
    assert (decisions[2].location or "").startswith(FALLBACK.partition("?")[0])
    assert caps.total((1, 0)) == 2


def test_or_it_passes_and_counts_for_nothing() -> None:
    caps = CapTotals()
    decisions = [clicked(capped(cap(over_cap="pass")), caps) for _ in range(4)]
    assert [id_in(of).click_class for of in decisions] == [ClickClass.NORMAL] * 2 + [ClickClass.OVER_CAP] * 2
    assert all((of.location or "").startswith("https://shop.example/") for of in decisions)
    assert (decisions[3].reason, event(decisions[3]).reason) == (Reason.OVER_CAP, "over_cap")
    assert caps.total((1, 0)) == 2


def test_without_a_fallback_there_is_nowhere_to_go() -> None:
    to = capped(cap(clicks=0))
    bare = Target(type(to.programme)(v=(1, 1), timezone="UTC", currency="EUR"), to.link, to.offer, to.partner)
    assert clicked(bare, CapTotals()) == Decision(Reason.OVER_CAP)


def test_robots_and_what_is_not_recorded_neither_count_nor_are_stopped() -> None:
    caps, to = CapTotals(), capped(cap(clicks=1))
    assert event(clicked(to, caps, ROBOT)).click_class == ClickClass.FLAGGED
    assert clicked(to, caps, uncounted=True).event is None
    assert caps.total((1, 0)) == 0
    assert event(clicked(to, caps)).reason == ""
    assert event(clicked(to, caps, ROBOT)).reason == "known_bot"
    assert event(clicked(to, caps)).reason == "over_cap"


@pytest.mark.parametrize(
    ("of_offer", "of_partner", "expected"),
    [
        ((cap(1, 3), cap(2, 2, over_cap="pass")), (), ["", "", "pass", "pass"]),
        ((cap(1, 2), cap(2, 2, over_cap="pass")), (), ["", "", "fallback", "fallback"]),
        ((cap(1, 3),), (cap(2, 1, over_cap="pass"),), ["", "pass", "pass", "pass"]),
        ((cap(1, 3),), (cap(2, 1, offer_id=1),), ["", "fallback", "fallback", "fallback"]),
        ((cap(1, 3),), (cap(2, 1, offer_id=99),), ["", "", "", "fallback"]),
        ((), (cap(2, 2),), ["", "", "fallback", "fallback"]),
        ((cap(1, 2, over_cap="pass"),), (cap(2, 2),), ["", "", "fallback", "fallback"]),
        ((cap(1, 1, over_cap="pass"), cap(2, 0)), (cap(3, 0, over_cap="pass"),), ["fallback"] * 4),
        ((), (), ["", "", "", ""]),
    ],
)
def test_the_cap_that_is_reached_first_wins_and_of_several_one_that_stops(
    of_offer: tuple[Cap, ...], of_partner: tuple[Cap, ...], expected: list[str]
) -> None:
    caps, to = CapTotals(), capped(*of_offer, of_partner=of_partner)
    names = {ClickClass.NORMAL: "", ClickClass.OVER_CAP: "pass", ClickClass.FALLBACK: "fallback"}
    assert [names[ClickClass(event(clicked(to, caps)).click_class)] for _ in range(4)] == expected


def test_a_raised_cap_lets_through_again_and_a_lowered_one_stops() -> None:
    caps = CapTotals()
    reasons = [event(clicked(capped(cap(clicks=clicks)), caps)).reason for clicks in (1, 1, 3, 3, 3, 2, 4)]
    assert reasons == ["", "over_cap", "", "", "over_cap", "over_cap", ""]


HOUR_MS, DAY_MS = 3_600_000, 86_400_000
LAST_MS = {  # the last millisecond of a period in Kathmandu, 05:45 ahead of UTC
    "hour": 1_795_803_299_999,  # Friday, 2026-11-27, 23:59:59.999
    "day": 1_795_803_299_999,
    "week": 1_795_803_299_999 + 2 * DAY_MS,
    "month": 1_795_803_299_999 + 3 * DAY_MS,
}


@pytest.mark.parametrize("period", LAST_MS)
def test_with_a_new_period_a_cap_begins_anew(period: Any) -> None:
    caps, to, last_ms = CapTotals(), capped(cap(clicks=1, period=period), timezone="Asia/Kathmandu"), LAST_MS[period]
    times = [last_ms - 600_000, last_ms, last_ms + 1, last_ms + 2]
    assert [event(clicked(to, caps, at_ms=at_ms)).reason for at_ms in times] == ["", "over_cap", "", "over_cap"]


def test_the_day_of_a_clock_change_has_25_hours_and_one_cap() -> None:
    caps, to, begins_ms = CapTotals(), capped(cap(clicks=1, period="day")), 1_792_879_200_000  # 2026-10-25 in Berlin
    times = [begins_ms, begins_ms + 25 * HOUR_MS - 1, begins_ms + 25 * HOUR_MS]
    assert [event(clicked(to, caps, at_ms=at_ms)).reason for at_ms in times] == ["", "over_cap", ""]


def test_each_cap_has_the_calendar_of_what_it_is_on() -> None:
    of, whole, on_offer, other = offer(timezone="Asia/Kathmandu", caps=(cap(1, period="day"),)), *(
        cap(2, period="day"), cap(3, period="day", offer_id=1), cap(4, period="day", offer_id=2)
    )  # fmt: skip
    found = concerning(of, partner(whole, on_offer, other), "Europe/Berlin", NOW)
    begins = {found_cap.id: begins_s for found_cap, (_, begins_s) in found}
    assert begins.keys() == {1, 2, 3}
    assert begins[1] == begins[3] != begins[2]
