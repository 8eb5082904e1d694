"""Approvals: who may run an offer that is not open, decided by an operator, known to edges when the answer is there."""

import asyncio
from typing import Any

import msgspec
import pytest

from aggregator.db.connect import Connection
from schemas import limits, links, redis_keys
from schemas.redis import Redis, done


async def approved(redis: Redis, partner_id: int) -> frozenset[int]:
    value = await done(redis.get(redis_keys.partner(partner_id)))
    return msgspec.json.decode(value, type=links.Partner).offers


async def test_a_decision_is_in_the_partners_config_when_its_put_returns(
    admin: Any, made: Any, redis: Redis, db: Connection
) -> None:
    path = f"/v1/offers/{made.offer_id}/partners/{made.partner_id}"
    for status, offers in (("pending", set()), ("approved", {made.offer_id}), ("rejected", set())):
        answered, approval = await admin("PUT", path, json={"status": status})
        assert (answered, approval["status"], approval["partner_name"]) == (200, status, "Blog")
        assert await approved(redis, made.partner_id) == offers
    decided = await db.fetch("SELECT before, after FROM audit WHERE action = 'change_approval' ORDER BY id")
    assert [(row["before"]["status"], row["after"]["status"]) for row in decided] == [
        (None, "pending"), ("pending", "approved"), ("approved", "rejected"),
    ]  # fmt: skip


async def test_the_same_decision_again_leaves_no_trace_and_says_whether_it_is_live(
    admin: Any, made: Any, db: Connection
) -> None:
    path = f"/v1/offers/{made.offer_id}/partners/{made.partner_id}"
    answers = await asyncio.gather(*(admin("PUT", path, json={"status": "approved"}) for _ in range(10)))
    assert [answer["live"] for _, answer in answers] == [True] * 10
    assert await db.fetchval("SELECT version FROM partner WHERE id = $1", made.partner_id) == 2
    assert await db.fetchval("SELECT count(*) FROM audit WHERE action = 'change_approval'") == 1


async def test_partners_of_an_offer_are_listed_by_status_page_by_page(admin: Any, made: Any) -> None:
    for number in range(5):
        _, partner = await admin("POST", "/v1/partners", json={"name": f"P{number}"})
        status = "approved" if number % 2 else "pending"
        await admin("PUT", f"/v1/offers/{made.offer_id}/partners/{partner['id']}", json={"status": status})
    path = f"/v1/offers/{made.offer_id}/partners"
    assert [row["partner_name"] for row in (await admin("GET", f"{path}?status=approved"))[1]["data"]] == ["P1", "P3"]
    _, first = await admin("GET", f"{path}?limit=3")
    _, second = await admin("GET", f"{path}?limit=3&cursor={first['next_cursor']}")
    assert [row["partner_name"] for row in first["data"] + second["data"]] == [f"P{number}" for number in range(5)]
    assert (await admin("GET", "/v1/offers/404/partners"))[0] == 404


async def test_what_is_not_there_is_not_found_and_a_bad_status_refused(admin: Any, made: Any) -> None:
    for path in (f"404/partners/{made.partner_id}", f"{made.offer_id}/partners/404", f"{made.offer_id}/partners/x"):
        assert (await admin("PUT", f"/v1/offers/{path}", json={"status": "approved"}))[0] == 404, path
    for status in ("open", "", None, 1):
        answered, answer = await admin(
            "PUT", f"/v1/offers/{made.offer_id}/partners/{made.partner_id}", json={"status": status}
        )
        assert (answered, answer["error"]["field"]) == (400, "status")


async def test_a_partner_is_approved_for_no_more_than_its_config_has_room_for_also_at_once(
    admin: Any, made: Any, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "APPROVALS_PER_PARTNER_MAX", 3)
    offers = await db.fetch(
        "INSERT INTO offer (advertiser_id, name, destination_url, currency)"
        " SELECT $1, 'x', 'https://a.example/', 'EUR' FROM generate_series(1, 8) RETURNING id",
        made.advertiser_id,
    )
    answers = await asyncio.gather(
        *(
            admin("PUT", f"/v1/offers/{offer['id']}/partners/{made.partner_id}", json={"status": "approved"})
            for offer in offers
        )
    )
    assert sorted(status for status, _ in answers) == [200] * 3 + [409] * 5
    assert await db.fetchval("SELECT count(*) FROM approval") == 3
