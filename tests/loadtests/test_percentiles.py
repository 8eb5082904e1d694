"""Percentiles by their definition."""

from hypothesis import given
from hypothesis import strategies as st

from loadtests.percentiles import distribution, percentile


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 100))
def test_a_percentile_is_the_least_value_that_so_many_percent_do_not_exceed(values: list[float], percent: int) -> None:
    found = percentile(values, percent)
    assert found in values
    assert 100 * sum(value <= found for value in values) >= percent * len(values)
    assert 100 * sum(value < found for value in values) < percent * len(values)


def test_nothing_has_a_percentile_of_nothing() -> None:
    assert percentile([], 99) == 0.0


def test_a_distribution_is_one_line_in_ms() -> None:
    assert distribution([n / 1_000 for n in range(100, 0, -1)]) == "p50 50.0, p95 95.0, p99 99.0, max 100.0 ms"
