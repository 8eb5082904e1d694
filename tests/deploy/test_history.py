"""The past of the demo programme is what the aggregator would have made of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from aggregator.conversions import ledger
from aggregator.db.connect import Connection, connected
from deploy.run import history
from deploy.run.history import CLICKS, KINDS, Past

LINKS = (Past(1, 1, 1, 5, revenue_minor=1_500), Past(2, 2, 1, 5, revenue_percent=10), Past(3, 1, 2, 3, 1_500))
PROGRAMME = """
INSERT INTO advertiser (name, token_sha256) VALUES ('Shop', 'token');
INSERT INTO partner (name) VALUES ('One'), ('Two');
INSERT INTO offer (advertiser_id, name, destination_url, currency)
    VALUES (1, 'Umbrella', 'https://shop.example', 'EUR'), (1, 'Coat', 'https://shop.example', 'EUR');
INSERT INTO offer_terms (offer_id, model, amount_minor, percent, currency)
    VALUES (1, 'cpa', 1200, NULL, 'EUR'), (2, 'cps', NULL, 8, 'EUR');
INSERT INTO link (code, offer_id, partner_id) VALUES ('one', 1, 1), ('two', 2, 1), ('three', 1, 2);
"""
ROLLUPS_THAT_LIE = """
SELECT * FROM (
    SELECT quarter, link_id, offer_id, partner_id, country, device,
        sum(clicks)::bigint AS clicks, sum(invalid_clicks)::bigint AS invalid
    FROM click_rollup GROUP BY 1, 2, 3, 4, 5, 6
) AS rolled FULL JOIN (
    SELECT date_bin('15 minutes', uuid_extract_timestamp(id), 'epoch') AS quarter, link_id, offer_id, partner_id,
        country, device, count(*) AS clicks, count(*) FILTER (WHERE click_class = 1) AS invalid
    FROM click GROUP BY 1, 2, 3, 4, 5, 6
) AS raw USING (quarter, link_id, offer_id, partner_id, country, device)
WHERE (rolled.clicks, rolled.invalid) IS DISTINCT FROM (raw.clicks, raw.invalid)
"""
SALES_THAT_LIE = """
SELECT * FROM (
    SELECT quarter, link_id, sum(conversions) AS approved, sum(pending) AS pending, sum(rejected) AS rejected,
        sum(reversed) AS reversed, sum(payout_minor) AS payout, sum(revenue_minor) AS revenue,
        sum(payout_reversed_minor) AS taken_back
    FROM conversion_rollup GROUP BY 1, 2
) AS rolled FULL JOIN (
    SELECT date_bin('15 minutes', event_at, 'epoch') AS quarter, link_id,
        count(*) FILTER (WHERE status = 'approved') AS approved, count(*) FILTER (WHERE status = 'pending') AS pending,
        count(*) FILTER (WHERE status = 'rejected') AS rejected,
        count(*) FILTER (WHERE status = 'reversed') AS reversed,
        coalesce(sum(payout_minor) FILTER (WHERE status = 'approved'), 0) AS payout,
        coalesce(sum(revenue_minor) FILTER (WHERE status = 'approved'), 0) AS revenue,
        coalesce(sum(payout_minor) FILTER (WHERE status = 'reversed'), 0) AS taken_back
    FROM conversion GROUP BY 1, 2
) AS raw USING (quarter, link_id)
WHERE (rolled.approved, rolled.pending, rolled.rejected, rolled.reversed, rolled.payout, rolled.revenue,
       rolled.taken_back)
    IS DISTINCT FROM (raw.approved, raw.pending, raw.rejected, raw.reversed, raw.payout, raw.revenue, raw.taken_back)
"""
FIGURES = """
SELECT (SELECT count(*) FROM click) AS clicks, count(*) AS sales,
    count(*) FILTER (WHERE status = 'approved') AS approved, count(*) FILTER (WHERE status = 'pending') AS pending,
    count(*) FILTER (WHERE status = 'reversed') AS reversed, count(*) FILTER (WHERE status = 'rejected') AS rejected,
    count(*) FILTER (WHERE received_at > event_at + interval '1 day') AS late,
    bool_and(payout_minor = CASE offer_id WHEN 1 THEN 1200 ELSE round(sale_amount_minor * 0.08) END) AS pays_by_terms,
    count(DISTINCT date_bin('1 day', event_at, 'epoch')) AS days,
    bool_and(event_at >= uuid_extract_timestamp(click_id) AND received_at BETWEEN event_at AND now()) AS in_order
FROM conversion
"""


@pytest.fixture(scope="module")
async def filled(shared_database_url: str) -> str:
    db = await asyncpg.connect(shared_database_url)
    await db.execute(PROGRAMME)
    await db.close()
    await history.fill(shared_database_url, 1, LINKS)
    return shared_database_url


@pytest.fixture
async def db(filled: str) -> Connection:
    async with connected(filled, command_timeout_s=10.0, application_name="tests") as connection:
        yield connection


async def test_it_is_two_weeks_of_clicks_and_sales_of_every_kind(db: Connection) -> None:
    found: Mapping[str, Any] = dict(await db.fetchrow(FIGURES))
    assert found == {
        "clicks": CLICKS, "sales": 150, "approved": 114, "pending": 18, "reversed": 12, "rejected": 6, "late": 15,
        "pays_by_terms": True, "days": 14, "in_order": True,
    }  # fmt: skip
    assert sum(kind.number for kind in KINDS) == 150


async def test_its_rollups_say_what_its_rows_say(db: Connection) -> None:
    assert await db.fetchval("SELECT sum(clicks)::bigint FROM click_rollup") == CLICKS
    assert await db.fetch(ROLLUPS_THAT_LIE) == []
    assert await db.fetch(SALES_THAT_LIE) == []


async def test_its_ledger_adds_up_and_has_what_partners_are_owed(db: Connection) -> None:
    assert await ledger.check(db) == []
    owed = "SELECT sum(payout_minor)::bigint FROM conversion WHERE status = 'approved' AND partner_id = 1"
    assert await ledger.balance(db, ledger.partner(1)) == {"EUR": await db.fetchval(owed)}
    kinds = "SELECT kind, count(*) AS n FROM ledger_entry GROUP BY 1 ORDER BY 1"
    assert [tuple(row) for row in await db.fetch(kinds)] == [("accrual", 126), ("reversal", 12)]


async def test_it_ends_at_the_last_midnight_and_some_of_its_visitors_come_again(db: Connection) -> None:
    days = [row[0] for row in await db.fetch("SELECT DISTINCT uuid_extract_timestamp(id)::date FROM click ORDER BY 1")]
    today = datetime.now(UTC).date()
    assert (len(days), (today - days[-1]).days) == (14, 1)
    again = "SELECT count(*) - count(DISTINCT (visitor, offer_id, partner_id)) FROM click WHERE click_class = 0"
    assert 50 < await db.fetchval(again) < CLICKS // 2
