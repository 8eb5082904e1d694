"""Sending the clicks of a workload. A click is never repeated: a visitor whose answer is cut off has left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from loadtests.heard import Heard, click_id_of
from loadtests.wire import Answer, CutOff, Wire, ask, connect
from loadtests.workload import PLANNED_CLICKS_PER_S, Click

CONNECTIONS = 64


async def send_clicks(planned: Sequence[Click], edge_url: str, heard: Heard, rate: float = 0.0) -> None:
    """All clicks in their order over 64 connections, `rate` a second, or as fast as they are answered for 0."""
    queue = iter(planned)
    began = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(CONNECTIONS, len(planned))):
            group.create_task(_send_some(queue, edge_url, heard, began, rate))
    heard.planned_s = float("inf")


async def _send_some(queue: Iterator[Click], edge_url: str, heard: Heard, began: float, rate: float) -> None:
    host = urlsplit(edge_url).netloc
    wire: Wire | None = None
    try:
        for click in queue:
            due = began + click.at_s * PLANNED_CLICKS_PER_S / rate if rate else None
            if due is not None:
                await _sleep_until(due)
            if wire is None or not wire.alive:
                wire = await connect(edge_url)
            heard.sent += 1
            heard.planned_s = max(heard.planned_s, click.at_s)
            try:
                _hear(click, await ask(wire, click, host), heard)
                if due is not None:
                    heard.took_s.append(asyncio.get_running_loop().time() - due)
            except CutOff:
                heard.cut_off.append(click)
                heard.settled[click.number] = None
    finally:
        if wire:
            wire.writer.close()


async def _sleep_until(due: float) -> None:
    wait_s = due - asyncio.get_running_loop().time()
    if wait_s > 0:
        await asyncio.sleep(wait_s)


def _hear(click: Click, answer: Answer, heard: Heard) -> None:
    click_id = click_id_of(answer.location) if answer.status == 302 else None
    heard.statuses[click.kind, answer.status] += 1
    heard.settled[click.number] = click_id if click.method == "GET" else None
    if answer.status == 302 and click_id is None:
        heard.complaints.append(f"click {click.number}: a redirect without a click id to {answer.location[:200]}")
    if answer.status >= 500 and answer.status != 503:
        heard.complaints.append(f"click {click.number}: answered {answer.status} to {click.method} {click.target[:80]}")
    if answer.status != 302 and click.link is not None and answer.status < 500:
        heard.complaints.append(f"click {click.number}: {answer.status} on a live link, {click.target[:80]}")
