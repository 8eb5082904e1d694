"""Real processes to be stopped, frozen and killed."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from deploy.run.children import free_port


@asynccontextmanager
async def aggregator(database_url: str, redis_url: str, folder: Path) -> AsyncIterator[tuple[Process, str]]:
    """An aggregator on the journal in `folder`, and the URL of its admin port. Killed at the end."""
    port = free_port()
    urls = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "LOG_URL": f"journal://{folder}"}
    env = os.environ | {f"CLICKDAM_{name}": url for name, url in urls.items()} | {"CLICKDAM_ADMIN_PORT": str(port)}
    command = [sys.executable, "-c", "from deploy.run.cli import main; main()", "aggregator"]
    process = await asyncio.create_subprocess_exec(*command, env=env, stdout=DEVNULL, stderr=DEVNULL)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
