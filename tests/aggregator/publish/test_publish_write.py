import asyncio
import random

import pytest

from aggregator.publish.write import EpochBehind, write
from schemas import links, redis_keys
from schemas.redis import Redis, done

KEY = redis_keys.link("black")


def link(epoch: int, counter: int, status: str = "active") -> links.Link:
    return links.Link(v=(epoch, counter), id=1, code="black", offer_id=1, partner_id=1, status=status)


async def stored(redis: Redis) -> links.Config:
    return links.decode(KEY, await done(redis.get(KEY)))


async def test_an_older_version_loses(redis: Redis) -> None:
    assert await write(redis, {KEY: link(1, 5)}) == 1
    assert await write(redis, {KEY: link(1, 4, "paused")}) == 0
    assert await stored(redis) == link(1, 5)


async def test_a_later_epoch_wins_with_a_lower_counter(redis: Redis) -> None:
    await write(redis, {KEY: link(1, 500)})
    assert await write(redis, {KEY: link(2, 1)}) == 1
    assert await stored(redis) == link(2, 1)


async def test_an_earlier_epoch_is_told_which_one_it_met(redis: Redis) -> None:
    await write(redis, {KEY: link(7, 1)})
    with pytest.raises(EpochBehind) as behind:
        await write(redis, {KEY: link(1, 500)})
    assert behind.value.epoch == 7
    assert await stored(redis) == link(7, 1)


async def test_the_same_value_is_announced_once(redis: Redis) -> None:
    await write(redis, {KEY: link(1, 1)})
    await write(redis, {KEY: link(1, 1)})
    assert await done(redis.get(redis_keys.SEQUENCE)) == b"1"


async def test_a_value_that_is_no_config_is_replaced(redis: Redis) -> None:
    await redis.set(KEY, b"\xffnonsense")
    assert await write(redis, {KEY: link(1, 1)}) == 1


async def test_each_change_is_announced_with_its_sequence_and_key(redis: Redis) -> None:
    await redis.set(redis_keys.SEQUENCE, 1_790_000_000_000_000)
    async with redis.pubsub(ignore_subscribe_messages=True) as stream:
        await stream.subscribe(redis_keys.CHANGES)
        await stream.get_message(timeout=1)
        await write(redis, {KEY: link(1, 1), redis_keys.partner(1): links.Partner(v=(1, 1), id=1, name="", status="")})
        heard = [await stream.get_message(timeout=1) for _ in range(2)]
    assert [message["data"] for message in heard] == [
        b"1790000000000001 link:black",
        b"1790000000000002 partner:1",
    ]


async def test_versions_written_in_any_order_at_once_end_with_the_newest(redis: Redis) -> None:
    versions = [link(1, n, f"state {n}") for n in range(200)]
    random.Random(3).shuffle(versions)
    await asyncio.gather(*(write(redis, {KEY: version}) for version in versions))
    assert await stored(redis) == link(1, 199, "state 199")
