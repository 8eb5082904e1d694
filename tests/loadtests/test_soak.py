"""What a soak makes of its figures; the soak itself is `python -m loadtests.soak`."""

import pytest

from loadtests import soak, workload
from loadtests.bench import verdict
from loadtests.bench.verdict import Asked
from loadtests.heard import Heard


@pytest.mark.parametrize(
    ("figures", "first", "last"),
    [
        ([100.0] * 6 + [500.0] * 10 + [110.0] * 6, 100.0, 110.0),
        ([1.0, 2.0, 3.0, 4.0], 1.5, 3.5),
        ([7.0], 7.0, 7.0),
        ([], 0.0, 0.0),
    ],
    ids=["ten minutes", "less than two", "one sample", "none"],
)
def test_memory_is_held_at_both_ends(figures: list[float], first: float, last: float) -> None:
    assert soak.ends(figures) == (first, last)


def test_visitors_are_counted_by_what_they_heard() -> None:
    planned = list(workload.clicks(1, ["house-1"], 200))
    cut_off = next(click for click in planned if click.method == "GET")
    head = next(click for click in planned if click.method == "HEAD")
    heard = Heard(settled={1: "a", 2: "b", 3: None}, cut_off=[cut_off, head], complaints=["click 3: odd"])
    asked = Asked()
    assert soak.note_visitors(asked, heard) == 2
    assert (asked.answered, asked.sent, asked.ids) == (2, 3, ["a", "b"])
    assert verdict.wrong({"house": asked}, {"house": 3}, {"house"}, 2) == ["house: click 3: odd"]
