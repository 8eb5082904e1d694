"""What edges have counted is held against the rows there are: nothing is drift but what is missing, or too much."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from aggregator.db import partitions
from aggregator.db.connect import Connection, connect
from aggregator.db.instants import LATEST_MS, at, to_ms
from aggregator.flush.commit import commit
from aggregator.flush.decode import Window, decode
from aggregator.flush.session import Session, open_session
from aggregator.reports.drift import watch_once
from aggregator.reports.reconciliation import HOUR, floor, reconciliation
from aggregator.settled import quarters
from deploy.run import history
from loadtests.faults.journals import beat, click, conversion, now_ms, settings, uuid7
from schemas import limits
from schemas.events import Beat, Event, Intake
from schemas.outcomes import ClickClass
from tests.aggregator.flush.test_exactly_once import batch_of
from tests.deploy.test_history import LINKS, PROGRAMME

MINUTE_MS = 60_000
BEGINS = floor(at(now_ms())) - 6 * HOUR
BEGINS_MS = to_ms(BEGINS)
NOTHING = {"rows": 0, "imported": 0, "unaccounted": 0, "drift": 0}


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Connection]:
    connection = await connect(database_url, command_timeout_s=20)
    yield connection
    await connection.close()


@pytest.fixture
async def session(database_url: str, tmp_path: Path) -> AsyncIterator[Session]:
    async with open_session(settings(database_url, tmp_path)) as opened:
        yield opened


async def flush(session: Session, *events: Event) -> None:
    """As the consumer does it, from a log of its own, whenever they were."""
    batch = batch_of(*events, source=os.urandom(4).hex())
    await commit(batch, session, decode(batch.entries, Window(0, LATEST_MS)))


def said(counts: Mapping[str, int], state: str = "beat", *, hour: datetime = BEGINS, edge: str = "i") -> Beat:
    """A beat an hour after the end of the hour that it counts, which promises as much."""
    at_ms = to_ms(hour + 2 * HOUR)
    mark = {f"{at(at_ms):%Y-%m-%dT%H}": {state: 1}}
    return beat(edge, state, at_ms=at_ms, complete_to_ms=at_ms, counters={f"{hour:%Y-%m-%dT%H}": dict(counts), **mark})


def clicked(count: int, **fields: Any) -> list[Any]:
    return [click(BEGINS_MS + n % 60 * MINUTE_MS, **fields) for n in range(count)]


async def told(db: Connection, hour: datetime = BEGINS) -> dict[str, Any]:
    answer = await reconciliation(db, hour, hour + HOUR)
    (found,) = answer["data"]
    return dict(found)


async def of_clicks(db: Connection, hour: datetime = BEGINS) -> dict[str, Any]:
    found = await told(db, hour)
    return {name: found["clicks"][name] for name in NOTHING}


async def settle(db: Connection) -> None:
    while await quarters.settle_once(db, now_ms()):
        pass


async def drift(db: Connection) -> float:
    await watch_once(db)
    return REGISTRY.get_sample_value("clickdam_drift_events") or 0.0


async def test_each_request_at_a_link_is_received_once_and_what_was_to_be_written_is_there(
    session: Session, db: Connection
) -> None:
    classes = (ClickClass.NORMAL, ClickClass.FLAGGED, ClickClass.OVER_CAP, ClickClass.FALLBACK, ClickClass.TEST)
    written = [one for of in classes for one in clicked(2, click_class=int(of))]
    counts = {"recorded": 7, "spooled": 2, "late": 2, "late_recorded": 1, "late_lost": 1, "lost": 3, "uncounted": 4,
              "refused_unknown_link": 5, "refused_bad_request": 1}  # fmt: skip
    await flush(session, *written, said(counts, "closed"))
    found = await told(db)
    assert found["complete"]
    assert found["clicks"] == {
        "received": 24, "recorded": 7, "spooled": 2, "late": 2, "lost": 3, "uncounted": 4,
        "refused": {"bad_request": 1, "unknown_link": 5}, "rows": 10, "imported": 0, "unaccounted": 0, "drift": 0,
    }  # fmt: skip
    await settle(db)
    assert await drift(db) == 0


async def test_a_row_that_is_missing_is_drift_and_so_is_one_that_nobody_counted(
    session: Session, db: Connection
) -> None:
    written = clicked(5)
    await flush(session, *written, said({"recorded": 5}, "closed"))
    assert await of_clicks(db) == NOTHING | {"rows": 5}
    await db.execute("DELETE FROM click WHERE id = $1", written[0].id)
    assert await of_clicks(db) == NOTHING | {"rows": 4, "drift": 1}
    await flush(session, *clicked(3))
    assert await of_clicks(db) == NOTHING | {"rows": 7, "drift": -2}
    answer = await reconciliation(db, BEGINS - HOUR, BEGINS + 2 * HOUR)
    assert answer["drift"] == 2


async def test_what_is_missing_when_it_is_settled_moves_the_metric(session: Session, db: Connection) -> None:
    await flush(session, *clicked(4), said({"recorded": 5}, "closed"))
    await settle(db)
    assert await drift(db) == 1


@pytest.mark.parametrize("came", range(3))
async def test_late_and_lost_clicks_may_be_there_or_not(came: int, session: Session, db: Connection) -> None:
    await flush(session, *clicked(3 + came), said({"recorded": 3, "late": 1, "lost": 1}, "closed"))
    assert await of_clicks(db) == NOTHING | {"rows": 3 + came}


async def test_once_an_edge_has_said_that_a_late_click_was_written_it_has_to_be_there(
    session: Session, db: Connection
) -> None:
    await flush(session, *clicked(3), said({"recorded": 3, "late": 2, "late_recorded": 1}, "closed"))
    assert await of_clicks(db) == NOTHING | {"rows": 3, "drift": 1}


async def test_copies_of_a_spool_are_counted_once_on_both_sides(session: Session, db: Connection) -> None:
    written = clicked(4)
    await flush(session, *written[:3], said({"recorded": 1, "spooled": 3}))
    await flush(session, *written, *written)
    assert await of_clicks(db) == NOTHING | {"rows": 4}


@pytest.mark.parametrize("click_class", [ClickClass.TEST, ClickClass.NORMAL])
async def test_a_click_that_comes_after_its_quarter_hour_was_settled_is_no_drift(
    click_class: ClickClass, session: Session, db: Connection
) -> None:
    await flush(session, *clicked(3), said({"recorded": 3}))
    await settle(db)
    await flush(session, *clicked(1, click_class=int(click_class)), said({"recorded": 3, "spooled": 1}))
    assert await of_clicks(db) == NOTHING | {"rows": 4}
    assert await drift(db) == 0  # it is known to be settled anew
    await settle(db)
    assert await db.fetchval("SELECT sum(recorded)::int FROM settled_quarter") == 4
    assert await drift(db) == 0


async def test_what_a_killed_edge_did_not_live_to_count_is_unaccounted(session: Session, db: Connection) -> None:
    alive = beat("i", "beat", at_ms=BEGINS_MS + MINUTE_MS, complete_to_ms=BEGINS_MS + MINUTE_MS,
                 counters={f"{BEGINS:%Y-%m-%dT%H}": {"recorded": 3, "beat": 1}})  # fmt: skip
    by_the_next = beat("i", "closed", at_ms=BEGINS_MS + 2 * MINUTE_MS)
    await flush(session, *clicked(5), alive, by_the_next, said({}, edge="next"))
    assert await of_clicks(db) == NOTHING | {"rows": 5, "unaccounted": 2}
    await settle(db)
    assert await drift(db) == 0
    await db.execute("DELETE FROM click WHERE id IN (SELECT id FROM click LIMIT 3)")
    assert await of_clicks(db) == NOTHING | {"rows": 2, "drift": 1}


async def test_an_edge_that_was_killed_before_the_hour_explains_nothing_after_its_end(
    session: Session, db: Connection
) -> None:
    await db.execute(
        "INSERT INTO edge (incarnation, name, registered_at, heard_at, closed_at) VALUES ('old', 'e', $1, $1, $1)",
        BEGINS - timedelta(minutes=1),
    )
    await flush(session, *clicked(2), said({"recorded": 1}, "closed"))
    assert await of_clicks(db) == NOTHING | {"rows": 2, "drift": -1}


async def test_closed_incarnations_and_beats_that_were_thinned_have_counted_all_the_same(
    session: Session, db: Connection
) -> None:
    await flush(session, *clicked(50))
    for n in range(1, limits.BEATS_WAITING_MAX + 36):
        moment = BEGINS_MS + n * 1_000
        counters = {f"{BEGINS:%Y-%m-%dT%H}": {"recorded": min(n, 40)}}
        waits = [("nowhere", 0, n)]
        await flush(session, beat("thin", at_ms=moment, complete_to_ms=moment, acked=waits, counters=counters))
    assert await db.fetchval("SELECT count(*) FROM edge_beat") <= limits.BEATS_WAITING_MAX
    await flush(session, said({"recorded": 10}, "closed", edge="over"), said({"recorded": 40}, "closed", edge="thin"))
    assert await of_clicks(db) == NOTHING | {"rows": 50}


async def test_history_that_no_edge_counted_is_imported(session: Session, db: Connection, database_url: str) -> None:
    await db.execute(PROGRAMME)
    await history.fill(database_url, 1, LINKS)
    today = floor(at(now_ms())).replace(hour=0)
    ended = beat("demo", "closed", at_ms=now_ms(), complete_to_ms=to_ms(today) + 1)
    await flush(session, ended)
    answer = await reconciliation(db, today - timedelta(days=20), today)
    rows = sum(hour[side]["rows"] for hour in answer["data"] for side in ("clicks", "conversions"))
    assert answer["imported"] == rows > history.CLICKS
    assert answer["drift"] == answer["unaccounted"] == 0
    await db.execute("UPDATE settling SET through = $1", today - timedelta(hours=6))  # or it takes ten seconds
    await settle(db)
    assert await db.fetchval("SELECT sum(recorded) FROM settled_quarter") > 0
    assert await drift(db) == 0


async def test_clicks_that_are_gone_with_their_day_were_counted_when_they_were_settled(
    session: Session, db: Connection
) -> None:
    old = BEGINS - timedelta(days=3)
    clicks = [click(to_ms(old) + n * MINUTE_MS) for n in range(6)]
    await flush(session, *clicks, said({"recorded": 6}, hour=old), said({"recorded": 0}))
    await settle(db)
    await partitions.drop_older(db, 2)
    assert await of_clicks(db, old) == NOTHING | {"rows": 6}
    await db.execute("DELETE FROM settled_quarter WHERE quarter < $1", BEGINS)
    assert await of_clicks(db, old) == NOTHING | {"rows": None, "drift": None}
    assert (await reconciliation(db, old, old + HOUR))["drift"] == 0


def intake(result: str, at_ms: int) -> Intake:
    return Intake(v=1, intake_id=uuid7(at_ms), advertiser_id=1, result=result, reason="bad_amount", door="postback")  # type: ignore[arg-type]


async def test_each_post_is_received_once_and_what_was_written_of_it_is_there(session: Session, db: Connection) -> None:
    await db.execute(PROGRAMME)
    sold = [conversion(intake_id=uuid7(BEGINS_MS + n), order_id=f"o-{n}") for n in range(4)]
    others = [intake("rejected", BEGINS_MS), intake("rejected", BEGINS_MS + 1), intake("test", BEGINS_MS)]
    counts = {"conversion_recorded": 2, "conversion_spooled": 1, "conversion_late": 1, "conversion_late_recorded": 1,
              "conversion_intake_recorded": 2, "conversion_intake_spooled": 1, "conversion_test": 1,
              "conversion_refused_bad_amount": 2, "conversion_refused_not_durable": 1,
              "conversion_refused_bad_token": 3}  # fmt: skip
    await flush(session, *sold, *others, sold[0], said(counts, "closed"))
    assert (await told(db))["conversions"] == {
        "received": 10, "accepted": 3, "test_posts": 1,
        "refused": {"bad_amount": 2, "bad_token": 3, "not_durable": 1},
        "recorded": 4, "spooled": 2, "late": 1, "lost": 0, "rows": 7, "imported": 0, "unaccounted": 0, "drift": 0,
    }  # fmt: skip
    again = conversion(intake_id=uuid7(BEGINS_MS + 9), order_id="o-3", conversion_id=sold[3].conversion_id)
    await flush(session, again, said(counts | {"conversion_recorded": 3}, "closed"))
    assert (await told(db))["conversions"]["drift"] == 0
    await db.execute("DELETE FROM conversion_intake WHERE intake_id = $1", others[0].intake_id)
    assert (await told(db))["conversions"]["drift"] == 1


async def test_an_hour_that_goes_on_is_told_but_not_summed(session: Session, db: Connection) -> None:
    moment = BEGINS_MS + 30 * MINUTE_MS
    counters = {f"{BEGINS:%Y-%m-%dT%H}": {"recorded": 3, "beat": 1}}
    await flush(session, *clicked(2), beat("i", at_ms=moment, complete_to_ms=moment, counters=counters))
    answer = await reconciliation(db, BEGINS, BEGINS + HOUR)
    assert (answer["data"][0]["complete"], answer["data"][0]["clicks"]["drift"], answer["drift"]) == (False, 1, 0)
