"""The programme a replay runs in: its own advertiser, partners, offers and links, made through the API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import aiohttp

from loadtests.workload import model_of

PARTNERS = 3
LINKS_AT_ONCE = 16
CPA_MINOR = 425
CPS_PERCENT = Decimal("7.25")
CURRENCY = "EUR"


class Refused(Exception):
    """The API answered something else than success."""


def api(url: str, key: str) -> aiohttp.ClientSession:
    """A session with the control API that shows `key`."""
    return aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {key}"}, timeout=aiohttp.ClientTimeout(60))


async def call(session: aiohttp.ClientSession, method: str, path: str, **request: Any) -> dict[str, Any]:
    """The answer's JSON. Raises Refused."""
    async with session.request(method, path, **request) as response:
        body: dict[str, Any] = await response.json()
        if response.status >= 300:
            raise Refused(f"{method} {path}: {response.status} {body}")
        return body


@dataclass(frozen=True, slots=True)
class Programme:
    """`link_ids` and `codes` are in the order of their popularity; `partner_keys` by partner's number."""

    token: str
    partner_keys: tuple[str, ...]
    link_ids: tuple[int, ...]
    codes: tuple[str, ...]


def partner_of(link: int) -> int:
    """The number of the partner whose link this is."""
    return link // 2 % PARTNERS


async def make_programme(
    session: aiohttp.ClientSession, run: str, links: int, on_link: Callable[[], None]
) -> Programme:
    """One advertiser, one CPA and one CPS offer, three partners with keys, and `links` links among them."""
    advertiser = await call(session, "POST", "/v1/advertisers", json={"name": f"Replay {run}"})
    offers = {model: await _offer(session, advertiser["id"], model, payout) for model, payout in _PAYOUTS.items()}
    partners = [
        (await call(session, "POST", "/v1/partners", json={"name": f"{run} {n}"}))["id"] for n in range(PARTNERS)
    ]
    keys = [
        (await call(session, "POST", "/v1/keys", json={"role": "partner", "partner_id": partner}))["key"]
        for partner in partners
    ]
    room = asyncio.Semaphore(LINKS_AT_ONCE)
    made = await asyncio.gather(
        *(
            _link(session, room, offers[model_of(link)], partners[partner_of(link)], f"{run}-{link}", on_link)
            for link in range(links)
        )
    )
    return Programme(
        advertiser["token"], tuple(keys), tuple(link["id"] for link in made), tuple(link["code"] for link in made)
    )


_PAYOUTS: dict[str, dict[str, Any]] = {
    "cpa": {"model": "cpa", "amount_minor": CPA_MINOR, "currency": CURRENCY},
    "cps": {"model": "cps", "percent": str(CPS_PERCENT), "currency": CURRENCY},
}


async def _offer(session: aiohttp.ClientSession, advertiser_id: int, model: str, payout: dict[str, Any]) -> int:
    offer = {
        "advertiser_id": advertiser_id,
        "name": f"Tents, {model}",
        "destination_url": f"https://shop.example/{model}?from={{sub1}}&device={{device}}",
        "payout": payout,
    }
    return int((await call(session, "POST", "/v1/offers", json=offer))["id"])


async def _link(
    session: aiohttp.ClientSession,
    room: asyncio.Semaphore,
    offer_id: int,
    partner_id: int,
    code: str,
    on_link: Callable[[], None],
) -> dict[str, Any]:
    async with room:
        made = await call(
            session, "POST", "/v1/links", json={"offer_id": offer_id, "partner_id": partner_id, "code": code}
        )
    if not made["live"]:
        raise Refused(f"link {code} is not live when its POST returns")
    on_link()
    return made
