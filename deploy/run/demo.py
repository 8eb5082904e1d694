"""`clickdam demo`: proof for the eyes that what was answered is what was recorded, also when somebody dies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import psutil
from aiohttp import ClientError, ClientSession, ClientTimeout
from rich.console import Console
from rich.progress import Progress

from aggregator.db.connect import connected
from deploy.run import folder
from deploy.run.children import CannotStart
from deploy.run.machine import chosen
from deploy.run.screen import BROWSER
from schemas.click_id import ClickKeys, read

SENDERS = 16
RECORDED_S = 30.0  # the aggregator is started again, reads its position and applies what waits
LOOK_EVERY_S = 0.1


async def run(data: Path, clicks: int, *, kill: bool) -> bool:
    """Send clicks, kill the aggregator in the middle if asked, print both counts. Whether they are equal, by id.

    Raises CannotStart.
    """
    told = folder.description(data)
    if not told["demo"] or not told["processes"]["aggregator"]:
        raise CannotStart(f"`clickdam up` does not run on {data}, or has no demo programme")
    with Progress(transient=True) as progress:
        sent, rows = (
            progress.add_task("clicks answered", total=clicks),
            progress.add_task("rows recorded", total=clicks),
        )

        def advance(answered: int) -> None:
            progress.update(sent, completed=answered)
            if kill and answered == clicks // 2:
                progress.print(f"killed the aggregator (pid {kill_aggregator(told)})")

        try:
            ids = await send(told["demo"]["link_url"], clicks, advance)
        except (ClientError, TimeoutError) as error:
            raise CannotStart(f"the edge of {data} does not answer: {error or type(error).__name__}") from None
        keys = ClickKeys.parse(chosen("CLICK_KEYS", folder.remembered(data, wants_demo=True).click_keys))
        uuids = {read(keys, one).uuid for one in ids}
        recorded = await count_recorded(told["database_url"], uuids, lambda n: progress.update(rows, completed=n))
    Console().print(f"answered {len(uuids)} {'=' if recorded == len(uuids) else '≠'} recorded {recorded}")
    return recorded == len(uuids)


async def send(link_url: str, clicks: int, advance: Callable[[int], None], ids: list[str] | None = None) -> list[str]:
    """Send clicks side by side; the click ids of those that were answered with a redirect, also in `ids` at once."""
    ids = [] if ids is None else ids
    left = iter(range(clicks))

    async def sender(session: ClientSession) -> None:
        for _ in left:
            async with session.get(link_url, allow_redirects=False) as answer:
                if answer.status == 302:
                    ids.append(parse_qs(urlsplit(answer.headers["Location"]).query)["click_id"][0])
                    advance(len(ids))

    headers = {"User-Agent": BROWSER}
    async with ClientSession(headers=headers, timeout=ClientTimeout(total=10)) as session:
        await asyncio.gather(*(sender(session) for _ in range(SENDERS)))
    return ids


def kill_aggregator(told: dict[str, Any]) -> int:
    """Kill -9 the first that the description names, if it still is what it says."""
    pid = int(told["processes"]["aggregator"][0])
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if "aggregator" in process.cmdline():
            process.kill()
            return pid
    raise CannotStart(f"process {pid} is not the aggregator any more")


async def count_recorded(database_url: str, uuids: set[UUID], advance: Callable[[int], None]) -> int:
    """Rows with these ids, as soon as all are there or when waiting longer makes no sense."""
    deadline = asyncio.get_running_loop().time() + RECORDED_S
    async with connected(database_url, command_timeout_s=10.0, application_name="clickdam-demo") as connection:
        while True:
            recorded = await connection.fetchval("SELECT count(*) FROM click WHERE id = ANY($1)", list(uuids))
            advance(recorded)
            if recorded >= len(uuids) or asyncio.get_running_loop().time() > deadline:
                return int(recorded)
            await asyncio.sleep(LOOK_EVERY_S)
