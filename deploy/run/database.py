"""Questions to the database before anything runs, with its refusals as one line."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import asyncpg

from aggregator.db.migrate import MigrationChanged
from deploy.run.children import CannotStart

T = TypeVar("T")


def ask(asking: Coroutine[Any, Any, T]) -> T:
    """What the database answers. Raises CannotStart when it refuses or does not answer."""
    try:
        return asyncio.run(asking)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, MigrationChanged) as error:
        raise CannotStart(f"the database refuses or does not answer: {error or type(error).__name__}") from None
