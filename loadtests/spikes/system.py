"""The system under a spike: where `clickdam up` runs, its programme, its cores, and its broker frozen on demand."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from loadtests.bench.systems import pin
from loadtests.cpu import cpu_s
from loadtests.programme import Programme, Refused, api, call, make_programme

WARM_LINKS = 200
LIVE_S = 30.0


@dataclass(frozen=True, slots=True)
class Running:
    """What `clickdam.json` says."""

    edge_url: str
    api_url: str
    admin_key: str
    database_url: str
    metrics_url: str
    pids: dict[str, list[int]]

    @classmethod
    def read(cls, data: Path) -> Running:
        found = json.loads((data / "clickdam.json").read_text())
        return cls(
            found["edge_url"], found["api_url"], found["admin_key"], found["database_url"],
            found["metrics_urls"]["edge"], found["processes"],
        )  # fmt: skip


def part(running: Running) -> None:
    """On two cores the system gets the one, and this process with all that it starts from now on the other; where there
    are more, neither is in the other's way."""
    there = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(there) == 2:
        pin([pid for pids in running.pids.values() for pid in pids], there[0])
        os.sched_setaffinity(0, {there[1]})


async def fill(running: Running, run: str, cold_links: int) -> Programme:
    """A programme with warm links `<run>-<n>`, which the edge holds, and cold ones `<run>-cold-<n>`; all are live."""
    async with api(running.api_url, running.admin_key) as session:
        programme = await make_programme(session, run, WARM_LINKS, lambda: None)
        like = await call(session, "GET", f"/v1/links/{programme.link_ids[0]}")
        rows = [_row(like, f"{run}-cold-{n}") for n in range(cold_links)]
        headers = {"Content-Type": "application/x-ndjson"}
        body = "".join(f"{json.dumps(row)}\n" for row in rows)
        done = await call(session, "POST", "/v1/links/import", data=body, headers=headers)
    if done["created"] != cold_links:
        raise Refused(f"the import of cold links: {done}")
    await _until_live(running.edge_url, [*programme.codes, rows[-1]["code"]])
    return programme


def _row(like: dict[str, Any], code: str) -> dict[str, Any]:
    return {"code": code, "offer_id": like["offer_id"], "partner_id": like["partner_id"]}


async def _until_live(edge_url: str, codes: Iterable[str]) -> None:
    """Asked by a HEAD, which is no click."""
    async with asyncio.timeout(LIVE_S), aiohttp.ClientSession(edge_url) as session:
        for code in codes:
            while (await session.head(f"/c/{code}", allow_redirects=False)).status != 302:
                await asyncio.sleep(0.1)


async def freeze(running: Running, for_s: float) -> None:
    """The broker stands still for some seconds, without a goodbye."""
    for pid in running.pids["kafka"]:
        os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(for_s)
    finally:
        for pid in running.pids["kafka"]:
            os.kill(pid, signal.SIGCONT)


def spent_s(running: Running, generator: int) -> dict[str, float]:
    """Seconds of CPU so far, by process; what an edge's workers have spent is the edge's."""
    names = {name: pids for name, pids in running.pids.items() if pids and name != "worker"}
    return {name: cpu_s(pids) for name, pids in (names | {"generator": [generator]}).items()}
