"""The plan of a spike, its judgement, and both generators for real against an edge and against a server that stalls."""

import asyncio
import json
import os
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from loadtests.faults import edges
from loadtests.faults.edges import RunningEdge
from loadtests.heard import uuid_of
from loadtests.spikes import plan, run, verdict
from loadtests.spikes.plan import Heard, Kind, Script, Sizes, Stage, Took
from loadtests.spikes.recorded import Recorded
from schemas import redis_keys
from schemas.events import Click, Conversion

TOOLS = sorted(run.COMMANDS)
RATES = st.floats(0.5, 500)
GIVEN_UP_S = 60
STALL_S = 0.8
ANSWER = b"HTTP/1.1 302 Found\r\nLocation: https://shop.example/?click_id=AQGJZ1xyAHoAsAA\r\nContent-Length: 0\r\n\r\n"


def a_stage(name: str, kind: Kind, start_s: float, for_s: float, per_s: float, connections: int = 150) -> Stage:
    return Stage(name, kind, start_s, for_s, per_s, per_s, connections)


def a_script(url: str, *stages: Stage) -> Script:
    return Script(
        url, url, "r1", edges.TOKEN, ("cd_key",), "warm-", 3, "unknown-", 1_000,
        plan.report(datetime.now(UTC)), plan.HEADERS, list(stages),
    )  # fmt: skip


def what_was_heard(**fields: int | list[str]) -> Heard:
    sound = {"answered": 1_000, "accepted": 50, "reports": 5, "wrong": 0, "dropped": 0, "crossed": []}
    return Heard(**(sound | fields), stages={"rest": Took(100, 1.0, 4.0), "spike": Took(900, 2.0, 8.0)})


def what_was_recorded(**fields: int) -> Recorded:
    return Recorded(**({"clicks": 1_000, "rolled_up": 1_000, "conversions": 50, "sampled": 9, "samples": 9} | fields))


async def sent(tool: str, folder: Path, script: Script) -> tuple[Heard, list[str], int]:
    """What a generator heard and told, and how it ended."""
    (folder / "spike.json").write_bytes(msgspec.json.encode(script))
    process = await run.start(tool, folder)
    try:
        exit_code = await asyncio.wait_for(process.wait(), GIVEN_UP_S)
    except TimeoutError:
        process.kill()
        raise
    assert (folder / "heard.json").exists(), (folder / "said").read_text()
    heard = msgspec.json.decode((folder / "heard.json").read_bytes(), type=Heard)
    return heard, (folder / "told").read_text().splitlines(), exit_code


@given(RATES, RATES, st.floats(0.5, 30))
def test_arrivals_are_as_many_as_their_rate_says_evenly_and_in_time(first: float, last: float, for_s: float) -> None:
    stage = Stage("any", "warm", 3.0, for_s, first, last, 1)
    due_s = list(stage.arrivals_s())
    assert abs(len(due_s) - (first + last) / 2 * for_s) <= 1.01
    assert due_s == sorted(due_s)
    assert all(0 <= at < for_s for at in due_s)
    longest = 1 / min(first, last) * 1.01
    assert all(after - before <= longest for before, after in pairwise(due_s))


def test_the_plan_has_every_kind_and_a_spike_of_so_many_times_the_rest_within_a_bit_over_two_minutes() -> None:
    stages = plan.stages(Sizes(resting_per_s=100, spike_times=7))
    assert {stage.kind for stage in stages} == {"warm", "hot", "cold", "buy", "day", "read"}
    assert plan.named(stages, "spike").from_per_s == plan.named(stages, "rest").to_per_s * 7
    assert max(stage.end_s for stage in stages) <= 130
    readers, spike = plan.named(stages, "readers"), plan.named(stages, "spike")
    assert (readers.start_s, readers.end_s) == (spike.start_s, spike.end_s)


@pytest.mark.parametrize("stretch", [0.3, 1.0, 2.0])
def test_each_cold_link_is_asked_for_once(stretch: float) -> None:
    cold = plan.named(plan.stages(Sizes(resting_per_s=1, stretch=stretch, cold_links=3_000)), "cold_links")
    assert len(list(cold.arrivals_s())) == pytest.approx(3_000, abs=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("RESTING_PER_S", "0"), ("SPIKE_TIMES", "1"), ("STRETCH", "0.1"), ("LOG", "files"), ("FREEZE_BROKER_S", "5")],
)
def test_a_size_that_makes_no_sense_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("RESTING_PER_S", "10")
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name.lower()):
        Sizes()


def test_nothing_is_wrong_when_all_that_was_answered_is_recorded() -> None:
    assert verdict.wrong(what_was_heard(), what_was_recorded(), frozen=False) == []
    assert verdict.goal(what_was_heard()).startswith("2.00 ")
    assert verdict.goal(what_was_heard()).endswith(": met")


@pytest.mark.parametrize(
    ("heard", "recorded", "complaint"),
    [
        ({}, {"clicks": 999, "rolled_up": 999}, "1 answered clicks are lost"),
        ({}, {"clicks": 1_002, "rolled_up": 1_002}, "2 rows are of no answered click"),
        ({}, {"conversions": 49}, "1 accepted conversions are lost"),
        ({}, {"conversions": 51}, "1 conversions are of no receipt"),
        ({}, {"rolled_up": 1_001}, "1 clicks are missing in the rollup"),
        ({}, {"sampled": 8}, "1 sampled click ids are no row"),
        ({"wrong": 3}, {}, "3 answers were wrong"),
        ({"dropped": 4}, {}, "4 arrivals found no connection"),
        ({"crossed": ["wrong == 0"]}, {}, "threshold crossed: wrong == 0"),
        ({"answered": 0}, {"clicks": 0, "rolled_up": 0}, "no click was answered"),
        ({"accepted": 0}, {"conversions": 0}, "no conversion was accepted"),
    ],
)
def test_whatever_must_not_be_is_a_line(heard: dict[str, int], recorded: dict[str, int], complaint: str) -> None:
    (line,) = verdict.wrong(what_was_heard(**heard), what_was_recorded(**recorded), frozen=False)
    assert line.startswith(complaint)


def test_a_slow_spike_is_wrong_unless_a_broker_was_frozen_in_it() -> None:
    slow = replace(what_was_heard(), stages={"rest": Took(100, 1.0, 4.0), "spike": Took(900, 2.0, 20.1)})
    assert verdict.wrong(slow, what_was_recorded(), frozen=True) == []
    assert verdict.wrong(slow, what_was_recorded(), frozen=False) == [
        "p99 during the spike is 5.0 times that at rest, beyond 5"
    ]


def test_k6_is_told_to_keep_to_the_rates_of_the_plan_and_to_fail_by_thresholds(tmp_path: Path) -> None:
    stages = plan.stages(Sizes(resting_per_s=100))
    (tmp_path / "spike.json").write_bytes(msgspec.json.encode(a_script("http://127.0.0.1:1", *stages)))
    env = os.environ | {"SPIKE": str(tmp_path / "spike.json"), "HEARD": str(tmp_path / "heard.json")}
    command = [str(run.BIN / "k6"), "inspect", "--include-system-env-vars", str(run.SCRIPTS / "k6" / "spike.js")]
    options = json.loads(subprocess.run(command, env=env, check=True, capture_output=True, timeout=30).stdout)
    assert set(options["scenarios"]) == {stage.name for stage in stages}
    executors = Counter(of["executor"] for of in options["scenarios"].values())
    assert executors == {"constant-arrival-rate": 9, "ramping-arrival-rate": 3}
    assert options["scenarios"]["spike"]["rate"] == 1_000
    judged = {name for name in options["thresholds"] if name.startswith("took{")}
    assert judged == {f"took{{scenario:{stage.name}}}" for stage in stages}
    assert options["thresholds"]["dropped_iterations"] == options["thresholds"]["wrong"] == ["count==0"]


@pytest.fixture
async def edge(running: RunningEdge, publisher: edges.Filled) -> RunningEdge:
    """With the links `warm-0` to `warm-2`, whose destination has the click id under its own name."""
    links = [edges.link(f"warm-{n}", id=10 + n) for n in range(3)]
    offer = edges.offer(destination_url="https://shop.example/buy")
    await publisher.write({redis_keys.link(link.code): link for link in links} | {redis_keys.offer(1): offer})
    return running


@pytest.mark.parametrize("tool", TOOLS)
async def test_what_a_generator_says_it_heard_is_what_the_edge_has_logged(
    tool: str, edge: RunningEdge, tmp_path: Path
) -> None:
    stages = a_stage("clicks", "warm", 0, 1, 250), a_stage("hot", "hot", 1, 1, 20), a_stage("storm", "buy", 1, 1, 40)
    heard, told, exit_code = await sent(tool, tmp_path, a_script(f"http://127.0.0.1:{edge.port}", *stages))
    clicks = {event.id for event in edge.wrote() if isinstance(event, Click)}
    orders = {event.conversion_id for event in edge.wrote() if isinstance(event, Conversion)}
    assert heard.answered == len(clicks) >= 270
    # on a machine that stands still a conversion may be late: refused with a 503, and logged
    assert 20 <= heard.accepted <= len(orders) <= heard.accepted + heard.wrong
    assert heard.dropped == 0
    assert {uuid_of(line.removeprefix("id ")) for line in told if line.startswith("id ")} <= clicks
    assert (exit_code == 0) == (not heard.crossed)


@pytest.mark.parametrize("tool", TOOLS)
async def test_a_generator_fails_when_clicks_are_not_redirected(tool: str, edge: RunningEdge, tmp_path: Path) -> None:
    script = a_script(f"http://127.0.0.1:{edge.port}", a_stage("cold", "cold", 0, 1, 20))
    heard, told, exit_code = await sent(tool, tmp_path, script)
    assert heard.answered == 0
    assert any(line.startswith("wrong") for line in heard.crossed)
    assert heard.wrong == sum(line.startswith("wrong click 404") for line in told) == pytest.approx(20, abs=1)
    assert exit_code != 0


@asynccontextmanager
async def stalling_server() -> AsyncIterator[str]:
    """Answers clicks; stands still for STALL_S once, a second after its first request."""
    loop, first = asyncio.get_running_loop(), list[float]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof():
            try:
                await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            first[:] = first or [loop.time()]
            since_s = loop.time() - first[0]
            await asyncio.sleep(1 + STALL_S - since_s if 1 <= since_s < 1 + STALL_S else 0)
            writer.write(ANSWER)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


@pytest.mark.parametrize(("tool", "connections"), [("k6", 5), ("k6", 100), ("locust", 5)])
async def test_a_server_that_stands_still_delays_no_arrival_and_its_wait_is_counted_from_when_each_was_due(
    tool: str, connections: int, tmp_path: Path
) -> None:
    """40 arrive while it stands still; a closed loop would have sent as many as it has connections. Where k6 has none
    left it says so, locust sends late and counts that."""
    async with stalling_server() as url:
        stage = a_stage("rest", "warm", 0, 2.5, 50, connections)
        heard, _, _ = await sent(tool, tmp_path, a_script(url, stage))
    took = heard.stages["rest"]
    assert took.count + heard.dropped == pytest.approx(125, abs=2)
    assert took.p99_ms > STALL_S * 800
    assert (heard.dropped > 0) == (tool == "k6" and connections == 5)
