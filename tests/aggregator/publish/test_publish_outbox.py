import asyncio
from typing import Any

import pytest

from aggregator.db.connect import Connection, Pool, connect
from aggregator.publish.outbox import drain, enqueue, publish_now
from schemas import links, redis_keys
from schemas.redis import Redis, RedisError, done, publishing

LINK = redis_keys.link("black")
TOKEN_SHA256 = "3c469e9d6c5875d37a43f353d4f88e61fcf812c66eee3457465a40b0da4153e0"


async def test_a_drained_change_is_in_redis_and_out_of_the_queue(db: Connection, redis: Redis, rows: Any) -> None:
    for kind, row_id in (("link", rows.link_id), ("offer", rows.offer_id), ("advertiser", rows.advertiser_id)):
        await enqueue(db, kind, row_id)  # type: ignore[arg-type]
    assert await drain(db, redis) == 3
    assert await drain(db, redis) == 0
    link = links.decode(LINK, await done(redis.get(LINK)))
    assert link == links.Link(
        v=(1, 1), id=rows.link_id, code="black", offer_id=rows.offer_id, partner_id=rows.partner_id, status="active"
    )
    assert await done(redis.exists(redis_keys.offer(rows.offer_id), redis_keys.advertiser(TOKEN_SHA256))) == 2


async def test_a_change_stays_queued_while_redis_is_away(db: Connection, pool: Pool, rows: Any) -> None:
    await enqueue(db, "link", rows.link_id)
    async with publishing("redis://127.0.0.1:1/0") as away:
        with pytest.raises(RedisError):
            await drain(db, away)
        assert await publish_now(pool, away, [("link", rows.link_id)]) is False
    assert await db.fetchval("SELECT count(*) FROM outbox") == 1


async def test_a_published_link_brings_its_offer_and_partner(pool: Pool, redis: Redis, rows: Any) -> None:
    assert await publish_now(pool, redis, [("link", rows.link_id)]) is True
    wanted = (LINK, redis_keys.offer(rows.offer_id), redis_keys.partner(rows.partner_id))
    assert await done(redis.exists(*wanted)) == 3


async def test_an_advertiser_is_found_by_its_token_its_id_and_its_pixel(
    db: Connection, pool: Pool, redis: Redis, rows: Any
) -> None:
    await db.execute(
        "UPDATE advertiser SET version = 2, dialect = 'keitaro', decimal_separator = ',',"
        ' status_map = \'{"ok": "approved"}\','
        " networks = '{192.0.2.0/24}', signing_key = 'key', signature_required = true, postbacks_per_minute = 7,"
        " pixel_key = 'px1', pixel_origins = '{https://shop.example}', foreign_clicks_until = '2026-12-01T00:00Z'"
    )
    await publish_now(pool, redis, [("advertiser", rows.advertiser_id)])
    keys = [
        redis_keys.advertiser(TOKEN_SHA256),
        redis_keys.advertiser_by_id(rows.advertiser_id),
        redis_keys.pixel("px1"),
    ]
    found = [links.decode(key, await done(redis.get(key))) for key in keys]
    advertiser = links.Advertiser(
        v=(1, 2), id=rows.advertiser_id, status="active", dialect="keitaro", decimal_separator=",",
        status_map={"ok": "approved"}, networks=("192.0.2.0/24",), signing_key="key", signature_required=True,
        postbacks_per_minute=7, pixel_key="px1", pixel_origins=("https://shop.example",),
        foreign_clicks_until_ms=1_796_083_200_000,
    )  # fmt: skip
    assert found == [advertiser, advertiser, links.Reference(v=(1, 2), id=rows.advertiser_id)]


async def test_what_conversions_are_judged_by_goes_with_the_offer_and_a_test_with_its_link(
    db: Connection, pool: Pool, redis: Redis, rows: Any
) -> None:
    await db.execute(
        'UPDATE offer SET scopes = \'[{"valid_from": 5, "scope": "offer"}]\', amount_max_minor = 100,'
        " payout_override_max_minor = 0"
    )
    await db.execute("UPDATE link SET test = true")
    await publish_now(pool, redis, [("link", rows.link_id)])
    offer = links.decode(redis_keys.offer(rows.offer_id), await done(redis.get(redis_keys.offer(rows.offer_id))))
    link = links.decode(LINK, await done(redis.get(LINK)))
    assert isinstance(offer, links.Offer)
    assert isinstance(link, links.Link)
    assert offer.scopes == (links.ScopeFrom(valid_from=5, scope="offer"),)
    assert (offer.amount_max_minor, offer.payout_override_max_minor, link.test) == (100, 0, True)


async def test_an_epoch_that_is_behind_is_not_live(db: Connection, pool: Pool, redis: Redis, rows: Any) -> None:
    await db.execute("UPDATE publishing SET epoch = 9")
    await publish_now(pool, redis, [("link", rows.link_id)])
    await db.execute("UPDATE publishing SET epoch = 3")
    assert await publish_now(pool, redis, [("link", rows.link_id)]) is False


async def test_a_row_that_is_no_config_keeps_no_other_from_redis_and_nothing_that_was_published_out_of_it(
    db: Connection, pool: Pool, redis: Redis, rows: Any
) -> None:
    await publish_now(pool, redis, [("link", rows.link_id)])
    await db.execute('UPDATE offer SET targeting = \'{"moon": ["full"]}\', version = version + 1')
    await db.execute("UPDATE link SET status = 'paused', version = version + 1")
    await enqueue(db, "offer", rows.offer_id)
    await enqueue(db, "link", rows.link_id)
    assert await publish_now(pool, redis, [("link", rows.link_id)]) is True
    assert await drain(db, redis) == 2
    link = links.decode(LINK, await done(redis.get(LINK)))
    offer = links.decode(redis_keys.offer(rows.offer_id), await done(redis.get(redis_keys.offer(rows.offer_id))))
    assert isinstance(link, links.Link)
    assert (link.status, offer.v) == ("paused", (1, 1))


async def test_two_publishers_and_the_api_at_once_end_with_the_last_change(
    database_url: str, db: Connection, pool: Pool, redis: Redis, rows: Any, set_status: Any
) -> None:
    others = [await connect(database_url, command_timeout_s=5) for _ in range(2)]
    running = True

    async def keep_draining(other: Connection) -> None:
        while running:
            await drain(other, redis)

    drains = [asyncio.create_task(keep_draining(other)) for other in others]
    for n in range(100):
        await set_status(rows.link_id, "paused" if n % 2 else "active")
        if n % 3 == 0:
            await publish_now(pool, redis, [("link", rows.link_id)])
    while await db.fetchval("SELECT EXISTS (SELECT FROM outbox)"):
        await asyncio.sleep(0.01)
    running = False
    await asyncio.gather(*drains)
    link = links.decode(LINK, await done(redis.get(LINK)))
    assert isinstance(link, links.Link)
    assert (link.v, link.status) == ((1, 101), "paused")
    for other in others:
        await other.close()
