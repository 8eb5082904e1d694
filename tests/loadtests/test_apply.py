"""The bench of the aggregator counts what came to Postgres, and compares within a round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from loadtests import apply
from loadtests.apply import COPY, Turn, ratio, traffic, write_journal
from loadtests.faults import journals
from loadtests.faults.drift import drift
from schemas.events import Click


def turn(name: str, number: int, rate_s: float) -> Turn:
    return Turn(name, number, rate_s, 0.0, 0.0, {})


def test_a_ratio_is_the_median_of_those_within_a_round() -> None:
    turns: Sequence[Turn] = [
        turn(COPY, 0, 100), turn("journal", 0, 50), turn(COPY, 1, 10), turn("journal", 1, 9), turn(COPY, 2, 1_000),
        turn("journal", 2, 100),
    ]  # fmt: skip
    assert ratio(turns, "journal") == pytest.approx(0.5)
    assert ratio(turns, COPY) == 1


def test_its_clicks_end_now_and_come_in_the_order_of_their_ids_times() -> None:
    clicks = traffic(2_000, links=10)
    times = [click.id.int >> 80 for click in clicks]
    assert times == sorted(times)
    assert abs(times[-1] - journals.now_ms()) < 10_000
    assert {click.link_id for click in clicks} == set(range(1, 11))


async def test_its_journal_is_applied_without_drift(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply, "CLICKS_PER_S", 1_000)
    clicks: list[Click] = traffic(3_000, links=100)
    write_journal(tmp_path, clicks)
    await journals.consume_all(journals.settings(database_url, tmp_path))
    figures = await drift(database_url, tmp_path)
    assert (figures.drift, figures.in_postgres) == (0, 3_000)
