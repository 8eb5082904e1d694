"""P1: real traffic over real HTTP while processes are killed: what was answered is what is reported, to the cent."""

from dataclasses import replace

import pytest
from rich.console import Console

from loadtests.replay import Result, Wanted, show
from loadtests.seeds import WITH_KILLS, replay_seed


def replay_and_show(wanted: Wanted, capsys: pytest.CaptureFixture[str]) -> Result:
    result, took_s = replay_seed(wanted)
    with capsys.disabled():
        console = Console()
        show(result, console)
        console.print(f"{took_s:.0f} s with start and stop")
    return result


def is_exact(result: Result) -> None:
    assert result.differences == []
    assert result.kills == {"aggregator": 5, "worker": 2}
    assert result.heard.sent == 50_000
    assert len(result.heard.conversion_ids) == 2_000
    assert result.by_id is not None
    answered = sum(click_id is not None for click_id in result.heard.settled.values())
    assert result.by_id.rows == answered + result.by_id.extra
    assert result.by_id.extra <= len(result.heard.cut_off)
    assert result.by_id.payout == result.expected.payout == result.reported.payout > 0


def test_a_replay_with_killed_processes_is_reported_exactly_as_it_was_answered(
    capsys: pytest.CaptureFixture[str],
) -> None:
    is_exact(replay_and_show(WITH_KILLS, capsys))


@pytest.mark.long
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_further_seeds_are_reported_exactly_as_they_were_answered(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    is_exact(replay_and_show(replace(WITH_KILLS, seed=seed), capsys))
