"""What is measured of reports is answered, and compared within the largest history."""

from __future__ import annotations

from rich.progress import Progress

from loadtests import reports
from loadtests.reports import AT_REST, INGESTING, QUESTIONS, Taken, Wanted, verdicts
from loadtests.stores import redis_and_postgres


def taken(clicks: int, state: str, fresh_ms: float, remembered_ms: float) -> Taken:
    return Taken(clicks, state, QUESTIONS[0].name, fresh_ms, fresh_ms, remembered_ms, 0.0)


def test_wishes_are_held_against_the_largest_history() -> None:
    small = [taken(1_000, AT_REST, 500.0, 400.0), taken(1_000, INGESTING, 5_000.0, 1.0)]
    large = [taken(10_000, AT_REST, 100.0, 5.0), taken(10_000, INGESTING, 200.0, 5.0)]
    assert [*verdicts([*small, *large]).values()] == [True, True, True]
    assert [*verdicts(small).values()] == [False, False, False]
    assert [*verdicts([taken(1_000, AT_REST, 121.0, 6.0)]).values()] == [False, True]


async def test_every_question_is_answered_at_rest_and_while_clicks_come_in() -> None:
    wanted = Wanted(clicks=(2_000,), conversions=(50,), days=1, partners=5, asks=20, ingest_per_s=500)
    with redis_and_postgres("reports") as (folder, redis, postgres):
        found = await reports.measured(wanted, folder, redis, postgres, Progress(disable=True))
    names = [question.name for question in QUESTIONS]
    assert [(one.state, one.question) for one in found] == [
        (state, name) for state in (AT_REST, INGESTING) for name in names
    ]
    assert all(one.fresh_p95_ms >= one.fresh_p50_ms > 0 and one.remembered_p95_ms > 0 for one in found)
    assert sum(one.ingested_s for one in found if one.state == INGESTING) > 0
    assert sum(one.ingested_s for one in found if one.state == AT_REST) == 0
