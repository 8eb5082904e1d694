"""Of quarter hours that are not complete the greater of what edges have counted and of what Postgres has is shown."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from aggregator.db.connect import Connection, connect
from aggregator.reports.asked import QueryBody, Scope, read_query
from aggregator.reports.buckets import QUARTER
from aggregator.reports.live import open_quarters, read_live
from aggregator.reports.report import Report, report
from aggregator.reports.state import read_state
from schemas import limits, redis_keys
from schemas.redis import Redis, done, publishing, reading
from tracker.counters import LiveCounters

NOW = datetime(2026, 11, 27, 10, 20, tzinfo=UTC)
OPEN = datetime(2026, 11, 27, 10, 15, tzinfo=UTC)  # the quarter hour that goes on
COMPLETE = OPEN - QUARTER
ALL = Scope()
LINKS = {1: 1, 2: 1, 3: 2, 4: 2}  # partners of links


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Connection]:
    connection = await connect(database_url, command_timeout_s=10)
    await connection.execute(
        "INSERT INTO advertiser (name, token_sha256) VALUES ('a', '1');"
        "INSERT INTO partner (name) VALUES ('p'), ('q');"
        "INSERT INTO offer (advertiser_id, name, destination_url, currency) VALUES (1, 'o', 'https://a.b', 'EUR')"
    )
    for link_id, partner_id in LINKS.items():
        await connection.execute(
            "INSERT INTO link (code, offer_id, partner_id) VALUES ($1, 1, $2)", f"code{link_id}", partner_id
        )
    yield connection
    await connection.close()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with publishing(redis_url) as client:
        yield client


async def in_postgres(db: Connection, quarter: datetime, link_id: int, clicks: int, shard: int = 0) -> None:
    await db.execute(
        "INSERT INTO click_rollup (quarter, link_id, offer_id, partner_id, country, device, shard, clicks,"
        " invalid_clicks) VALUES ($1, $2, 1, $3, 'DE', 'mobile', $5, $4, 0)",
        quarter, link_id, LINKS[link_id], clicks, shard,
    )  # fmt: skip


async def counted(redis: Redis, quarter: datetime, link_id: int, clicks: int) -> None:
    """As an edge counts it."""
    counters = LiveCounters()
    for _ in range(clicks):
        counters.count_click(int(quarter.timestamp() * 1000) + 5, link_id, LINKS[link_id])
    await counters.flush(redis)


async def ask(
    db: Connection, redis: Redis, scope: Scope = ALL, through: datetime | None = COMPLETE, **words: Any
) -> dict[str, Any]:
    body = QueryBody(from_="2026-11-27", to="2026-11-28", live=True, **{"granularity": "total"} | words)
    asked = read_query(body, "UTC", NOW, "admin" if scope == ALL else "partner")
    state = replace(await read_state(db), complete_through=through)
    return await report(db, Report(asked, "EUR", scope), state, await read_live(db, redis, asked, scope, state, NOW))


def by(answer: dict[str, Any], *names: str) -> dict[Any, int]:
    return {tuple(row[name] for name in names): row["clicks"] for row in answer["data"]}


async def test_the_greater_of_both_is_shown_of_what_is_open_and_postgres_of_what_is_complete(
    db: Connection, redis: Redis
) -> None:
    before, last = OPEN - 2 * QUARTER, OPEN - QUARTER  # complete, and not yet
    for link_id, clicks in ((1, 7), (3, 2)):
        await in_postgres(db, before, link_id, clicks)
        await counted(redis, before, link_id, 20)
    await in_postgres(db, last, 1, 3)
    await in_postgres(db, last, 1, 2, shard=1)
    await counted(redis, last, 1, 4)  # less than Postgres has
    await in_postgres(db, OPEN, 1, 1)
    await counted(redis, OPEN, 1, 6)
    await counted(redis, OPEN, 4, 5)  # Postgres has none
    answer = await ask(db, redis, group_by=["link"], totals=True)
    assert by(answer, "link_id") == {(1,): 7 + 5 + 6, (3,): 2, (4,): 5}
    assert (answer["totals"], answer["live_from"]) == ([{"clicks": 25, "currency": "EUR"}], "2026-11-27T10:00:00.000Z")
    assert answer["complete_through"] == "2026-11-27T10:00:00.000Z"
    assert by(await ask(db, redis, group_by=["partner"]), "partner_id") == {(1,): 18, (2,): 7}
    assert by(await ask(db, redis, group_by=["link", "partner"]), "link_id", "partner_id") == {
        (1, 1): 18, (3, 2): 2, (4, 2): 5,
    }  # fmt: skip
    assert by(await ask(db, redis)) == {(): 25}
    hours = await ask(db, redis, granularity="hour")
    assert by(hours, "hour")[("2026-11-27T09:00:00Z",)] == 9
    assert by(hours, "hour")[("2026-11-27T10:00:00Z",)] == 16
    assert by(await ask(db, redis, Scope(1), group_by=["link"]), "link_id") == {(1,): 18}
    assert by(await ask(db, redis, Scope(2), group_by=["link"]), "link_id") == {(3,): 2, (4,): 5}
    assert by(await ask(db, redis, Scope(2))) == {(): 7}
    assert by(await ask(db, redis, Scope(2), filters={"link_id": [1]})) == {(): 0}
    assert by(await ask(db, redis, filters={"link_id": [1, 4]})) == {(): 23}
    assert by(await ask(db, redis, exclusions={"link_id": [1]})) == {(): 7}
    assert by(await ask(db, redis, exclusions={"partner_id": [2]})) == {(): 18}
    first = await ask(db, redis, group_by=["link"], sort="-clicks", limit=1)
    assert by(first, "link_id") == {(1,): 18}
    rest = await ask(db, redis, group_by=["link"], sort="-clicks", cursor=first["next_cursor"])
    assert list(by(rest, "link_id")) == [(4,), (3,)]


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_was_counted_it_is_never_a_sum_and_never_less_than_postgres(
    seed: int, db: Connection, redis: Redis
) -> None:
    chosen = random.Random(seed)
    quarters = [OPEN - n * QUARTER for n in range(5)]
    through = chosen.choice((None, *quarters))
    told: dict[tuple[datetime, int], int] = defaultdict(int)
    live: dict[tuple[datetime, int], int] = defaultdict(int)
    for quarter in quarters:
        for link_id in LINKS:
            if chosen.random() < 0.7:
                told[quarter, link_id] = chosen.randrange(9)
                await in_postgres(db, quarter, link_id, told[quarter, link_id])
            if chosen.random() < 0.7:
                live[quarter, link_id] = chosen.randrange(9)
                await counted(redis, quarter, link_id, live[quarter, link_id])
    of_links: dict[int, int] = defaultdict(int)
    of_partners: dict[int, int] = defaultdict(int)
    for quarter in quarters:
        is_open = through is None or quarter >= through
        for link_id in LINKS:
            of_links[link_id] += max(told[quarter, link_id], live[quarter, link_id] if is_open else 0)
        for partner_id in (1, 2):
            own = [link_id for link_id, of in LINKS.items() if of == partner_id]
            sums = [sum(counts[quarter, link_id] for link_id in own) for counts in (told, live)]
            of_partners[partner_id] += max(sums[0], sums[1] if is_open else 0)
    found = by(await ask(db, redis, through=through, group_by=["link"]), "link_id")
    assert {link_id: found.get((link_id,), 0) for link_id in LINKS} == of_links
    found = by(await ask(db, redis, through=through, group_by=["partner"]), "partner_id")
    assert {partner_id: found.get((partner_id,), 0) for partner_id in (1, 2)} == of_partners
    assert by(await ask(db, redis, through=through)) == {(): sum(of_partners.values())}


async def test_with_redis_away_it_is_the_plain_answer(db: Connection) -> None:
    await in_postgres(db, OPEN, 1, 3)
    async with reading("redis://127.0.0.1:1/0") as nobody:
        answer = await ask(db, nobody, group_by=["link"])
    assert (by(answer, "link_id"), answer["live_from"]) == ({(1,): 3}, None)


async def test_of_more_links_than_are_looked_at_the_latest_made_are(
    db: Connection, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIVE_IDS_MAX", 3)
    monkeypatch.setattr(limits, "LIVE_FIELDS_AT_ONCE", 2)
    for link_id in LINKS:
        await counted(redis, OPEN, link_id, link_id)
    assert by(await ask(db, redis, group_by=["link"]), "link_id") == {(2,): 2, (3,): 3, (4,): 4}
    assert by(await ask(db, redis, filters={"link_id": [1]})) == {(): 1}
    assert await done(redis.ttl(redis_keys.live(int(OPEN.timestamp())))) > 0


async def test_open_are_the_latest_quarter_hours_that_have_begun_and_are_not_complete(db: Connection) -> None:
    state = await read_state(db)

    def opened(through: datetime | None, starts: str = "2026-11-27T00:00:00Z", to: str = "2026-11-28") -> list[Any]:
        body = QueryBody(from_=starts, to=to, live=True)
        asked = read_query(body, "UTC", NOW, "admin")
        found = open_quarters(asked, replace(state, complete_through=through), NOW)
        assert all(later - one == QUARTER for one, later in pairwise(found))
        return [found[0], found[-1]] if found else []

    assert opened(NOW - timedelta(seconds=2)) == [OPEN, OPEN]
    assert opened(OPEN) == [OPEN, OPEN]
    assert opened(OPEN - timedelta(seconds=1)) == [OPEN - QUARTER, OPEN]
    assert opened(None) == [OPEN - (limits.LIVE_QUARTERS_MAX - 1) * QUARTER, OPEN]
    assert opened(None, starts="2026-11-27T10:00:00Z") == [OPEN - QUARTER, OPEN]
    assert opened(None, to="2026-11-27T10:15:00Z")[1] == OPEN - QUARTER
    assert opened(OPEN, to="2026-11-27T10:15:00Z") == []
    assert opened(None, starts="2026-11-27T10:30:00Z") == []
