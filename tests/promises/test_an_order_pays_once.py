"""P8: the same order never pays twice, however often and wherever it is posted and whatever is killed meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from aggregator.conversions import ledger
from aggregator.flush.run import consume
from deploy.run.backlog import behind, written
from loadtests.faults import edges, kafkas
from loadtests.faults.edges import BROWSER, TOKEN
from loadtests.heard import click_id_of, uuid_of
from loadtests.programme import CPA_MINOR, CURRENCY, Programme, api, call, make_programme
from loadtests.system import clickdam_up
from schemas import redis_keys
from schemas.settings import AggregatorSettings, LogSettings

POSTS = 50
WORKERS = 2
KILL_AFTER_S = (0.002, 0.005, 0.010, 0.015, 0.020, 0.030)  # of the posts of one order each
RECEIPT_S = 30.0
AGAIN_S = 0.05
APPLIED_S = 30.0
SALE_MINOR = 4_990
_NEVER = datetime.min.replace(tzinfo=UTC)
Receipt = dict[str, Any]


@dataclass(slots=True)
class Posted:
    """One order's receipts; how many of its posts went unanswered or got a 503 and were sent again; and over how many
    connections it was sent, one for each time: the client repeats a GET once by itself."""

    receipts: list[Receipt] = field(default_factory=list)
    repeated: int = 0
    connections: int = 0

    async def connected(self, *_: Any) -> None:
        self.connections += 1

    @property
    def results(self) -> Counter[str]:
        return Counter(receipt["result"] for receipt in self.receipts)

    @property
    def conversion_ids(self) -> set[str]:
        return {receipt["conversion_id"] for receipt in self.receipts}


def doors(token: str, click_id: str, order_id: str) -> Iterator[dict[str, Any]]:
    """The same order as a form, as a query and as JSON, in turn: what aiohttp's `request` is called with."""
    said = {"click_id": click_id, "order_id": order_id, "currency": CURRENCY}
    form = said | {"amount": "49.90", "token": token}
    while True:
        yield {"method": "POST", "url": "/postback", "data": form}
        yield {"method": "GET", "url": "/postback", "params": form}
        bearer = {"Authorization": f"Bearer {token}"}
        yield {
            "method": "POST",
            "url": "/v1/conversions",
            "json": said | {"amount_minor": SALE_MINOR},
            "headers": bearer,
        }


async def post_order(edge_url: str, token: str, click_id: str, order_id: str) -> Posted:
    """All posts at the same time, each on a connection of its own and again until it has a receipt."""
    posted = Posted()
    new_connections = aiohttp.TCPConnector(force_close=True)
    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(posted.connected)
    wire = aiohttp.ClientSession(edge_url, connector=new_connections, trace_configs=[trace])
    async with wire as session, asyncio.timeout(RECEIPT_S):
        calls = [request for request, _ in zip(doors(token, click_id, order_id), range(POSTS), strict=False)]
        await asyncio.gather(*(post_until_receipt(session, one, posted) for one in calls))
    return posted


async def post_until_receipt(session: aiohttp.ClientSession, request: Mapping[str, Any], posted: Posted) -> None:
    while (receipt := await post(session, request)) is None:
        posted.repeated += 1
        await asyncio.sleep(AGAIN_S)
    posted.receipts.append(receipt)


async def post(session: aiohttp.ClientSession, request: Mapping[str, Any]) -> Receipt | None:
    """The receipt; None where the worker died over it, or said to try again."""
    try:
        async with session.request(**request) as response:
            assert response.status in {200, 202, 503}, await response.text()
            return None if response.status == 503 else dict(await response.json())
    except aiohttp.ClientError:
        return None


def pids(config: Path, name: str) -> list[int]:
    return list(json.loads(config.read_text())["processes"][name])


async def kill_one(config: Path, name: str) -> int:
    """kill -9."""
    pid = random.choice(pids(config, name))
    os.kill(pid, signal.SIGKILL)
    return pid


async def is_back(config: Path, name: str, killed: int, processes: int) -> None:
    async with asyncio.timeout(RECEIPT_S):
        while killed in pids(config, name) or len(pids(config, name)) < processes:
            await asyncio.sleep(0.02)


async def buy_a_click(edge_url: str, code: str) -> str:
    async with (
        aiohttp.ClientSession(headers={"User-Agent": BROWSER}) as session,
        session.get(f"{edge_url}/c/{code}", allow_redirects=False) as response,
    ):
        click_id = click_id_of(response.headers["Location"])
        assert click_id
        return click_id


async def until_applied(data: Path, database_url: str) -> None:
    async with asyncio.timeout(APPLIED_S):
        while await behind(written(data / "journal"), database_url):
            await asyncio.sleep(0.1)


async def reported(api_url: str, programme: Programme) -> dict[str, Any]:
    """The partner's own line."""
    today = datetime.now(UTC).date()
    asked = {"from": str(today - timedelta(days=1)), "to": str(today + timedelta(days=2)), "group_by": "link"}
    async with api(api_url, programme.partner_keys[0]) as session:
        (row,) = (await call(session, "GET", "/v1/reports", params=asked))["data"]
        return dict(row)


async def in_postgres(database_url: str) -> tuple[list[asyncpg.Record], list[asyncpg.Record], asyncpg.Record]:
    """Conversions by order, intakes by order and result, and the rollup's sums."""
    postgres = await asyncpg.connect(database_url)
    conversions = await postgres.fetch("SELECT order_id, conversion_id::text, status, payout_minor FROM conversion")
    intakes = await postgres.fetch(
        "SELECT conversion_id::text, count(*) FILTER (WHERE result = 'accepted') AS accepted, count(*) AS all"
        " FROM conversion_intake GROUP BY 1"
    )
    rollup = await postgres.fetchrow(
        "SELECT sum(conversions)::int AS conversions, sum(sale_amount_minor)::int AS sale_amount,"
        " sum(payout_minor)::int AS payout FROM conversion_rollup"
    )
    await postgres.close()
    assert rollup is not None
    return conversions, intakes, rollup


async def booked(database_url: str) -> dict[str, int]:
    """The entries of the ledger by order; nothing is wrong with it."""
    postgres = await asyncpg.connect(database_url)
    wrong = await ledger.check(postgres)
    rows = await postgres.fetch(
        "SELECT order_id, count(*) FROM ledger_entry JOIN conversion USING (conversion_id) GROUP BY 1"
    )
    await postgres.close()
    assert wrong == []
    return {row["order_id"]: row["count"] for row in rows}


async def post_orders(told: dict[str, Any], config: Path, token: str, click_id: str) -> dict[str, Posted]:
    """One order in peace, then one for each kill of a worker; the aggregator is killed once, over the first's posts."""
    posted = {"calm": await post_order(told["edge_url"], token, click_id, "calm")}
    aggregator = await kill_one(config, "aggregator")
    for n, after_s in enumerate(KILL_AFTER_S):
        posting = asyncio.create_task(post_order(told["edge_url"], token, click_id, f"killed-{n}"))
        await asyncio.sleep(after_s)
        worker = await kill_one(config, "worker")
        posted[f"killed-{n}"] = await posting
        await is_back(config, "worker", worker, WORKERS)
    await is_back(config, "aggregator", aggregator, 1)
    return posted


@pytest.mark.timeout(180)
async def test_fifty_posts_of_one_order_pay_once_while_processes_are_killed(capsys: pytest.CaptureFixture[str]) -> None:
    with clickdam_up(workers=WORKERS) as data:
        told = json.loads((data / "clickdam.json").read_text())
        async with api(told["api_url"], told["admin_key"]) as session:
            programme = await make_programme(session, "p8", 1, lambda: None)
        click_id = await buy_a_click(told["edge_url"], programme.codes[0])
        posted = await post_orders(told, data / "clickdam.json", programme.token, click_id)
        await until_applied(data, told["database_url"])
        conversions, intakes, rollup = await in_postgres(told["database_url"])
        entries = await booked(told["database_url"])
        line = await reported(told["api_url"], programme)
    with capsys.disabled():
        show(posted, intakes, rollup)
    assert posted["calm"].results == {"accepted": WORKERS, "duplicate": POSTS - WORKERS}, "one hint in each worker"
    assert any(one.repeated for one in posted.values()), "the kills hit posts on their way"
    for one in posted.values():
        assert one.results.keys() <= {"accepted", "duplicate"}
        assert (one.results.total(), len(one.conversion_ids)) == (POSTS, 1)
    wanted = {(order, *one.conversion_ids, "approved", CPA_MINOR) for order, one in posted.items()}
    assert sorted(map(tuple, conversions)) == sorted(wanted), "one row for each order"
    assert {row["accepted"] for row in intakes} == {1}, "each further intake is a duplicate"
    assert len(intakes) == len(posted)
    for row in intakes:
        (of,) = (one for one in posted.values() if row["conversion_id"] in one.conversion_ids)
        assert POSTS <= row["all"] <= of.connections
    assert entries == dict.fromkeys(posted, 1), "one entry in the ledger for each"
    paid = (len(posted), len(posted) * SALE_MINOR, len(posted) * CPA_MINOR)
    assert tuple(rollup) == paid
    assert (line["conversions"], line["sale_amount"], line["payout"]) == paid


def show(posted: Mapping[str, Posted], intakes: list[asyncpg.Record], rollup: asyncpg.Record) -> None:
    repeated = sum(one.repeated for one in posted.values())
    answered = sum((one.results for one in posted.values()), Counter[str]())
    print(
        f"\nP8: {len(posted)} orders, {POSTS} posts each to both doors of {WORKERS} workers; killed -9:"
        f" worker {len(KILL_AFTER_S)}x, aggregator 1x; posts repeated {repeated}; receipts {dict(answered)};"
        f" intakes {sum(row['all'] for row in intakes)}, of them accepted {sum(row['accepted'] for row in intakes)};"
        f" paid {rollup['conversions']} x {CPA_MINOR / 100:.2f} = {rollup['payout'] / 100:.2f} {CURRENCY}"
    )


# Two edges and four aggregators on a log of four partitions, all in this process: who is killed is tried above.
EDGES, AGGREGATORS, ORDERS = 2, 4, 4
PAGE = "https://shop.example"
PIXEL_KEY = "key-of-the-page"
_PROGRAMME = """
WITH a AS (INSERT INTO advertiser (name, token_sha256) VALUES ('P8', $1) RETURNING id),
     o AS (INSERT INTO offer (advertiser_id, name, destination_url, currency)
           SELECT id, 'P8', 'https://shop.example', 'EUR' FROM a RETURNING id)
INSERT INTO offer_terms (offer_id, model, amount_minor, currency) SELECT id, 'cpa', 100, 'EUR' FROM o
"""


@asynccontextmanager
async def two_edges(folder: Path, redis_url: str, log: LogSettings) -> AsyncIterator[list[str]]:
    """Their addresses."""
    offer = {redis_keys.offer(1): edges.offer(destination_url=PAGE)}
    configs = edges.configs() | offer | edges.advertiser(pixel_key=PIXEL_KEY, pixel_origins=(PAGE,))
    async with edges.filled(redis_url, configs), AsyncExitStack() as stack:
        urls = []
        for n in range(EDGES):
            of = edges.settings(
                folder / str(n), redis_url, log_url=log.log_url, kafka_events_topic=log.kafka_events_topic,
                kafka_beats_topic=log.kafka_beats_topic, edge_name=f"edge-{n}", spool_folder=folder / str(n),
            )  # fmt: skip
            edge = await stack.enter_async_context(edges.running_edge(of))
            urls.append(f"http://127.0.0.1:{edge.port}")
        yield urls


@asynccontextmanager
async def aggregating(of: AggregatorSettings) -> AsyncIterator[None]:
    """Several aggregators of one group."""
    tasks = [asyncio.create_task(consume(of, asyncio.Event())) for _ in range(AGGREGATORS)]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def say_by_page_and_server(urls: Sequence[str], order_id: str, clicks: Sequence[str]) -> int:
    """An order by a page with one click, and by its server with another, 25 times each, all at once. How many of them
    were told to come again, and did."""
    said = {"order_id": order_id, "amount": "49.90", "currency": CURRENCY}
    page = {
        "url": "/pixel.gif",
        "params": said | {"key": PIXEL_KEY, "click_id": clicks[0]},
        "headers": {"Origin": PAGE},
    }
    server = {"url": "/postback", "params": said | {"token": TOKEN, "click_id": clicks[1]}}
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(aiohttp.ClientSession(url)) for url in urls]
        asked = [(sessions[n % EDGES], (page, server)[n // EDGES % 2]) for n in range(POSTS)]
        random.shuffle(asked)
        return sum(await asyncio.gather(*(get_until_taken(session, request) for session, request in asked)))


async def get_until_taken(session: aiohttp.ClientSession, request: Mapping[str, Any]) -> int:
    """How often it was repeated, like a sender does where it is told to."""
    repeated = 0
    while True:
        async with session.get(**request) as response:
            assert response.status in {200, 202, 503}, "202 where Kafka was too slow, and the spool has it"
            if response.status != 503:
                return repeated
        repeated += 1
        await asyncio.sleep(AGAIN_S)


async def until_complete_through(postgres: asyncpg.Connection, moment: datetime) -> None:
    """Until everything from before that moment is in Postgres."""
    async with asyncio.timeout(APPLIED_S):
        while (await postgres.fetchval("SELECT complete_through FROM complete_through") or _NEVER) < moment:
            await asyncio.sleep(0.1)


async def test_an_order_is_paid_once_over_two_edges_and_four_aggregators_by_page_and_server(
    tmp_path: Path, database_url: str, redis_url: str, kafka_log: LogSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    postgres = await asyncpg.connect(database_url)
    await postgres.execute(_PROGRAMME, bytes.fromhex(edges.digest(TOKEN)))
    topics = kafka_log.kafka_events_topic, kafka_log.kafka_beats_topic
    of = kafkas.settings_of(database_url, kafka_log.log_url, topics, redis_url=redis_url)
    async with two_edges(tmp_path, redis_url, kafka_log) as urls:
        clicks = [await buy_a_click(url, "demo") for url in urls]
        async with aggregating(of):
            posted = await asyncio.gather(*(post_order(url, TOKEN, clicks[0], "plain") for url in urls))
            late = [await say_by_page_and_server(urls, f"both-{n}", clicks) for n in range(ORDERS)]
            await until_complete_through(postgres, datetime.now(UTC))
    names = {receipt["conversion_id"] for one in posted for receipt in one.receipts}
    rows = await postgres.fetch("SELECT * FROM conversion ORDER BY order_id")
    results = dict(await postgres.fetch("SELECT result, count(*) FROM conversion_intake GROUP BY 1"))
    await postgres.close()
    intakes, taken_over, answered = sum(results.values()), results.get("changed", 0), (EDGES + ORDERS) * POSTS
    sent = sum(late) + ORDERS * POSTS + sum(one.connections for one in posted)
    with capsys.disabled():
        print(f"\nP8: {EDGES} edges, {AGGREGATORS} aggregators, {intakes} intakes of {ORDERS + 1} orders: {results}")
    orders = [f"both-{n}" for n in range(ORDERS)] + ["plain"]
    assert [row["order_id"] for row in rows] == orders
    assert {str(row["conversion_id"]) for row in rows if row["order_id"] == "plain"} == names
    bought_by = {str(row["click_id"]) for row in rows if row["order_id"] != "plain"}
    assert bought_by == {str(uuid_of(clicks[1]))}, "what the server says goes before what a page says"
    assert {(row["status"], row["booked_payout_minor"]) for row in rows} == {("approved", 100)}
    assert await booked(database_url) == dict.fromkeys(orders, 1)
    assert results["accepted"] == len(orders)
    assert taken_over <= ORDERS
    assert results["duplicate"] == intakes - len(orders) - taken_over
    assert answered <= intakes <= sent, "what came too late for its answer may be in the log, and came again"
