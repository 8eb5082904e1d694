"""The cache in two tiers: one fetch however many ask, fresh means fresh, stale only when there is nothing better."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from schemas.two_tier import SecondTierAway, TwoTier

RETRY_S = 1.0


class Tier:
    """A second tier that the test fills, breaks, holds up and counts; and a clock that it turns."""

    def __init__(
        self, *, entries_max: int = 100, keys_max: int = 100, waiting_max: int = 1_000, fetches_max: int = 1,
        ahead: float = 0.0,
    ) -> None:  # fmt: skip
        self.values: dict[str, str] = {"a": "1"}
        self.away = False
        self.cannot_tell: set[str] = set()
        self.open = asyncio.Event()
        self.open.set()
        self.asked: list[list[str]] = []
        self.now, self.life_s = 1000.0, 60.0
        self.cache: TwoTier[str, str] = TwoTier(
            self.fetch, entries_max=entries_max, life_s=lambda _: self.life_s, negative_s=0.25, negative_entries_max=50,
            keys_max=keys_max, waiting_max=waiting_max, fetches_max=fetches_max, retry_s=RETRY_S,
            ahead=ahead, clock=lambda: self.now,
        )  # fmt: skip

    async def fetch(self, keys: list[str]) -> dict[str, str | None]:
        self.asked.append(keys)
        found = {key: self.values.get(key) for key in keys if key not in self.cannot_tell}
        await self.open.wait()
        if self.away:
            raise ConnectionError
        return found

    async def asking(self, *keys: str) -> list[asyncio.Task[str | None]]:
        """Tasks that have all got as far as they get without the second tier."""
        tasks = [asyncio.create_task(self.cache.get(key)) for key in keys]
        await asyncio.sleep(0)
        return tasks


@pytest.fixture
async def tier() -> Tier:
    return Tier()


async def test_200_who_ask_for_one_cold_key_cause_one_fetch(tier: Tier) -> None:
    assert await asyncio.gather(*(tier.cache.get("a") for _ in range(200))) == ["1"] * 200
    assert tier.asked == [["a"]]


async def test_all_keys_wanted_during_a_fetch_go_into_the_next_one(tier: Tier) -> None:
    tier.open.clear()
    first = await tier.asking("a")
    others = await tier.asking(*"bcdbcdbcd", "a")
    tier.open.set()
    assert await asyncio.gather(*first, *others) == ["1", *[None] * 9, "1"]
    assert tier.asked == [["a"], ["b", "c", "d"]]


async def test_all_who_wait_are_answered_as_soon_as_their_fetch_is_over(tier: Tier) -> None:
    """One after the other would take a turn of the loop each, and the loop turns slowly in a surge."""
    tier.open.clear()
    waiting = await tier.asking(*["a"] * 500, *(f"b{n}" for n in range(500)))
    tier.open.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert all(task.done() for task in waiting)


async def test_a_fresh_value_is_answered_without_asking(tier: Tier) -> None:
    await tier.cache.get("a")
    tier.values["a"] = "2"
    tier.now += 60 * 0.74
    assert tier.cache.fresh("a") == "1"
    assert await tier.cache.get("a") == "1"
    assert len(tier.asked) == 1


async def test_a_value_is_asked_for_again_when_its_life_is_over(tier: Tier) -> None:
    await tier.cache.get("a")
    tier.values["a"] = "2"
    tier.now += 60
    assert tier.cache.fresh("a") is None
    assert await tier.cache.get("a") == "2"


async def test_a_shorter_life_holds_for_what_is_fetched_from_then_on(tier: Tier) -> None:
    tier.life_s = 3
    await tier.cache.get("a")
    tier.now += 3
    assert tier.cache.fresh("a") is None


async def test_an_absence_is_remembered_and_expires(tier: Tier) -> None:
    assert await tier.cache.get("b") is None
    tier.values["b"] = "2"
    assert await tier.cache.get("b") is None
    assert len(tier.asked) == 1
    tier.now += 0.25
    assert await tier.cache.get("b") == "2"


async def test_a_change_ends_an_absence_at_once(tier: Tier) -> None:
    await tier.cache.get("b")
    tier.values["b"] = "2"
    tier.cache.void("b")
    assert await tier.cache.get("b") == "2"


async def test_a_changed_value_is_fetched_when_it_is_used_next(tier: Tier) -> None:
    await tier.cache.get("a")
    tier.values["a"] = "2"
    tier.cache.void("a")
    assert tier.cache.fresh("a") is None
    assert await tier.cache.get("a") == "2"


async def test_a_value_that_is_gone_is_forgotten(tier: Tier) -> None:
    await tier.cache.get("a")
    del tier.values["a"]
    tier.cache.void("a")
    assert await tier.cache.get("a") is None
    tier.away = True
    tier.now += 1
    with pytest.raises(SecondTierAway):
        await tier.cache.get("a")


async def test_a_change_during_a_fetch_voids_what_it_brings(tier: Tier) -> None:
    tier.open.clear()
    before = await tier.asking("a")
    tier.values["a"] = "2"
    tier.cache.void("a")
    after = await tier.asking("a", "a")
    tier.open.set()
    assert await asyncio.gather(*before, *after) == ["1", "2", "2"]
    assert tier.cache.fresh("a") == "2"
    assert tier.asked == [["a"], ["a"]]


async def test_voiding_all_during_a_fetch_leaves_its_values_stale(tier: Tier) -> None:
    tier.open.clear()
    waiting = await tier.asking("a")
    tier.cache.void_all()
    tier.open.set()
    await asyncio.gather(*waiting)
    assert tier.cache.fresh("a") is None


async def test_a_stale_value_is_used_only_when_the_fetch_fails(tier: Tier) -> None:
    await tier.cache.get("a")
    tier.values["a"] = "2"
    tier.cache.void_all()
    tier.away = True
    assert await tier.cache.get("a") == "1"
    assert tier.cache.stale_answers == 1
    tier.away = False
    tier.now += RETRY_S
    assert await tier.cache.get("a") == "2"


async def test_a_value_known_to_have_changed_still_serves_while_the_second_tier_is_away(tier: Tier) -> None:
    await tier.cache.get("a")
    tier.cache.void("a")
    tier.away = True
    assert await tier.cache.get("a") == "1"


async def test_a_stale_value_is_used_when_the_second_tier_cannot_tell(tier: Tier) -> None:
    await tier.cache.get("a")
    tier.cache.void_all()
    tier.cannot_tell.add("a")
    assert await tier.cache.get("a") == "1"


async def test_a_value_that_was_never_held_cannot_be_told_while_the_second_tier_is_away(tier: Tier) -> None:
    tier.away = True
    with pytest.raises(SecondTierAway):
        await tier.cache.get("a")
    tier.away = False
    assert await tier.cache.get("a") == "1"


async def test_while_it_is_away_what_is_held_is_answered_at_once_and_tried_again_once_a_second(tier: Tier) -> None:
    await tier.cache.get("a")
    tier.cache.void_all()
    tier.away = True
    for _ in range(10):
        assert await tier.cache.get("a") == "1"
    assert len(tier.asked) == 2
    tier.now += RETRY_S
    await tier.cache.get("a")
    assert len(tier.asked) == 3


async def test_who_hears_of_a_change_asks_at_once_though_the_last_fetch_failed(tier: Tier) -> None:
    await tier.cache.get("a")
    tier.cache.void_all()
    tier.away = True
    await tier.cache.get("a")
    tier.away, tier.values["a"] = False, "2"
    tier.cache.void("a")
    assert await tier.cache.get("a") == "2"


async def test_when_who_fetches_is_cancelled_the_others_are_still_answered(tier: Tier) -> None:
    tier.open.clear()
    leader, *followers = await tier.asking("a", "a", "a")
    others = await tier.asking("b")
    leader.cancel()
    await asyncio.sleep(0)
    tier.open.set()
    assert await asyncio.gather(*followers, *others) == ["1", "1", None]


async def test_when_all_but_one_are_cancelled_that_one_is_answered(tier: Tier) -> None:
    tier.open.clear()
    *cancelled, last = await tier.asking(*["a"] * 5, "b")
    for task in cancelled:
        task.cancel()
    await asyncio.sleep(0)
    tier.open.set()
    assert await asyncio.wait_for(last, 1) is None


async def test_a_cancelled_fetch_of_a_changed_value_never_says_that_there_is_none(tier: Tier) -> None:
    tier.open.clear()
    leader, early = await tier.asking("a", "a")
    tier.cache.void("a")
    late = await tier.asking("a")
    leader.cancel()
    await asyncio.sleep(0)
    tier.open.set()
    found = await asyncio.wait_for(asyncio.gather(early, *late, return_exceptions=True), 1)
    assert found[1] == "1"
    assert isinstance(found[0], SecondTierAway) or found[0] == "1"


async def test_when_everybody_is_cancelled_the_next_who_asks_is_answered(tier: Tier) -> None:
    tier.open.clear()
    tasks = await tier.asking("a", "a", "b")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    tier.open.set()
    assert await asyncio.wait_for(tier.cache.get("c"), 1) is None
    assert await asyncio.wait_for(tier.cache.get("a"), 1) == "1"


async def test_what_is_held_is_bounded() -> None:
    tier = Tier(entries_max=10)
    tier.values = {str(n): str(n) for n in range(100)}
    await asyncio.gather(*(tier.cache.get(str(n)) for n in range(200)))
    assert len(tier.cache) == 10
    assert len(tier.cache._absent) == 50
    assert await tier.cache.get("0") == "0"


async def test_a_fetch_asks_for_a_bounded_number_of_keys() -> None:
    tier = Tier(keys_max=7)
    tier.open.clear()
    waiting = await tier.asking(*(f"b{n}" for n in range(101)))
    tier.open.set()
    assert await asyncio.gather(*waiting) == [None] * 101
    assert [len(asked) for asked in tier.asked] == [1] + [7] * 14 + [2]


async def test_who_asks_when_too_many_wait_is_told_so_at_once_and_stale_values_still_serve() -> None:
    tier = Tier(waiting_max=10)
    await tier.cache.get("a")
    tier.cache.void_all()
    tier.open.clear()
    under_way = await tier.asking("b")
    waiting = await tier.asking(*(f"c{n}" for n in range(10)))
    with pytest.raises(SecondTierAway):
        await tier.cache.get("d")
    assert await tier.cache.get("a") == "1"
    joining = await tier.asking("c3")
    assert (tier.cache.waiting, tier.cache.turned_away) == (10, 2)
    tier.open.set()
    assert await asyncio.gather(*under_way, *waiting, *joining) == [None] * 12


async def test_several_fetches_may_be_under_way_and_each_key_in_one_of_them() -> None:
    tier = Tier(keys_max=1, fetches_max=3)
    tier.open.clear()
    waiting = await tier.asking(*"abcdabcd")
    assert tier.asked == [["a"], ["b"], ["c"]]
    tier.open.set()
    assert await asyncio.gather(*waiting) == ["1", None, None, None] * 2
    assert tier.asked == [["a"], ["b"], ["c"], ["d"]]


async def test_a_change_during_one_of_two_fetches_of_a_key_is_seen_whichever_ends_first() -> None:
    tier = Tier(keys_max=1, fetches_max=2)
    tier.open.clear()
    before = await tier.asking("a")
    tier.values["a"] = "2"
    tier.cache.void("a")
    after = await tier.asking("a")
    assert tier.asked == [["a"], ["a"]]
    tier.open.set()
    assert await asyncio.gather(*before, *after) == ["1", "2"]
    assert tier.cache.fresh("a") == "2"


async def test_what_is_held_does_not_wait_behind_a_fetch_that_fails(tier: Tier) -> None:
    await tier.cache.get("a")
    tier.cache.void_all()
    tier.open.clear()
    tier.away = True
    first = await tier.asking("b")
    stale = await tier.asking("a")
    tier.open.set()
    assert await asyncio.gather(*stale) == ["1"]
    assert tier.asked == [["a"], ["b"]]
    with pytest.raises(SecondTierAway):
        await first[0]


async def test_the_reason_of_a_failed_fetch_is_told(tier: Tier) -> None:
    tier.away = True
    with pytest.raises(SecondTierAway) as away:
        await tier.cache.get("a")
    assert isinstance(away.value.__cause__, ConnectionError)


async def test_the_oldest_give_way_and_room_is_made_for_several_at_once() -> None:
    """A dict that gives up its first key again and again walks over all that it gave up before."""
    tier = Tier(entries_max=1_000)
    tier.values = {str(n): str(n) for n in range(3_000)}
    held = []
    for n in range(3_000):
        await tier.cache.get(str(n))
        held.append(len(tier.cache))
    assert (min(held[1_000:]), max(held)) == (991, 1_000)
    assert [tier.cache.fresh(str(n)) for n in (1_999, 2_010, 2_999)] == [None, "2010", "2999"]


@pytest.fixture
async def refreshing() -> AsyncIterator[Tier]:
    """A tier that refreshes what is used in the second half of its life."""
    tier = Tier(ahead=0.5)
    refresh = asyncio.create_task(tier.cache.refresh())
    yield tier
    refresh.cancel()


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_is_used_and_grows_old_is_fetched_again_while_nobody_waits(refreshing: Tier) -> None:
    await refreshing.cache.get("a")
    refreshing.values["a"] = "2"
    refreshing.now += 31
    assert [refreshing.cache.fresh("a") for _ in range(100)] == ["1"] * 100
    await settled()
    assert refreshing.cache.fresh("a") == "2"
    assert refreshing.asked == [["a"], ["a"]]


async def test_what_is_not_used_is_not_refreshed_and_its_life_ends(refreshing: Tier) -> None:
    await refreshing.cache.get("a")
    refreshing.now += 61
    await settled()
    assert refreshing.asked == [["a"]]
    assert refreshing.cache.fresh("a") is None


async def test_a_refreshed_value_that_is_the_same_stays_the_entry_that_others_keep(refreshing: Tier) -> None:
    await refreshing.cache.get("a")
    entry = refreshing.cache.entry("a")
    assert entry is not None
    for _ in range(5):
        refreshing.now += 31
        assert refreshing.cache.are_fresh([entry])
        await settled()
    assert refreshing.cache.entry("a") is entry
    refreshing.values["a"] = "2"
    refreshing.now += 31
    assert refreshing.cache.are_fresh([entry])
    await settled()
    assert not refreshing.cache.are_fresh([entry])


async def test_a_change_is_not_served_because_a_refresh_is_under_way(refreshing: Tier) -> None:
    await refreshing.cache.get("a")
    refreshing.now += 31
    refreshing.open.clear()
    assert refreshing.cache.fresh("a") == "1"
    await settled()
    refreshing.values["a"] = "2"
    refreshing.cache.void("a")
    assert refreshing.cache.fresh("a") is None
    refreshing.open.set()
    assert await refreshing.cache.get("a") == "2"


async def test_a_refresh_that_fails_is_tried_again_and_serves_no_longer_than_its_life(refreshing: Tier) -> None:
    await refreshing.cache.get("a")
    refreshing.now += 31
    refreshing.away = True
    assert refreshing.cache.fresh("a") == "1"
    await settled()
    refreshing.now += 30
    assert refreshing.cache.fresh("a") is None
    assert await refreshing.cache.get("a") == "1", "stale, because nothing better is to be had"
