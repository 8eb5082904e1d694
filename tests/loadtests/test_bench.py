"""What the bench makes of its runs; the runs themselves are `make bench`."""

from collections.abc import Iterator
from typing import cast
from xml.etree import ElementTree

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from deploy.run.children import CannotStart
from loadtests.bench import redirects, run, verdict, wrk
from loadtests.bench.contenders import BARE, CEILING, CONTENDERS, GOALS, Goal
from loadtests.bench.picture import picture
from loadtests.bench.redirects import LOCATION
from loadtests.bench.verdict import Asked, Met, Run
from loadtests.heard import click_id_of
from schemas.click_id import TEXT_LENGTH, ClickKey, mint
from tracker.doors import health
from tracker.edge import Edge

SAID = """Running 1s test @ http://127.0.0.1:8080
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     4.19ms    1.02ms  20.64ms   91.00%
    Req/Sec    13.49k     1.10k   15.00k    70.00%
  13490 requests in 1.00s, 2.78MB read
Requests/sec:  13490.00
"""
OURS = (
    '{"answered":13490,"others":0,"took_us":1000000,"size_bytes":2900000,"p50_us":4190,"p99_us":8160,'
    '"refused":0,"broken":0,"wrong":0,"ids":" a b"}\n'
)


def a_run(
    name: str, number: int, rate_s: float, p99_ms: float = 5.0, connections: int = 64, mixed: bool = False
) -> Run:
    return Run(name, connections, mixed, number, rate_s, 1.0, p99_ms, 50.0, (1.0, 0.5))


def heard(**fields: int | str) -> wrk.Heard:
    sound = {"answered": 1_000, "others": 0, "took_us": 1_000_000, "size_bytes": 200_000, "p50_us": 1, "p99_us": 2}
    return wrk.Heard(**(sound | {"refused": 0, "broken": 0, "wrong": 0, "ids": ""} | fields))


def ids() -> Iterator[str]:
    key = ClickKey(1, b"k" * 16)
    return (mint(key, n.to_bytes(16, "big"), 1, 1, 1, 0) for n in range(100))


def test_what_wrk_says_is_read_from_the_line_of_our_script() -> None:
    found = wrk.heard(SAID + OURS)
    assert (found.answered, found.rate_s, found.p99_us, found.ids.split()) == (13_490, 13_490.0, 8_160, ["a", "b"])


def test_a_wrk_that_says_nothing_ends_the_bench() -> None:
    with pytest.raises(CannotStart, match="did not say"):
        wrk.heard(SAID)


def test_a_machine_without_wrk_is_told_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CannotStart, match="wrk is not installed") as told:
        wrk.check_possible()
    assert "\n" not in str(told.value)


@given(st.lists(st.floats(0.2, 5.0), min_size=1, max_size=9), st.floats(0.1, 10.0))
def test_a_machine_that_drifts_between_rounds_does_not_change_a_ratio(drift: list[float], ratio: float) -> None:
    runs = [a_run(BARE, n, 10_000 * by) for n, by in enumerate(drift)]
    runs += [a_run("journal", n, 10_000 * by * ratio) for n, by in enumerate(drift)]
    assert verdict.ratio(runs, "journal", BARE, 64, "rate_s") == pytest.approx(ratio)


def test_a_line_has_the_median_and_the_span_of_its_own_rounds() -> None:
    rates = (30_000, 10_000, 20_000)
    runs = [a_run(BARE, n, 10_000) for n in range(3)] + [a_run("journal", n, rate) for n, rate in enumerate(rates)]
    runs += [a_run("journal", 0, 1.0, connections=256), a_run("journal", 0, 1.0, mixed=True)]
    line = next(line for line in verdict.lines(runs) if (line.name, line.connections) == ("journal", 64))
    assert (line.rate_s, line.rate_min_s, line.rate_max_s, line.of_bare) == (20_000, 10_000, 30_000, 2.0)


def test_a_contender_near_the_ceiling_is_marked() -> None:
    lines = verdict.lines([a_run(CEILING, 0, 100_000), a_run("journal", 0, 90_000), a_run("kafka", 0, 50_000)])
    ceiling, journal, kafka = lines
    assert (ceiling.near(ceiling), journal.near(ceiling), kafka.near(ceiling)) == (False, True, False)


@pytest.mark.parametrize(
    ("figure", "measured", "said"),
    [
        ("rate_s", 2.3, "met"), ("rate_s", 2.0, "under the goal"), ("rate_s", 1.4, "beyond the floor"),
        ("p99_ms", 0.9, "met"), ("p99_ms", 1.2, "under the goal"), ("p99_ms", 1.9, "beyond the floor"),
    ],
)  # fmt: skip
def test_a_goal_is_met_missed_or_beyond_its_floor(figure: str, measured: float, said: str) -> None:
    bounds = (2.2, 1.5) if figure == "rate_s" else (1.0, 1.8)
    assert Met(Goal("journal", BARE, 64, *bounds, figure), False, measured).verdict == said


def test_a_goal_over_somebody_who_did_not_run_is_left_out() -> None:
    found = verdict.goals([a_run("journal", 0, 1.0), a_run(BARE, 0, 1.0)])
    assert {met.goal.over for met in found} == {BARE}


def test_mixed_runs_are_held_against_mixed_runs_and_the_same_goals() -> None:
    plain = [a_run(BARE, 0, 10.0), a_run("journal", 0, 20.0)]
    met = verdict.goals([*plain, a_run(BARE, 0, 10.0, mixed=True), a_run("journal", 0, 40.0, mixed=True)])
    assert {(of.mixed, of.measured) for of in met if of.goal.figure == "rate_s"} == {(False, 2.0), (True, 4.0)}


def test_every_goal_is_about_contenders_that_there_are() -> None:
    assert {goal.name for goal in GOALS} | {goal.over for goal in GOALS} <= {one.name for one in CONTENDERS}


def wrong(rows: int, *, sampled: int = 0, ids_found: int = 0, again: int = 0) -> list[str]:
    named = list(ids())[:sampled]
    asked = Asked(1_000, 1_064, ids=named + named[:again])
    return verdict.wrong({"journal": asked, BARE: Asked(5, 5)}, {"journal": rows}, {"journal"}, ids_found)


@pytest.mark.parametrize("rows", [1_000, 1_031, 1_064])
def test_clicks_whose_answers_were_cut_off_may_be_rows_or_not(rows: int) -> None:
    assert wrong(rows, sampled=10, ids_found=10) == []


def test_a_contender_that_loses_a_click_fails() -> None:
    (said,) = wrong(999)
    assert "1 of 1,000 answered clicks are not a row" in said


def test_a_contender_that_counts_a_click_twice_fails() -> None:
    (said,) = wrong(1_065)
    assert "counted twice" in said


def test_ids_that_were_answered_twice_or_are_no_row_fail() -> None:
    assert wrong(1_000, sampled=10, ids_found=9) != []
    assert wrong(1_000, sampled=10, ids_found=10, again=1) != []


def test_a_contender_that_answered_nothing_fails() -> None:
    assert verdict.wrong({BARE: Asked()}, {}, set(), 0) == ["bare: not one click was answered"]


@pytest.mark.parametrize(
    "fields",
    [{"wrong": 1}, {"refused": 1}, {"broken": 1}, {"size_bytes": 199_999}, {"size_bytes": 213_000}],
    ids=lambda fields: next(iter(fields)),
)
def test_an_answer_that_is_not_the_redirect_fails(fields: dict[str, int]) -> None:
    asked = Asked()
    verdict.note(asked, heard(**fields), 64, 200)
    assert len(asked.complaints) == 1
    assert verdict.wrong({BARE: asked}, {}, set(), 0) == [f"bare: {asked.complaints[0]}"]


def test_runs_add_up_to_what_was_asked() -> None:
    asked = Asked()
    verdict.note(asked, heard(ids=" x y"), 64, 200)
    verdict.note(asked, heard(size_bytes=212_800), 64, 200)  # all 64 that were cut off had been answered
    assert (asked.answered, asked.sent, asked.ids, asked.complaints) == (2_000, 2_128, ["x", "y"], [])


def test_a_request_with_several_conversions_counts_as_many() -> None:
    asked = Asked()
    verdict.note(asked, heard(), 64, 200, each=100)
    assert (asked.answered, asked.sent, asked.complaints) == (100_000, 106_400, [])


@given(st.integers(0, 64), st.integers(0, 64), st.booleans())
def test_sizes_of_mixed_answers_hold_however_the_end_cuts_them_off(
    cut_off: int, heard_in_full: int, ours: bool
) -> None:
    """Of the last requests on 64 connections `cut_off` are others without an answer; some of them arrived uncounted."""
    click_bytes, other_bytes = (200, 150) if ours else (150, 200)
    asked, others = Asked(), max(50, cut_off)
    size_bytes = (1_000 - others + cut_off) * click_bytes + (others - cut_off) * other_bytes
    size_bytes += min(heard_in_full, cut_off) * other_bytes + max(0, heard_in_full - cut_off) * click_bytes
    verdict.note(asked, heard(others=others, size_bytes=size_bytes), 64, click_bytes, other_bytes)
    assert asked.complaints == []
    assert asked.answered <= 1_000 - others + cut_off <= asked.sent


async def test_the_other_request_is_answered_alike_by_the_bare_server_and_an_edge() -> None:
    asked = make_mocked_request("GET", "/live")
    assert (await redirects.live(asked)).body == (await health.live(asked, cast(Edge, None))).body


def test_the_picture_is_xml_with_a_bar_for_each_contender_that_ran() -> None:
    runs = [a_run(CEILING, 0, 90_000), a_run(BARE, 0, 10_000), a_run("journal", 0, 25_000)]
    runs += [a_run("journal", 0, 20_000, mixed=True)]
    drawn = ElementTree.fromstring(picture(verdict.lines(runs), "today & here"))
    bars = [float(bar.attrib["width"]) for bar in drawn.iter("{http://www.w3.org/2000/svg}rect")]
    said = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert bars[0] == pytest.approx(bars[1] / 2.5, rel=0.01)
    assert "25,000, 2.5 x bare" in said
    assert said[-1] == "today & here"
    assert len(bars) == 2


def test_the_fixed_redirect_is_as_long_as_a_real_one() -> None:
    click_id = click_id_of(LOCATION)
    assert click_id is not None
    assert len(click_id) == TEXT_LENGTH


def test_the_bare_server_and_the_ceiling_are_always_measured() -> None:
    wanted = run.Wanted(1, 1, (64,), ("journal",))
    assert [one.name for one in wanted.contenders] == [CEILING, BARE, "journal"]


def test_outcomes_are_read_from_an_edges_metrics() -> None:
    metrics = {
        'clickdam_edge_outcomes_total{outcome="recorded",worker="0"}': 5.0,
        'clickdam_edge_outcomes_total{outcome="late",worker="0"}': 0.0,
        "clickdam_edge_batches_total": 1.0,
    }
    assert run.outcomes(metrics) == {"recorded": 5.0}
