"""An edge with its Redis, both real, inside the test's own process."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loadtests.faults import edges
from loadtests.faults.edges import Filled, RunningEdge


@pytest.fixture
async def publisher(redis_url: str) -> AsyncIterator[Filled]:
    """The configs of `edges.configs()` in Redis, with marker and beats kept alive."""
    async with edges.filled(redis_url) as publisher:
        yield publisher


@pytest.fixture
async def running(tmp_path: Path, redis_url: str, publisher: Filled) -> AsyncIterator[RunningEdge]:
    """A warm edge that hears the invalidation stream."""
    async with edges.running_edge(edges.settings(tmp_path, redis_url)) as running:
        await edges.follows(running.edge)
        yield running
