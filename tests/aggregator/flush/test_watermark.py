"""How far each edge is complete, and what it has counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from aggregator.db.instants import to_ms
from aggregator.flush.batch import Begun
from aggregator.flush.behind import measure_once
from aggregator.flush.commit import commit
from aggregator.flush.journal_in import JournalReader
from aggregator.flush.session import Session, open_session
from aggregator.flush.watermark import apply_beats
from loadtests.faults.drift import fetch, value
from loadtests.faults.journals import append, beat, body, clicks, consume_all, new_segment, now_ms, settings
from schemas import events, limits

HOUR = "2026-11-23T01"


@pytest.fixture
async def session(database_url: str, tmp_path: Path):
    async with open_session(settings(database_url, tmp_path)) as opened:
        yield opened


async def complete_to_ms(session: Session) -> dict[str, int | None]:
    rows = await session.db.fetch("SELECT incarnation, complete_to FROM edge_complete")
    return {row["incarnation"]: row["complete_to"] and to_ms(row["complete_to"]) for row in rows}


async def through_ms(session: Session) -> int | None:
    through = await session.db.fetchval("SELECT complete_through FROM complete_through")
    return through and to_ms(through)


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
    assert await session.db.fetchval("SELECT complete_through IS NULL FROM complete_through")


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


async def test_an_edge_is_over_when_all_that_it_wrote_to_any_partition_is_applied(session: Session) -> None:
    await session.db.execute("INSERT INTO log_position VALUES ('s', 0, 5), ('s', 1, 5)")
    now = now_ms()
    open_, stays = beat("i", "open", complete_to_ms=now - 9_000), beat("stays", complete_to_ms=now - 1_000)
    closing = beat("i", "closed", complete_to_ms=now - 500, acked=[("s", 0, 7), ("s", 1, 9)])
    await apply_beats(session.db, [open_, stays, closing])
    assert await through_ms(session) == now - 9_000
    await session.db.execute("UPDATE log_position SET next = 8 WHERE partition = 0")
    await apply_beats(session.db, [stays])
    assert await through_ms(session) == now - 9_000
    await session.db.execute("UPDATE log_position SET next = 10 WHERE partition = 1")
    assert await complete_to_ms(session) == {"stays": now - 1_000}  # at once, though nobody has said so yet
    await apply_beats(session.db, [stays])
    assert to_ms(await session.db.fetchval("SELECT closed_at FROM edge WHERE incarnation = 'i'")) == now - 500
    assert await session.db.fetchval("SELECT count(*) FROM edge_beat WHERE incarnation = 'i'") == 0


async def test_when_all_have_closed_the_last_one_that_is_over_counts(session: Session) -> None:
    await session.db.execute("INSERT INTO log_position VALUES ('s', 0, 5)")
    now = now_ms()
    first, last = beat("first", "closed", complete_to_ms=now - 5_000), beat("last", complete_to_ms=now - 4_000)
    closing = beat("last", "closed", complete_to_ms=now - 3_000, acked=[("s", 0, 5)])
    await apply_beats(session.db, [first, last, closing])
    assert await through_ms(session) == now - 4_000
    await session.db.execute("UPDATE log_position SET next = 6")
    assert await through_ms(session) == now - 3_000


async def test_the_first_closing_stands_and_beats_from_before_change_nothing(session: Session) -> None:
    now = now_ms()
    stays = beat("stays", complete_to_ms=now)
    closing = beat("i", "closed", complete_to_ms=now - 500, acked=[("s", 0, 7)])
    later = beat("i", "closed", complete_to_ms=now - 100, acked=[("s", 0, 70)])
    await apply_beats(session.db, [stays, beat("i", complete_to_ms=now - 2_000), closing, later])
    await apply_beats(session.db, [beat("i", "open", at_ms=now - 3_000, complete_to_ms=now - 3_000), later])
    assert await complete_to_ms(session) == {"i": now - 2_000, "stays": now}
    await session.db.execute("INSERT INTO log_position VALUES ('s', 0, 8)")
    await apply_beats(session.db, [beat("i", complete_to_ms=now - 2_500), later])
    assert await complete_to_ms(session) == {"stays": now}
    assert to_ms(await session.db.fetchval("SELECT closed_at FROM edge WHERE incarnation = 'i'")) == now - 500


async def test_nothing_is_asked_about_edges_that_are_over(session: Session) -> None:
    """What it wrote cannot be read as offsets: whoever looked would fail."""
    await session.db.execute(
        "INSERT INTO edge (incarnation, name, closed_at, closing_to, closing_acked)"
        ' SELECT n::text, \'e\', now(), now(), \'[["s", "x", "y"]]\' FROM generate_series(1, 3000) n'
    )
    await session.db.execute("ANALYZE edge")
    now = now_ms()
    await apply_beats(session.db, [beat("i", at_ms=now, complete_to_ms=now)])
    assert await through_ms(session) == now
    await apply_beats(session.db, [beat("i", "closed")])
    assert await through_ms(session) is not None


async def test_beats_advance_nothing_when_registrations_could_not_be_asked_for(session: Session) -> None:
    now = now_ms()
    await apply_beats(session.db, [beat("i", complete_to_ms=now - 9_000)])
    counted = beat("i", complete_to_ms=now - 5_000, counters={HOUR: {"recorded": 7}})
    await apply_beats(session.db, [counted, beat("new", "open", complete_to_ms=now - 4_000)], None)
    assert await complete_to_ms(session) == {"i": now - 9_000, "new": now - 9_000}
    assert await session.db.fetchval("SELECT count FROM edge_counter") == 7
    await apply_beats(session.db, [beat("i", "closed"), beat("new", "closed")], None)
    assert await complete_to_ms(session) == {}
    assert await through_ms(session) == now - 9_000


async def test_a_first_edge_whose_company_is_not_known_promises_nothing(session: Session) -> None:
    await apply_beats(session.db, [beat("i", "open"), beat("i")], None)
    assert await complete_to_ms(session) == {"i": None}
    await apply_beats(session.db, [beat("i", "closed")], None)
    assert await complete_to_ms(session) == {}
    assert await through_ms(session) is None


async def test_beats_hold_when_all_is_applied_that_lay_before_the_end_of_their_partition(session: Session) -> None:
    """An edge whose registration has just moved into the log is behind these beats, and before that end."""
    await session.db.execute("INSERT INTO log_position VALUES ('beats', 0, 5)")
    now = now_ms()
    others = [Begun("other", "edge", now - 5_000)]
    await apply_beats(session.db, [beat("i"), beat("gone", "closed")], others, [("beats", 0, 7)])
    assert await complete_to_ms(session) == {"i": None, "other": None, "gone": None}
    await session.db.execute("UPDATE log_position SET next = 8")
    assert (await complete_to_ms(session))["other"] == now - 5_000
    assert await through_ms(session) == now - 5_000


async def test_beats_that_wait_are_few_and_step_evenly_through_their_time(session: Session) -> None:
    await session.db.execute("INSERT INTO log_position VALUES ('s', 0, 0)")
    first = now_ms() - 7_200_000
    beats = [beat("i", at_ms=ms, complete_to_ms=ms, acked=[("s", 0, n)]) for n, ms in _each_second(first, 7_000)]
    for begin in range(0, len(beats), 100):
        await apply_beats(session.db, beats[begin : begin + 100])
        assert await session.db.fetchval("SELECT count(*) FROM edge_beat") <= limits.BEATS_WAITING_MAX
    for applied in range(0, 7_000, 500):
        await session.db.execute("UPDATE log_position SET next = $1", applied + 1)
        behind_ms = first + applied * 1_000 - (await complete_to_ms(session))["i"]
        assert 0 <= behind_ms < 7_000_000 / limits.BEATS_WAITING_MAX * 4
    await session.db.execute("UPDATE log_position SET next = 7000")
    assert await complete_to_ms(session) == {"i": beats[-1].complete_to_ms}


def _each_second(first_ms: int, seconds: int) -> list[tuple[int, int]]:
    return [(n, first_ms + n * 1_000) for n in range(seconds)]


async def test_completeness_and_silent_edges_are_measured(session: Session) -> None:
    await measure_once(session.db)
    assert measured("complete_through_timestamp_seconds") == 0
    now = now_ms()
    await apply_beats(session.db, [beat("i", complete_to_ms=now - 9_000)])
    await session.db.execute(
        "INSERT INTO edge (incarnation, name, heard_at, closed_at) VALUES ('closed', 'e', '2026-01-01Z', '2026-01-01Z')"
    )
    await measure_once(session.db)
    assert (measured("complete_through_timestamp_seconds"), measured("silent_edges")) == ((now - 9_000) / 1_000, 0)
    await session.db.execute("UPDATE edge SET heard_at = '2026-01-01Z'")
    await measure_once(session.db)
    assert measured("silent_edges") == 1


def measured(name: str) -> float | None:
    return REGISTRY.get_sample_value(f"clickdam_{name}")


async def test_an_edge_is_heard_of_when_its_beat_is_applied_whatever_its_clock_says(session: Session) -> None:
    await session.db.execute("INSERT INTO edge (incarnation, name, heard_at) VALUES ('i', 'edge', '2026-01-01Z')")
    await session.db.execute("INSERT INTO edge (incarnation, name, heard_at) VALUES ('other', 'edge', '2026-01-01Z')")
    before = now_ms()
    await apply_beats(session.db, [beat("i", at_ms=now_ms() + 90_000)])
    heard = {row["incarnation"]: to_ms(row["heard_at"]) for row in await session.db.fetch("TABLE edge_complete")}
    assert before <= heard["i"] <= now_ms()
    assert heard["other"] < before


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
