"""One click, one row, one count, whatever the log repeats and whoever else consumes it (promise P3)."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import asyncpg
import pytest

from aggregator.flush.batch import Batch, Entry
from aggregator.flush.commit import commit
from aggregator.flush.session import Fenced, Session, open_session
from loadtests.faults.drift import drift, fetch, value
from loadtests.faults.journals import (
    append,
    click,
    clicks,
    consume_all,
    consumed,
    consuming,
    conversion,
    new_segment,
    now_ms,
    settings,
    uuid7,
)
from schemas import events, limits
from schemas.journal import FIRST_OFFSET

DAY_MS = 86_400_000


def batch_of(*of: events.Event, source: str = "s", partition: int = 0, first: int = FIRST_OFFSET) -> Batch:
    entries = [Entry(first, b"\n".join(map(events.encode, of)))]
    return Batch(source, partition, first, first + 1, entries, begins=first == FIRST_OFFSET)


@pytest.fixture
async def session(database_url: str, tmp_path: Path):
    async with open_session(settings(database_url, tmp_path)) as opened:
        yield opened


async def test_replays_at_other_offsets_are_counted_once(database_url: str, tmp_path: Path) -> None:
    events_once = clicks(3_000)
    segment = new_segment(tmp_path)
    append(segment, events_once)
    append(segment, events_once[:2_000])
    append(new_segment(tmp_path, slot=1), reversed(events_once[1_000:]))
    await consume_all(settings(database_url, tmp_path))
    figures = await drift(database_url, tmp_path)
    assert (figures.drift, figures.in_postgres) == (0, 3_000)


async def test_copies_within_one_batch_are_counted_once(session: Session, database_url: str) -> None:
    one = click()
    applied = await commit(batch_of(one, one, one), session)
    assert applied.clicks == 1
    assert await value(database_url, "SELECT sum(clicks) FROM click_rollup") == 1


async def test_the_same_ids_in_any_order_on_two_partitions_lose_nothing(database_url: str, tmp_path: Path) -> None:
    shared = clicks(8_000)
    for slot in (0, 1):
        append(new_segment(tmp_path, slot), random.Random(slot).sample(shared, len(shared)), row_events=500)
    before = await value(database_url, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    both = settings(database_url, tmp_path)
    async with consuming(both), consuming(both), consuming(both):
        await consumed(database_url, tmp_path)
    figures = await drift(database_url, tmp_path)
    assert (figures.drift, figures.in_postgres) == (0, 8_000)
    after = await value(database_url, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert after == before


async def test_a_batch_that_another_consumer_has_applied_is_refused(session: Session, database_url: str) -> None:
    batch = batch_of(*clicks(10))
    await commit(batch, session)
    with pytest.raises(Fenced):
        await commit(batch, session)
    assert await value(database_url, "SELECT sum(clicks) FROM click_rollup") == 10


async def test_a_refused_batch_leaves_the_connection_usable(session: Session) -> None:
    await commit(batch_of(click()), session)
    with pytest.raises(Fenced):
        await commit(batch_of(click()), session)
    assert (await commit(batch_of(click(), first=2), session)).clicks == 1


async def test_clicks_are_classed_in_the_rollup(database_url: str, tmp_path: Path) -> None:
    at_ms = now_ms()
    append(new_segment(tmp_path), [click(at_ms, click_class=of_class) for of_class in (0, 0, 1, 2, 3, 4)])
    await consume_all(settings(database_url, tmp_path))
    assert (await drift(database_url, tmp_path)).drift == 0
    (row,) = await fetch(database_url, "SELECT sum(clicks)::int, sum(invalid_clicks)::int FROM click_rollup")
    assert tuple(row) == (5, 3)
    assert await value(database_url, "SELECT count(*) FROM click") == 6


async def test_a_click_is_stored_as_it_was_recorded(session: Session, database_url: str) -> None:
    recorded = click(
        country="DE", device="phone", os="iOS", browser="Safari", visitor="0123456789abcdef", ip="192.0.2.0",
        referer="example.org", source_id="s", click_ref="r", subs={"sub1": "ä ☕"}, reason="known_bot", click_class=1,
    )  # fmt: skip
    await commit(batch_of(recorded), session)
    (row,) = await fetch(database_url, "SELECT *, subs ->> 'sub1' AS sub1 FROM click")
    assert row["id"] == recorded.id
    assert row["sub1"] == "ä ☕"
    for name in ("country", "device", "os", "browser", "visitor", "ip", "referer", "source_id", "click_ref", "reason"):
        assert row[name] == getattr(recorded, name)


async def test_clicks_are_rolled_up_under_whatever_their_country_and_device_are_called(
    session: Session, database_url: str
) -> None:
    names = ["", "DE", "NULL", "null", "{}", ",", '"', "\\", '\\"', "a b", " ", "ä☕", "'", "x" * 300]
    of = [(country, device) for country in names for device in names]
    await commit(batch_of(*(click(country=country, device=device) for country, device in of)), session)
    await commit(batch_of(*(click(country=country, device=device) for country, device in of), first=2), session)
    rows = await fetch(database_url, "SELECT country, device, sum(clicks)::int FROM click_rollup GROUP BY 1, 2")
    assert {tuple(row) for row in rows} == {(country, device, 2) for country, device in of}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"{not json", "undecodable"),
        (b'{"kind":"click","v":2}', "undecodable"),
        (b'{"kind":"future","v":1}', "undecodable"),
        (b"\xff\xfe", "undecodable"),
        (click(now_ms() + 365 * DAY_MS), "outside_kept_days"),
        (click(now_ms() - 500 * DAY_MS), "outside_kept_days"),
        (click(id="a8098c1a-f86e-11da-bd1a-00112444be1e"), "not_uuid7"),
        (click(click_class=77), "unknown_class"),
        (conversion(intake_id=uuid7(now_ms() + 365 * DAY_MS)), "outside_kept_days"),
        (conversion(event_at_ms=2**62), "impossible_time"),
        (conversion(partner_id=-1), "impossible_id"),
        (conversion(partner_id=0), "impossible_id"),
        (conversion(advertiser_id=0), "impossible_id"),
        (click(country="\0"), "refused: CharacterNotInRepertoireError"),
        (click(subs={"sub1": "\0"}), "refused: UntranslatableCharacterError"),
        (click(link_id=2**31), "refused: OverflowError"),
        (click(country=random.Random(1).randbytes(8_000).hex()), "refused: ProgramLimitExceededError"),
        (conversion(currency="EURO"), "refused: StringDataRightTruncationError"),
        (conversion(offer_id=2**40), "refused: DataError"),
    ],
)
async def test_what_cannot_be_applied_is_put_aside_and_stops_nothing(
    record: events.Event | bytes, reason: str, database_url: str, tmp_path: Path
) -> None:
    good = clicks(50)
    segment = new_segment(tmp_path)
    append(segment, [*good[:25], record, *good[25:]])
    await consume_all(settings(database_url, tmp_path))
    assert await value(database_url, "SELECT count(*) FROM click") == 50
    assert await value(database_url, "SELECT sum(clicks) FROM click_rollup") == 50
    (letter,) = await fetch(database_url, "SELECT * FROM dead_letter")
    assert letter["reason"].startswith(reason)
    assert (letter["source"], letter["partition"], letter["offset"], letter["line"]) == (segment.meta.source, 0, 1, 26)
    whole = record if isinstance(record, bytes) else events.encode(record)
    assert letter["body"] == whole[: limits.DEAD_BYTES_MAX]


async def test_several_refused_records_are_all_found(database_url: str, tmp_path: Path) -> None:
    bad = [click(country="\0") for _ in range(7)]
    mixed = [*clicks(400), *bad, conversion(), conversion(currency="EURO")]
    random.Random(5).shuffle(mixed)
    append(new_segment(tmp_path), mixed)
    await consume_all(settings(database_url, tmp_path))
    assert await value(database_url, "SELECT count(*) FROM dead_letter") == 8
    assert await value(database_url, "SELECT sum(clicks) FROM click_rollup") == 400
    assert await value(database_url, "SELECT count(*) FROM conversion") == 1


async def test_clicks_of_many_days_find_their_partitions(database_url: str, tmp_path: Path) -> None:
    append(new_segment(tmp_path), [click(now_ms() - days * DAY_MS) for days in range(-1, 40) if days])
    await consume_all(settings(database_url, tmp_path))
    assert await value(database_url, "SELECT count(*) FROM dead_letter") in (0, 1)  # a day ahead is the very limit
    assert await value(database_url, "SELECT count(*) FROM click") >= 39


async def test_a_frozen_holder_of_the_fence_is_ended(session: Session, database_url: str) -> None:
    await commit(batch_of(click()), session)
    zombie = await asyncpg.connect(database_url)
    await zombie.execute("BEGIN; UPDATE log_position SET next = next + 1")
    began = time.monotonic()
    applied = await commit(batch_of(*clicks(5), first=2), session)
    assert applied.clicks == 5
    assert time.monotonic() - began < 3
    assert zombie.is_closed()


async def test_a_working_holder_of_the_fence_is_waited_for(session: Session, database_url: str) -> None:
    await commit(batch_of(click()), session)
    worker = await asyncpg.connect(database_url)
    working = asyncio.create_task(
        worker.execute("BEGIN; UPDATE log_position SET next = next + 1; SELECT pg_sleep(2.5); COMMIT")
    )
    await asyncio.sleep(0.2)
    with pytest.raises(Fenced):
        await commit(batch_of(click(), first=2), session)
    await working
    await worker.close()


async def test_positions_restored_to_earlier_ones_are_read_again_without_counting_twice(
    database_url: str, tmp_path: Path
) -> None:
    append(new_segment(tmp_path), clicks(2_000))
    of = settings(database_url, tmp_path)
    async with consuming(of):
        await consumed(database_url, tmp_path)
        await fetch(database_url, "UPDATE log_position SET next = 5")
        await fetch(database_url, "DELETE FROM click WHERE id IN (SELECT id FROM click LIMIT 0)")
        await consumed(database_url, tmp_path)
    assert (await drift(database_url, tmp_path)).drift == 0


async def test_a_postgres_restored_to_an_earlier_state_gets_the_rest_again(database_url: str, tmp_path: Path) -> None:
    append(new_segment(tmp_path), clicks(2_000))
    of = settings(database_url, tmp_path)
    await consume_all(of)
    await fetch(database_url, "TRUNCATE click, click_rollup, log_position")
    await consume_all(of)
    figures = await drift(database_url, tmp_path)
    assert (figures.drift, figures.in_postgres) == (0, 2_000)
