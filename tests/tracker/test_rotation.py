"""Rotation: shares as the weights are, one visitor always the same, and no more moves than have to."""

import random
from math import sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.links import Landing
from tracker.rotation import choose

VISITORS = [random.Random(seed).randbytes(8).hex() for seed in range(20_000)]
SIGMAS = 5.0

weights = st.lists(st.integers(1, 1_000), min_size=2, max_size=8)


def landings(weighted: list[int]) -> list[Landing]:
    return [Landing(url=f"https://shop.example/{number}", weight=weight) for number, weight in enumerate(weighted)]


def seen(offered: list[Landing], visitors: list[str] = VISITORS) -> list[str]:
    return [choose(offered, visitor) for visitor in visitors]


def test_a_landing_that_is_there_twice_has_both_shares() -> None:
    """Once for all, say, and once for those of a country."""
    twice, other = landings([1, 1])
    found = seen([twice, other, Landing(url=twice.url, weight=2)])
    assert found == seen([Landing(url=twice.url, weight=3), other])


@pytest.mark.parametrize("weighted", [[1, 1], [90, 10], [1, 2, 3, 4], [1000, 1], [7] * 8])
def test_each_landing_gets_its_share_of_visitors(weighted: list[int]) -> None:
    found = seen(landings(weighted))
    for landing in landings(weighted):
        share = landing.weight / sum(weighted)
        sigma = sqrt(len(VISITORS) * share * (1 - share))
        assert abs(found.count(landing.url) - len(VISITORS) * share) < SIGMAS * sigma


@settings(max_examples=30)
@given(weights, st.randoms(use_true_random=False))
def test_a_visitor_sees_the_same_whatever_the_order(weighted: list[int], order: random.Random) -> None:
    shuffled = landings(weighted)
    order.shuffle(shuffled)
    assert seen(shuffled, VISITORS[:200]) == seen(landings(weighted), VISITORS[:200])


@settings(max_examples=30)
@given(weights, st.data())
def test_a_greater_weight_only_draws_visitors_to_itself(weighted: list[int], data: st.DataObject) -> None:
    raised = data.draw(st.integers(0, len(weighted) - 1))
    more = [weight + 500 * (number == raised) for number, weight in enumerate(weighted)]
    before, after = seen(landings(weighted), VISITORS[:500]), seen(landings(more), VISITORS[:500])
    assert all(
        was == is_now or is_now == f"https://shop.example/{raised}" for was, is_now in zip(before, after, strict=True)
    )


@settings(max_examples=30)
@given(weights)
def test_a_new_landing_only_draws_visitors_to_itself_and_an_old_one_only_gives_up_its_own(weighted: list[int]) -> None:
    fewer, more = seen(landings(weighted[:-1]), VISITORS[:500]), seen(landings(weighted), VISITORS[:500])
    newest = f"https://shop.example/{len(weighted) - 1}"
    assert all(was == is_now or is_now == newest for was, is_now in zip(fewer, more, strict=True))


def test_the_choices_on_two_sets_of_landings_have_nothing_to_do_with_each_other() -> None:
    one = seen(landings([1, 1]))
    other = [choose([Landing(url="https://a.example/"), Landing(url="https://b.example/")], of) for of in VISITORS]
    both = sum(
        first.endswith("/0") and second.startswith("https://a.") for first, second in zip(one, other, strict=True)
    )
    assert abs(both - len(VISITORS) / 4) < SIGMAS * sqrt(len(VISITORS) * 3 / 16)
