"""An edge's watermarks in Kafka: registered before it is ready, true while anything is spooled, closed by itself or by
the next."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from loadtests.faults import topics
from loadtests.faults.proxy import FaultProxy
from schemas import journal, limits, redis, redis_keys
from schemas.events import Beat
from schemas.outcomes import Outcome
from schemas.settings import EdgeSettings
from tests.tracker.log.conftest import WITHIN_S, Process
from tracker.log.on_kafka import drain_slot, left_in

SPOOLED = Outcome.SPOOLED


async def registered(settings: EdgeSettings) -> dict[str, bytes]:
    async with redis.publishing(settings.redis_url) as client:
        held = await redis.done(client.hgetall(redis_keys.EDGES))
    return {incarnation.decode(): value for incarnation, value in held.items()}


async def beats(settings: EdgeSettings, incarnation: str) -> list[Beat]:
    return [beat for beat in await topics.beats(settings) if beat.incarnation == incarnation]


async def states(settings: EdgeSettings, incarnation: str) -> list[str]:
    return [beat.state for beat in await beats(settings, incarnation)]


@asynccontextmanager
async def away(proxy: FaultProxy) -> AsyncIterator[None]:
    """Kafka, for as long as this lasts."""
    proxy.mode = "blackhole"
    try:
        yield
    finally:
        proxy.mode = "pass"


async def test_an_edge_is_in_the_log_before_it_is_ready_and_closed_when_it_ends(settings: EdgeSettings) -> None:
    async with Process(settings).running() as process:
        assert await states(settings, process.clock.incarnation) == ["open"]
        assert await registered(settings) == {}
        await process.whole()
        await process.clicks(10)
    opened, *_, closed = await beats(settings, process.clock.incarnation)
    assert (opened.edge, opened.state, opened.acked) == ("edge/0", "open", [])
    assert closed.state == "closed"
    assert list(closed.counters.values()) == [{"recorded": 10, "closed": 1}]
    assert left_in(settings.spool_folder) == []


async def test_what_a_beat_names_as_acknowledged_covers_every_event_before_it(
    settings: EdgeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BEAT_S", 0.05)
    async with Process(settings).running() as process:
        await process.whole()
        for n in range(20):
            await process.clicks(20, f"{n}")
            await asyncio.sleep(0.02)
    found = await topics.read(settings, settings.kafka_events_topic)
    last = {partition: offset for partition, offset, _ in found}
    *_, closed = await beats(settings, process.clock.incarnation)
    assert {partition: offset for _, partition, offset in closed.acked} == last
    assert sum(beat.state == "beat" for beat in await beats(settings, process.clock.incarnation)) > 3


async def test_while_kafka_is_away_an_edge_registers_in_redis_and_then_in_the_log(
    settings: EdgeSettings, proxy: FaultProxy
) -> None:
    process = Process(settings)
    async with contextlib.AsyncExitStack() as stack:
        async with away(proxy):
            await stack.enter_async_context(process.running())
            assert list(await registered(settings)) == [process.clock.incarnation]
            assert (await registered(settings))[process.clock.incarnation].startswith(b'{"edge":"edge/0","at_ms":')
            assert set(await process.clicks(20)) == {SPOOLED}
        await process.whole()
        assert await registered(settings) == {}
        await asyncio.sleep(limits.BEAT_S + 0.5)
    opened, *others = await beats(settings, process.clock.incarnation)
    assert opened.state == "open"
    assert all(beat.at_ms >= opened.at_ms for beat in others)
    assert set(process.told) == set(await topics.values(settings))


async def test_a_registration_that_redis_has_lost_is_repeated(settings: EdgeSettings, proxy: FaultProxy) -> None:
    process = Process(settings)
    async with contextlib.AsyncExitStack() as stack:
        async with away(proxy):
            await stack.enter_async_context(process.running())
            async with redis.publishing(settings.redis_url) as client:
                await redis.done(client.flushall())
            async with asyncio.timeout(WITHIN_S):
                while not await registered(settings):
                    await asyncio.sleep(0.05)
        await process.whole()


async def test_with_kafka_and_redis_away_an_edge_waits(settings: EdgeSettings, proxy: FaultProxy) -> None:
    nowhere = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    async with away(proxy):
        opening = asyncio.create_task(_register(Process(nowhere)))
        await asyncio.sleep(limits.PROBE_S + 2)
        assert not opening.done()
    async with asyncio.timeout(WITHIN_S):
        await opening


async def _register(process: Process) -> None:
    async with process.running():
        pass


async def test_a_beat_promises_nothing_that_lies_in_the_spool(
    settings: EdgeSettings, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DRAIN_BYTES_PER_S", 20_000)
    async with Process(settings).running() as process:
        await process.whole()
        async with away(proxy):
            first_ms = process.clock.now_ms()
            for n in range(10):
                await process.clicks(20, f"spooled-{n}")
            last_ms = process.clock.now_ms()
        await process.whole()
        await asyncio.sleep(limits.BEAT_S * 2)
    meanwhile = [beat for beat in await beats(settings, process.clock.incarnation) if beat.at_ms > last_ms]
    behind = [beat for beat in meanwhile if beat.complete_to_ms <= last_ms]
    assert behind, "it drains too fast to see"
    assert all(beat.complete_to_ms >= first_ms for beat in behind)
    assert meanwhile[-1].complete_to_ms > last_ms
    assert sorted(meanwhile, key=lambda beat: beat.complete_to_ms) == meanwhile


async def test_the_next_in_a_slot_closes_one_that_was_killed_with_nothing_spooled(settings: EdgeSettings) -> None:
    async with Process(settings).killed() as killed:
        await killed.whole()
        await killed.clicks(30)
    assert len(left_in(settings.spool_folder)) == 1, "the mark"
    async with Process(settings).running() as following:
        await following.whole()
    *_, closed = await beats(settings, killed.clock.incarnation)
    assert closed.state == "closed"
    last = {partition: offset for partition, offset, value in await _events(settings) if value in killed.told}
    acked = {partition: offset for _, partition, offset in closed.acked}
    assert acked.keys() == set(range(topics.PARTITIONS))
    assert all(acked[partition] >= offset for partition, offset in last.items())
    assert left_in(settings.spool_folder) == []


async def _events(settings: EdgeSettings) -> list[topics.Found]:
    return await topics.read(settings, settings.kafka_events_topic)


async def test_what_a_killed_one_has_spooled_is_sent_by_the_next_and_then_it_is_closed(
    settings: EdgeSettings, proxy: FaultProxy
) -> None:
    async with away(proxy):
        for _ in range(2):
            async with Process(settings).killed() as killed:
                assert set(await killed.clicks(30, killed.clock.incarnation)) == {SPOOLED}
    async with Process(settings).running() as following:
        await following.whole()
        async with asyncio.timeout(WITHIN_S):
            while await registered(settings):
                await asyncio.sleep(0.05)
    found = await _events(settings)
    assert killed.durable() <= {value for _, _, value in found}
    *_, closed = await beats(settings, killed.clock.incarnation)
    acked = {partition: offset for _, partition, offset in closed.acked}
    assert closed.state == "closed"
    assert all(acked[partition] >= offset for partition, offset, value in found if value in killed.told)
    assert left_in(settings.spool_folder) == []


async def test_one_that_ends_while_kafka_is_away_leaves_its_closing_to_the_next(
    settings: EdgeSettings, proxy: FaultProxy
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        ending = await stack.enter_async_context(Process(settings).running())
        await ending.whole()
        await ending.clicks(10)
        proxy.mode = "blackhole"
        began = time.monotonic()
    assert time.monotonic() - began < limits.EXIT_S / 2
    proxy.mode = "pass"
    assert left_in(settings.spool_folder) == [0]
    async with Process(settings).running() as following:
        await following.whole()
    assert (await states(settings, ending.clock.incarnation))[-1] == "closed"


async def test_a_clock_that_jumps_back_announces_an_incarnation_before_its_events_and_closes_the_old_one(
    settings: EdgeSettings,
) -> None:
    async with Process(settings).running() as process:
        await process.whole()
        first = process.clock.incarnation
        await process.clicks(10, "before")
        process.back_ms = 3_600_000
        assert set(await process.clicks(10, "after")) <= {Outcome.RECORDED, SPOOLED}
        second = process.clock.incarnation
        assert second != first
        assert (await states(settings, second))[0] == "open", "known when its first events are durable"
        async with asyncio.timeout(WITHIN_S):
            while (await states(settings, first))[-1] != "closed":
                await asyncio.sleep(0.1)
        await process.whole()
        await asyncio.sleep(limits.BEAT_S + 0.2)
    assert (await states(settings, second))[-1] == "closed"
    (said,) = next(beat.counters for beat in await beats(settings, second)).values()
    assert said == {"open": 1}
    assert left_in(settings.spool_folder) == []


async def test_an_incarnation_that_begins_while_kafka_is_away_is_registered_in_redis(
    settings: EdgeSettings, proxy: FaultProxy
) -> None:
    async with Process(settings).running() as process:
        await process.whole()
        first = process.clock.incarnation
        async with away(proxy):
            await process.clicks(10, "before")
            process.back_ms = 3_600_000
            await process.clicks(10, "after")
            second = process.clock.incarnation
            async with asyncio.timeout(WITHIN_S):
                while second not in await registered(settings):
                    await asyncio.sleep(0.05)
        await process.whole()
        assert await registered(settings) == {}
    assert (await states(settings, second))[0] == "open"
    assert "closed" in await states(settings, first)
    assert process.durable() <= set(await topics.values(settings))


async def test_a_clock_may_jump_back_while_a_producer_is_being_built(settings: EdgeSettings, proxy: FaultProxy) -> None:
    async with Process(settings).running() as process:
        await process.whole()
        async with away(proxy):
            async with asyncio.timeout(WITHIN_S):
                while process.ladder.builds < 2:  # it waits for a broker that says nothing
                    await asyncio.sleep(0.01)
            process.back_ms = 3_600_000
            assert await process.clicks(1) == [SPOOLED]
        second = process.clock.incarnation
        await process.whole()
    assert (await states(settings, second))[0] == "open"


async def test_the_slot_of_an_edge_that_lives_is_left_alone(settings: EdgeSettings) -> None:
    async with Process(settings).running() as process:
        with pytest.raises(journal.SlotTaken):
            await drain_slot(settings, settings.spool_folder, 0)
        await process.whole()


async def test_the_slot_of_an_edge_that_is_gone_is_drained_and_closed(
    settings: EdgeSettings, proxy: FaultProxy, tmp_path: Path
) -> None:
    async with away(proxy), Process(settings).killed() as killed:
        await killed.clicks(100)
    moved = settings.spool_folder.rename(tmp_path / "moved")
    given_back: list[int] = []
    assert await drain_slot(settings, moved, 0, given_back.append)
    assert sum(given_back) > 100 * 200
    assert left_in(moved) == []
    assert killed.durable() == set(await topics.values(settings))
    assert (await states(settings, killed.clock.incarnation))[-1] == "closed"
