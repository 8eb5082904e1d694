"""An order has one name, and no two orders share one."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.faults.edges import offer
from schemas.conversions.names import conversion_id, foreign_click_uuid, named, repeat_id
from schemas.links import Scope, ScopeFrom

DAY_MS = 86_400_000
NOW = int(datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp() * 1000)
CHANGED = NOW - 100 * DAY_MS
SCOPES: tuple[Scope, ...] = ("advertiser", "click", "offer", "programme")
CLICK = UUID(int=7)
# Whatever a door lets through: no control characters, no surrogates.
words = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=9)


def name(scope: Scope = "advertiser", **changed: Any) -> UUID:
    said: dict[str, Any] = {
        "advertiser_id": 1, "offer_id": 1, "event": "sale", "order_id": "o-1", "click_uuid": CLICK,
    } | changed  # fmt: skip
    return conversion_id(scope, **said)


@pytest.mark.parametrize(
    ("scope", "matters"),
    [
        ("advertiser", {"advertiser_id", "event", "order_id"}),
        ("offer", {"advertiser_id", "offer_id", "event", "order_id"}),
        ("programme", {"event", "order_id"}),
        ("click", {"event", "click_uuid"}),
    ],
)
def test_a_scope_is_what_makes_two_orders_different(scope: Scope, matters: set[str]) -> None:
    others = {"advertiser_id": 2, "offer_id": 2, "event": "lead", "order_id": "o-2", "click_uuid": uuid4()}
    assert {field for field, other in others.items() if name(scope, **{field: other}) != name(scope)} == matters


@pytest.mark.parametrize("scope", SCOPES)
def test_without_an_order_id_a_click_converts_once_per_event_in_every_scope(scope: Scope) -> None:
    assert name(scope, order_id="") == name("click")
    assert name(scope, order_id="", offer_id=9, advertiser_id=9) == name("click")
    assert name(scope, order_id="", event="lead") != name("click")
    assert name(scope, order_id="", click_uuid=uuid4()) != name("click")


def test_names_never_change() -> None:
    """They lie in Postgres; another hash would make each order that is sent again another one."""
    assert name() == UUID("776c7acd-8950-8a34-a389-5f371fb224f2")
    assert name("click") == UUID("8dce65f5-3690-8066-a14b-e25f6995a263")
    assert name("offer") == UUID("40f0655f-7dc8-8b8b-98e2-f64cdc8e9742")
    assert name("programme") == UUID("01d15362-3944-8da0-b53e-e341aab1f157")
    assert repeat_id(name(), "e-1") == UUID("4dbb28bd-9d8a-88e8-af0a-3e8b78a63292")
    assert foreign_click_uuid(1, "abc") == UUID("93d31e90-8de4-850e-8338-f636e781e9de")


def test_a_name_is_a_uuid_of_our_own_version() -> None:
    for found in (*map(name, SCOPES), repeat_id(name(), "x"), foreign_click_uuid(1, "x")):
        assert (found.version, found.variant) == (8, "specified in RFC 4122")


orders = st.tuples(
    st.sampled_from(SCOPES), st.integers(0, 20), st.integers(0, 20), words, words, st.sampled_from([CLICK, UUID(int=8)])
)


def meaning(order: tuple[Scope, int, int, str, str, UUID]) -> tuple[Any, ...]:
    scope, advertiser, of, event, order_id, click = order
    if scope == "click" or not order_id:
        return ("click", event, click)
    beside = {"advertiser": (advertiser,), "offer": (advertiser, of), "programme": ()}[scope]
    return (scope, *beside, event, order_id)


@given(orders, orders)
def test_two_orders_share_a_name_exactly_when_they_are_one(
    one: tuple[Scope, int, int, str, str, UUID], other: tuple[Scope, int, int, str, str, UUID]
) -> None:
    assert (conversion_id(*one) == conversion_id(*other)) == (meaning(one) == meaning(other))


@given(st.integers(0, 50), words.filter(bool), words.filter(bool), st.data())
def test_event_and_order_id_cannot_be_cut_apart_elsewhere(
    advertiser: int, event: str, order_id: str, data: st.DataObject
) -> None:
    joined = event + order_id
    cut = data.draw(st.integers(0, len(joined) - 1))
    other = name(advertiser_id=advertiser, event=joined[:cut], order_id=joined[cut:])
    assert (other == name(advertiser_id=advertiser, event=event, order_id=order_id)) == (cut == len(event))


@given(words, words)
def test_repeats_are_told_apart_by_what_was_sent(one: str, other: str) -> None:
    assert (repeat_id(name(), one) == repeat_id(name(), other)) == (one == other)
    assert repeat_id(name(), one) not in {name(), repeat_id(name(order_id="o-2"), one)}


def test_a_foreign_click_is_one_of_its_advertiser() -> None:
    assert len({foreign_click_uuid(1, "a"), foreign_click_uuid(1, "b"), foreign_click_uuid(2, "a")}) == 3


def names(click_ms: int, *scopes: tuple[int, Scope], now_ms: int = NOW, order_id: str = "o-1") -> tuple[Any, Any]:
    """The scopes that an order is looked for under: its own, and the other."""
    of = offer(scopes=tuple(ScopeFrom(valid_from=at, scope=scope) for at, scope in scopes))
    found = named(of, 1, "sale", order_id, CLICK, click_ms, now_ms)
    known = {name(scope): scope for scope in SCOPES}
    return known[found[0]], known[found[1]] if found[1] else None


@pytest.mark.parametrize(
    ("click_ms", "scopes", "expected"),
    [
        (NOW, [], ("advertiser", None)),
        (CHANGED, [(CHANGED, "offer")], ("offer", "advertiser")),
        (NOW, [(CHANGED, "offer")], ("offer", "advertiser")),
        (CHANGED - 1, [(CHANGED, "offer")], ("advertiser", "offer")),
        (NOW, [(NOW - 365 * DAY_MS + 1, "offer")], ("offer", "advertiser")),
        (NOW, [(NOW - 365 * DAY_MS, "offer")], ("offer", None)),
        (NOW, [(NOW + 1, "offer")], ("advertiser", None)),
        (NOW, [(0, "offer")], ("offer", None)),
        (NOW, [(CHANGED, "advertiser")], ("advertiser", None)),
        (NOW, [(0, "programme"), (CHANGED, "click")], ("click", "programme")),
        (NOW, [(CHANGED, "click"), (0, "programme")], ("click", "programme")),
        (CHANGED - 1, [(0, "programme"), (CHANGED, "click")], ("programme", "click")),
    ],
)
def test_an_order_is_named_by_the_scope_at_its_click_and_looked_for_under_the_neighbouring_one(
    click_ms: int, scopes: list[tuple[int, Scope]], expected: tuple[Scope, Scope | None]
) -> None:
    assert names(click_ms, *scopes) == expected


def test_orders_of_both_sides_of_a_change_find_each_other_whichever_comes_first() -> None:
    of = offer(scopes=(ScopeFrom(valid_from=CHANGED, scope="offer"),))
    before = named(of, 1, "sale", "o-1", UUID(int=1), CHANGED - DAY_MS, NOW)
    after = named(of, 1, "sale", "o-1", UUID(int=2), CHANGED + DAY_MS, NOW)
    assert before[0] == after[1]
    assert before[1] == after[0]


def test_without_an_order_id_there_is_no_other_name() -> None:
    assert names(NOW, (CHANGED, "offer"), order_id="") == ("click", None)


def test_without_an_offer_the_scope_is_the_default() -> None:
    assert named(None, 1, "sale", "o-1", CLICK, NOW, NOW) == (name(offer_id=0), None)
