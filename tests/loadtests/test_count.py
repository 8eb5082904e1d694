"""The replay's own arithmetic and its comparison."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from loadtests import chaos
from loadtests.count import Figures, as_figures, differences, payout_of
from loadtests.replay import midday_zone
from loadtests.workload import Order


def test_cut_off_clicks_may_be_reported_and_nothing_else_may_differ() -> None:
    expected = {1: Figures(clicks=5, cut_off=1), 2: Figures(conversions=1, payout=425)}
    assert differences("link", expected, {1: Figures(clicks=6), 2: Figures(conversions=1, payout=425)}) == []
    assert differences("link", expected, {1: Figures(clicks=7), 2: Figures(conversions=1, payout=425)}) == [
        "link 1: clicks 7, expected 5 to 6"
    ]
    assert differences("link", expected, {1: Figures(clicks=4), 2: Figures(conversions=1, payout=426)}) == [
        "link 1: clicks 4, expected 5 to 6",
        "link 2: payout 426, expected 425",
    ]
    assert differences("link", {}, {3: Figures(sale_amount=1)}) == ["link 3: sale_amount 1, expected 0"]


@pytest.mark.parametrize(("amount_minor", "link", "payout"), [(999, 0, 425), (None, 0, 425), (200, 1, 15), (100, 1, 7)])
def test_a_payout_is_fixed_or_a_percentage_rounded_half_up(amount_minor: int | None, link: int, payout: int) -> None:
    assert payout_of(Order(0, 0, "o", amount_minor, None, None, False, ""), link) == payout


def test_a_report_that_shows_a_link_twice_is_wrong() -> None:
    row = {"link_id": 1, "clicks": 1, "invalid_clicks": 0, "conversions": 0, "sale_amount": 0, "payout": 0}
    assert as_figures([row, row], "link")[1] == ["report by link: two rows for 1"]


@pytest.mark.parametrize("hour", range(24))
def test_a_report_is_asked_for_in_a_zone_where_it_is_noon(hour: int) -> None:
    now = datetime(2026, 11, 23, hour, 30, tzinfo=UTC)
    assert now.astimezone(midday_zone(now)).hour == 12


def test_moments_to_kill_follow_from_the_seed() -> None:
    assert chaos.moments(1, "worker", 3, 1_000) == chaos.moments(1, "worker", 3, 1_000)
    assert chaos.moments(1, "worker", 3, 1_000) != chaos.moments(2, "worker", 3, 1_000)
    assert all(50 <= moment <= 950 for moment in chaos.moments(3, "aggregator", 50, 1_000))


async def test_nothing_is_killed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "clickdam.json"
    config.write_text(json.dumps({"processes": {"worker": []}}))
    monkeypatch.setattr(chaos, "NEW_PROCESS_S", 0.1)
    with pytest.raises(chaos.NothingToKill):
        await chaos.kill_at(config, "worker", [0], lambda: 1, seed=1)
