"""Bring a database to the shape the code expects: plain SQL files, in the order of their names, each once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

import structlog

from aggregator.db.connect import Connection, connected
from schemas import limits

log = structlog.get_logger()

_LOCK = 0x636C69636B01  # any number that nobody else uses for an advisory lock
_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migration (
    name        text PRIMARY KEY,
    sha256      text NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT now()
)
"""


class MigrationChanged(RuntimeError):
    """A file that was applied has another content now. Write a new file instead of editing an old one."""


@dataclass(frozen=True, slots=True)
class Migration:
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


async def migrate(database_url: str) -> list[str]:
    """Apply what is missing and answer the names applied. Two processes may do this at once: one waits.

    Raises MigrationChanged, or one of `aggregator.db.connect.DatabaseAway`.
    """
    name = "clickdam-migrate"
    async with connected(database_url, command_timeout_s=limits.MIGRATE_S, application_name=name) as db:
        await db.execute("SELECT pg_advisory_lock($1)", _LOCK)  # released with the connection
        return await apply(db, migrations())


def migrations() -> list[Migration]:
    """The SQL files of `schemas/sql` in the order they apply."""
    folder = resources.files("schemas").joinpath("sql")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [Migration(file.name, file.read_text("utf-8")) for file in files]


async def apply(connection: Connection, wanted: list[Migration]) -> list[str]:
    """Apply the migrations that this database has not seen, each in its own transaction. Raises MigrationChanged."""
    await connection.execute(_TABLE)
    seen = {row["name"]: row["sha256"] for row in await connection.fetch("SELECT name, sha256 FROM schema_migration")}
    changed = [one.name for one in wanted if seen.get(one.name, one.sha256) != one.sha256]
    if changed:
        raise MigrationChanged(f"applied to this database with another content: {', '.join(changed)}")
    missing = [one for one in wanted if one.name not in seen]
    for one in missing:
        await _apply_one(connection, one)
    return [one.name for one in missing]


async def _apply_one(connection: Connection, one: Migration) -> None:
    async with connection.transaction():
        await connection.execute(one.sql)
        await connection.execute("INSERT INTO schema_migration (name, sha256) VALUES ($1, $2)", one.name, one.sha256)
    log.info("migration_applied", name=one.name)
