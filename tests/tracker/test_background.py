"""A worker without one of its tasks must not go on as if nothing had happened."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager

import pytest

from tracker.background import running


@pytest.fixture
def terminated() -> Iterator[list[int]]:
    """The SIGTERMs this process got."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    yield heard
    signal.signal(signal.SIGTERM, before)


async def die() -> None:
    raise ZeroDivisionError


async def be_cancelled() -> None:
    raise asyncio.CancelledError


async def last() -> None:
    await asyncio.Event().wait()


async def end() -> None:
    return


async def leave(work: AbstractAsyncContextManager[None]) -> None:
    async with work:
        await asyncio.sleep(0.01)


async def test_a_task_that_dies_ends_the_worker_and_says_why_when_it_is_left(terminated: list[int]) -> None:
    with pytest.raises(ZeroDivisionError):
        await leave(running("doomed", die()))
    assert terminated == [signal.SIGTERM]


async def test_a_task_that_somebody_else_has_cancelled_ends_the_worker_too(terminated: list[int]) -> None:
    await leave(running("doomed", be_cancelled()))
    assert terminated == [signal.SIGTERM]


@pytest.mark.parametrize("work", [last, end])
async def test_a_task_that_is_ended_or_done_ends_nothing_else(work, terminated: list[int]) -> None:
    await leave(running("well", work()))
    assert terminated == []
