"""Group commit: many events, one write; each waiter learns, once, what became of its event."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import limits
from schemas.outcomes import Outcome
from tracker.log.recorder import Batch, LogFailed, Recorder, recording
from tracker.tally import HOUR_MS, Tally

NOW = 1_795_399_200_000


class SlowLog:
    """A log whose writes last until the test lets them, or fail when it says so."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.latest: list[int] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None

    deadline_s = limits.ACK_DEADLINE_S

    async def write(self, batch: Batch) -> Outcome:
        self.bodies.append(b"\n".join(batch.events))
        self.latest.append(batch.latest_ms)
        await self.open.wait()
        if self.error:
            raise self.error
        return Outcome.RECORDED

    def acked(self) -> list[tuple[str, int, int]]:
        return []

    def oldest_ms(self) -> int | None:
        return None


@asynccontextmanager
async def recorder(log: SlowLog, tally: Tally | None = None) -> AsyncIterator[Recorder]:
    async with recording(log, tally or Tally()) as found:
        yield found


async def test_events_that_come_together_are_one_write() -> None:
    log, tally = SlowLog(), Tally()
    async with recorder(log, tally) as found:
        outcomes = await asyncio.gather(*(found.durable(b"%d" % n, NOW + n) for n in range(500)))
    assert outcomes == [Outcome.RECORDED] * 500
    assert [body.split(b"\n") for body in log.bodies] == [[b"%d" % n for n in range(500)]]
    assert log.latest == [NOW + 499]
    assert tally.totals == {"recorded": 500}
    assert (found.queued_events, found.batches) == (0, 1)


async def test_while_one_write_is_under_way_the_next_batch_fills() -> None:
    log = SlowLog()
    async with recorder(log) as found:
        log.open.clear()
        first = found.put(b"first", NOW)
        await asyncio.sleep(limits.LINGER_S * 3)
        others = [found.put(b"%d" % n, NOW + 1) for n in range(100)]
        assert (len(log.bodies), found.oldest_ms(), found.queued_events) == (1, NOW, 101)
        log.open.set()
        assert first
        await asyncio.gather(first, *(other for other in others if other))
    assert len(log.bodies) == 2
    assert found.oldest_ms() is None


async def test_at_the_deadline_a_waiter_is_told_late_once_and_the_event_is_written_all_the_same() -> None:
    log, tally = SlowLog(), Tally()
    log.open.clear()
    async with recorder(log, tally) as found:
        began = asyncio.get_running_loop().time()
        assert await found.durable(b"slow", NOW) is Outcome.LATE
        assert limits.ACK_DEADLINE_S <= asyncio.get_running_loop().time() - began < limits.ACK_DEADLINE_S + 0.1
        assert found.oldest_ms() == NOW
        log.open.set()
    assert log.bodies == [b"slow"]
    assert tally.totals == {"late": 1}


@pytest.mark.parametrize(("error", "became"), [(None, "late_recorded"), (LogFailed("disk full"), "late_lost")])
async def test_what_became_of_a_late_event_is_counted_by_its_hour_beside_the_one_outcome_that_it_has(
    error: Exception | None, became: str
) -> None:
    log, tally = SlowLog(), Tally()
    log.open.clear()
    async with recorder(log, tally) as found:
        waiting = [found.put(b"1", NOW), found.put(b"2", NOW), found.put(b"3", NOW, "conversion_")]
        await asyncio.gather(*(waiter for waiter in waiting if waiter))
        log.error = error
        log.open.set()
    assert tally.totals == {"late": 2, "conversion_late": 1}
    (counts,) = tally.by_hour().values()
    assert counts == {"late": 2, "conversion_late": 1, became: 2, f"conversion_{became}": 1}


async def test_late_events_of_a_batch_that_was_late_twice_are_all_said_to_be_written() -> None:
    """It still fills behind a write under way: those that come after its deadline have one of their own."""
    log, tally = SlowLog(), Tally()
    log.open.clear()
    async with recorder(log, tally) as found:
        await found.durable(b"in flight", NOW)
        for n in range(2):
            assert await found.durable(b"%d" % n, NOW) is Outcome.LATE
        log.open.set()
        await found.drained()
    assert log.bodies == [b"in flight", b"0\n1"]
    assert list(tally.by_hour().values()) == [{"late": 3, "late_recorded": 3}]


async def test_the_deadline_counts_from_the_oldest_waiter_also_behind_a_write_under_way() -> None:
    log, tally = SlowLog(), Tally()
    log.open.clear()
    async with recorder(log, tally) as found:
        first = asyncio.create_task(found.durable(b"1", NOW))
        await asyncio.sleep(limits.ACK_DEADLINE_S / 2)
        second = asyncio.create_task(found.durable(b"2", NOW))
        assert await asyncio.wait_for(asyncio.gather(first, second), limits.ACK_DEADLINE_S * 1.5) == [Outcome.LATE] * 2
        log.open.set()
    assert log.bodies == [b"1", b"2"]


@pytest.mark.parametrize("error", [LogFailed("disk full"), RuntimeError("a fault of our own")])
async def test_what_the_log_could_not_write_is_lost_and_the_next_is_tried(error: Exception) -> None:
    log, tally = SlowLog(), Tally()
    async with recorder(log, tally) as found:
        log.error = error
        assert await found.durable(b"lost", NOW) is Outcome.LOST
        log.error = None
        assert await found.durable(b"kept", NOW) is Outcome.RECORDED
    assert tally.totals == {"lost": 1, "recorded": 1}
    assert found.queued_events == 0


async def test_when_the_queue_is_full_new_events_are_lost_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "QUEUE_EVENTS_MAX", 10)
    log, tally = SlowLog(), Tally()
    log.open.clear()
    async with recorder(log, tally) as found:
        waiting = [found.put(b"%d" % n, NOW) for n in range(10)]
        assert None not in waiting
        assert await asyncio.wait_for(found.durable(b"no", NOW), 0.01) is Outcome.LOST
        log.open.set()
        await asyncio.gather(*(waiter for waiter in waiting if waiter))
        assert await found.durable(b"again", NOW) is Outcome.RECORDED
    assert tally.totals == {"lost": 1, "recorded": 11}


async def test_an_hours_end_splits_a_batch_because_outcomes_are_kept_by_the_hour() -> None:
    log, tally = SlowLog(), Tally()
    async with recorder(log, tally) as found:
        await asyncio.gather(found.durable(b"a", NOW + HOUR_MS - 1), found.durable(b"b", NOW + HOUR_MS))
    assert log.bodies == [b"a", b"b"]
    assert [list(counts.values()) for counts in tally.by_hour().values()] == [[1], [1]]


async def test_a_batch_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BATCH_BYTES_MAX", 1_000)
    log = SlowLog()
    async with recorder(log) as found:
        await asyncio.gather(*(found.durable(b"x" * 99, NOW) for _ in range(95)))
    assert [len(body) for body in log.bodies] == [999] * 9 + [499]


class Visitor:
    """A connection that waits for its answer."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []

    def answer(self, answer: bytes) -> None:
        if answer == b"fails":
            raise ConnectionResetError
        self.answers.append(answer)

    def force_close(self) -> None:
        self.answers.append(b"closed")


@given(st.lists(st.lists(st.integers(0, 1_500), max_size=30), max_size=5))
async def test_clicks_queued_together_fill_batches_as_they_would_one_by_one(turns: list[list[int]]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(limits, "BATCH_BYTES_MAX", 1_000)
        together, alone = Recorder(SlowLog(), Tally()), Recorder(SlowLog(), Tally())
        for turn in turns:
            together.answer_when_durable([(b"x" * size_bytes, Visitor(), b"") for size_bytes in turn], NOW)
            for size_bytes in turn:
                alone.put(b"x" * size_bytes, NOW)
    filled = [[(batch.events, batch.size_bytes) for batch in found._filling] for found in (together, alone)]
    assert filled[0] == filled[1]
    assert together.queued_events == alone.queued_events
    assert [len(batch.answers) for batch in together._filling] == [len(batch.waiters) for batch in alone._filling]


async def test_each_connection_gets_its_answer_once_when_its_batch_is_written_or_at_once_when_the_queue_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "QUEUE_EVENTS_MAX", 10)
    log, tally = SlowLog(), Tally()
    log.open.clear()
    visitors = [Visitor() for _ in range(15)]
    answers = [b"fails" if n in (3, 12) else b"%d" % n for n in range(15)]
    async with recorder(log, tally) as found:
        clicks = [
            (b"%d" % n, visitor, answer) for n, (visitor, answer) in enumerate(zip(visitors, answers, strict=True))
        ]
        found.answer_when_durable(clicks[:8], NOW)
        found.answer_when_durable(clicks[8:], NOW)
        told = [b"closed" if answer == b"fails" else answer for answer in answers]
        assert [visitor.answers for visitor in visitors] == [[]] * 10 + [[answer] for answer in told[10:]]
        log.open.set()
        await found.drained()
    assert [visitor.answers for visitor in visitors] == [[answer] for answer in told]
    assert tally.totals == {"lost": 5, "recorded": 10}
    assert log.bodies == [b"\n".join(b"%d" % n for n in range(10))]


async def test_outcomes_of_conversions_are_counted_apart() -> None:
    log, tally = SlowLog(), Tally()
    async with recorder(log, tally) as found:
        await asyncio.gather(found.durable(b"c", NOW), found.durable(b"d", NOW, "conversion_"))
    assert tally.totals == {"recorded": 1, "conversion_recorded": 1}


async def test_an_event_whose_waiter_went_away_is_written_and_counted() -> None:
    log, tally = SlowLog(), Tally()
    async with recorder(log, tally) as found:
        waiter = asyncio.create_task(found.durable(b"kept", NOW))
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
    assert log.bodies == [b"kept"]
    assert tally.totals == {"recorded": 1}


async def test_an_event_that_nobody_waits_for_is_written_and_not_counted() -> None:
    log, tally = SlowLog(), Tally()
    async with recorder(log, tally) as found:
        found.put_watermark(b"beat", NOW)
        await found.drained()
    assert log.bodies == [b"beat"]
    assert tally.totals == {}


async def test_leaving_writes_what_is_queued_first() -> None:
    log = SlowLog()
    async with recorder(log) as found:
        waiters = [found.put(b"%d" % n, NOW + n * HOUR_MS) for n in range(5)]
    assert len(log.bodies) == 5
    assert all(waiter and waiter.result() is Outcome.RECORDED for waiter in waiters)


async def test_leaving_does_not_wait_for_ever_for_a_frozen_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SHUTDOWN_S", 0.05)
    log = SlowLog()
    log.open.clear()
    with pytest.raises(TimeoutError):
        async with recorder(log) as found:
            found.put_watermark(b"stuck", NOW)
