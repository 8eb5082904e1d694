"""The load generator: `wrk`, and what it says. One thread, closed loop: a latency is that of a full house."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import Sequence
from importlib.resources import files

import msgspec

from deploy.run.children import CannotStart

CODES = 1_000  # links of each contender
CORE = 1


class Heard(msgspec.Struct, frozen=True):
    """A run of wrk: answers, how many requests were no clicks, bytes of all answers, answers with a 4xx or 5xx, errors
    of sockets and timeouts; where every answer was looked at, those that were not our redirect, and some of the click
    ids."""

    answered: int
    others: int
    took_us: int
    size_bytes: int
    p50_us: int
    p99_us: int
    refused: int
    broken: int
    wrong: int
    ids: str

    @property
    def rate_s(self) -> float:
        return self.answered / self.took_us * 1e6


def check_possible() -> None:
    """Raises CannotStart where nothing can be measured."""
    if shutil.which("wrk") is None:
        raise CannotStart("wrk is not installed: it makes the load (Debian, Ubuntu, Homebrew: the package wrk)")
    if not hasattr(os, "sched_setaffinity") or not {0, CORE} <= os.sched_getaffinity(0):
        raise CannotStart("the bench needs Linux and the cores 0 and 1: a system on the one, the load on the other")


async def load(
    url: str, name: str, connections: int, seconds: int, *, links: int = CODES, mixed: bool = False, check: bool = False
) -> Heard:
    """Click on a contender's links for some seconds; `mixed`: of 20 requests one is `GET /live`. Raises CannotStart
    when wrk fails."""
    said = [name, str(links), *(["mixed"] if mixed else []), *(["check"] if check else [])]
    return await _run(url, said, connections, seconds)


async def convert(
    url: str, name: str, click_id: str, each: int, connections: int, seconds: int, *, check: bool = False
) -> Heard:
    """Report sales of a click for some seconds, so many in each request, each of an order of its own. Raises
    CannotStart when wrk fails."""
    said = [name, "0", *(["check"] if check else []), "convert", secrets.token_hex(4), click_id, str(each)]
    return await _run(url, said, connections, seconds)


async def _run(url: str, said: Sequence[str], connections: int, seconds: int) -> Heard:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(files("loadtests.bench") / "clicks.lua")]
    command += [url, "--", *said]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    answered, errors = await process.communicate()
    if process.returncode != 0:
        raise CannotStart(f"wrk failed: {errors.decode(errors='replace').strip()[-300:]}")
    return heard(answered.decode())


def heard(said: str) -> Heard:
    """What our script wrote at the end of wrk's own words. Raises CannotStart."""
    for line in said.splitlines():
        if line.startswith("{"):
            return msgspec.json.decode(line, type=Heard)
    raise CannotStart(f"wrk did not say what it heard: {said[-300:]!r}")
