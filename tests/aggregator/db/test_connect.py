import asyncio
import re
from pathlib import Path

import pytest

import aggregator
from aggregator.db.connect import DatabaseAway, acquire, connect, pool
from schemas import limits
from schemas.errors import Refused

NOBODY = "postgresql://postgres@127.0.0.1:1/none"


async def test_a_connection_speaks_utc_and_reads_jsonb_as_values(database_url: str) -> None:
    db = await connect(database_url, command_timeout_s=5)
    assert await db.fetchval("SHOW timezone") == "UTC"
    assert await db.fetchval("SHOW tcp_keepalives_idle") == "5"
    assert await db.fetchval("SELECT $1::jsonb", {"sub1": "ä"}) == {"sub1": "ä"}
    await db.close()


async def test_no_server_is_postgres_away() -> None:
    with pytest.raises(DatabaseAway):
        await connect(NOBODY, command_timeout_s=1)


async def test_a_terminated_connection_is_postgres_away(database_url: str) -> None:
    db, killer = await connect(database_url, command_timeout_s=5), await connect(database_url, command_timeout_s=5)
    await killer.execute("SELECT pg_terminate_backend($1)", db.get_server_pid())
    with pytest.raises(DatabaseAway):
        await db.fetchval("SELECT pg_sleep(1)")
    await killer.close()
    db.terminate()


async def test_the_pool_opens_without_a_server_and_then_refuses() -> None:
    async with pool(NOBODY) as connections:
        with pytest.raises(Refused) as refused:
            async with acquire(connections):
                pass
    assert refused.value.status == 503


async def test_a_wait_for_the_pool_ends_in_a_refusal(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "API_ACQUIRE_S", 0.1)
    async with pool(database_url) as connections:
        held = [await connections.acquire() for _ in range(limits.API_POOL_MAX)]
        with pytest.raises(Refused):
            async with acquire(connections):
                pass
        for connection in held:
            await connections.release(connection)


async def test_a_connection_goes_back_to_the_pool_without_a_word_and_without_what_was_open(database_url: str) -> None:
    watcher = await connect(database_url, command_timeout_s=5)
    said = "SELECT query, state FROM pg_stat_activity WHERE pid = $1"
    async with pool(database_url) as connections:
        async with acquire(connections) as db:
            pid = await db.fetchval("SELECT pg_backend_pid()")
        assert tuple(await watcher.fetchrow(said, pid) or ()) == ("SELECT pg_backend_pid()", "idle")
        async with acquire(connections) as db:
            await db.execute("BEGIN")
        assert tuple(await watcher.fetchrow(said, pid) or ()) == ("ROLLBACK", "idle")
    await watcher.close()


def test_whoever_has_a_connection_of_a_pool_changes_nothing_of_it_for_longer_than_a_transaction() -> None:
    lasting = re.compile(
        r"pg_(try_)?advisory_lock|\bLISTEN\b|set_config\([^)]*false\)|\bSET (?!LOCAL)(SESSION|\w+ TO)\b"
    )
    rooms = [Path(aggregator.__path__[0]) / room for room in ("api", "reports", "publish", "conversions")]
    files = [file for room in rooms for file in room.rglob("*.py")]
    assert len(files) > 50
    found = {file.name for file in files if lasting.search(file.read_text())}
    assert found <= {"behind.py"}  # it has a connection of its own


async def test_cancelled_waits_leave_the_pool_whole(database_url: str) -> None:
    async with pool(database_url) as connections:

        async def use() -> None:
            async with acquire(connections) as db:
                await db.fetchval("SELECT pg_sleep(0.01)")

        tasks = [asyncio.create_task(use()) for _ in range(200)]
        await asyncio.sleep(0.05)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        held = [await connections.acquire(timeout=2) for _ in range(limits.API_POOL_MAX)]
        for connection in held:
            await connections.release(connection)


async def test_who_loses_a_deadlock_is_told_to_come_again(database_url: str) -> None:
    async with pool(database_url) as connections:
        at_work = asyncio.Barrier(2)

        async def lock(first: int, second: int) -> None:
            async with acquire(connections) as db, db.transaction():
                await db.execute("SELECT pg_advisory_xact_lock($1)", first)
                await at_work.wait()
                await db.execute("SELECT pg_advisory_xact_lock($1)", second)

        outcomes = await asyncio.gather(lock(1, 2), lock(2, 1), return_exceptions=True)
    (lost,) = [one for one in outcomes if one is not None]
    assert isinstance(lost, Refused)
    assert (lost.status, lost.headers["Retry-After"]) == (503, "2")
