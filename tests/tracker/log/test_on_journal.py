"""The edge's watermarks: registered before it is ready, true while it lives, closed by itself or by the next."""

import asyncio
import time
from pathlib import Path

import pytest

from loadtests.faults import edges
from loadtests.faults.edges import Filled, logged
from schemas import journal, limits
from schemas.events import Beat, Click
from tracker.clock import EdgeClock
from tracker.log.journal_out import JournalLog
from tracker.log.on_journal import JournalHeartbeat, close_abandoned
from tracker.log.recorder import LogFailed, recording
from tracker.tally import Tally


class Process:
    """The parts of an edge process that beat, on a clock the test turns."""

    def __init__(self, folder: Path, slot: int = 0) -> None:
        self.folder = folder
        self.now = 1_795_400_000_000
        self.clock = EdgeClock(lambda: self.now)
        self.log = JournalLog(folder, slot, "edge", lambda: self.clock.incarnation)
        self.tally = Tally()
        self.heartbeat = JournalHeartbeat(f"edge/{slot}", self.clock, self.tally, self.log)

    async def start(self) -> "Process":
        self.clock.continue_from(self.log.lock())
        await self.heartbeat.register()
        return self

    async def die(self) -> None:
        """As kill -9: nothing is said any more."""
        await self.log.close()

    async def end(self) -> None:
        await self.heartbeat.close()
        await self.log.close()


def beats(folder: Path) -> list[Beat]:
    return [event for event in logged(folder) if isinstance(event, Beat)]


def states(folder: Path, incarnation: str) -> list[str]:
    return [beat.state for beat in beats(folder) if beat.incarnation == incarnation]


async def test_an_edge_is_in_the_log_before_it_is_ready_and_closed_when_it_ends(tmp_path: Path) -> None:
    process = await Process(tmp_path).start()
    assert states(tmp_path, process.clock.incarnation) == ["open"]
    await process.end()
    assert states(tmp_path, process.clock.incarnation) == ["open", "closed"]
    assert journal.left_behind(tmp_path / "edge-0") == []


async def test_the_next_in_a_slot_closes_a_killed_incarnation_up_to_its_last_row(tmp_path: Path) -> None:
    killed = await Process(tmp_path).start()
    await killed.log.append(b"{}", killed.now + 5)
    (source, _, last), *_ = killed.log.acked()
    await killed.die()
    (left,) = journal.left_behind(tmp_path / "edge-0")
    assert (left.meta.source, left.last_offset) == (source, last)
    journal.remove(left.path)  # its rows are no beats
    killed = await Process(tmp_path).start()
    (source, _, last), *_ = killed.log.acked()
    await killed.die()
    following = await Process(tmp_path).start()
    closing = [beat for beat in beats(tmp_path) if beat.incarnation == killed.clock.incarnation][-1]
    assert (closing.state, closing.acked) == ("closed", [(source, 0, last)])
    assert states(tmp_path, following.clock.incarnation) == ["open"]
    assert [one.meta.incarnation for one in journal.left_behind(tmp_path / "edge-0")] == [following.clock.incarnation]
    await following.end()


async def test_the_closing_record_of_a_killed_edge_lies_before_the_opening_one_in_one_row(tmp_path: Path) -> None:
    await (await Process(tmp_path).start()).die()
    following = await Process(tmp_path).start()
    assert [line.split(b'"state":"')[1][:4] for line in edges.bodies(tmp_path)[-1].split(b"\n")] == [b"clos", b"open"]
    await following.end()


async def test_one_killed_before_it_closed_its_predecessor_leaves_both_to_the_next(tmp_path: Path) -> None:
    first = await Process(tmp_path).start()
    await first.die()
    second = Process(tmp_path)
    second.clock.continue_from(second.log.lock())
    await second.log._in_thread(second.log._current)  # it began its segment and was killed there
    await second.die()
    third = await Process(tmp_path).start()
    assert states(tmp_path, first.clock.incarnation)[-1] == "closed"
    assert states(tmp_path, second.clock.incarnation) == ["closed"]
    await third.end()
    assert journal.left_behind(tmp_path / "edge-0") == []


async def test_what_was_killed_in_a_slot_that_no_worker_has_any_more_is_closed(tmp_path: Path) -> None:
    killed = await Process(tmp_path, slot=1).start()
    await killed.die()
    kept = await Process(tmp_path).start()
    await close_abandoned(tmp_path, "edge", workers=1)
    assert states(tmp_path, killed.clock.incarnation) == ["open", "closed"]
    assert states(tmp_path, kept.clock.incarnation) == ["open"]
    assert journal.left_behind(tmp_path / "edge-1") == []
    last = [beat.incarnation for beat in beats(tmp_path) if beat.state == "closed"]
    assert {beat.incarnation for beat in beats(tmp_path)} == {kept.clock.incarnation, *last}, "one is left open"
    again = journal.segments(tmp_path / "edge-1")
    await close_abandoned(tmp_path, "edge", workers=1)
    assert journal.segments(tmp_path / "edge-1") == again
    await kept.end()


async def test_a_slot_that_somebody_still_writes_is_left_alone(tmp_path: Path) -> None:
    alive = await Process(tmp_path, slot=1).start()
    await close_abandoned(tmp_path, "edge", workers=1)
    assert states(tmp_path, alive.clock.incarnation) == ["open"]
    await alive.end()


async def test_an_edge_that_cannot_say_goodbye_is_closed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await Process(tmp_path).start()
    with monkeypatch.context() as disk:
        disk.setattr(journal.Segment, "append", _full)
        with pytest.raises(LogFailed):
            await process.heartbeat.close()
    await process.log.close()
    following = await Process(tmp_path).start()
    assert states(tmp_path, process.clock.incarnation) == ["open", "closed"]
    await following.end()


def _full(*_: object) -> int:
    raise journal.Unwritable("disk is full")


async def test_a_beat_never_promises_an_event_that_is_not_yet_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BEAT_S", 0.01)
    process = await Process(tmp_path).start()
    slow = asyncio.create_task(process.log._in_thread(time.sleep, 0.2))  # so is the disk
    async with recording(process.log, process.tally) as recorder:
        beating = asyncio.create_task(process.heartbeat.beat(recorder))
        waiting = recorder.put(b'{"kind":"click","v":1,"id":"0192f0c1-2d3e-7abc-8def-0123456789ab","link_id":1,'
                               b'"offer_id":1,"partner_id":1,"click_class":0}', process.now)  # fmt: skip
        process.now += 10_000
        assert waiting
        await waiting
        await slow
        await asyncio.sleep(0.15)
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
    await process.end()
    events = logged(tmp_path)
    (at,) = (n for n, event in enumerate(events) if isinstance(event, Click))
    before = [
        beat
        for n, beat in enumerate(events)
        if n > 0 and isinstance(beat, Beat) and beat.complete_to_ms <= beat.at_ms - 10_000
    ]
    assert before, "no beat was written while the click was on its way"
    for beat in before:
        assert beat.complete_to_ms == process.now - 10_000
    after = [event for event in events[at:] if isinstance(event, Beat) and event.complete_to_ms > process.now - 10_000]
    assert after
    assert all(beat.acked for beat in after)


async def test_a_clock_that_jumps_back_closes_one_incarnation_and_opens_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BEAT_S", 0.01)
    process = await Process(tmp_path).start()
    first = process.clock.incarnation
    process.tally.count("recorded", process.now)
    async with recording(process.log, process.tally) as recorder:
        beating = asyncio.create_task(process.heartbeat.beat(recorder))
        await asyncio.sleep(0.03)
        process.now -= 365 * 86_400_000
        await asyncio.sleep(0.05)
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
    await process.end()
    second = process.clock.incarnation
    assert second != first
    assert set(states(tmp_path, first)) == {"open", "beat", "closed"}
    assert states(tmp_path, first)[-1] == "closed"
    assert states(tmp_path, second)[0] == "open"
    assert states(tmp_path, second)[-1] == "closed"
    of_second = [beat for beat in beats(tmp_path) if beat.incarnation == second]
    assert all(set(said) == {beat.state} for beat in of_second for said in beat.counters.values())
    assert journal.left_behind(tmp_path / "edge-0") == []


async def test_nothing_of_a_new_incarnation_is_written_before_it_is_announced(tmp_path: Path) -> None:
    process = await Process(tmp_path).start()
    async with recording(process.log, process.tally) as recorder:
        beating = asyncio.create_task(process.heartbeat.beat(recorder))
        await asyncio.sleep(0.01)
        process.now -= 365 * 86_400_000
        at_ms = process.clock.now_ms()
        recorder.put_watermark(b'{"kind":"mark"}', at_ms)
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
    await process.end()
    lines = [line for body in edges.bodies(tmp_path) for line in body.split(b"\n")]
    mark = lines.index(b'{"kind":"mark"}')
    announced = [n for n, line in enumerate(lines) if process.clock.incarnation.encode() in line and b'"open"' in line]
    assert announced
    assert announced[0] < mark


async def test_beats_carry_absolute_counts_by_hour(tmp_path: Path, redis_url: str) -> None:
    async with edges.filled(redis_url), edges.running_edge(edges.settings(tmp_path, redis_url)) as running:
        await edges.get_all(running.port, ["/c/demo"] * 5)
    closing = beats(tmp_path)[-1]
    assert closing.state == "closed"
    assert list(closing.counters.values()) == [{"recorded": 5, "closed": 1}]


async def test_an_edge_started_again_in_its_slot_goes_on_where_it_was(
    tmp_path: Path, redis_url: str, publisher: Filled
) -> None:
    of = edges.settings(tmp_path, redis_url)
    for _ in range(2):
        async with edges.running_edge(of) as running:
            assert (await edges.get(running.port, "/c/demo")).status == 302
    assert sum(isinstance(event, Click) for event in logged(tmp_path)) == 2
    assert [beat.state for beat in beats(tmp_path) if beat.state != "beat"] == ["open", "closed"] * 2
