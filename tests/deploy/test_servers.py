"""The servers that come out of wheels."""

import asyncpg

from schemas import redis


async def test_postgres_is_durable_and_counts_statements(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    shown = {name: await connection.fetchval(f"SHOW {name}") for name in ("fsync", "synchronous_commit", "timezone")}
    await connection.execute("CREATE EXTENSION pg_stat_statements")
    calls = await connection.fetchval("SELECT sum(calls) FROM pg_stat_statements")
    await connection.close()
    assert shown == {"fsync": "on", "synchronous_commit": "on", "timezone": "UTC"}
    assert calls > 0


async def test_valkey_is_durable_and_never_evicts(redis_url: str) -> None:
    client = redis.publishing(redis_url)
    shown = await redis.done(client.config_get("appendonly", "appendfsync", "maxmemory-policy"))
    await client.aclose()
    assert shown == {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
