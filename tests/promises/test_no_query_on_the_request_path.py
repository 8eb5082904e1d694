"""P11: no request on the edge runs a query: aggregator and API stand still, 20,000 clicks and 1,050 conversions pass,
Postgres hears none."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import asyncpg

from loadtests.clicking import send_clicks
from loadtests.faults.edges import BROWSER
from loadtests.heard import Heard, click_id_of
from loadtests.programme import api, make_programme
from loadtests.system import clickdam_up
from loadtests.workload import Click

CLICKS = 20_000
CALLS = "SELECT sum(calls)::bigint FROM pg_stat_statements"
UNDER_WAY = """
SELECT count(*) FROM pg_stat_activity
WHERE state = 'active' AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


@contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def clicks(codes: tuple[str, ...]) -> list[Click]:
    headers = (("User-Agent", BROWSER), ("Accept", "text/html"))
    return [
        Click(n, 0.0, "browser", n % len(codes), "GET", f"/c/{codes[n % len(codes)]}", headers, None)
        for n in range(CLICKS)
    ]


async def conversions(edge_url: str, code: str, token: str) -> int:
    """How many were accepted of 50 postbacks and of 1,000 in one body."""
    async with aiohttp.ClientSession(edge_url, headers={"User-Agent": BROWSER}) as session:
        async with session.get(f"/c/{code}", allow_redirects=False) as response:
            sale = {"click_id": click_id_of(response.headers["Location"]) or "", "amount": "10.00"}
        receipts = []
        for n in range(50):
            async with session.get("/postback", params=sale | {"order_id": f"one-{n}", "token": token}) as response:
                receipts.append(await response.json())
        body = {"conversions": [sale | {"order_id": f"many-{n}"} for n in range(1_000)]}
        headers = {"Authorization": f"Bearer {token}"}
        async with session.post("/v1/conversions", json=body, headers=headers) as response:
            receipts += (await response.json())["receipts"]
    return sum(receipt["result"] == "accepted" for receipt in receipts)


async def test_twenty_thousand_clicks_and_a_thousand_conversions_run_no_query(capsys) -> None:
    with clickdam_up(workers=1) as data:
        told = json.loads((data / "clickdam.json").read_text())
        async with api(told["api_url"], told["admin_key"]) as session:
            programme = await make_programme(session, "p11", 50, lambda: None)
        postgres = await asyncpg.connect(told["database_url"])
        await postgres.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        with frozen(told["processes"]["aggregator"] + told["processes"]["api"]):
            while await postgres.fetchval(UNDER_WAY):  # what they had asked when they were stopped
                await asyncio.sleep(0.05)
            before = await postgres.fetchval(CALLS)
            heard = Heard()
            await send_clicks(clicks(programme.codes), told["edge_url"], heard)
            accepted = await conversions(told["edge_url"], programme.codes[0], programme.token)
            after = await postgres.fetchval(CALLS)
        await postgres.close()
        answered = sum(n for (_, status), n in heard.statuses.items() if status == 302)
        with capsys.disabled():
            said = f"{answered:,} clicks answered 302, {accepted:,} conversions accepted"
            print(f"\nP11: {said}, {after - before - 1} queries on the request path")
        assert answered == CLICKS
        assert accepted > 0  # a busy machine may tell some to come again
        assert after - before == 1, "the reading itself is the one query"
