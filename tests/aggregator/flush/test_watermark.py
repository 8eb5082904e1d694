"""How far each edge is complete, and what it has counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from aggregator.db.instants import to_ms
from aggregator.flush.commit import commit
from aggregator.flush.journal_in import JournalReader
from aggregator.flush.session import Session, open_session
from aggregator.flush.watermark import apply_beats
from loadtests.faults.drift import fetch, value
from loadtests.faults.journals import append, beat, body, clicks, consume_all, new_segment, now_ms, settings
from schemas import events

HOUR = "2026-11-23T01"


@pytest.fixture
async def session(database_url: str, tmp_path: Path):
    async with open_session(settings(database_url, tmp_path)) as opened:
        yield opened


async def complete_to_ms(session: Session) -> dict[str, int | None]:
    rows = await session.db.fetch("SELECT incarnation, complete_to FROM edge_complete")
    return {row["incarnation"]: row["complete_to"] and to_ms(row["complete_to"]) for row in rows}


async def test_an_edge_is_complete_up_to_its_newest_beat_that_was_passed(session: Session) -> None:
    await session.db.execute("INSERT INTO log_position VALUES ('s', 0, 10)")
    now = now_ms()
    await apply_beats(
        session.db,
        [
            beat("i", "open", at_ms=now - 5_000, complete_to_ms=now - 5_000),
            beat("i", at_ms=now - 4_000, complete_to_ms=now - 4_000, acked=[("s", 0, 8)]),
            beat("i", at_ms=now - 3_000, complete_to_ms=now - 3_500, acked=[("s", 0, 9)]),
            beat("i", at_ms=now - 2_000, complete_to_ms=now - 2_000, acked=[("s", 0, 10)]),
            beat("i", at_ms=now - 1_000, complete_to_ms=now - 1_000, acked=[("other", 0, 1)]),
        ],
    )
    assert await complete_to_ms(session) == {"i": now - 3_500}
    assert await session.db.fetchval("SELECT count(*) FROM edge_beat") == 3
    await session.db.execute("UPDATE log_position SET next = 11")
    assert await complete_to_ms(session) == {"i": now - 2_000}


async def test_beats_do_not_pile_up_while_an_edge_stands_still(session: Session) -> None:
    now = now_ms()
    for n in range(20):
        await apply_beats(session.db, [beat("i", at_ms=now + n, complete_to_ms=now - 9_000)])
    assert await session.db.fetchval("SELECT count(*) FROM edge_beat") == 1


async def test_an_edge_that_only_registered_holds_completeness_back(session: Session) -> None:
    await apply_beats(session.db, [beat("i"), beat("late", "open", acked=[("s", 0, 1)])])
    assert (await complete_to_ms(session))["late"] is None
    assert await session.db.fetchval("SELECT complete_through = '-infinity' FROM complete_through")


async def test_closing_is_final(session: Session) -> None:
    await apply_beats(session.db, [beat("i", "open"), beat("i"), beat("i", "closed")])
    await apply_beats(session.db, [beat("i", "open"), beat("i")])
    assert await complete_to_ms(session) == {}
    assert await session.db.fetchval("SELECT count(*) FROM edge_beat") == 0
    closed_at = await session.db.fetchval("SELECT closed_at FROM edge")
    await apply_beats(session.db, [beat("i", "closed")])
    assert await session.db.fetchval("SELECT closed_at FROM edge") == closed_at


async def test_an_edge_is_closed_at_the_time_up_to_which_it_was_complete(session: Session) -> None:
    now = now_ms()
    await apply_beats(
        session.db,
        [beat("i", "closed", complete_to_ms=now - 5_000), beat("ahead", "closed", complete_to_ms=now + 9_000_000)],
    )
    closed = {row["incarnation"]: to_ms(row["closed_at"]) for row in await session.db.fetch("TABLE edge")}
    assert closed["i"] == now - 5_000
    assert now <= closed["ahead"] <= now_ms()


async def test_an_edge_that_is_known_only_by_its_closing_is_closed(session: Session) -> None:
    await apply_beats(session.db, [beat("i", "closed")])
    assert await session.db.fetchval("SELECT closed_at IS NOT NULL FROM edge")


@pytest.mark.parametrize("ahead", [{"at_ms": 90_000}, {"complete_to_ms": 365 * 86_400_000}])
async def test_a_clock_that_runs_ahead_counts_but_never_advances(ahead: dict[str, int], session: Session) -> None:
    now = now_ms()
    await apply_beats(session.db, [beat("i", at_ms=now, complete_to_ms=now)])
    wrong = {name: now + ms for name, ms in ahead.items()}
    await apply_beats(session.db, [beat("i", counters={HOUR: {"recorded": 7}}, **wrong)])
    assert await complete_to_ms(session) == {"i": now}
    assert await session.db.fetchval("SELECT count FROM edge_counter") == 7


async def test_counters_are_absolute_per_incarnation_and_never_go_back(session: Session) -> None:
    await apply_beats(
        session.db,
        [beat("i", counters={HOUR: {"recorded": 5, "late": 1}}), beat("i", counters={HOUR: {"recorded": 9}})],
    )
    await apply_beats(
        session.db,
        [beat("i", counters={HOUR: {"recorded": 5}}), beat("j", counters={HOUR: {"lost": 2}})],
    )
    rows = await session.db.fetch("SELECT incarnation, outcome, count FROM edge_counter ORDER BY 1, 2")
    assert [tuple(row) for row in rows] == [("i", "late", 1), ("i", "recorded", 9), ("j", "lost", 2)]


async def test_a_beat_that_makes_no_sense_is_put_aside(database_url: str, tmp_path: Path) -> None:
    nonsense = [
        beat("i", at_ms=2**60),
        beat("i", complete_to_ms=-1),
        beat("i", counters={"yesterday": {"recorded": 1}}),
        beat("i", acked=[("s", 2**31, 1)]),
        events.encode(beat("i", acked=[("s", 0, 7)])).replace(b",7]", b",%d]" % 10**30),
    ]
    append(new_segment(tmp_path), [beat("i", "open"), *nonsense, beat("i", counters={HOUR: {"recorded": 2**63}})])
    await consume_all(settings(database_url, tmp_path))
    reasons = [row["reason"] for row in await fetch(database_url, "SELECT reason FROM dead_letter ORDER BY line")]
    assert reasons[:3] == ["impossible_time", "impossible_time", "bad_hour"]
    assert reasons[3:5] == ["impossible_offset"] * 2
    assert len(reasons) == 6


async def test_a_beat_in_the_log_is_passed_with_everything_before_it(database_url: str, tmp_path: Path) -> None:
    segment = new_segment(tmp_path, incarnation="i")
    append(segment, [beat("i", "open")])
    append(segment, clicks(300))
    last = beat("i", acked=[(segment.meta.source, 0, 4)])
    append(segment, [last])
    await consume_all(settings(database_url, tmp_path))
    through = await value(database_url, "SELECT complete_through FROM complete_through")
    assert to_ms(through) == last.complete_to_ms
    assert await value(database_url, "SELECT count(*) FROM click") == 300


async def test_an_edge_of_another_slot_that_has_begun_holds_back_before_its_rows_are_read(
    session: Session, tmp_path: Path
) -> None:
    began = now_ms() - 60_000
    first, second = new_segment(tmp_path, 0, "a"), new_segment(tmp_path, 1, "b")
    append(first, [beat("a", "open")])
    second.append(body([beat("b", "open", at_ms=began, complete_to_ms=began)]), began)
    second.append(body(clicks(5)), now_ms())
    new_segment(tmp_path, 2, "c")  # it has no row yet: what it will record comes later
    reader = JournalReader(tmp_path)
    batch = await reader.read()
    assert batch is not None
    assert batch.partition == 0
    await commit(batch, session)
    assert (await complete_to_ms(session)).keys() == {"a", "b"}
    assert to_ms(await session.db.fetchval("SELECT complete_through FROM complete_through")) == began


async def test_an_edge_found_again_in_a_later_segment_promises_nothing_more(session: Session, tmp_path: Path) -> None:
    began = now_ms() - 60_000
    for at_ms in (began, began + 30_000):
        new_segment(tmp_path, 1, "b").append(body([beat("b", at_ms=at_ms, complete_to_ms=at_ms)]), at_ms)
    for _ in range(2):
        segment = new_segment(tmp_path, 0, "a")
        append(segment, [beat("a")])
        segment.seal()
    reader = JournalReader(tmp_path)
    for _ in range(2):
        batch = await reader.read()
        assert batch is not None
        if batch.partition == 0:
            await commit(batch, session)
    assert (await complete_to_ms(session))["b"] == began
