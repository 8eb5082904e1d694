import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from aggregator.db.connect import connect
from aggregator.db.migrate import Migration, MigrationChanged, apply, migrate, migrations


@pytest.fixture
async def empty_database_url(postgres_url: str) -> AsyncIterator[str]:
    name, admin = f"empty_{uuid4().hex}", await asyncpg.connect(postgres_url)
    await admin.execute(f"CREATE DATABASE {name}")
    yield postgres_url.rpartition("/")[0] + f"/{name}"
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


async def test_three_processes_that_migrate_at_once_apply_each_file_once(empty_database_url: str) -> None:
    applied = await asyncio.gather(*(migrate(empty_database_url) for _ in range(3)))
    assert sorted(name for names in applied for name in names) == [one.name for one in migrations()]
    assert await migrate(empty_database_url) == []


async def test_a_file_that_changed_after_it_was_applied_is_refused_by_name(empty_database_url: str) -> None:
    db = await connect(empty_database_url, command_timeout_s=5)
    assert await apply(db, [Migration("0001_one.sql", "CREATE TABLE one ()")]) == ["0001_one.sql"]
    with pytest.raises(MigrationChanged, match=r"0001_one\.sql"):
        await apply(db, [Migration("0001_one.sql", "CREATE TABLE two ()")])
    await db.close()


async def test_a_file_that_fails_leaves_nothing_and_those_before_it_stay(empty_database_url: str) -> None:
    db = await connect(empty_database_url, command_timeout_s=5)
    bad = [Migration("1.sql", "CREATE TABLE one ()"), Migration("2.sql", "CREATE TABLE two (); SELECT 1 / 0")]
    with pytest.raises(asyncpg.DivisionByZeroError):
        await apply(db, bad)
    assert await db.fetchval("SELECT array_agg(name) FROM schema_migration") == ["1.sql"]
    assert await db.fetchval("SELECT to_regclass('two')") is None
    await db.close()
