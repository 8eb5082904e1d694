"""What measurements of growth come to; those themselves are `python -m loadtests.growth`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress

from loadtests import growth
from loadtests.growth import Taken


@given(st.lists(st.floats(0.2, 5.0), min_size=1, max_size=9), st.floats(0.5, 10.0))
def test_a_machine_that_drifts_between_rounds_does_not_change_what_has_grown(drift: list[float], times: float) -> None:
    taken = [Taken(1_000, n, 1.0, 50 * by) for n, by in enumerate(drift)]
    taken += [Taken(100_000, n, 1.0, 50 * by * times) for n, by in enumerate(drift)]
    assert growth.grown(taken) == {1_000: 1.0, 100_000: pytest.approx(times)}


def test_sizes_take_turns_there_and_back_again() -> None:
    assert growth.turns((1, 2, 3), 2) == [(0, 1), (0, 2), (0, 3), (1, 3), (1, 2), (1, 1)]


def test_no_other_sizes_than_numbers_are_taken() -> None:
    assert growth.sizes("100,1,100") == (1, 100)
    with pytest.raises(ValueError, match="many"):
        growth.sizes("1,many")


async def test_clicks_are_applied_to_a_database_that_already_holds_some() -> None:
    wanted = growth.Wanted(links=(), rows=(1_000, 3_000), rounds=1, seconds=1, clicks=2_000)
    taken, wrong = await growth.by_rows(wanted, Progress(disable=True))
    assert [of.size for of in taken] == [1_000, 3_000]
    assert all(of.cpu_us > 0 for of in taken)
    assert wrong == []
