"""What visitors and senders are told while events go to this machine's disk, and when there is no room on it either."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadtests.faults import edges
from loadtests.faults.edges import TOKEN, Answer, Filled, RunningEdge
from loadtests.heard import click_id_of
from tracker.metrics import prometheus

KAFKA_IS_AWAY = "kafka://127.0.0.1:1"


@asynccontextmanager
async def running(folder: Path, redis_url: str, spool_bytes_max: int) -> AsyncIterator[RunningEdge]:
    settings = edges.settings(folder, redis_url, log_url=KAFKA_IS_AWAY, spool_folder=folder / "spool")
    async with edges.running_edge(settings.model_copy(update={"spool_bytes_max": spool_bytes_max})) as running:
        yield running


@pytest.fixture
async def spooling(tmp_path: Path, redis_url: str, publisher: Filled) -> AsyncIterator[RunningEdge]:
    async with running(tmp_path, redis_url, 10_000_000) as found:
        yield found


@pytest.fixture
async def full(tmp_path: Path, redis_url: str, publisher: Filled) -> AsyncIterator[RunningEdge]:
    async with running(tmp_path, redis_url, 1) as found:
        yield found


async def click(of: RunningEdge) -> str:
    answer = await edges.get(of.port, "/c/demo")
    assert answer.status == 302
    click_id = click_id_of(answer.headers["location"].replace("p=", "click_id="))
    assert click_id
    return click_id


async def buy(of: RunningEdge, click_id: str, order_id: str, **more: str) -> Answer:
    said = {"click_id": click_id, "order_id": order_id, "amount": "10.00", "token": TOKEN} | more
    return await edges.get(of.port, f"/postback?{urlencode(said)}")


async def test_a_spooled_conversion_is_accepted_with_202(spooling: RunningEdge) -> None:
    click_id = await click(spooling)
    first, again = [await buy(spooling, click_id, "one") for _ in range(2)]
    assert (first.status, first.json()["result"]) == (202, "accepted")
    assert (again.status, again.json()["result"]) == (202, "duplicate")
    assert first.json().keys() == {"result", "reason", "conversion_id", "status_url"}
    assert first.json()["status_url"] == f"/v1/conversions/{first.json()['conversion_id']}"
    assert spooling.edge.tally.totals == {"spooled": 1, "conversion_spooled": 2}


async def test_a_sender_that_knows_only_200_gets_it(spooling: RunningEdge) -> None:
    answer = await buy(spooling, await click(spooling), "one", compat="200")
    assert (answer.status, answer.json()["result"]) == (200, "accepted")


async def test_many_spooled_conversions_are_202(spooling: RunningEdge) -> None:
    click_id = await click(spooling)
    items = [{"click_id": click_id, "order_id": f"{n}", "amount": "1.00"} for n in range(3)]
    head = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    raw = edges.request("/v1/conversions", "POST", head, json.dumps({"conversions": items}).encode())
    answer = await edges.ask(spooling.port, raw)
    assert answer.status == 202
    assert [receipt["result"] for receipt in answer.json()["receipts"]] == ["accepted"] * 3


async def test_without_room_on_the_disk_a_visitor_goes_on_and_a_sender_is_told_to_repeat(full: RunningEdge) -> None:
    answer = await buy(full, await click(full), "one")
    assert (answer.status, answer.json()["reason"]) == (503, "not_durable")
    assert answer.headers["retry-after"] == "2"
    assert full.edge.tally.totals == {
        "lost": 1, "conversion_lost": 1, "conversion_refused_not_durable": 1
    }  # fmt: skip


async def test_the_metrics_tell_what_is_spooled_and_that_the_circuit_is_open(spooling: RunningEdge) -> None:
    await click(spooling)
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(prometheus(spooling.edge).decode())
        for sample in family.samples
    }
    assert found["clickdam_edge_circuit_open"] == 1
    assert found["clickdam_edge_spool_bytes"] > 0
    assert found["clickdam_edge_spool_bytes_max"] == 10_000_000
    assert 0 < found["clickdam_edge_spool_oldest_age_seconds"] < 60
    assert found["clickdam_edge_drained_events_total"] == 0
    assert found["clickdam_edge_refused_too_large_total"] == 0
    assert found["clickdam_edge_producer_rebuilds_total"] == 0
