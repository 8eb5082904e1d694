"""Connections to Postgres: how they are opened, how long anything may wait, and what "Postgres is away" looks like."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

import asyncpg
import orjson

from schemas import limits
from schemas.errors import Refused

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Pooled: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
Database: TypeAlias = "Connection | Pooled"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Row: TypeAlias = asyncpg.Record

# The connection is lost, cannot be opened, or must be given up: what was under way has an unknown end.
DatabaseAway = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.QueryCanceledError,
    OSError,
    TimeoutError,
)

_KEEPALIVES = {"tcp_keepalives_idle": "5", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3"}
_READING = {
    "default_transaction_read_only": "on",
    "statement_timeout": str(round(limits.REPORT_STATEMENT_S * 1000)),
    "idle_in_transaction_session_timeout": str(round(2 * limits.EXPORT_PAUSE_MAX_S * 1000)),
    "work_mem": f"{limits.REPORT_WORK_MEM_BYTES // 1024}kB",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",  # it takes longer than the reports do
}


async def connect(database_url: str, *, command_timeout_s: float, application_name: str = "clickdam") -> Connection:
    """One connection in UTC, jsonb as Python values. Every command is given up after `command_timeout_s` seconds.

    Raises one of `DatabaseAway` when Postgres cannot be reached within `limits.CONNECT_S`.
    """
    connection = await asyncpg.connect(
        database_url,
        timeout=limits.CONNECT_S,
        command_timeout=command_timeout_s,
        server_settings=_server_settings(application_name),
    )
    try:
        await _read_json(connection)
    except BaseException:
        connection.terminate()
        raise
    return connection


@asynccontextmanager
async def connected(database_url: str, *, command_timeout_s: float, application_name: str) -> AsyncIterator[Connection]:
    """`connect`, closed at the end without waiting long for a Postgres that is away."""
    connection = await connect(database_url, command_timeout_s=command_timeout_s, application_name=application_name)
    try:
        yield connection
    finally:
        with suppress(*DatabaseAway):
            await connection.close(timeout=limits.CLOSE_S)


@asynccontextmanager
async def pool(database_url: str, *, application_name: str = "clickdam-api") -> AsyncIterator[Pool]:
    """The API's connections, opened when first needed, so that it starts while Postgres is away."""
    settings = _server_settings(application_name)
    async with _pool(database_url, limits.API_POOL_MAX, limits.STATEMENT_S, settings, _leave) as connections:
        yield connections


@asynccontextmanager
async def report_pool(database_url: str) -> AsyncIterator[Pool]:
    """Connections that only read, for what may take long: Postgres itself gives up a statement that takes too long or
    a reader that is gone, and none takes more than one core from whoever writes."""
    settings = _server_settings("clickdam-reports") | _READING
    timeout_s = limits.REPORT_STATEMENT_S + limits.CLOSE_S  # Postgres is to be the first, and says why
    async with _pool(database_url, limits.REPORT_POOL_MAX, timeout_s, settings) as connections:
        yield connections


@asynccontextmanager
async def _pool(
    database_url: str,
    connections_max: int,
    statement_s: float,
    settings: dict[str, str],
    reset: Callable[[Any], Awaitable[None]] | None = None,
) -> AsyncIterator[Pool]:
    connections = asyncpg.create_pool(
        database_url,
        min_size=0,
        max_size=connections_max,
        timeout=limits.CONNECT_S,
        command_timeout=statement_s,
        server_settings=settings,
        init=_read_json,
        reset=reset,
    )
    async with asyncio.timeout(limits.CONNECT_S):
        await connections
    try:
        yield connections
    finally:
        await _close(connections)


@asynccontextmanager
async def acquire(connections: Pool) -> AsyncIterator[Pooled]:
    """A connection of the pool. Raises Refused("unavailable") when none comes within `limits.API_ACQUIRE_S`, or when
    Postgres goes away while it is used."""
    try:
        async with connections.acquire(timeout=limits.API_ACQUIRE_S) as connection:
            yield connection
    except DatabaseAway as error:
        raise Refused("unavailable", "the database does not answer, please repeat the request") from error
    except asyncpg.DeadlockDetectedError as error:
        raise Refused("unavailable", "another change was in the way, please repeat the request") from error


@asynccontextmanager
async def acquire_to_read(connections: Pool) -> AsyncIterator[Pooled]:
    """The same of `report_pool`. Raises Refused("too_heavy") where Postgres gave up what was asked of it."""
    try:
        async with acquire(connections) as connection:
            yield connection
    except Refused as refusal:
        if isinstance(refusal.__cause__, asyncpg.QueryCanceledError):
            sentence = "this takes too long to find: ask for less time, fewer groups or one partner"
            raise Refused("too_heavy", sentence) from refusal.__cause__
        raise


async def _close(connections: Pool) -> None:
    try:
        async with asyncio.timeout(limits.CLOSE_S):
            await connections.close()
    except DatabaseAway:
        connections.terminate()


def _server_settings(application_name: str) -> dict[str, str]:
    return {"application_name": application_name, "timezone": "UTC", **_KEEPALIVES}


async def _read_json(connection: Any) -> None:
    await connection.set_type_codec("jsonb", encoder=_dump, decoder=orjson.loads, schema="pg_catalog", format="text")


async def _leave(_: Any) -> None:
    """Nothing is to be put back when a connection is returned: whoever has one of the API's changes settings and takes
    locks for a transaction alone. To have Postgres reset it all was a second round trip of every look-up."""


def _dump(value: object) -> str:
    return orjson.dumps(value).decode()
