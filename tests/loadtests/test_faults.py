"""The fault proxy itself: every mode does to a real Postgres connection what it says."""

import asyncio
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import asyncpg
import pytest

from loadtests.faults.proxy import FaultProxy


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[FaultProxy]:
    parts = urlsplit(database_url)
    async with FaultProxy(parts.hostname or "127.0.0.1", parts.port or 5432) as proxy:
        yield proxy


@pytest.fixture
def through(database_url: str, proxy: FaultProxy) -> str:
    """The database's url with the proxy in between."""
    parts = urlsplit(database_url)
    user, _, _ = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user}@127.0.0.1:{proxy.port}".lstrip("@")).geturl()


@pytest.fixture
async def direct(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    db = await asyncpg.connect(database_url)
    await db.execute("CREATE TABLE seen (n int)")
    yield db
    await db.close()


async def _insert_in_a_transaction(url: str, n: int) -> None:
    db = await asyncpg.connect(url)
    try:
        async with db.transaction():
            await db.execute("INSERT INTO seen VALUES ($1)", n)
    finally:
        db.terminate()


LOST = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)


async def test_a_commit_cut_after_the_server_answered_has_happened(
    proxy: FaultProxy, through: str, direct: asyncpg.Connection
) -> None:
    proxy.cut_on(b"COMMIT", forward=True)
    with pytest.raises(LOST):
        await _insert_in_a_transaction(through, 1)
    assert await direct.fetchval("SELECT count(*) FROM seen") == 1
    assert proxy.cuts == 1


async def test_a_commit_cut_before_the_server_saw_it_has_not_happened(
    proxy: FaultProxy, through: str, direct: asyncpg.Connection
) -> None:
    proxy.cut_on(b"COMMIT", forward=False)
    with pytest.raises(LOST):
        await _insert_in_a_transaction(through, 1)
    await asyncio.sleep(0.1)
    assert await direct.fetchval("SELECT count(*) FROM seen") == 0
    assert proxy.cuts == 1


async def test_a_cut_happens_as_often_as_asked_and_then_the_proxy_passes_everything(
    proxy: FaultProxy, through: str, direct: asyncpg.Connection
) -> None:
    proxy.cut_on(b"COMMIT", forward=True, times=2)
    for n in range(2):
        with pytest.raises(LOST):
            await _insert_in_a_transaction(through, n)
    await _insert_in_a_transaction(through, 2)
    assert await direct.fetchval("SELECT array_agg(n ORDER BY n) FROM seen") == [0, 1, 2]
    assert proxy.cuts == 2


async def test_refuse_ends_what_is_open_and_refuses_what_comes_until_it_passes_again(
    proxy: FaultProxy, through: str
) -> None:
    db = await asyncpg.connect(through)
    port, proxy.mode = proxy.port, "refuse"
    with pytest.raises(LOST):
        await db.fetchval("SELECT 1")
    db.terminate()
    with pytest.raises(ConnectionRefusedError):
        await asyncpg.connect(through)
    proxy.mode = "pass"
    assert proxy.port == port
    db = await asyncpg.connect(through)
    assert await db.fetchval("SELECT 1") == 1
    await db.close()


async def test_reset_accepts_and_then_resets(proxy: FaultProxy, through: str) -> None:
    proxy.mode = "reset"
    with pytest.raises(LOST):
        await asyncpg.connect(through)


async def test_a_blackhole_answers_nothing_and_delivers_what_waited_when_it_opens(
    proxy: FaultProxy, through: str
) -> None:
    db = await asyncpg.connect(through)
    proxy.mode = "blackhole"
    waiting = asyncio.create_task(db.fetchval("SELECT 7"))
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    proxy.mode = "pass"
    assert await asyncio.wait_for(waiting, 5) == 7
    await db.close()


async def test_latency_delays_each_way(proxy: FaultProxy, through: str) -> None:
    db = await asyncpg.connect(through)
    proxy.latency_ms, proxy.mode = 100, "latency"
    began = time.monotonic()
    await db.execute("SELECT 1")
    assert time.monotonic() - began >= 0.2
    proxy.mode = "pass"
    await db.close()


async def test_a_dropped_reply_leaves_the_connection_open_and_silent(proxy: FaultProxy, through: str) -> None:
    db = await asyncpg.connect(through)
    proxy.drop_replies(1)
    with pytest.raises(TimeoutError):
        await db.execute("SELECT 1", timeout=0.3)
    db.terminate()
