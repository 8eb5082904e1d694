"""The history that reports are measured on is one that the aggregator could have written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, time
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress

from aggregator.conversions import ledger
from aggregator.db.connect import Connection, connected
from loadtests import history
from loadtests.history import LINKS_PER_PARTNER, Piece, Wanted, pieces
from tests.deploy.test_history import ROLLUPS_THAT_LIE, SALES_THAT_LIE

WANTED = Wanted(clicks=6_000, conversions=200, days=2, partners=5)
UNIQUES = """
SELECT count(DISTINCT (visitor, offer_id, partner_id, uuid_extract_timestamp(id)::date)) FROM click
WHERE click_class = 0
"""
UNSETTLED = """
SELECT (SELECT through FROM settling) AS through, (SELECT count(*) FROM stale_quarter) AS stale,
    (SELECT sum(recorded) FROM settled_quarter)::bigint AS recorded,
    (SELECT count(*) FROM conversion WHERE NOT click_seen) AS unseen
"""


@pytest.fixture(scope="module")
async def filled(shared_database_url: str) -> str:
    await history.fill(shared_database_url, WANTED, Progress(disable=True))
    return shared_database_url


@pytest.fixture
async def db(filled: str) -> AsyncIterator[Connection]:
    async with connected(filled, command_timeout_s=10.0, application_name="tests") as connection:
        yield connection


async def test_its_rollups_and_its_ledger_say_what_its_rows_say(db: Connection) -> None:
    assert await db.fetch(ROLLUPS_THAT_LIE) == []
    assert await db.fetch(SALES_THAT_LIE) == []
    assert await ledger.check(db) == []
    assert await db.fetchval("SELECT sum(clicks)::bigint FROM click_rollup") == WANTED.clicks
    assert await db.fetchval("SELECT count(*) FROM conversion") == WANTED.conversions


async def test_it_is_settled_to_its_end(db: Connection) -> None:
    found = dict(await db.fetchrow(UNSETTLED) or {})
    midnight = datetime.combine(datetime.now(UTC).date(), time(), UTC)
    assert found == {"through": midnight, "stale": 0, "recorded": WANTED.clicks, "unseen": 0}
    uniques = await db.fetchval(UNIQUES)
    assert await db.fetchval("SELECT sum(unique_clicks)::bigint FROM click_rollup") == uniques < WANTED.clicks
    of_campaigns = "SELECT sum(clicks)::bigint FROM detail_rollup WHERE name = 'sub1'"
    assert await db.fetchval(of_campaigns) == WANTED.clicks


async def test_a_database_that_has_clicks_is_left_alone(filled: str) -> None:
    with pytest.raises(ValueError, match="has clicks"):
        await history.fill(filled, WANTED, Progress(disable=True))


def test_the_same_seed_makes_the_same_clicks_and_sales() -> None:
    piece = Piece(3, 1_700_000_000_000, 1_700_010_000_000, 500, 20)
    popularity = range(1, WANTED.partners * LINKS_PER_PARTNER + 1)

    def made(seed: int) -> object:
        rng = Random(seed)
        clicks = history.clicked(rng, WANTED, piece, popularity)
        return clicks, history.sold(rng, clicks, piece, piece.ends_ms)

    assert made(1) == made(1)
    assert made(1) != made(2)


@given(st.integers(0, 200_000), st.integers(0, 5_000), st.integers(1, 40))
def test_pieces_share_everything_and_none_crosses_a_midnight(clicks: int, sales: int, days: int) -> None:
    day_ms = 86_400_000
    found = [*pieces(Wanted(clicks, sales, days), 20_000 * day_ms)]
    assert (sum(one.clicks for one in found), sum(one.sales for one in found)) == (clicks, sales)
    assert all(one.starts_ms // day_ms == (one.ends_ms - 1) // day_ms for one in found)
    assert (found[0].starts_ms, len({one.starts_ms // day_ms for one in found})) == ((20_000 - days) * day_ms, days)
    assert max(one.clicks for one in found) <= history.AT_ONCE
