"""Whatever order reads and writes of several publishers, changes, restores and losses come in: in the end Redis is what
Postgres says, in the highest epoch there was, and nothing that is written late changes that."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from aggregator.db.connect import Connection
from aggregator.publish.agreement import is_filled, settle_source, vouch
from aggregator.publish.denormalise import current
from aggregator.publish.outbox import drain, enqueue
from aggregator.publish.refill import refill
from aggregator.publish.write import EpochBehind, write
from schemas import links, redis_keys
from schemas.redis import Redis, done

pytestmark = pytest.mark.timeout(120)

CODES = ("a", "b", "c")
PUBLISHERS = 2
_LINK, _PUBLISHER = st.sampled_from(CODES), st.integers(0, PUBLISHERS - 1)
MOVES = st.one_of(
    st.tuples(st.just("change"), _LINK, st.sampled_from(["active", "paused", "archived"])),
    st.tuples(st.just("read"), _PUBLISHER, _LINK),
    st.tuples(st.just("write"), _PUBLISHER),
    *(st.tuples(st.just(name)) for name in ("drain", "publish", "back_up", "restore", "empty")),
)


@dataclass
class House:
    """A Postgres with links, a Redis, publishers that hold what they read and have not written yet."""

    db: Connection
    redis: Redis
    rows: Any
    held: list[dict[str, links.Config]] = field(default_factory=lambda: [{} for _ in range(PUBLISHERS)])

    async def begin(self) -> None:
        await done(self.redis.flushall())
        await self.db.execute("DROP TABLE IF EXISTS was_link, was_outbox, was_publishing")
        await self.db.execute("TRUNCATE outbox, link")
        await self.db.execute("UPDATE publishing SET epoch = 1, timeline = 0")
        await self.publish()
        await self.back_up()

    async def change(self, code: str, status: str) -> None:
        """A link is made by its first change."""
        async with self.db.transaction():
            link_id = await self.db.fetchval(
                "INSERT INTO link (code, offer_id, partner_id, status) VALUES ($1, $2, $3, $4)"
                " ON CONFLICT ON CONSTRAINT link_code_key DO UPDATE SET status = $4, version = link.version + 1"
                " RETURNING id",
                code, self.rows.offer_id, self.rows.partner_id, status,
            )  # fmt: skip
            await enqueue(self.db, "link", link_id)

    async def read(self, publisher: int, code: str) -> None:
        epoch = await self.db.fetchval("SELECT epoch FROM publishing")
        ids = await self.db.fetch("SELECT id FROM link WHERE code = $1", code)
        self.held[publisher] |= await current(self.db, "link", [row["id"] for row in ids], epoch)

    async def write(self, publisher: int) -> None:
        with contextlib.suppress(EpochBehind):
            await write(self.redis, self.held[publisher])

    async def drain(self) -> None:
        with contextlib.suppress(EpochBehind):
            await drain(self.db, self.redis)

    async def back_up(self) -> None:
        for table in ("link", "outbox", "publishing"):
            await self.db.execute(f"DROP TABLE IF EXISTS was_{table}; CREATE TABLE was_{table} AS TABLE {table}")

    async def restore(self) -> None:
        """To what was backed up, on another timeline."""
        await self.db.execute(
            "TRUNCATE outbox, link; INSERT INTO link OVERRIDING SYSTEM VALUE TABLE was_link;"
            "INSERT INTO outbox OVERRIDING SYSTEM VALUE TABLE was_outbox;"
            "UPDATE publishing SET epoch = (SELECT epoch FROM was_publishing), timeline = -1"
        )

    async def empty(self) -> None:
        await done(self.redis.flushall())

    async def publish(self) -> None:
        """What a publisher does until it may vouch for Redis."""
        epoch = 0
        for _ in range(10):
            source = await settle_source(self.db, self.redis, epoch)
            try:
                if await is_filled(self.redis, source, 0) or await refill(self.db, self.redis, source):
                    while await drain(self.db, self.redis):
                        pass
                    assert await vouch(self.redis, source, 0, 2**40)
                    return
            except EpochBehind as behind:
                epoch = behind.epoch
        raise AssertionError("does not settle")

    async def published(self) -> dict[str, tuple[links.Version, str]]:
        found = {}
        for key in sorted(await done(self.redis.keys("link:*"))):
            link = links.decode(key.decode(), await done(self.redis.get(key)))
            assert isinstance(link, links.Link)
            found[link.code] = (link.v, link.status)
        return found

    async def wanted(self) -> dict[str, tuple[links.Version, str]]:
        epoch = await self.db.fetchval("SELECT epoch FROM publishing")
        rows = await self.db.fetch("SELECT code, version, status FROM link ORDER BY code")
        return {row["code"]: ((epoch, row["version"]), row["status"]) for row in rows}


A, DRAIN, PUBLISH, BACK_UP, RESTORE = ("change", "a", "active"), ("drain",), ("publish",), ("back_up",), ("restore",)


@example(moves=[A, DRAIN, ("read", 0, "a"), ("change", "a", "paused"), DRAIN])  # written late
@example(moves=[A, DRAIN, BACK_UP, ("change", "a", "paused"), DRAIN, RESTORE])  # a lower version wins by its epoch
@example(moves=[A, ("read", 0, "a"), RESTORE])  # nobody's link, written late
@example(moves=[RESTORE, PUBLISH, A, ("empty",), DRAIN, RESTORE])  # an epoch that only what is lost remembers
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=st.lists(MOVES, min_size=5, max_size=50))
async def test_the_newest_of_the_highest_epoch_wins_and_what_comes_late_loses(
    db: Connection, redis: Redis, rows: Any, moves: list[tuple[Any, ...]]
) -> None:
    house = House(db, redis, rows)
    await house.begin()
    for name, *args in moves:
        await getattr(house, name)(*args)
    await house.publish()
    wanted = await house.wanted()
    assert await house.published() == wanted
    for publisher in range(PUBLISHERS):
        await house.write(publisher)
    assert await house.published() == wanted
    assert await done(redis.exists(redis_keys.COMPLETE))
