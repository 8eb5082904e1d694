from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from aggregator.db.connect import Connection, Pool, connect
from aggregator.db.connect import pool as open_pool
from schemas.redis import Redis, publishing


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Connection]:
    connection = await connect(database_url, command_timeout_s=5)
    yield connection
    await connection.close()


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    async with open_pool(database_url) as connections:
        yield connections


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with publishing(redis_url) as client:
        yield client


@dataclass(frozen=True)
class Rows:
    advertiser_id: int
    partner_id: int
    offer_id: int
    link_id: int


@pytest.fixture
async def rows(db: Connection) -> Rows:
    """One of each, not in the outbox."""
    advertiser = await db.fetchval(
        "INSERT INTO advertiser (name, token_sha256) VALUES ('Shop', sha256('token')) RETURNING id"
    )
    partner = await db.fetchval("INSERT INTO partner (name) VALUES ('Blog') RETURNING id")
    offer = await db.fetchval(
        "INSERT INTO offer (advertiser_id, name, destination_url, currency)"
        " VALUES ($1, 'Shoes', 'https://shop.example/', 'EUR') RETURNING id",
        advertiser,
    )
    link = await db.fetchval(
        "INSERT INTO link (code, offer_id, partner_id) VALUES ('black', $1, $2) RETURNING id", offer, partner
    )
    return Rows(advertiser, partner, offer, link)


@pytest.fixture
def set_status(db: Connection) -> Callable[..., object]:
    """Change a link as the API does, with its outbox entry."""

    async def change(link_id: int, status: str) -> None:
        async with db.transaction():
            await db.execute("UPDATE link SET status = $2, version = version + 1 WHERE id = $1", link_id, status)
            await db.execute("INSERT INTO outbox (kind, row_id) VALUES ('link', $1)", link_id)

    return change
