"""Killing processes of a running `clickdam up` at moments that a seed decides."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

NEW_PROCESS_S = 30.0


class NothingToKill(Exception):
    """No living process of that name appeared in time."""


def moments(seed: int, what: str, times: int, clicks: int) -> list[int]:
    """When to kill, counted in clicks sent: somewhere between 5 % and 95 % of them."""
    rng = random.Random(f"kill {what} {seed}")
    return sorted(rng.randrange(clicks // 20, clicks * 19 // 20 + 1) for _ in range(times))


async def kill_at(config: Path, name: str, when: Sequence[int], sent: Callable[[], int], seed: int) -> list[int]:
    """kill -9 a process called `name` in `clickdam.json` each time `sent()` reaches a moment. Returns their pids.

    Moments that come before the killed process is back wait for it, so that every kill hits something."""
    rng = random.Random(f"which {name} {seed}")
    killed: list[int] = []
    for moment in when:
        while sent() < moment:
            await asyncio.sleep(0.002)
        pid = rng.choice(await _living(config, name, set(killed)))
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
    return killed


async def _living(config: Path, name: str, killed: set[int]) -> list[int]:
    deadline = asyncio.get_running_loop().time() + NEW_PROCESS_S
    while asyncio.get_running_loop().time() < deadline:
        pids = _pids(config, name)
        if pids and not killed & set(pids):
            return pids
        await asyncio.sleep(0.02)
    raise NothingToKill(f"no {name} came back within {NEW_PROCESS_S:.0f} s")


def _pids(config: Path, name: str) -> list[int]:
    """Read anew each time: the file is replaced when a process is."""
    try:
        return [int(pid) for pid in json.loads(config.read_text())["processes"].get(name, [])]
    except (FileNotFoundError, json.JSONDecodeError):
        return []
