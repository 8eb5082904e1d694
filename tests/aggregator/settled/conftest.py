"""A database in which nothing was clicked yet, and a consumer's session with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aggregator.db.connect import Connection, connect
from aggregator.flush.session import Session, open_session
from loadtests.faults.journals import settings

EMPTY = """
TRUNCATE click, click_rollup, first_click, detail_rollup, settled_quarter, stale_quarter, log_position, edge,
    conversion_rollup, settled_day, settled_version, settled_total, stale_day CASCADE;
UPDATE settling SET through = '-infinity', days_through = '-infinity'; UPDATE programme SET timezone = 'UTC'
"""


@pytest.fixture
async def db(shared_database_url: str) -> AsyncIterator[Connection]:
    connection = await connect(shared_database_url, command_timeout_s=20)
    await connection.execute(EMPTY)
    yield connection
    await connection.close()


@pytest.fixture
async def session(db: Connection, shared_database_url: str, tmp_path: Path) -> AsyncIterator[Session]:
    async with open_session(settings(shared_database_url, tmp_path)) as opened:
        yield opened
