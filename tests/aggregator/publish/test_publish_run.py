import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, get_args
from zlib import crc32

import msgspec
import pytest
from prometheus_client import REGISTRY

from aggregator.db.connect import Connection
from aggregator.publish import outbox
from aggregator.publish.agreement import FORM
from aggregator.publish.run import run
from schemas import limits, links, redis_keys
from schemas.redis import Redis, RedisError, done

LINK = redis_keys.link("black")


@contextlib.asynccontextmanager
async def publisher(database_url: str, redis_url: str) -> AsyncIterator[None]:
    task = asyncio.create_task(run(database_url, redis_url))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(holds: Callable[[], Awaitable[Any]], within_s: float = 8) -> float:
    started = time.monotonic()
    while True:
        with contextlib.suppress(*RedisError):
            if await holds():
                return time.monotonic() - started
        assert time.monotonic() - started < within_s
        await asyncio.sleep(0.02)


async def complete(redis: Redis) -> bool:
    return bool(await done(redis.exists(redis_keys.COMPLETE)))


async def knows_changes(redis: Redis) -> bool:
    """Whether a beat has taken the outbox's counter along."""
    return int(await done(redis.hget(redis_keys.STATE, "changes")) or 0) > 0


async def link_in(redis: Redis) -> links.Link | None:
    value = await done(redis.get(LINK))
    return None if value is None else msgspec.json.decode(value, type=links.Link)


@pytest.fixture
async def published(database_url: str, redis_url: str, redis: Redis, rows: Any) -> AsyncIterator[Any]:
    async with publisher(database_url, redis_url):
        await until(lambda: complete(redis))
        yield rows


async def test_a_fresh_redis_is_filled_before_it_is_called_complete(published: Any, redis: Redis) -> None:
    wanted = (LINK, redis_keys.offer(published.offer_id), redis_keys.partner(published.partner_id))
    assert await done(redis.exists(*wanted, redis_keys.PROGRAMME)) == 4
    assert await link_in(redis) is not None


async def test_a_change_gets_from_postgres_to_redis_within_a_second(
    published: Any, redis: Redis, set_status: Any
) -> None:
    await set_status(published.link_id, "paused")

    async def paused() -> bool:
        link = await link_in(redis)
        return link is not None and link.status == "paused"

    assert await until(paused) < 1


async def test_an_error_of_postgres_is_waited_for(
    published: Any, redis: Redis, set_status: Any, db: Connection
) -> None:
    """A standby that is not promoted yet, a table that a migration holds: whatever it is, it may be over soon."""
    await db.execute("ALTER TABLE publishing RENAME TO publishing_later")
    await asyncio.sleep(2)
    await db.execute("ALTER TABLE publishing_later RENAME TO publishing")
    await set_status(published.link_id, "paused")
    await until(status_is(redis, "paused"))
    assert await complete(redis)


async def test_the_stream_beats_each_second_with_the_sequence(published: Any, redis: Redis) -> None:
    async with redis.pubsub(ignore_subscribe_messages=True) as stream:
        await stream.subscribe(redis_keys.CHANGES)
        beats = []
        while len(beats) < 2:
            message = await stream.get_message(timeout=1.9)
            beats += [message["data"]] if message else []
    sequence = await done(redis.get(redis_keys.SEQUENCE))
    assert beats == [sequence + b" "] * 2


async def test_an_emptied_redis_fills_itself_and_its_sequence_jumps(published: Any, redis: Redis) -> None:
    before = int(await done(redis.get(redis_keys.SEQUENCE)))
    await done(redis.flushall())
    await until(lambda: complete(redis))
    assert await link_in(redis) is not None
    assert int(await done(redis.get(redis_keys.SEQUENCE))) > before + 1


async def test_an_emptied_redis_fills_itself_also_while_the_outbox_never_runs_empty(
    published: Any, redis: Redis, db: Connection
) -> None:
    """As during a large import."""

    async def keep_busy() -> None:
        while True:
            if await db.fetchval("SELECT count(*) FROM outbox") < 20_000:
                await db.execute("INSERT INTO outbox (kind, row_id) SELECT 'offer', 1 FROM generate_series(1, 40000)")
            await asyncio.sleep(0.02)

    busy = asyncio.create_task(keep_busy())
    try:
        await asyncio.sleep(0.5)
        await done(redis.flushall())
        took_s = await until(lambda: complete(redis), 30)
    finally:
        busy.cancel()
    print(f"filled again in {took_s:.1f} s while changes kept coming")
    assert await link_in(redis) is not None


async def test_a_lost_sequence_is_repaired(published: Any, redis: Redis) -> None:
    before = int(await done(redis.get(redis_keys.SEQUENCE)))
    await redis.set(redis_keys.SEQUENCE, 3)

    async def ahead() -> bool:
        return int(await done(redis.get(redis_keys.SEQUENCE))) > before

    await until(ahead)


async def test_a_change_made_while_redis_was_empty_and_no_publisher_ran_is_there_before_the_marker(
    database_url: str, redis_url: str, redis: Redis, rows: Any, set_status: Any
) -> None:
    async with publisher(database_url, redis_url):
        await until(lambda: complete(redis))
    await done(redis.delete(redis_keys.COMPLETE))
    await set_status(rows.link_id, "paused")
    async with publisher(database_url, redis_url):
        await until(lambda: complete(redis))
        link = await link_in(redis)
        assert link is not None
        assert link.status == "paused"


async def test_a_postgres_taken_back_raises_its_epoch_and_wins(
    database_url: str, redis_url: str, redis: Redis, db: Connection, rows: Any, set_status: Any
) -> None:
    async with publisher(database_url, redis_url):
        await until(lambda: complete(redis))
        await set_status(rows.link_id, "paused")
        await until(status_is(redis, "paused"))
        await until(lambda: knows_changes(redis))
    first = (await link_in(redis)).v  # type: ignore[union-attr]
    # what a restore of last night's dump into the same cluster does
    await db.execute("UPDATE link SET status = 'active', version = 1 WHERE id = $1", rows.link_id)
    await db.execute("SELECT setval('outbox_id_seq', 1, false)")
    async with publisher(database_url, redis_url):
        await until(status_is(redis, "active"))
    now = (await link_in(redis)).v  # type: ignore[union-attr]
    assert now[0] > first[0]
    assert now[1] == 1


async def test_what_a_restored_postgres_does_not_know_is_taken_out(
    database_url: str, redis_url: str, redis: Redis, db: Connection, rows: Any
) -> None:
    async with publisher(database_url, redis_url):
        await until(lambda: complete(redis))
    await db.execute("DELETE FROM link")
    await db.execute("UPDATE publishing SET timeline = 99")
    await done(redis.delete(redis_keys.COMPLETE))
    async with publisher(database_url, redis_url):
        await until(lambda: complete(redis))
    assert await link_in(redis) is None


async def test_what_an_earlier_version_filled_is_filled_again_with_what_it_did_not_know(
    database_url: str, redis_url: str, redis: Redis, db: Connection, rows: Any
) -> None:
    await db.execute(
        "INSERT INTO reference (kind, name, target_id, imported) VALUES ('offer', 'shoes', $1, true)", rows.offer_id
    )
    async with publisher(database_url, redis_url):
        await until(lambda: complete(redis))
    await done(redis.hdel(redis_keys.STATE, "form"))
    await done(redis.delete(redis_keys.offer_reference("shoes"), redis_keys.COMPLETE))
    async with publisher(database_url, redis_url):
        await until(lambda: complete(redis))
    assert await done(redis.exists(redis_keys.offer_reference("shoes")))


def test_new_kinds_and_fields_of_what_is_published_have_a_form_of_their_own() -> None:
    """Who changes them raises FORM: what an older publisher took from the outbox is then filled again."""
    configs = sorted(get_args(links.Config), key=lambda config: config.__name__)
    published = [*sorted(links.KEY_KINDS), *((config.__name__, config.__struct_fields__) for config in configs)]
    assert (FORM, crc32(repr(published).encode())) == (3, 1063936061)


async def test_a_refill_that_was_broken_off_is_not_vouched_for_and_is_done_again(
    database_url: str, redis_url: str, redis: Redis, db: Connection, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await db.execute(
        "INSERT INTO link (code, offer_id, partner_id) SELECT 'c' || n, $1, $2 FROM generate_series(1, 1000) n",
        rows.offer_id, rows.partner_id,
    )  # fmt: skip
    keys = [redis_keys.link(f"c{n}") for n in range(1, 1001)]
    monkeypatch.setattr(limits, "REFILL_BATCH", 100)
    monkeypatch.setattr(limits, "REFILL_VALUES_PER_S", 300)

    async def has_some() -> bool:
        return bool(await done(redis.exists(*keys)))

    async with publisher(database_url, redis_url):
        await until(has_some)
    assert await done(redis.exists(*keys)) < len(keys)
    assert not await complete(redis)
    monkeypatch.setattr(limits, "REFILL_VALUES_PER_S", 20_000)
    async with publisher(database_url, redis_url):
        await until(lambda: complete(redis))
    assert await done(redis.exists(*keys)) == len(keys)


async def test_two_publishers_repair_an_emptied_redis_together(
    database_url: str, redis_url: str, redis: Redis, rows: Any
) -> None:
    async with publisher(database_url, redis_url), publisher(database_url, redis_url):
        await until(lambda: complete(redis))
        for _ in range(3):
            await done(redis.flushall())
            await until(lambda: complete(redis))
            assert await link_in(redis) is not None
        await asyncio.sleep(1.5)
        assert await complete(redis)


async def test_the_publisher_tells_how_it_stands(published: Any, redis: Redis, set_status: Any, db: Connection) -> None:
    written = told("clickdam_published_values_total")
    await set_status(published.link_id, "paused")
    await until(status_is(redis, "paused"))
    assert told("clickdam_published_values_total") == written + 1
    assert time.time() - told("clickdam_vouched_timestamp_seconds") < 5
    assert told("clickdam_epoch") == await db.fetchval("SELECT epoch FROM publishing")
    assert told("clickdam_refilling_values") == 0
    assert told("clickdam_refill_seconds") > 0


async def test_the_outbox_tells_how_much_waits_and_since_when(db: Connection) -> None:
    await outbox.measure(db)
    assert (told("clickdam_outbox_entries"), told("clickdam_outbox_oldest_age_seconds")) == (0, 0)
    await db.execute("INSERT INTO outbox (kind, row_id, queued_at) VALUES ('link', 1, now() - interval '1 minute')")
    await outbox.measure(db)
    assert told("clickdam_outbox_entries") == 1
    assert 60 <= told("clickdam_outbox_oldest_age_seconds") < 90


def told(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


def status_is(redis: Redis, status: str) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        link = await link_in(redis)
        return link is not None and link.status == status

    return holds
