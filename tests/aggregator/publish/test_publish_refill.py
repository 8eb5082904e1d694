"""A refill: what a click needs first, links in use before the others, at a bounded pace."""

import time
from typing import Any

import pytest

from aggregator.db.connect import Connection
from aggregator.publish import refill
from aggregator.publish.agreement import settle_source
from schemas import limits, links, redis_keys
from schemas.redis import Redis, done

CLICKED = """
INSERT INTO click_rollup (quarter, link_id, offer_id, partner_id, country, device, shard, clicks, invalid_clicks)
SELECT now() - make_interval(hours => $2), id, offer_id, partner_id, 'DE', 'phone', shard, $3, 0
FROM link, generate_series(0, 1) AS shard WHERE code = $1
"""


@pytest.fixture
async def links_of_ours(db: Connection, rows: Any) -> None:
    await db.execute(
        "INSERT INTO link (code, offer_id, partner_id) SELECT 'c' || n, $1, $2 FROM generate_series(1, 20) n",
        rows.offer_id,
        rows.partner_id,
    )


async def order_of_keys(db: Connection) -> list[str]:
    return [key async for configs in refill._everything(db, 1) for key in configs]


async def test_links_in_use_come_first_most_used_before_all_and_each_link_once(
    db: Connection, links_of_ours: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code, hours_ago, clicks in (("c3", 0, 10), ("c17", 1, 30), ("c5", 2, 20), ("c9", 30, 900)):
        await db.execute(CLICKED, code, hours_ago, clicks)
    await db.execute("UPDATE click_rollup SET link_id = 0 WHERE clicks = 900")
    monkeypatch.setattr(limits, "REFILL_BATCH", 1)
    keys = await order_of_keys(db)
    codes = [key.removeprefix("link:") for key in keys if key.startswith("link:")]
    assert codes[:5] == ["c17", "c5", "c3", "c20", "c19"]
    assert sorted(codes) == sorted(["black", *(f"c{n}" for n in range(1, 21))])
    kinds = list(dict.fromkeys(key.partition(":")[0] for key in keys))
    assert kinds == ["programme", "advertiser", "advertiser_id", "partner", "offer", "link"]


async def test_a_refill_goes_on_without_knowing_what_is_in_use(
    db: Connection, links_of_ours: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refill, "_USED", "SELECT 1 AS link_id FROM pg_sleep(9) WHERE $1 > 0.0 AND $2 > 0")
    monkeypatch.setattr(limits, "REFILL_USED_QUERY_S", 0.05)
    assert len(await order_of_keys(db)) == 26


async def test_a_refill_keeps_its_pace(
    db: Connection, redis: Redis, links_of_ours: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REFILL_BATCH", 5)
    monkeypatch.setattr(limits, "REFILL_VALUES_PER_S", 50)
    began = time.monotonic()
    assert await refill.refill(db, redis, await settle_source(db, redis))
    assert time.monotonic() - began >= 25 / 50
    link = links.decode(redis_keys.link("c7"), await done(redis.get(redis_keys.link("c7"))))
    assert link.v == (1, 1) or link.v[1] == 1


async def test_more_values_than_one_script_takes_are_all_written(
    db: Connection, redis: Redis, links_of_ours: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WRITE_AT_ONCE", 3)
    assert await refill.refill(db, redis, await settle_source(db, redis))
    assert await done(redis.exists(*(redis_keys.link(f"c{n}") for n in range(1, 21)))) == 20
