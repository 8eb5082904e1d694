"""Real traffic over real HTTP while processes are killed: what was answered is what is reported, to the cent."""

import pytest
from rich.console import Console

from loadtests.replay import show
from loadtests.seeds import WITH_KILLS, replay_seed


def test_a_replay_with_killed_processes_is_reported_exactly_as_it_was_answered(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result, took_s = replay_seed(WITH_KILLS)
    with capsys.disabled():
        console = Console()
        show(result, console)
        console.print(f"{took_s:.0f} s with start and stop")
    assert result.differences == []
    assert result.kills == {"aggregator": 5, "worker": 2}
    assert result.heard.sent == 50_000
    assert len(result.heard.conversion_ids) == 2_000
    assert result.by_id is not None
    answered = sum(click_id is not None for click_id in result.heard.settled.values())
    assert result.by_id.rows == answered + result.by_id.extra
    assert result.by_id.extra <= len(result.heard.cut_off)
    assert result.by_id.payout == result.expected.payout == result.reported.payout > 0
