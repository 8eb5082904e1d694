"""Nothing that somebody we know sent is lost: what was rejected for our settings is found, and paid once they are
right; what is sent to test is found, and never paid. In the whole house, as `clickdam up` runs it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from aggregator.conversions import ledger
from aggregator.db.connect import connected
from loadtests.faults.edges import BROWSER
from loadtests.heard import click_id_of
from loadtests.programme import CPA_MINOR, api, call, make_programme
from loadtests.system import clickdam_up

RANGE = {"from": "2020-01-01T00:00:00Z", "to": "2199-01-01T00:00:00Z"}


async def click(edge_url: str, code: str) -> str:
    async with (
        aiohttp.ClientSession(edge_url, headers={"User-Agent": BROWSER}) as visitor,
        visitor.get(f"/c/{code}", allow_redirects=False) as answer,
    ):
        found = click_id_of(answer.headers["Location"])
    assert found
    return found


async def post(edge_url: str, **said: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession(edge_url) as sender, sender.get("/postback", params=said) as answer:
        return answer.status, await answer.json()


async def until(ask: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(30):
        while not (found := await ask()):
            await asyncio.sleep(0.1)
    return found


async def test_a_rejected_conversion_is_paid_when_its_word_is_known_and_a_test_never_is() -> None:
    with clickdam_up(workers=1) as data:
        told = json.loads((data / "clickdam.json").read_text())
        edge_url = told["edge_url"]
        async with api(told["api_url"], told["admin_key"]) as admin:
            programme = await make_programme(admin, "run", 1, lambda: None)
            link = await call(admin, "GET", f"/v1/links/{programme.link_ids[0]}")
            offer = await call(admin, "GET", f"/v1/offers/{link['offer_id']}")

            async def intakes(result: str) -> Any:
                return (await call(admin, "GET", f"/v1/intakes?result={result}"))["data"]

            clicked = await click(edge_url, programme.codes[0])
            said = {"click_id": clicked, "order_id": "7", "status": "Bezahlt", "token": programme.token}
            status, receipt = await post(edge_url, **said)
            assert (status, receipt["reason"]) == (400, "unknown_status")
            (found,) = await until(lambda: intakes("rejected"))
            assert (found["reason"], found["order_id"]) == ("unknown_status", "7")
            assert programme.token not in found["raw"]
            assert "Bezahlt" in found["raw"]

            path = f"/v1/advertisers/{offer['advertiser_id']}"
            changed = await call(admin, "PATCH", path, json={"status_map": {"bezahlt": "approved"}})
            assert changed["live"]
            rerun = await call(admin, "POST", "/v1/intakes/rerun", json=RANGE)
            assert rerun["results"] == {"accepted": 1}
            status, receipt = await post(edge_url, **said)
            conversion = await call(admin, "GET", f"/v1/conversions/{receipt['conversion_id']}")
            assert (status, conversion["status"], conversion["payout_minor"]) == (200, "approved", CPA_MINOR)

            test = await call(admin, "POST", f"/v1/offers/{offer['id']}/test")
            said |= {"click_id": await click(edge_url, test["code"]), "order_id": "8"}
            status, answer = await post(edge_url, **said)
            assert (status, programme.token in json.dumps(answer)) == (200, False)
            (found,) = await until(lambda: intakes("test"))
            assert found["order_id"] == "8"
            await until(lambda: intakes("duplicate"))
            rerun = await call(admin, "POST", "/v1/intakes/rerun", json=RANGE)
            assert rerun["results"] == {}
        async with connected(told["database_url"], command_timeout_s=5, application_name="test") as db:
            assert await ledger.check(db) == []
            assert await db.fetchval("SELECT count(*) FROM conversion") == 1
            assert await ledger.balance(db, f"partner:{link['partner_id']}") == {"EUR": CPA_MINOR}
