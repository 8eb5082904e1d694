"""`clickdam replay`: send a realistic workload over real HTTP, and hold the report against what was counted here."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import aiohttp
import uvloop
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from loadtests import chaos, workload
from loadtests.buying import NoReceipt, send_posts
from loadtests.by_id import ById, compare_by_id
from loadtests.chaos import NothingToKill
from loadtests.clicking import send_clicks
from loadtests.count import METRICS, Counted, Figures, as_figures, count, differences
from loadtests.heard import Heard
from loadtests.programme import Programme, Refused, api, call, make_programme
from loadtests.workload import Click, Order, Post

REPORT_S = 60.0
SHOWN_MAX = 20
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to replay. `rate` is clicks a second, 0 for as fast as they are answered."""

    clicks: int = 50_000
    conversions: int = 2_000
    duplicates: int = 300
    links: int = 10_000
    rate: float = 0.0
    seed: int = 1
    kill_aggregator: int = 0
    kill_worker: int = 0


@dataclass(frozen=True, slots=True)
class Running:
    """Where Clickdam runs, out of its `clickdam.json`. Without a database url nothing is compared by id."""

    edge_url: str
    api_url: str
    admin_key: str
    database_url: str | None
    config: Path

    @classmethod
    def read(cls, data: Path) -> Running:
        """Raises FileNotFoundError when nothing was started in the folder."""
        config = data / "clickdam.json"
        found = json.loads(config.read_text())
        return cls(found["edge_url"], found["api_url"], found["admin_key"], found.get("database_url"), config)


@dataclass(frozen=True, slots=True)
class Plan:
    """All that will be sent, in which programme. Reports are asked for in `zone`, for the day `today`."""

    programme: Programme
    clicks: list[Click]
    orders: list[Order]
    posts: list[Post]
    zone: ZoneInfo
    today: date


@dataclass(slots=True)
class Result:
    """Everything a replay found out. `differences` is empty when all is exact."""

    wanted: Wanted
    heard: Heard
    expected: Figures = field(default_factory=Figures)
    reported: Figures = field(default_factory=Figures)
    by_id: ById | None = None
    kills: dict[str, int] = field(default_factory=dict)
    clicking_s: float = 0.0
    sending_s: float = 0.0
    report_behind_s: float = 0.0
    differences: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.differences


async def replay(running: Running, wanted: Wanted, on_progress: OnProgress = lambda *_: None) -> Result:
    """Set up a programme, send the traffic, wait for the report to be complete and compare.

    `on_progress` is called with what is under way, how many are done and how many there are. Raises Refused when the
    API does, NoReceipt when a conversion cannot be delivered, NothingToKill when a killed process does not return."""
    plan = await _plan(running, wanted, on_progress)
    result = Result(wanted, Heard())
    await _send(running, plan, result, on_progress)
    counted = count(plan.clicks, plan.orders, result.heard, plan.programme, plan.zone, plan.today)
    result.expected = counted.total
    result.differences += result.heard.complaints
    await _compare_reports(running, plan, counted, result, on_progress)
    if running.database_url:
        result.by_id = await compare_by_id(running.database_url, plan.clicks, plan.orders, result.heard, plan.programme)
        result.differences += result.by_id.wrong
    return result


def midday_zone(now: datetime) -> ZoneInfo:
    """A zone in which it is about noon, so that no replay of less than hours meets a midnight: the day of a conversion
    is the edge's receipt, which a sender can only guess."""
    return ZoneInfo(f"Etc/GMT{now.hour - 12:+d}")


async def _plan(running: Running, wanted: Wanted, on_progress: OnProgress) -> Plan:
    run = f"r{wanted.seed}-{secrets.token_hex(4)}"
    made = itertools.count(1)
    async with api(running.api_url, running.admin_key) as session:
        programme = await make_programme(
            session, run, wanted.links, lambda: on_progress("links", next(made), wanted.links)
        )
    clicks = list(workload.clicks(wanted.seed, programme.codes, wanted.clicks))
    orders, posts = workload.purchases(wanted.seed, clicks, wanted.conversions, wanted.duplicates, run)
    zone = midday_zone(datetime.now(UTC))
    return Plan(programme, clicks, orders, posts, zone, datetime.now(zone).date())


async def _send(running: Running, plan: Plan, result: Result, on_progress: OnProgress) -> None:
    heard, wanted, began = result.heard, result.wanted, time.monotonic()
    showing = asyncio.create_task(_show(heard, wanted, len(plan.posts), on_progress))
    try:
        async with asyncio.TaskGroup() as group:
            clicking = group.create_task(send_clicks(plan.clicks, running.edge_url, heard, wanted.rate))
            clicking.add_done_callback(lambda _: setattr(result, "clicking_s", time.monotonic() - began))
            group.create_task(
                send_posts(plan.posts, plan.orders, plan.clicks, running.edge_url, plan.programme.token, heard)
            )
            killers = {name: group.create_task(kill) for name, kill in _kills(running, wanted, heard)}
        await showing
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None  # one says enough, the rest were cancelled for it
    finally:
        showing.cancel()
    result.kills = {name: len(killer.result()) for name, killer in killers.items()}
    result.sending_s = time.monotonic() - began


def _kills(running: Running, wanted: Wanted, heard: Heard) -> Iterator[tuple[str, Coroutine[Any, Any, list[int]]]]:
    for name, times in (("aggregator", wanted.kill_aggregator), ("worker", wanted.kill_worker)):
        when = chaos.moments(wanted.seed, name, times, wanted.clicks)
        yield name, chaos.kill_at(running.config, name, when, lambda: heard.sent, wanted.seed)


async def _show(heard: Heard, wanted: Wanted, posts: int, on_progress: OnProgress) -> None:
    ended = False
    while not ended:
        ended = heard.sent == wanted.clicks and heard.posts == posts
        on_progress("clicks", heard.sent, wanted.clicks)
        on_progress("conversion posts", heard.posts, posts)
        await asyncio.sleep(0.1)


async def _compare_reports(
    running: Running, plan: Plan, counted: Counted, result: Result, on_progress: OnProgress
) -> None:
    """Each partner's reports by link and by day, once the report says that it is complete."""
    sent = datetime.now(UTC)
    by_link: dict[Any, Figures] = {}
    by_day: dict[Any, Figures] = {}
    for partner, key in enumerate(plan.programme.partner_keys):
        async with api(running.api_url, key) as session:
            if not await _wait_until_complete(session, plan, sent, on_progress):
                result.differences.append(f"the report was not complete {REPORT_S:.0f} s after the last answer")
            result.report_behind_s = result.report_behind_s or (datetime.now(UTC) - sent).total_seconds()
            links, wrong_links = as_figures((await report(session, plan, "link"))[0], "link")
            days, wrong_days = as_figures((await report(session, plan, "day"))[0], "day")
        by_link |= links
        by_day |= {(partner, day): figures for day, figures in days.items()}
        result.differences += wrong_links + wrong_days
    result.reported = Counted(by_link, by_day).total
    result.differences += differences("link", counted.by_link, by_link)
    result.differences += differences("day of partner", counted.by_day, by_day)


async def _wait_until_complete(
    session: aiohttp.ClientSession, plan: Plan, sent: datetime, on_progress: OnProgress
) -> bool:
    deadline = time.monotonic() + REPORT_S
    while time.monotonic() < deadline:
        _, complete_through = await report(session, plan, "day")
        on_progress("report", int(complete_through is not None and complete_through >= sent), 1)
        if complete_through is not None and complete_through >= sent:
            return True
        await asyncio.sleep(0.2)
    return False


async def report(
    session: aiohttp.ClientSession, plan: Plan, group_by: str
) -> tuple[list[dict[str, Any]], datetime | None]:
    """All rows of one partner's report for the replay's day, and up to when the report is complete."""
    asked = {
        "from": plan.today.isoformat(),
        "to": (plan.today + timedelta(days=1)).isoformat(),
        "timezone": plan.zone.key,
        "group_by": group_by,
        "metrics": ",".join(METRICS),
        "limit": "1000",
    }
    rows: list[dict[str, Any]] = []
    while True:
        page = await call(session, "GET", "/v1/reports", params=asked)
        rows += page["data"]
        if not page.get("next_cursor"):
            complete_through = page["complete_through"]
            return rows, datetime.fromisoformat(complete_through) if complete_through else None
        asked["cursor"] = page["next_cursor"]


def figures_of(result: Result) -> dict[str, str]:
    """What a replay found, as lines of a table."""
    heard, wanted, by_id = result.heard, result.wanted, result.by_id
    redirected = sum(click_id is not None for click_id in heard.settled.values())
    lines = {
        "clicks sent": f"{heard.sent:,} in {result.clicking_s:.1f} s ({heard.sent / result.clicking_s:,.0f}/s)",
        "answered 302 to a GET": f"{redirected:,}",
        "answered otherwise": ", ".join(
            f"{status} to {kind}: {n:,}" for (kind, status), n in sorted(heard.statuses.items()) if status != 302
        ),
        "cut off, fate unknown": f"{len(heard.cut_off):,}",
        "conversion posts": f"{heard.posts:,}, repeated until a receipt came: {heard.posts_repeated:,}",
        "receipts": ", ".join(f"{name} {n:,}" for name, n in sorted(heard.results.items())),
        "killed -9": ", ".join(f"{name} {n}x" for name, n in result.kills.items() if n) or "nothing",
        "report complete after": f"{result.report_behind_s:.1f} s",
    }
    for metric in METRICS:
        lines[metric] = f"{getattr(result.reported, metric):,} reported, {getattr(result.expected, metric):,} counted"
    if by_id:
        lines["rows in `click`"] = f"{by_id.rows:,}, of cut off requests: {by_id.extra:,}"
    return lines | {"differences": f"{len(result.differences):,} (seed {wanted.seed})"}


def show(result: Result, console: Console) -> None:
    """Print the figures, and the first of the differences."""
    table = Table("what", "found", title="replay")
    for name, figure in figures_of(result).items():
        table.add_row(name, figure)
    console.print(table)
    for line in result.differences[:SHOWN_MAX]:
        console.print(f"[red]{escape(line)}[/red]", highlight=False)


def run(data: Path, wanted: Wanted, on_progress: OnProgress = lambda *_: None) -> Result:
    """`replay` against what runs in the folder `data`, from code that has no event loop. Raises FileNotFoundError
    when nothing does, and what `replay` raises."""
    return uvloop.run(replay(Running.read(data), wanted, on_progress))


def main(data: Path, wanted: Wanted) -> int:
    """The command: replay with a progress bar, print what was found. Returns 0 if all is exact, else 1."""
    console = Console()
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as progress:
        tasks: dict[str, TaskID] = {}

        def on_progress(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done)

        try:
            result = run(data, wanted, on_progress)
        except FileNotFoundError:
            console.print(f"nothing runs in {data}: start `clickdam up` first")
            return 1
        except (Refused, NoReceipt, NothingToKill) as reason:
            console.print(f"the replay was broken off: {reason}", highlight=False)
            return 1
    show(result, console)
    return 0 if result.ok else 1
