"""The demo programme, seeded through the API as an operator would do it."""

from __future__ import annotations

import secrets
from typing import Any

from deploy.run.database import ask
from deploy.run.folder import Demo
from deploy.run.history import Past, fill
from deploy.run.http import post

PAYOUT = {"model": "cpa", "amount_minor": 1_200, "currency": "EUR"}
SHARE = {"model": "cps", "percent": "8", "currency": "EUR"}
PARTNERS = {"Rainy day blog": 5, "Price radar": 3, "Voucher post": 2}  # and how much of the past is theirs


def seed(api_url: str, admin_key: str, database_url: str, shop_url: str, code: str = "demo") -> Demo:
    """An advertiser with the demo shop, a partner with a link to it, and the past of others. Raises CannotStart."""
    advertiser = post(f"{api_url}/v1/advertisers", admin_key, {"name": "Demo shop"})
    partner = post(f"{api_url}/v1/partners", admin_key, {"name": "Demo partner"})
    offer = {
        "advertiser_id": advertiser["id"],
        "name": "A fine umbrella",
        "destination_url": f"{shop_url}/?click_id={{click_id}}",
        "payout": PAYOUT,
    }
    offer_id = post(f"{api_url}/v1/offers", admin_key, offer)["id"]
    ask(fill(database_url, advertiser["id"], _others(api_url, admin_key, offer | {"name": "Rain coats"}, offer_id)))
    key = post(f"{api_url}/v1/keys", admin_key, {"role": "partner", "partner_id": partner["id"]})["key"]
    # the link comes last: a seeding that was cut short leaves no link behind, so its code stays free
    link = post(f"{api_url}/v1/links", admin_key, {"offer_id": offer_id, "partner_id": partner["id"], "code": code})
    return Demo(code=link["code"], partner_key=key, advertiser_token=advertiser["token"], shop_url=shop_url)


def _others(api_url: str, admin_key: str, offer: dict[str, Any], cpa_id: int) -> list[Past]:
    """Partners with a link each to the offer that pays an amount, and to one more that pays a share."""
    cps_id = post(f"{api_url}/v1/offers", admin_key, offer | {"payout": SHARE})["id"]
    links = list[Past]()
    for name, weight in PARTNERS.items():
        partner_id = post(f"{api_url}/v1/partners", admin_key, {"name": name})["id"]
        for offer_id, revenue in ((cpa_id, {"revenue_minor": 1_500}), (cps_id, {"revenue_percent": 10})):
            made = post(f"{api_url}/v1/links", admin_key, {"offer_id": offer_id, "partner_id": partner_id})
            links.append(Past(made["id"], offer_id, partner_id, weight, **revenue))
    return links


def order_id() -> str:
    """An order that no earlier start has shown, so that its first postback is not a duplicate."""
    return f"order-{secrets.token_hex(3)}"
