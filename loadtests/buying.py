"""Posting the conversions of a workload as an advertiser's server does: again and again until a receipt arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import aiohttp

from loadtests.heard import Buyer, Heard
from loadtests.workload import Click, Order, Post, model_of

POSTS_AT_ONCE = 32
RECEIPT_S = 60.0
TRY_AGAIN = frozenset({"unavailable", "not_durable", "unknown_key"})
Receipt = dict[str, Any]


class NoReceipt(Exception):
    """A conversion got no final receipt within a minute."""


async def send_posts(
    posts: Sequence[Post], orders: Sequence[Order], planned: Sequence[Click], edge_url: str, token: str, heard: Heard
) -> None:
    """Each post when the clicks have come as far as it was planned for; copies planned for one moment go together."""
    heard.buying_clicks.update(order.click for order in orders)
    room = asyncio.Semaphore(POSTS_AT_ONCE)
    async with (
        aiohttp.ClientSession(edge_url, timeout=aiohttp.ClientTimeout(10)) as session,
        asyncio.TaskGroup() as group,
    ):
        for post in posts:
            while heard.planned_s < post.at_s:
                await asyncio.sleep(0.01)
            buyers = {number: await _buyer(orders[number], planned, heard) for number in post.orders}
            await room.acquire()
            sending = group.create_task(_send(session, post, orders, buyers, token, heard))
            sending.add_done_callback(lambda _: room.release())


async def _buyer(order: Order, planned: Sequence[Click], heard: Heard) -> Buyer:
    """The order's click; where its answer was cut off, the next such click that was answered and bought nothing."""
    if order.number not in heard.buyers:
        click = planned[order.click]
        while not await _click_id(click, heard):
            click = _next_like(click, planned, heard)
        event_time = datetime.now(UTC).isoformat(timespec="milliseconds") if order.dated else ""
        heard.buyers[order.number] = Buyer(click, heard.settled[click.number] or "", event_time)
    return heard.buyers[order.number]


async def _click_id(click: Click, heard: Heard) -> str | None:
    while click.number not in heard.settled:
        await asyncio.sleep(0.01)
    return heard.settled[click.number]


def _next_like(click: Click, planned: Sequence[Click], heard: Heard) -> Click:
    for other in (*planned[click.number + 1 :], *planned[: click.number]):
        if other.number not in heard.buying_clicks and heard.settled.get(other.number) and _alike(click, other):
            heard.buying_clicks.add(other.number)
            return other
    raise NoReceipt(f"no click is left to buy for instead of {click.number}")


def _alike(click: Click, other: Click) -> bool:
    if click.link is None or other.link is None:
        return False
    return other.kind == click.kind and model_of(other.link) == model_of(click.link)


async def _send(
    session: aiohttp.ClientSession,
    post: Post,
    orders: Sequence[Order],
    buyers: Mapping[int, Buyer],
    token: str,
    heard: Heard,
) -> None:
    receipts = await _until_receipts(session, _call(post, orders, buyers, token), heard)
    heard.posts += 1
    for number, receipt in zip(post.orders, receipts, strict=True):
        _hear(number, receipt, heard)


async def _until_receipts(session: aiohttp.ClientSession, call: dict[str, Any], heard: Heard) -> list[Receipt]:
    deadline = asyncio.get_running_loop().time() + RECEIPT_S
    while True:
        receipts = await _try(session, call)
        if receipts and not any(receipt.get("reason") in TRY_AGAIN for receipt in receipts):
            return receipts
        if asyncio.get_running_loop().time() > deadline:
            raise NoReceipt(f"{call['url']}: {receipts}")
        heard.posts_repeated += 1
        await asyncio.sleep(0.1)


async def _try(session: aiohttp.ClientSession, call: dict[str, Any]) -> list[Receipt]:
    """The receipts; none where the connection failed or the answer was no receipt."""
    try:
        async with session.request(**call) as response:
            body = await response.json()
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return []
    receipts: list[Receipt] = body.get("receipts", [body])
    return receipts if all("result" in receipt for receipt in receipts) else []


def _call(post: Post, orders: Sequence[Order], buyers: Mapping[int, Buyer], token: str) -> dict[str, Any]:
    """What aiohttp's `request` is called with: the same for every attempt and every copy."""
    told = [(orders[number], buyers[number]) for number in post.orders]
    if post.door == "postback_get":
        return {"method": "GET", "url": "/postback", "params": _form(*told[0], token)}
    if post.door == "postback_form":
        return {"method": "POST", "url": "/postback", "data": _form(*told[0], token)}
    bodies = [_json(order, buyer) for order, buyer in told]
    body = bodies[0] if post.door == "json" else {"conversions": bodies}
    headers = {"Authorization": f"Bearer {token}"}
    return {"method": "POST", "url": "/v1/conversions", "json": body, "headers": headers}


def _form(order: Order, buyer: Buyer, token: str) -> dict[str, str]:
    said = {"amount": order.amount, "order_id": order.order_id, "currency": order.currency}
    return {"click_id": buyer.click_id, "token": token} | {name: value for name, value in said.items() if value}


def _json(order: Order, buyer: Buyer) -> dict[str, Any]:
    amount: dict[str, Any] = (
        {"amount": order.amount} if order.amount_minor is None else {"amount_minor": order.amount_minor}
    )
    said = {"order_id": order.order_id, "currency": order.currency, "event_time": buyer.event_time} | amount
    return {"click_id": buyer.click_id} | {name: value for name, value in said.items() if value}


def _hear(number: int, receipt: Receipt, heard: Heard) -> None:
    heard.results[receipt["result"]] += 1
    if receipt["result"] == "rejected":
        heard.complaints.append(f"order {number}: rejected, {receipt.get('reason')}")
        return
    known = heard.conversion_ids.setdefault(number, receipt["conversion_id"])
    if known != receipt["conversion_id"]:
        heard.complaints.append(f"order {number}: has two conversion ids, {known} and {receipt['conversion_id']}")
