import os
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import aiohttp
import pytest

from aggregator.api import keys
from aggregator.api.app import application, open_api
from aggregator.conversions.settle import settle
from aggregator.db.connect import Connection, connect
from loadtests.faults.proxy import FaultProxy
from schemas import limits
from schemas.click_id import uuid7_bytes
from schemas.conversions.names import conversion_id
from schemas.events import Conversion
from schemas.http import serving
from schemas.redis import Redis, publishing
from schemas.settings import ApiSettings

PUBLIC_URL = "https://go.example"


@dataclass(frozen=True)
class Client:
    """Calls with a key; answers (status, body)."""

    session: aiohttp.ClientSession
    key: str

    async def __call__(self, method: str, path: str, **request: Any) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.key}"} | request.pop("headers", {})
        async with self.session.request(method, path, headers=headers, **request) as answer:
            return answer.status, await answer.json()

    def with_key(self, key: str) -> "Client":
        return Client(self.session, key)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Connection]:
    connection = await connect(database_url, command_timeout_s=5)
    yield connection
    await connection.close()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with publishing(redis_url) as client:
        yield client


@pytest.fixture
def settings(database_url: str, redis_url: str) -> ApiSettings:
    return ApiSettings(database_url=database_url, redis_url=redis_url, public_url=PUBLIC_URL)


@asynccontextmanager
async def answering(settings: ApiSettings) -> AsyncIterator[aiohttp.ClientSession]:
    """An API that runs, and a session to call it with."""
    sock = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    async with open_api(settings) as api, serving(application(api), sock), aiohttp.ClientSession(url) as client:
        yield client


def proxy_of(url: str) -> FaultProxy:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return FaultProxy(parts.hostname, parts.port)


def proxied(url: str, proxy: FaultProxy) -> str:
    return re.sub(r"@[^/]+/", f"@127.0.0.1:{proxy.port}/", url)


@pytest.fixture
async def session(settings: ApiSettings) -> AsyncIterator[aiohttp.ClientSession]:
    async with answering(settings) as client:
        yield client


@pytest.fixture
async def admin(session: aiohttp.ClientSession, db: Connection) -> Client:
    wanted = keys.Wanted("admin", requests_per_minute=limits.REQUESTS_PER_MINUTE_MAX)
    return Client(session, (await keys.create(db, wanted)).key)


@dataclass(frozen=True)
class Made:
    """A small programme, made through the API."""

    advertiser_id: int
    token: str
    partner_id: int
    offer_id: int
    link_id: int
    code: str


@pytest.fixture
async def made(admin: Client) -> Made:
    _, advertiser = await admin("POST", "/v1/advertisers", json={"name": "Shop"})
    _, partner = await admin("POST", "/v1/partners", json={"name": "Blog"})
    _, offer = await admin("POST", "/v1/offers", json=offer_body(advertiser["id"]))
    _, link = await admin("POST", "/v1/links", json={"offer_id": offer["id"], "partner_id": partner["id"]})
    return Made(advertiser["id"], advertiser["token"], partner["id"], offer["id"], link["id"], link["code"])


async def sold(db: Connection, made: Made, order_id: str = "order-1", **said: Any) -> UUID:
    """A sale of 100.00 EUR on a click of the link, settled; `said` is what its sender says besides."""
    now_ms = time.time_ns() // 1_000_000
    event = conversion(made, now_ms, order_id, **said)
    async with db.transaction():
        await settle(db, [event], 0)
    return event.conversion_id


def conversion(made: Made, now_ms: int, order_id: str, **said: Any) -> Conversion:
    """What an edge writes of a sale, a minute after its click."""
    click = UUID(bytes=uuid7_bytes(now_ms - 60_000, os.urandom(10)))
    told: dict[str, Any] = {
        "conversion_id": conversion_id("advertiser", made.advertiser_id, made.offer_id, "sale", order_id, click),
        "event": "sale", "event_at_ms": now_ms, "amount_minor": 10_000, "currency": "EUR", "door": "postback",
        "raw": f"order_id={order_id}&token=***", "dialect": "clickdam", "click_class": 0, "click_uuid": click,
    }  # fmt: skip
    return Conversion(
        v=1, intake_id=UUID(bytes=uuid7_bytes(now_ms, os.urandom(10))), link_id=made.link_id, offer_id=made.offer_id,
        partner_id=made.partner_id, advertiser_id=made.advertiser_id, order_id=order_id, **(told | said),
    )  # fmt: skip


def offer_body(advertiser_id: int, **changed: Any) -> dict[str, Any]:
    return {
        "advertiser_id": advertiser_id,
        "name": "Shoes",
        "destination_url": "https://shop.example/?click={click_id}",
        "payout": {"model": "cpa", "amount_minor": 425, "currency": "EUR"},
    } | changed


async def state(db: Connection) -> dict[str, tuple[int, str]]:
    """All rows of all tables, as a count and a hash by table, but for when keys were last used."""
    tables = await db.fetch(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    )
    return {row["relname"]: await _rows(db, row["relname"]) for row in tables}


async def _rows(db: Connection, table: str) -> tuple[int, str]:
    row = await db.fetchrow(
        f"SELECT count(*), coalesce(md5(string_agg(text, '' ORDER BY text)), '')"
        f" FROM (SELECT (to_jsonb({table}) - 'last_used_at')::text AS text FROM {table}) AS found"
    )
    assert row is not None
    return row[0], row[1]
