"""The demo programme, seeded through the API as an operator would do it."""

from __future__ import annotations

import secrets

from deploy.run.folder import Demo
from deploy.run.http import post

PAYOUT = {"model": "cpa", "amount_minor": 1_200, "currency": "EUR"}


def seed(api_url: str, admin_key: str, shop_url: str, code: str = "demo") -> Demo:
    """An advertiser with the demo shop, a partner with a link to it. Raises CannotStart."""
    advertiser = post(f"{api_url}/v1/advertisers", admin_key, {"name": "Demo shop"})
    partner = post(f"{api_url}/v1/partners", admin_key, {"name": "Demo partner"})
    offer = {
        "advertiser_id": advertiser["id"],
        "name": "A fine umbrella",
        "destination_url": f"{shop_url}/?click_id={{click_id}}",
        "payout": PAYOUT,
    }
    offer_id = post(f"{api_url}/v1/offers", admin_key, offer)["id"]
    key = post(f"{api_url}/v1/keys", admin_key, {"role": "partner", "partner_id": partner["id"]})["key"]
    # the link comes last: a seeding that was cut short leaves no link behind, so its code stays free
    link = post(f"{api_url}/v1/links", admin_key, {"offer_id": offer_id, "partner_id": partner["id"], "code": code})
    return Demo(code=link["code"], partner_key=key, advertiser_token=advertiser["token"], shop_url=shop_url)


def order_id() -> str:
    """An order that no earlier start has shown, so that its first postback is not a duplicate."""
    return f"order-{secrets.token_hex(3)}"
