"""A Clickdam of its own, a generator that does to it what the plan says, and the count: answered is recorded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import tempfile
import time
from asyncio.subprocess import Process
from dataclasses import dataclass
from pathlib import Path

import msgspec
import uvloop
from rich.console import Console
from rich.table import Table

from loadtests.spikes import plan, recorded, system, verdict
from loadtests.spikes.plan import Heard, Sizes, Stage
from loadtests.spikes.recorded import Recorded
from loadtests.spikes.system import Running
from loadtests.system import clickdam_up

SCRIPTS = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
# nothing is told to anybody, and no port is opened
COMMANDS = {
    "k6": [
        str(BIN / "k6"), "run", "--quiet", "--no-usage-report", "--address", "", "--log-format", "raw",
        "--console-output", "{told}", str(SCRIPTS / "k6" / "spike.js"),
    ],
    "locust": [
        str(BIN / "locust"), "--headless", "--only-summary", "--loglevel", "WARNING",
        "-f", str(SCRIPTS / "locust" / "spike.py"),
    ],
}  # fmt: skip
RESTING_PER_S = {"k6": 60, "locust": 60}  # ten times that is what a generator can do on its core without coming late
BEGINS_S = 60.0
OVERTIME_S = 60.0
SHOWN_MAX = 10
SAID_MAX = 5_000


class BrokenOff(Exception):
    """The generator did not do what it was started for."""


@dataclass(frozen=True, slots=True)
class Found:
    """All that a spike found out. `complaints` are the generator's, `spent_s` is the CPU of each process during the
    spike, `outcomes` are the edge's own count."""

    heard: Heard
    recorded: Recorded
    complaints: list[str]
    spent_s: dict[str, float]
    complete_s: float
    outcomes: dict[str, int]


def main(tool: str) -> int:
    """Run, count, print. Returns 1 when a threshold of the script was crossed, or anything is lost or wrong."""
    sizes = Sizes(resting_per_s=int(os.environ.get("RESTING_PER_S", RESTING_PER_S[tool])))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was started is stopped
    stages, console, began = plan.stages(sizes), Console(width=120), time.monotonic()
    with (
        clickdam_up(sizes.workers, *(["--kafka"] if sizes.log == "kafka" else [])) as data,
        tempfile.TemporaryDirectory(prefix="clickdam-spike-") as folder,
    ):
        console.print(f"Clickdam is up after {time.monotonic() - began:.0f} s, its log: {sizes.log}")
        found = uvloop.run(spike(tool, sizes, stages, Running.read(data), Path(folder)))
    wrong = verdict.wrong(found.heard, found.recorded, frozen=sizes.freeze_broker_s > 0)
    show(found, stages, console)
    for line in found.complaints[:SHOWN_MAX] + wrong:
        console.print(f"[red]{line}", highlight=False)
    console.print(f"{'WRONG' if wrong else 'all is recorded'}, {time.monotonic() - began:.0f} s in all")
    return 1 if wrong else 0


async def spike(tool: str, sizes: Sizes, stages: list[Stage], running: Running, folder: Path) -> Found:
    """One run of the generator on a system that has nothing in it yet, and what came of it. Raises BrokenOff."""
    run = f"s{secrets.token_hex(3)}"
    programme = await system.fill(running, run, sizes.cold_links)
    script = plan.script(running, programme, run, sizes.cold_links, stages)
    system.part(running)
    (folder / "spike.json").write_bytes(msgspec.json.encode(script))
    process = await start(tool, folder)
    try:
        spent_s = await _accompany(process, folder / "told", stages, sizes, running)
        await asyncio.wait_for(process.wait(), max(stage.end_s for stage in stages) + OVERTIME_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    told = (folder / "told").read_text().splitlines()
    if not (folder / "heard.json").exists():
        raise BrokenOff(f"the generator did not say what it heard\n{(folder / 'said').read_text()[-SAID_MAX:]}")
    heard = msgspec.json.decode((folder / "heard.json").read_bytes(), type=Heard)
    complete_s = await recorded.complete(running.database_url)
    counted = await recorded.count(running.database_url, _told(told, "id "))
    outcomes = await recorded.outcomes(running.metrics_url)
    return Found(heard, counted, _told(told, "wrong "), spent_s, complete_s, outcomes)


async def start(tool: str, folder: Path) -> Process:
    """The generator on `spike.json` in this folder; what it hears, tells and says goes there, too."""
    files = {"SPIKE": folder / "spike.json", "HEARD": folder / "heard.json", "TOLD": folder / "told"}
    variables = {name: str(path) for name, path in files.items()}
    command = [word.format(told=variables["TOLD"]) for word in COMMANDS[tool]]
    with (folder / "said").open("wb") as said:
        return await asyncio.create_subprocess_exec(*command, env=os.environ | variables, stdout=said, stderr=said)


def _told(lines: list[str], word: str) -> list[str]:
    return [line.removeprefix(word) for line in lines if line.startswith(word)]


async def _accompany(
    process: Process, told: Path, stages: list[Stage], sizes: Sizes, running: Running
) -> dict[str, float]:
    """From the generator's first word to the end of the spike: freeze the broker in its middle if that is wanted.
    Answers the seconds of CPU that each process has spent during the spike."""
    await _began(process, told)
    during = plan.named(stages, "spike")
    await asyncio.sleep(during.start_s)
    ends, before_s = time.monotonic() + during.for_s, system.spent_s(running, process.pid)
    if sizes.freeze_broker_s:
        await asyncio.sleep(during.for_s / 4)
        await system.freeze(running, sizes.freeze_broker_s)
    await asyncio.sleep(ends - time.monotonic())
    after_s = system.spent_s(running, process.pid)
    return {name: after_s[name] - spent for name, spent in before_s.items()}


async def _began(process: Process, told: Path) -> None:
    async with asyncio.timeout(BEGINS_S):
        while not (told.exists() and "began" in told.read_text()):
            if process.returncode is not None:
                raise BrokenOff(f"the generator ended with {process.returncode} before it began")
            await asyncio.sleep(0.05)


def show(found: Found, stages: list[Stage], console: Console) -> None:
    """The stages, what was counted, the goal."""
    table = Table("stage", "arrivals/s", "answers", "p50 ms", "p99 ms")
    for stage in stages:
        took, rates = found.heard.stages[stage.name], dict.fromkeys((stage.from_per_s, stage.to_per_s))
        times = f"{took.p50_ms:.1f}", f"{took.p99_ms:.1f}"
        table.add_row(stage.name, " to ".join(f"{rate:,.0f}" for rate in rates), f"{took.count:,}", *times)
    console.print(table)
    heard, there, during = found.heard, found.recorded, plan.named(stages, "spike")
    lines = {
        "clicks answered, recorded, rolled up": (heard.answered, there.clicks, there.rolled_up),
        "of those sampled by id, recorded": (there.samples, there.sampled),
        "conversions accepted, recorded": (heard.accepted, there.conversions),
        "answers wrong, arrivals without a connection": (heard.wrong, heard.dropped),
    }
    figures = {what: ", ".join(f"{number:,}" for number in numbers) for what, numbers in lines.items()}
    figures["the edge counted"] = ", ".join(f"{name} {number:,}" for name, number in found.outcomes.items())
    figures["reports complete after"] = f"{found.complete_s:.1f} s"
    for name, spent_s in found.spent_s.items():
        figures[f"CPU during the spike, {name}"] = _cost(spent_s, heard.stages["spike"].count, during.for_s)
    system_s = sum(found.spent_s.values()) - found.spent_s["generator"]
    figures["CPU during the spike, system"] = _cost(system_s, heard.stages["spike"].count, during.for_s)
    figures["p99 during the spike / at rest"] = verdict.goal(heard)
    for what, figure in figures.items():
        console.print(f"{what}: {figure}", highlight=False)


def _cost(spent_s: float, answers: int, for_s: float) -> str:
    return f"{spent_s / max(answers, 1) * 1e6:.0f} us a click, {spent_s / for_s:.0%} of a core"
