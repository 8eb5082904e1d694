"""What edges have counted, by the API: whose it is, and that it is marked."""

from datetime import UTC, datetime, timedelta
from typing import Any

from schemas import redis_keys
from schemas.redis import Redis, done
from tests.aggregator.api.conftest import Client


async def test_clicks_that_edges_have_counted_are_shown_to_those_whose_they_are(
    admin: Client, made: Any, redis: Redis
) -> None:
    now = datetime.now(UTC)
    key = redis_keys.live(int(now.timestamp()) // 900 * 900)
    await done(redis.hset(key, mapping={f"link:{made.link_id}": 7, f"partner:{made.partner_id}": 9}))
    _, own = await admin("POST", "/v1/keys", json={"role": "partner", "partner_id": made.partner_id})
    _, other = await admin("POST", "/v1/partners", json={"name": "Other"})
    _, foreign = await admin("POST", "/v1/keys", json={"role": "partner", "partner_id": other["id"]})
    _, shop = await admin("POST", "/v1/keys", json={"role": "advertiser", "advertiser_id": made.advertiser_id})
    since = f"from={now - timedelta(hours=1):%Y-%m-%dT%H:00:00Z}&to={now + timedelta(hours=2):%Y-%m-%dT%H:00:00Z}"
    for client, of_links, in_all in ((admin, 7, 9), (admin.with_key(own["key"]), 7, 9),
                                     (admin.with_key(foreign["key"]), 0, 0)):  # fmt: skip
        for grouped, clicks in (("granularity=total", in_all), ("group_by=link", of_links)):
            status, answer = await client("GET", f"/v1/reports?live=1&{grouped}&{since}")
            assert (status, sum(row["clicks"] for row in answer["data"])) == (200, clicks), (grouped, answer)
            assert answer["live_from"]
            _, plain = await client("GET", f"/v1/reports?metrics=clicks&{grouped}&{since}")
            assert (sum(row["clicks"] for row in plain["data"]), "live_from" in plain) == (0, False)
    status, answer = await admin.with_key(shop["key"])("GET", f"/v1/reports?live=1&{since}")
    assert (status, answer["error"]["code"]) == (403, "forbidden")
