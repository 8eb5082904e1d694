"""Real processes to be stopped, frozen and killed."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deploy.run.children import free_port
from schemas.settings import AggregatorSettings


@asynccontextmanager
async def aggregator(of: AggregatorSettings) -> AsyncIterator[tuple[Process, str]]:
    """An aggregator with these settings, and the URL of its admin port. Killed at the end."""
    port = free_port()
    wanted = of.model_dump(exclude_none=True) | {"admin_port": port}
    env = os.environ | {f"CLICKDAM_{name.upper()}": str(value) for name, value in wanted.items()}
    command = [sys.executable, "-c", "from deploy.run.cli import main; main()", "aggregator"]
    process = await asyncio.create_subprocess_exec(*command, env=env, stdout=DEVNULL, stderr=DEVNULL)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
