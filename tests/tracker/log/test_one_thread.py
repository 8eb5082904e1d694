"""What blocks is done by one thread, in order, and its result is heard."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from tracker.log.one_thread import OneThread


@pytest.fixture
async def thread() -> AsyncIterator[OneThread]:
    made = OneThread("of-a-test")
    yield made
    made.close()


def slowly(done: list[int], n: int) -> None:
    time.sleep(0.1)
    done.append(n)


async def test_many_at_once_are_done_in_their_order_each_with_its_result(thread: OneThread) -> None:
    done: list[int] = []

    def work(n: int) -> tuple[int, str]:
        done.append(n)
        return n, threading.current_thread().name

    found = await asyncio.gather(*(thread.do(work, n) for n in range(2_000)))
    assert found == [(n, "of-a-test") for n in range(2_000)]
    assert done == list(range(2_000))


async def test_the_loop_goes_on_meanwhile(thread: OneThread) -> None:
    waiting = asyncio.create_task(thread.do(time.sleep, 0.2))
    turns = 0
    while not waiting.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 10


@pytest.mark.parametrize("error", [ValueError("1"), SystemExit(1)])
async def test_an_error_is_his_who_waits_and_the_thread_goes_on(thread: OneThread, error: BaseException) -> None:
    def work() -> None:
        raise error

    with pytest.raises(BaseException, match="1") as raised:
        await thread.do(work)
    assert raised.value is error
    assert await thread.do(lambda: 7) == 7


async def test_what_nobody_waits_for_any_more_is_ended_but_not_begun(thread: OneThread) -> None:
    done: list[int] = []
    first = asyncio.create_task(thread.do(slowly, done, 1))
    second = asyncio.create_task(thread.do(done.append, 2))
    await asyncio.sleep(0.05)
    for task in (first, second):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await thread.do(done.append, 3)
    assert done == [1, 3]


@pytest.fixture
def threads_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


async def test_closing_waits_for_what_was_given(threads_left: None) -> None:
    made, done = OneThread("of-a-test"), list[int]()
    waiting = asyncio.create_task(made.do(slowly, done, 1))
    await asyncio.sleep(0)
    made.close()
    assert done == [1]
    waiting.cancel()
