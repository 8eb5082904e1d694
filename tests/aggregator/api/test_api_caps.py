"""Caps through the API: edges know those on clicks when the answer is there; the others are kept for settling."""

import asyncio
import time
from typing import Any

import msgspec
import pytest

from aggregator.db.connect import Connection
from schemas import limits, links, redis_keys
from schemas.periods import begins_s
from schemas.redis import Redis, done

CLICKS = {"kind": "clicks", "period": "day", "clicks": 100}


async def offer_caps(redis: Redis, offer_id: int) -> tuple[links.Cap, ...]:
    return msgspec.json.decode(await done(redis.get(redis_keys.offer(offer_id))), type=links.Offer).caps


async def partner_caps(redis: Redis, partner_id: int) -> tuple[links.Cap, ...]:
    return msgspec.json.decode(await done(redis.get(redis_keys.partner(partner_id))), type=links.Partner).caps


async def test_a_click_cap_is_in_its_owners_config_when_the_answer_is_there(
    admin: Any, made: Any, redis: Redis
) -> None:
    offer, partner = {"offer_id": made.offer_id}, {"partner_id": made.partner_id}
    status, on_offer = await admin("POST", "/v1/caps", json=CLICKS | offer | {"over_cap": "pass"})
    assert (status, on_offer["live"], on_offer["clicks"], on_offer["over_cap"]) == (201, True, 100, "pass")
    _, on_partner = await admin("POST", "/v1/caps", json=CLICKS | partner | {"period": "total"})
    _, on_both = await admin("POST", "/v1/caps", json=CLICKS | offer | partner | {"period": "hour"})
    assert await offer_caps(redis, made.offer_id) == (
        links.Cap(id=on_offer["id"], period="day", clicks=100, over_cap="pass", offer_id=made.offer_id),
    )
    assert await partner_caps(redis, made.partner_id) == (
        links.Cap(id=on_partner["id"], period="total", clicks=100),
        links.Cap(id=on_both["id"], period="hour", clicks=100, offer_id=made.offer_id),
    )
    path = f"/v1/caps/{on_both['id']}"
    assert (await admin("PATCH", path, json={"clicks": 7}))[1]["clicks"] == 7
    assert [cap.clicks for cap in await partner_caps(redis, made.partner_id)] == [100, 7]
    status, gone = await admin("DELETE", path)
    assert (status, gone["clicks"], gone["live"]) == (200, 7, True)
    assert [cap.id for cap in await partner_caps(redis, made.partner_id)] == [on_partner["id"]]
    assert (await admin("GET", path))[0] == 404


async def test_each_change_of_a_cap_bumps_its_owner_is_queued_and_audited(
    admin: Any, made: Any, db: Connection
) -> None:
    body = {"offer_id": made.offer_id, "kind": "payout", "period": "month", "amount_minor": 5_000, "currency": "EUR"}
    _, cap = await admin("POST", "/v1/caps", json=body)
    assert {name: cap[name] for name in body} == body
    path = f"/v1/caps/{cap['id']}"
    await admin("PATCH", path, json={"amount_minor": 6_000})
    _, same = await admin("PATCH", path, json={"amount_minor": 6_000})
    assert same["live"] is True  # it changes nothing, and says whether edges know it
    await admin("DELETE", path)
    assert await db.fetchval("SELECT version FROM offer WHERE id = $1", made.offer_id) == 4
    assert await db.fetchval("SELECT count(*) FROM outbox WHERE kind = 'offer' AND row_id = $1", made.offer_id) == 5
    acts = await db.fetch("SELECT action, before, after FROM audit WHERE subject = $1 ORDER BY id", f"cap:{cap['id']}")
    amounts = [
        (act["action"], *(side and side["amount_minor"] for side in (act["before"], act["after"]))) for act in acts
    ]
    assert amounts == [
        ("create_cap", None, 5_000), ("change_cap", 5_000, 6_000), ("delete_cap", 6_000, None),
    ]  # fmt: skip


async def test_caps_are_listed_by_what_is_asked_for(admin: Any, made: Any) -> None:
    offer, partner = {"offer_id": made.offer_id}, {"partner_id": made.partner_id}
    for body in (offer, partner, offer | partner):
        await admin("POST", "/v1/caps", json=CLICKS | body)
    await admin("POST", "/v1/caps", json=offer | {"kind": "conversions", "period": "week", "conversions": 3})
    for query, found in (
        ("", 4), (f"offer_id={made.offer_id}", 3), (f"partner_id={made.partner_id}", 2), ("kind=conversions", 1),
        ("period=day", 3), ("limit=1", 1), ("period=week&kind=clicks", 0),
    ):  # fmt: skip
        assert len((await admin("GET", f"/v1/caps?{query}"))[1]["data"]) == found, query
    shown = (await admin("GET", "/v1/caps?kind=conversions"))[1]["data"][0]
    assert (shown["conversions"], "amount" in shown, "clicks" in shown) == (3, False, False)


async def test_a_click_cap_tells_how_much_of_its_present_period_is_used(
    admin: Any, made: Any, db: Connection, redis: Redis
) -> None:
    await db.execute("UPDATE offer SET timezone = 'Asia/Kathmandu'")
    _, cap = await admin("POST", "/v1/caps", json=CLICKS | {"offer_id": made.offer_id})
    _, other = await admin(
        "POST", "/v1/caps", json={"offer_id": made.offer_id, "kind": "conversions", "period": "day", "conversions": 1}
    )
    path = f"/v1/caps/{cap['id']}"
    assert (await admin("GET", path))[1]["used"] == 0
    begins = begins_s("day", "Asia/Kathmandu", int(time.time() * 1000))
    key = redis_keys.cap(cap["id"], begins)
    for counted, settled, used in ((7, 5, 7), (7, 9, 9)):
        await done(redis.hset(key, mapping={"counted": counted, "settled": settled}))
        assert (await admin("GET", path))[1]["used"] == used
    assert (await admin("GET", f"/v1/caps/{other['id']}"))[1]["used"] == 0


async def test_a_cap_on_what_is_approved_counts_what_its_period_has_when_it_is_set(
    admin: Any, made: Any, db: Connection
) -> None:
    """Of its own offer or partner, in its own currency, since its own period began."""
    offer, partner = {"offer_id": made.offer_id}, {"partner_id": made.partner_id}
    for currency, age, offer_id, partner_id in (
        ("EUR", "0", made.offer_id, made.partner_id), ("USD", "0", made.offer_id, made.partner_id),
        ("EUR", "40 days", made.offer_id, made.partner_id), ("EUR", "0", 99, made.partner_id),
        ("EUR", "0", made.offer_id, 99),
    ):  # fmt: skip
        await db.execute(
            """INSERT INTO conversion_rollup (quarter, link_id, currency, shard, conversions, sale_amount_minor,
                                              payout_minor, offer_id, partner_id, revenue_minor)
               VALUES (date_trunc('hour', now()) - $1::text::interval, 1, $2, 0, 1, 0, 10, $3, $4, 100)""",
            age, currency, offer_id, partner_id,
        )  # fmt: skip
    money = {"amount_minor": 1000, "currency": "EUR"}
    for body, used in (
        ({"kind": "conversions", "period": "hour", "conversions": 9} | offer, 3),
        ({"kind": "conversions", "period": "total", "conversions": 9} | offer, 4),
        ({"kind": "payout", "period": "hour"} | money | offer | partner, 10),
        ({"kind": "payout", "period": "total"} | money | partner, 30),
        ({"kind": "revenue", "period": "hour"} | money | partner, 200),
    ):
        status, cap = await admin("POST", "/v1/caps", json=body)
        assert (status, cap["over_cap_status"]) == (201, "pending")
        _, found = await admin("GET", f"/v1/caps/{cap['id']}")
        assert found["used"] == used, body


async def test_a_cap_says_what_becomes_of_conversions_beyond_it(admin: Any, made: Any, db: Connection) -> None:
    body = {"kind": "conversions", "period": "day", "conversions": 9, "offer_id": made.offer_id}
    _, cap = await admin("POST", "/v1/caps", json=body | {"over_cap_status": "rejected"})
    assert cap["over_cap_status"] == "rejected"
    _, cap = await admin("PATCH", f"/v1/caps/{cap['id']}", json={"over_cap_status": "pending"})
    assert cap["over_cap_status"] == await db.fetchval("SELECT over_cap_status FROM cap") == "pending"
    _, clicks = await admin("POST", "/v1/caps", json=CLICKS | {"offer_id": made.offer_id})
    assert "over_cap_status" not in clicks


BAD: list[tuple[str, dict[str, Any]]] = [
    ("offer_id", CLICKS),
    ("offer_id", CLICKS | {"offer_id": 404}),
    ("partner_id", CLICKS | {"partner_id": 404}),
    *(("clicks", CLICKS | {"offer_id": 1, "clicks": value}) for value in (-1, 1.5, "1", None, True, 10**15 + 1)),
    ("clicks", {"offer_id": 1, "kind": "clicks", "period": "day"}),
    ("conversions", {"offer_id": 1, "kind": "conversions", "period": "day"}),
    ("clicks", {"offer_id": 1, "kind": "conversions", "period": "day", "clicks": 1}),
    ("amount_minor", CLICKS | {"offer_id": 1, "amount_minor": 1}),
    ("currency", CLICKS | {"offer_id": 1, "currency": "EUR"}),
    ("currency", {"offer_id": 1, "kind": "payout", "period": "day", "amount_minor": 1}),
    ("currency", {"offer_id": 1, "kind": "revenue", "period": "day", "amount_minor": 1, "currency": "eur"}),
    *(("kind", CLICKS | {"offer_id": 1, "kind": kind}) for kind in ("", "visits", None)),
    *(("period", CLICKS | {"offer_id": 1, "period": period}) for period in ("", "year", None)),
    *(("over_cap", CLICKS | {"offer_id": 1, "over_cap": value}) for value in ("", "block", None)),
    ("timezone", CLICKS | {"offer_id": 1, "timezone": "UTC"}),
    ("over_cap_status", CLICKS | {"offer_id": 1, "over_cap_status": "pending"}),
    ("over_cap_status", {"offer_id": 1, "kind": "conversions", "period": "day", "over_cap_status": "approved"}),
]
BAD_CHANGES: list[tuple[str, dict[str, Any]]] = [
    *((name, {name: 1}) for name in ("offer_id", "partner_id", "kind", "period", "currency", "conversions", "id")),
    ("amount_minor", {"amount_minor": 1, "clicks": 1}),
    ("clicks", {"clicks": None}),
    ("over_cap", {"over_cap": None}),
    ("over_cap_status", {"over_cap_status": "pending"}),
]


async def test_what_a_cap_cannot_be_is_refused_by_field_and_changes_nothing(
    admin: Any, made: Any, db: Connection
) -> None:
    _, cap = await admin("POST", "/v1/caps", json=CLICKS | {"offer_id": made.offer_id, "period": "total"})
    for field, body in BAD:
        status, answer = await admin("POST", "/v1/caps", json=body)
        assert (status, answer["error"].get("field")) == (400, field), (body, answer)
    for field, body in BAD_CHANGES:
        status, answer = await admin("PATCH", f"/v1/caps/{cap['id']}", json=body)
        assert (status, answer["error"].get("field")) == (400, field), (body, answer)
    assert await db.fetchrow("SELECT count(*), max(version), max(amount) FROM cap") == (1, 1, 100)
    for method in ("GET", "PATCH", "DELETE"):
        assert (await admin(method, "/v1/caps/404", json={}))[0] == 404


async def test_there_is_one_cap_of_a_kind_and_period_also_when_asked_for_at_once(
    admin: Any, made: Any, db: Connection
) -> None:
    body = CLICKS | {"offer_id": made.offer_id}
    answers = await asyncio.gather(*(admin("POST", "/v1/caps", json=body) for _ in range(8)))
    assert sorted(status for status, _ in answers) == [201] + [409] * 7
    assert await db.fetchval("SELECT version FROM offer WHERE id = $1", made.offer_id) == 2


async def test_a_partner_has_room_for_so_many_caps_also_at_once_and_can_be_relieved_of_them(
    admin: Any, made: Any, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CAPS_PER_PARTNER_MAX", 3)
    periods = ("hour", "day", "week", "month", "total")
    body = CLICKS | {"partner_id": made.partner_id}
    answers = await asyncio.gather(*(admin("POST", "/v1/caps", json=body | {"period": period}) for period in periods))
    assert sorted(status for status, _ in answers) == [201] * 3 + [409] * 2
    monkeypatch.setattr(limits, "CAPS_PER_PARTNER_MAX", 1)
    for row in await db.fetch("SELECT id FROM cap"):
        assert (await admin("DELETE", f"/v1/caps/{row['id']}"))[0] == 200


async def test_of_twenty_changes_of_one_version_exactly_one_wins(admin: Any, made: Any) -> None:
    _, cap = await admin("POST", "/v1/caps", json=CLICKS | {"partner_id": made.partner_id})

    async def change(number: int) -> int:
        method, headers = ("DELETE" if number == 7 else "PATCH"), {"If-Match": '"1"'}
        return int((await admin(method, f"/v1/caps/{cap['id']}", json={"clicks": number}, headers=headers))[0])

    answered = await asyncio.gather(*(change(number) for number in range(20)))
    assert answered.count(200) == 1
    assert set(answered) <= {200, 404, 412}
