"""`GET /v1/reconciliation` and `clickdam reconcile`: what a real edge was sent, and what there is of it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import aiohttp
import orjson
import pytest

import tracker.app
from aggregator.api import keys
from aggregator.db.connect import Connection
from aggregator.db.instants import rfc3339, to_ms
from aggregator.reports.drift import watch_once
from aggregator.reports.reconciliation import HOUR, floor
from aggregator.settled import quarters
from loadtests.faults import edges, journals
from loadtests.faults.edges import Answer, RunningEdge, ask, get, link, offer, request
from schemas import limits, redis_keys
from schemas.links import Cap, Config
from tests.aggregator.api.conftest import Client
from tests.deploy.test_history import PROGRAMME
from tracker.clock import EdgeClock, wall_ms

COMPLETE_S = 60.0
BEGINS = floor(datetime.now(UTC)) - 3 * HOUR
BAD = {
    "from=yesterday": "from", "to=1": "to",
    "from=2026-01-01&to=2026-03-01": "to", "from=2026-01-02&to=2026-01-01": "to",
    "from=2026-01-01&to=2026-01-01": "to", "from=1999-01-01": "from", "hours=48": "hours",
    "from=2026-01-01&from=2026-01-02": "from", "timezone=UTC": "timezone", "to=2026-01-01T00:00:00": "to",
    f"to={'9' * 300}": "to",
}  # fmt: skip


async def test_bad_parameters_are_refused_by_name(admin: Client) -> None:
    for query, field in BAD.items():
        status, answer = await admin("GET", f"/v1/reconciliation?{query}")
        assert (status, answer["error"]["field"]) == (400, field), query


async def test_only_an_admin_whose_key_may_see_the_system_is_told(admin: Client, made: Any, db: Connection) -> None:
    wanted = {
        "partner": keys.Wanted("partner", made.partner_id),
        "advertiser": keys.Wanted("advertiser", None, made.advertiser_id),
        "other": keys.Wanted("admin", scopes=["reports.read"]), "this": keys.Wanted("admin", scopes=["system.read"]),
    }  # fmt: skip
    found = {
        name: (await admin.with_key((await keys.create(db, one)).key)("GET", "/v1/reconciliation"))[0]
        for name, one in wanted.items()
    }
    assert found == {"partner": 403, "advertiser": 403, "other": 403, "this": 200}


async def test_whole_hours_are_told_and_two_days_unless_asked(admin: Client) -> None:
    _, told = await admin("GET", "/v1/reconciliation?from=2026-01-01T00:20:00Z&to=2026-01-01T02:10:00Z")
    assert (told["from"], told["to"], len(told["data"])) == ("2026-01-01T00:00:00Z", "2026-01-01T03:00:00Z", 3)
    assert len((await admin("GET", "/v1/reconciliation"))[1]["data"]) == 48
    await admin("PATCH", "/v1/programme", json={"timezone": "Asia/Kathmandu"})
    _, told = await admin("GET", "/v1/reconciliation?from=2026-01-01&to=2026-01-02")
    assert (told["from"], told["to"]) == ("2025-12-31T18:00:00Z", "2026-01-01T19:00:00Z")


async def test_clicks_that_were_brought_from_another_tracker_are_no_clicks_of_an_edge(
    admin: Client, made: Any, db: Connection
) -> None:
    hour = floor(datetime.now(UTC)) - timedelta(days=1)
    row = {"click_id": "foreign-1", "link_id": made.link_id, "clicked_at": rfc3339(hour)}
    body = {"data": orjson.dumps(row), "headers": {"Content-Type": "application/x-ndjson"}}
    status, answer = await admin("POST", "/v1/clicks/import", **body)
    assert (status, answer["created"]) == (200, 1), answer
    _, told = await admin("GET", f"/v1/reconciliation?from={rfc3339(hour)}&to={rfc3339(hour + HOUR)}")
    of_clicks = told["data"][0]["clicks"]
    assert (of_clicks["rows"], of_clicks["imported"], of_clicks["drift"]) == (0, 0, 0)


def configs() -> dict[str, Config]:
    offers = [offer(2, caps=(Cap(id=5, period="total", clicks=1, over_cap="pass"),))]
    links = [
        link("test", id=3, test=True), link("over", id=4, offer_id=2),
        link("elsewhere", id=5, status="paused", fallback_url="https://elsewhere.example/"),
    ]  # fmt: skip
    return (
        edges.configs()
        | {redis_keys.offer(one.id): one for one in offers}
        | {redis_keys.link(one.code): one for one in links}
    )


@asynccontextmanager
async def three_hours_ago(
    folder: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[RunningEdge, dict[str, int]]]:
    """An edge in the middle of an hour that is long over, until `behind` is set to 0."""
    behind = {"ms": wall_ms() - to_ms(BEGINS + timedelta(minutes=20))}
    clock = partial(EdgeClock, lambda: wall_ms() - behind["ms"])
    monkeypatch.setattr(tracker.app, "EdgeClock", clock)
    async with edges.filled(redis_url, configs()), edges.running_edge(edges.settings(folder, redis_url)) as running:
        await edges.follows(running.edge)
        yield running, behind


@asynccontextmanager
async def slow_log(running: RunningEdge, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """The log writes all the same, but not before this ends."""
    over, write = asyncio.Event(), running.edge.log.write

    async def slowly(batch: Any) -> Any:
        await over.wait()
        return await write(batch)

    with monkeypatch.context() as patched:
        patched.setattr(running.edge.log, "write", slowly)
        yield
        over.set()
        await running.edge.recorder.drained()


def click_id(answer: Answer) -> str:
    return parse_qs(urlsplit(answer.headers["location"]).query)["p"][0]


async def send_clicks(running: RunningEdge, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Requests at links with every outcome that a journal knows, 21 of them; ids of clicks for sales."""
    port = running.port
    ids = {code: click_id(await get(port, f"/c/{code}")) for code in ("demo", "test")}
    for code in ("demo", "over", "over", "elsewhere"):
        assert (await get(port, f"/c/{code}?sub1=x")).status == 302
    for agent in ("", "Googlebot/2.1"):
        assert (await get(port, "/c/demo", User_Agent=agent)).status == 302
    assert (await ask(port, request("/c/demo", "HEAD"))).status == 302
    assert (await get(port, "/c/demo?no_track=1")).status == 302
    too_many = "&".join(f"p{n}=1" for n in range(limits.QUERY_PARAMS_MAX + 1))
    refused = [await get(port, path) for path in ("/c/nobody", "/c/nobody", "/c/paused", f"/c/demo?{too_many}")]
    assert [answer.status for answer in refused] == [404, 404, 404, 400]
    async with slow_log(running, monkeypatch):
        late = await asyncio.gather(*(get(port, f"/c/{code}") for code in ("demo", "demo", "test", "demo")))
    with monkeypatch.context() as patched:
        patched.setattr(limits, "QUEUE_EVENTS_MAX", 0)
        lost = [await get(port, "/c/demo"), await get(port, "/c/demo?sub1=lost"), await get(port, "/c/test")]
    assert {answer.status for answer in (*late, *lost)} == {302}
    return ids


def postback(order_id: str, click: str, **said: str) -> bytes:
    told = {"token": edges.TOKEN, "click_id": click, "order_id": order_id, "amount": "49.90", "currency": "EUR"} | said
    return request(f"/postback?{urlencode(told)}")


async def send_posts(running: RunningEdge, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Posts with every result, 11 of them."""

    async def post(*said: Any, **more: str) -> tuple[int, str]:
        answer = await ask(running.port, postback(*said, **more))
        return answer.status, answer.json().get("result", "test")

    click = ids["demo"]
    assert await post("one", click) == (200, "accepted")
    assert await post("one", click) == (200, "duplicate")
    assert await post("one", click, status="reversed") == (200, "accepted")
    assert (await post("two", click, amount="much"))[1] == "rejected"
    assert (await post("three", "nonsense"))[1] == "rejected"
    assert await post("four", ids["test"]) == (200, "test")
    assert (await post("five", click, token="nobody's"))[0] == 401
    async with slow_log(running, monkeypatch):
        assert (await post("six", click))[0] == 503
    assert await post("six", click) == (200, "accepted")
    many = {"conversions": [{"click_id": click, "order_id": f"json-{n}", "amount_minor": 100} for n in range(2)]}
    headers = {"Authorization": f"Bearer {edges.TOKEN}"}
    raw = request("/v1/conversions", "POST", headers, orjson.dumps(many))
    assert (await ask(running.port, raw)).status == 200


async def until_complete(db: Connection, moment: datetime) -> None:
    async with asyncio.timeout(COMPLETE_S):
        while (await db.fetchval("SELECT complete_through FROM complete_through") or BEGINS) < moment:
            await asyncio.sleep(0.05)


async def reconcile(url: str, key: str) -> tuple[int | None, str]:
    """What the command says, and how it ends."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("CLICKDAM_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deploy.run.cli", "reconcile",
        env=known | {"CLICKDAM_API_URL": url, "CLICKDAM_API_KEY": key}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, said.decode()


async def test_all_that_an_edge_received_is_there_and_a_row_that_is_removed_is_the_drift(
    admin: Client, session: aiohttp.ClientSession, db: Connection, database_url: str, redis_url: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    await db.execute(PROGRAMME)
    of = journals.settings(database_url, tmp_path, redis_url=redis_url)
    async with three_hours_ago(tmp_path, redis_url, monkeypatch) as (running, behind), journals.consuming(of):
        await send_posts(running, await send_clicks(running, monkeypatch), monkeypatch)
        behind["ms"] = 0
        await until_complete(db, BEGINS + HOUR)
    path = f"/v1/reconciliation?{urlencode({'from': rfc3339(BEGINS), 'to': rfc3339(BEGINS + HOUR)})}"
    _, told = await admin("GET", path)
    (hour,) = told["data"]
    assert hour["complete"]
    assert hour["clicks"] == {
        "received": 21, "recorded": 8, "spooled": 0, "late": 4, "lost": 3, "uncounted": 2,
        "refused": {"bad_request": 1, "link_paused": 1, "unknown_link": 2},
        "rows": 12, "imported": 0, "unaccounted": 0, "drift": 0,
    }  # fmt: skip
    assert sum(hour["conversions"]["refused"].values()) == 4
    assert hour["conversions"] | {"refused": 4} == {
        "received": 11, "accepted": 6, "test_posts": 1, "refused": 4, "recorded": 9, "spooled": 0, "late": 1, "lost": 0,
        "rows": 10, "imported": 0, "unaccounted": 0, "drift": 0,
    }  # fmt: skip
    assert (told["drift"], told["unaccounted"], told["imported"]) == (0, 0, 0)
    while await quarters.settle_once(db, wall_ms()):
        pass
    assert await db.fetchval("SELECT sum(recorded)::int FROM settled_quarter") == 12
    await watch_once(db)
    async with session.get("/live") as live:
        url = str(live.url.origin())
    assert (await reconcile(url, admin.key))[0] == 0

    await db.execute("DELETE FROM click WHERE id = (SELECT id FROM click WHERE click_class = 0 LIMIT 1)")
    _, told = await admin("GET", path)
    assert (told["drift"], told["data"][0]["clicks"]["drift"]) == (1, 1)
    code, said = await reconcile(url, admin.key)
    assert (code, "drift 1, unaccounted 0, imported 0 in complete hours" in said) == (1, True), said
