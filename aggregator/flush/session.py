"""One connection to Postgres for the consumer, what is known as long as it lasts, and its transactions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date

import asyncpg

from aggregator.db import partitions
from aggregator.db.connect import Connection, DatabaseAway, connect
from aggregator.db.instants import to_ms
from aggregator.flush.decode import Window
from schemas import limits
from schemas.settings import AggregatorSettings


class Fenced(RuntimeError):
    """Another consumer has applied these offsets: read the position again."""


class Unknown(RuntimeError):
    """The answer to COMMIT never came: only the position in Postgres knows whether the batch was applied."""


# Errors that the content of a record causes, and will cause again however often it is tried.
Poison = (asyncpg.DataError, asyncpg.ProgramLimitExceededError, OverflowError, UnicodeError)


@dataclass(slots=True, eq=False)
class Session:
    """A connection, the days known to have a partition, for how many batches copies of clicks are expected, and how
    many batches were applied."""

    db: Connection
    database_url: str
    retention_days: int
    days: set[date] = field(default_factory=set)
    clashing_batches: int = 0
    applied: int = 0

    async def ensure(self, days: Iterable[date]) -> None:
        """Make the partitions these days need."""
        missing = set(days) - self.days
        if missing:
            await partitions.ensure(self.db, missing)
            self.days |= missing

    async def window(self) -> Window:
        """What is kept, by Postgres' clock: ours may be the broken one."""
        return Window.at(to_ms(await self.db.fetchval("SELECT clock_timestamp()")), self.retention_days)


@asynccontextmanager
async def open_session(settings: AggregatorSettings) -> AsyncIterator[Session]:
    """A session that is dropped, not closed, at the end: an orderly goodbye would wait for a frozen server."""
    db = await connect(
        settings.database_url, command_timeout_s=limits.TRANSACTION_S, application_name="clickdam-consumer"
    )
    try:
        await db.reset_type_codec("jsonb", schema="pg_catalog")  # COPY is binary, which the codec of `connect` is not
        yield Session(db, settings.database_url, settings.click_retention_days)
    finally:
        db.terminate()


@asynccontextmanager
async def transaction(db: Connection) -> AsyncIterator[None]:
    """A transaction that ends in bounded time: only refusals by content are rolled back in order, any other failure
    drops the connection at once. It waits no longer than FENCE_GIVE_UP_S for a lock, until the fence lifts that. Raises
    Unknown when the answer to COMMIT is lost."""
    await db.execute(f"BEGIN; SET LOCAL lock_timeout = '{limits.FENCE_GIVE_UP_S}s'")
    try:
        yield
    except (Fenced, *Poison):
        await db.execute("ROLLBACK")
        raise
    except BaseException:
        db.terminate()
        raise
    try:
        await db.execute("COMMIT")
    except DatabaseAway as error:
        db.terminate()
        raise Unknown(type(error).__name__) from error


@asynccontextmanager
async def savepoint(db: Connection, *undone_on: type[Exception]) -> AsyncIterator[None]:
    """Undo what was done inside when one of these errors comes out of it; the error goes on."""
    await db.execute("SAVEPOINT attempt")
    try:
        yield
    except undone_on:
        await db.execute("ROLLBACK TO attempt")
        await db.execute("RELEASE attempt")
        raise
    await db.execute("RELEASE attempt")
