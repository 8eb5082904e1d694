"""A programme moves house: what was clicked at the old tracker and is sold here is paid, and so is what comes by a
coupon or by a customer who was won before. Over a real `clickdam up`, through its doors alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp

from loadtests.programme import api, call
from loadtests.system import clickdam_up

SETTLED_S = 60.0
Known = Mapping[str, Any]


async def make(session: aiohttp.ClientSession) -> dict[str, Any]:
    """An advertiser that may still send the old tracker's click ids, an offer of 10 percent, two partners, a link."""
    until = (datetime.now(UTC) + timedelta(days=30)).isoformat()
    advertiser = await call(session, "POST", "/v1/advertisers", json={"name": "Shop", "foreign_clicks_until": until})
    offer = {
        "advertiser_id": advertiser["id"],
        "name": "Tents",
        "destination_url": "https://shop.example/",
        "payout": {"model": "cps", "percent": "10", "currency": "EUR"},
    }
    offer = await call(session, "POST", "/v1/offers", json=offer)
    one, two = [await call(session, "POST", "/v1/partners", json={"name": name}) for name in ("Old", "Deals")]
    link = {"offer_id": offer["id"], "partner_id": one["id"], "code": "old"}
    await call(session, "POST", "/v1/links", json=link)
    coupon = {"code": "Deal10", "offer_id": offer["id"], "partner_id": two["id"]}
    await call(session, "POST", "/v1/coupons", json=coupon)
    return {"token": advertiser["token"], "old": one["id"], "deals": two["id"]}


async def sell(edge_url: str, token: str, **said: str) -> str:
    """Post a sale of 50.00; its conversion's id."""
    form = {"token": token, "amount": "50.00", "currency": "EUR", **said}
    async with aiohttp.ClientSession(edge_url) as session, session.post("/postback", data=form) as response:
        receipt = await response.json()
    assert (response.status, receipt["result"]) == (200, "accepted"), receipt
    return str(receipt["conversion_id"])


async def becomes(session: aiohttp.ClientSession, conversion_id: str, status: str) -> Known:
    """The conversion once it has this status."""
    async with asyncio.timeout(SETTLED_S):
        while True:
            async with session.get(f"/v1/conversions/{conversion_id}") as response:
                found: Known = await response.json()
            if response.status == 200 and found["status"] == status:
                return found
            await asyncio.sleep(0.1)


async def test_what_was_clicked_elsewhere_is_paid_once_that_is_known() -> None:
    with clickdam_up(workers=1) as data:
        told = json.loads((data / "clickdam.json").read_text())
        edge_url = told["edge_url"]
        async with api(told["api_url"], told["admin_key"]) as session:
            made = await make(session)
            parked = await sell(edge_url, made["token"], click_id="old-tracker-1", order_id="1", customer_id="ada")
            late = await sell(edge_url, made["token"], click_id="old-tracker-2", order_id="2")
            by_coupon = await sell(edge_url, made["token"], coupon_code=" deal10", order_id="3")
            await becomes(session, parked, "pending")
            found = await becomes(session, by_coupon, "approved")
            assert (found["partner_id"], found["payout_minor"]) == (made["deals"], 500)
            recently, long_ago = (
                (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ") for days in (3, 40)
            )
            clicks = (
                f"click_id,clicked_at,link_code,sub1\nold-tracker-1,{recently},old,x\nold-tracker-2,{long_ago},old,\n"
            )
            headers = {"Content-Type": "text/csv"}
            answer = await call(session, "POST", "/v1/clicks/import", data=clicks.encode(), headers=headers)
            assert (answer["created"], answer["failed"]) == (2, 0)
            found = await becomes(session, parked, "approved")
            assert (found["partner_id"], found["payout_minor"]) == (made["old"], 500)
            assert (await becomes(session, late, "rejected"))["reason"] == "after_window"
            renewal = await sell(edge_url, made["token"], customer_id="ada", order_id="4")
            assert (await becomes(session, renewal, "approved"))["partner_id"] == made["old"]
