"""Tasks that last as long as the worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import structlog

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def running(name: str, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """A background task for as long as this lasts. If it dies, the worker ends in order and its supervisor starts
    another: without its heartbeat, say, the watermark would stand still in silence. Raises what killed it."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_end_worker_if_dead)
    try:
        yield
    finally:
        task.remove_done_callback(_end_worker_if_dead)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _end_worker_if_dead(task: asyncio.Task[None]) -> None:
    error = asyncio.CancelledError() if task.cancelled() else task.exception()  # one that a library let out of its own
    if error is not None:
        log.critical("background_task_died", task=task.get_name(), error=type(error).__name__)
        os.kill(os.getpid(), signal.SIGTERM)
