"""Quarter hours are settled once their clicks are all there, and again when more come after all."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from aggregator.db.connect import Connection, connect
from aggregator.db.instants import LATEST_MS, QUARTER_MS, at, quarter
from aggregator.flush.click_rows import row_of
from aggregator.flush.commit import commit
from aggregator.flush.decode import Window, decode
from aggregator.flush.rollup import count, roll_up
from aggregator.flush.session import Session
from aggregator.settled import details, quarters
from aggregator.settled.prune import prune_once
from aggregator.settled.run import run
from loadtests.faults.journals import click, now_ms, settings
from schemas import limits
from schemas.events import Click
from schemas.outcomes import ClickClass
from tests.aggregator.flush.test_exactly_once import batch_of
from tests.aggregator.settled.conftest import EMPTY

MINUTE_MS, DAY_MS = 60_000, 86_400_000
VISITORS = [os.urandom(8).hex() for _ in range(9)]


def visit(at_ms: int, visitor: int = 0, **fields: Any) -> Click:
    return click(at_ms, **{"visitor": VISITORS[visitor]} | fields)


async def flush(session: Session, *clicks: Click, shard: int = 0) -> None:
    """As the consumer does it, from a log of its own, whenever they were."""
    batch = batch_of(*clicks, source=os.urandom(4).hex(), partition=shard)
    await commit(batch, session, decode(batch.entries if clicks else [], Window(0, LATEST_MS)))


async def complete(db: Connection, through_ms: int) -> None:
    """All is here that was received before this time."""
    await db.execute("DELETE FROM edge")
    await db.execute("INSERT INTO edge (incarnation, name, closed_at) VALUES ('i', 'e', $1)", at(through_ms))


async def settle(db: Connection, at_ms: int | None = None) -> int:
    """All that there is to settle; answers how many quarter hours were."""
    done = 0
    while await quarters.settle_once(db, at_ms or now_ms()):
        done += 1
    return done


async def uniques(db: Connection) -> int:
    return int(await db.fetchval("SELECT coalesce(sum(unique_clicks), 0) FROM click_rollup"))


async def everything(db: Connection) -> list[Any]:
    """What was settled, but for when."""
    return [
        await db.fetch("SELECT * FROM first_click ORDER BY 1, 2, 3, 4"),
        await db.fetch("SELECT * FROM click_rollup ORDER BY 1, 2, 3, 4, 5, 6, shard"),
        await db.fetch("SELECT * FROM detail_rollup ORDER BY 1, 2, 3, 4, 5"),
        await db.fetch("SELECT quarter, recorded, reported FROM settled_quarter ORDER BY 1"),
        await db.fetchval("SELECT through FROM settling"),
    ]


def an_hour(hours_ago: int = 3) -> int:
    return now_ms() // 3_600_000 * 3_600_000 - hours_ago * 3_600_000


# ------------------------------------------------------------------------------------------------------------ uniques


def expected(clicks: Sequence[Click], zone: str) -> dict[tuple[Any, ...], list[int]]:
    """By quarter hour, link, offer and partner: clicks, invalid and unique ones. In plain Python."""
    seen: set[tuple[Any, ...]] = set()
    found: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0, 0, 0])
    for one in sorted(clicks, key=lambda one: one.id):
        at_ms = one.id.int >> 80
        day = datetime.fromtimestamp(at_ms / 1000, ZoneInfo(zone)).date()
        visitor = day, one.offer_id, one.partner_id, one.visitor
        counts = found[quarter(at_ms), one.link_id, one.offer_id, one.partner_id]
        counts[0] += 1
        counts[1] += one.click_class != ClickClass.NORMAL
        if one.click_class == ClickClass.NORMAL and one.visitor and visitor not in seen:
            seen.add(visitor)
            counts[2] += 1
    return dict(found)


async def stored(db: Connection) -> dict[tuple[Any, ...], list[int]]:
    rows = await db.fetch(
        """SELECT (extract(epoch FROM quarter) * 1000)::bigint, link_id, offer_id, partner_id, sum(clicks)::int,
           sum(invalid_clicks)::int, sum(unique_clicks)::int FROM click_rollup GROUP BY 1, 2, 3, 4"""
    )
    return {tuple(row)[:4]: [*row][4:] for row in rows}


# a day of 25 hours, one of 23, and zones a half and three quarters of an hour off, each around its midnights
_ZONES = {
    "UTC": datetime(2026, 11, 20, tzinfo=UTC), "Europe/Berlin": datetime(2026, 10, 25, 1, tzinfo=UTC),
    "America/New_York": datetime(2026, 11, 1, 5, tzinfo=UTC), "Asia/Kathmandu": datetime(2026, 11, 19, 18, tzinfo=UTC),
    "Asia/Kolkata": datetime(2026, 11, 19, 18, tzinfo=UTC),
    "Australia/Lord_Howe": datetime(2026, 10, 3, 14, tzinfo=UTC),
    "America/Santiago": datetime(2026, 9, 6, 3, tzinfo=UTC), "Pacific/Apia": datetime(2026, 11, 19, 11, tzinfo=UTC),
}  # fmt: skip
_CLICK = st.tuples(
    st.integers(-30 * 60 * MINUTE_MS, 30 * 60 * MINUTE_MS), st.integers(0, 3), st.sampled_from([0, 0, 0, 1, 2, 3]),
    st.integers(1, 2), st.integers(1, 2), st.integers(0, 2),
)  # fmt: skip


@pytest.mark.parametrize("zone", _ZONES)
@hypothesis_settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(drawn=st.lists(_CLICK, min_size=1, max_size=40))
async def test_uniques_are_the_first_valid_clicks_of_a_visitor_on_a_day_of_the_programme(
    zone: str, drawn: list[tuple[int, ...]], db: Connection, session: Session
) -> None:
    await db.execute(EMPTY)
    await db.execute("UPDATE programme SET timezone = $1", zone)
    around_ms = int(_ZONES[zone].timestamp() * 1000)
    clicks = [
        (
            shard,
            visit(around_ms + away_ms, visitor, click_class=kind, link_id=link, offer_id=offer, partner_id=3 - link),
        )
        for away_ms, visitor, kind, link, offer, shard in drawn
    ]
    for shard in range(3):
        await flush(session, *(one for of, one in clicks if of == shard), shard=shard)
    await complete(db, around_ms + 3 * DAY_MS)
    await settle(db)
    assert await stored(db) == expected([one for _, one in clicks], zone)


async def test_a_day_of_25_hours_has_one_unique_click_of_a_visitor_and_its_midnights_another_each(
    db: Connection, session: Session
) -> None:
    await db.execute("UPDATE programme SET timezone = 'Europe/Berlin'")
    begins_ms = int(datetime(2026, 10, 24, 22, tzinfo=UTC).timestamp() * 1000)
    away = [-1, 0, 1, 25 * 3_600_000 - 1, 25 * 3_600_000]
    clicks = [visit(begins_ms + away_ms) for away_ms in away]
    await flush(session, *clicks)
    await complete(db, now_ms())
    await settle(db)
    first = await db.fetch("SELECT day, click_id FROM first_click ORDER BY day")
    of = {date(2026, 10, 24): clicks[0].id, date(2026, 10, 25): clicks[1].id, date(2026, 10, 26): clicks[4].id}
    assert (dict(map(tuple, first)), await uniques(db)) == (of, 3)


async def test_what_is_not_an_ordinary_click_is_never_unique_nor_hides_one_that_is(
    db: Connection, session: Session
) -> None:
    begins_ms = an_hour()
    odd = [ClickClass.FLAGGED, ClickClass.OVER_CAP, ClickClass.FALLBACK, ClickClass.TEST, ClickClass.UNCOUNTED]
    await flush(
        session, *(visit(begins_ms + n, click_class=kind, source_id="s") for n, kind in enumerate(odd)),
        ordinary := visit(begins_ms + 9, source_id="s"), visit(begins_ms + 10, source_id="s"),
        *(click(begins_ms + 11, visitor=name, source_id="s") for name in ("", "unheard of")),
    )  # fmt: skip
    await complete(db, begins_ms + QUARTER_MS)
    assert await settle(db) == 1
    assert [row["click_id"] for row in await db.fetch("SELECT click_id FROM first_click")] == [ordinary.id]
    counts = await db.fetchrow("SELECT sum(clicks)::int, sum(invalid_clicks)::int FROM click_rollup")
    assert (tuple(counts or ()), await uniques(db)) == ((7, 3), 1)
    detail = await db.fetchrow("SELECT clicks, invalid_clicks, unique_clicks FROM detail_rollup")
    assert tuple(detail or ()) == (7, 3, 1)
    assert await db.fetchval("SELECT recorded FROM settled_quarter") == 9


# -------------------------------------------------------------------------------------------------- when, and once more


async def test_a_quarter_hour_is_settled_when_it_is_complete_and_those_without_clicks_with_it(
    db: Connection, session: Session
) -> None:
    begins_ms = an_hour()
    await complete(db, begins_ms + 2 * QUARTER_MS)
    assert await settle(db) == 0
    await flush(session, visit(begins_ms + 1), visit(begins_ms + 4 * QUARTER_MS))
    assert await db.fetchval("SELECT count(*) FROM stale_quarter") == 0
    await db.execute("DELETE FROM edge")
    assert await settle(db) == 0
    reached = []
    for through_ms in (begins_ms + QUARTER_MS - 1, begins_ms + QUARTER_MS, begins_ms + 3 * QUARTER_MS + 1):
        await complete(db, through_ms)
        done, through = await settle(db), await db.fetchval("SELECT nullif(through, '-infinity') FROM settling")
        reached.append((done, through, await uniques(db)))
    assert reached == [
        (0, None, 0), (1, at(begins_ms + QUARTER_MS), 1), (0, at(begins_ms + 3 * QUARTER_MS), 1),
    ]  # fmt: skip
    rows = await db.fetch("SELECT quarter, recorded, reported FROM settled_quarter ORDER BY 1")
    assert [tuple(row) for row in rows] == [
        (at(begins_ms), 1, 1), (at(begins_ms + QUARTER_MS), 0, 0), (at(begins_ms + 2 * QUARTER_MS), 0, 0),
    ]  # fmt: skip


async def test_an_edge_that_is_heard_of_late_takes_nothing_back(db: Connection, session: Session) -> None:
    begins_ms = an_hour()
    await flush(session, visit(begins_ms))
    await complete(db, begins_ms + 4 * QUARTER_MS)
    await settle(db)
    before = await everything(db)
    for through_ms in (begins_ms, begins_ms + QUARTER_MS + 1):
        await complete(db, through_ms)
        assert await settle(db) == 0
    await db.execute("INSERT INTO edge (incarnation, name) VALUES ('new', 'f')")
    assert await settle(db) == 0
    assert await everything(db) == before


async def test_settled_anew_it_comes_to_the_same(db: Connection, session: Session) -> None:
    begins_ms = an_hour()
    chance = random.Random(7)
    clicks = [
        visit(begins_ms + chance.randrange(4 * QUARTER_MS), chance.randrange(9), link_id=n % 4, os=f"os{n % 3}")
        for n in range(400)
    ]
    for shard in range(3):
        await flush(session, *clicks[shard::3], shard=shard)
    await complete(db, begins_ms + 4 * QUARTER_MS)
    await settle(db)
    before = await everything(db)
    await db.execute("INSERT INTO stale_quarter SELECT quarter FROM settled_quarter")
    assert await settle(db) == 4
    assert await everything(db) == before


async def test_clicks_that_come_late_are_marked_and_settled_anew(db: Connection, session: Session) -> None:
    """The first click stays who it is."""
    begins_ms = an_hour()
    first, second = visit(begins_ms + 500), visit(begins_ms + QUARTER_MS, visitor=1)
    await flush(session, first, second)
    await complete(db, begins_ms + 2 * QUARTER_MS)
    assert await settle(db) == 2
    late = [visit(begins_ms + 100, os="x"), visit(begins_ms + 200, visitor=1), visit(begins_ms + 300, visitor=2)]
    await flush(session, *late, visit(begins_ms + 2 * QUARTER_MS, visitor=3), shard=1)
    await flush(session, visit(begins_ms + 400, visitor=2), shard=2)
    marked = [row[0] for row in await db.fetch("SELECT quarter FROM stale_quarter")]
    assert marked == [at(begins_ms)] * 2
    assert await settle(db) == 1
    assert {row[0] for row in await db.fetch("SELECT click_id FROM first_click")} == {first.id, second.id, late[2].id}
    assert await db.fetchval("SELECT clicks FROM detail_rollup WHERE value = 'x'") == 1
    found = {begins_ms: (5, 2), begins_ms + QUARTER_MS: (1, 1), begins_ms + 2 * QUARTER_MS: (1, 0)}
    assert {key[0]: (counts[0], counts[2]) for key, counts in (await stored(db)).items()} == found
    assert await settle(db) == 0


async def test_a_batch_that_commits_behind_the_settlings_back_is_found_by_looking_again(
    db: Connection, session: Session, shared_database_url: str
) -> None:
    """It began while its quarter hour was not settled, so that it marked nothing."""
    begins_ms = an_hour()
    await flush(session, visit(begins_ms))
    await complete(db, begins_ms + QUARTER_MS)
    other = await connect(shared_database_url, command_timeout_s=20)
    beside = other.transaction()
    await beside.start()
    late = visit(begins_ms + 1, visitor=1)
    await other.execute(
        "INSERT INTO click (id, link_id, offer_id, partner_id, click_class, visitor) VALUES ($1, 1, 1, 1, 0, $2)",
        late.id, late.visitor,
    )  # fmt: skip
    await roll_up(other, count([row_of(late)]), shard=5)
    assert await settle(db) == 1
    await beside.commit()
    await other.close()
    assert await db.fetchval("SELECT count(*) FROM stale_quarter") == 0
    assert (await settle(db), await uniques(db)) == (0, 1)
    later_ms = now_ms() + int(limits.SETTLE_RECHECK_S * 1000) + 5_000
    assert (await settle(db, later_ms), await uniques(db)) == (1, 2)
    assert await settle(db, later_ms + DAY_MS) == 0
    assert await db.fetchval("SELECT checked FROM settled_quarter")


async def test_several_aggregators_beside_a_consumer_settle_everything_once(
    db: Connection, session: Session, shared_database_url: str
) -> None:
    begins_ms, chance = an_hour(6), random.Random(3)
    clicks = [
        visit(begins_ms + chance.randrange(16 * QUARTER_MS), chance.randrange(9), link_id=n % 5, source_id=f"s{n % 4}")
        for n in range(600)
    ]
    await flush(session, *clicks[:300])
    await complete(db, begins_ms + 16 * QUARTER_MS)
    others = [await connect(shared_database_url, command_timeout_s=20) for _ in range(4)]
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = await db.fetchval(deadlocks)

    async def late() -> None:
        for begin in range(300, 600, 20):
            await flush(session, *clicks[begin : begin + 20], shard=begin % 3)

    await asyncio.gather(late(), *(settle(other) for other in others))
    await settle(db, now_ms() + DAY_MS)
    for other in others:
        await other.close()
    assert await db.fetchval(deadlocks) == before
    found = await stored(db)
    visitors = {(one.visitor, (one.id.int >> 80) // DAY_MS) for one in clicks}
    assert (sum(row[0] for row in found.values()), sum(row[2] for row in found.values())) == (600, len(visitors))
    assert await db.fetchval("SELECT sum(recorded)::int FROM settled_quarter") == 600
    per_source = await db.fetch("SELECT value, sum(clicks)::int FROM detail_rollup GROUP BY 1")
    assert dict(map(tuple, per_source)) == {f"s{n}": 150 for n in range(4)}


async def test_an_aggregator_settles_by_itself(
    db: Connection, session: Session, shared_database_url: str, tmp_path: Path
) -> None:
    begins_ms = an_hour()
    await flush(session, *(visit(begins_ms + n * QUARTER_MS, source_id="s") for n in range(3)))
    await complete(db, begins_ms + 3 * QUARTER_MS)
    running = asyncio.create_task(run(settings(shared_database_url, tmp_path)))
    async with asyncio.timeout(60):
        while await db.fetchval("SELECT count(*) FROM settled_quarter") < 3:
            assert not running.done()
            await asyncio.sleep(0.05)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await uniques(db) == 1


# ------------------------------------------------------------------------------------------------------------- details


async def test_details_are_counted_by_each_field_that_a_click_has(db: Connection, session: Session) -> None:
    begins_ms = an_hour()
    told = {"os": "iOS", "browser": "Safari", "source_id": "s"}
    subs = {f"sub{n}": f"v{n}" for n in range(1, 11)} | {"gclid": "ad"}
    await flush(
        session, visit(begins_ms, **told, subs=subs), visit(begins_ms + 1, os="iOS", offer_id=2), visit(begins_ms + 2)
    )
    await complete(db, begins_ms + QUARTER_MS)
    await settle(db)
    rows = await db.fetch("SELECT name, value, offer_id, clicks, unique_clicks FROM detail_rollup")
    fields = told | {name: value for name, value in subs.items() if name != "gclid"}
    assert {tuple(row) for row in rows} == {(n, v, 1, 1, 1) for n, v in fields.items()} | {("os", "iOS", 2, 1, 1)}


async def test_values_beyond_the_limit_are_one_row_and_nothing_is_lost(
    db: Connection, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each partner those with most clicks are kept, for all of its offers, of as many the first by name."""
    monkeypatch.setattr(limits, "DETAIL_VALUES_MAX", 3)
    begins_ms = an_hour()
    counts = {"a": 1, "é": 2, "b": 2, "c": 5, "d": 1, details.OTHER: 1, "e": 4}
    clicks = [(value, n) for value, count in counts.items() for n in range(count)]
    await flush(
        session, *(visit(begins_ms + n, source_id=value, offer_id=1 + n % 2) for value, n in clicks),
        *(visit(begins_ms, partner_id=2, source_id=value) for value in "abc"),
    )  # fmt: skip
    await complete(db, begins_ms + QUARTER_MS)
    await settle(db)
    rows = await db.fetch("SELECT partner_id, value, sum(clicks)::int, count(*)::int FROM detail_rollup GROUP BY 1, 2")
    assert {tuple(row) for row in rows} == {
        (1, "c", 5, 2), (1, "e", 4, 2), (1, "b", 2, 2), (1, details.OTHER, 5, 2),
        *((2, value, 1, 1) for value in "abc"),
    }  # fmt: skip


async def test_a_value_too_long_for_an_index_is_cut(db: Connection, session: Session) -> None:
    begins_ms = an_hour()
    await flush(session, visit(begins_ms, source_id="x" * 5_000))
    await complete(db, begins_ms + QUARTER_MS)
    assert await settle(db) == 1
    assert await db.fetchval("SELECT value FROM detail_rollup") == "x" * limits.VALUE_MAX


# --------------------------------------------------------------------------------------------------------- retention


async def test_what_was_settled_goes_with_its_clicks_batch_by_batch(
    db: Connection, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SETTLED_PRUNE_BATCH", 4)
    begins_ms = an_hour()
    await flush(session, *(visit(begins_ms + n, n, source_id=f"s{n}") for n in range(9)))
    await complete(db, begins_ms + QUARTER_MS)
    await settle(db)
    kept = await everything(db)
    assert not await prune_once(db, begins_ms + 40 * DAY_MS, 40)
    assert await everything(db) == kept
    rounds = 1
    while await prune_once(db, begins_ms + 43 * DAY_MS, 40):
        rounds += 1
    left = Counter({table: await db.fetchval(f"SELECT count(*) FROM {table}") for table in (
        "first_click", "detail_rollup", "settled_quarter", "click_rollup",
    )})  # fmt: skip
    assert (rounds, +left) == (3, Counter(click_rollup=1))


async def test_marks_of_a_day_whose_clicks_are_gone_change_nothing(db: Connection, session: Session) -> None:
    begins_ms = an_hour()
    await flush(session, visit(begins_ms, source_id="s"))
    await complete(db, begins_ms + QUARTER_MS)
    await settle(db)
    before = await everything(db)
    await db.execute("TRUNCATE click; INSERT INTO stale_quarter SELECT quarter FROM settled_quarter")
    assert await settle(db) == 1
    assert (await everything(db), await settle(db)) == (before, 0)
