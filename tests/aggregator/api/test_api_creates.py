import asyncio
import hashlib
from decimal import Decimal
from typing import Any

import msgspec

from aggregator.db.connect import Connection
from schemas import links, redis_keys
from schemas.redis import Redis, done


async def test_a_created_link_is_live_with_all_it_needs(admin: Any, made: Any, redis: Redis) -> None:
    status, link = await admin(
        "POST", "/v1/links", json={"offer_id": made.offer_id, "partner_id": made.partner_id, "code": "Black-Friday_26"}
    )
    assert status == 201
    assert (link["code"], link["url"]) == ("Black-Friday_26", "https://go.example/c/Black-Friday_26")
    assert (link["status"], link["live"]) == ("active", True)
    value = await done(redis.get(redis_keys.link("Black-Friday_26")))
    assert msgspec.json.decode(value, type=links.Link).offer_id == made.offer_id
    token = hashlib.sha256(made.token.encode()).hexdigest()
    others = (redis_keys.offer(made.offer_id), redis_keys.partner(made.partner_id), redis_keys.advertiser(token))
    assert await done(redis.exists(*others)) == 3


async def test_a_code_of_our_own_has_eight_letters_and_digits(made: Any) -> None:
    assert len(made.code) == 8
    assert made.code.isascii()
    assert made.code.isalnum()


async def test_a_taken_code_is_a_conflict_also_when_asked_for_at_once(admin: Any, made: Any, db: Connection) -> None:
    body = {"offer_id": made.offer_id, "partner_id": made.partner_id, "code": "same"}
    answers = await asyncio.gather(*(admin("POST", "/v1/links", json=body) for _ in range(8)))
    assert sorted(status for status, _ in answers) == [201] + [409] * 7
    refused = next(body for status, body in answers if status == 409)
    assert refused["error"] == {"code": "conflict", "message": "this code is taken", "field": "code"}
    assert await db.fetchval("SELECT count(*) FROM link WHERE code = 'same'") == 1


async def test_a_paused_link_is_paused_in_redis_when_the_patch_returns(admin: Any, made: Any, redis: Redis) -> None:
    status, link = await admin("PATCH", f"/v1/links/{made.link_id}", json={"status": "paused"})
    assert (status, link["status"], link["live"], link["code"]) == (200, "paused", True, made.code)
    value = msgspec.json.decode(await done(redis.get(redis_keys.link(made.code))), type=links.Link)
    assert (value.status, value.v[1]) == ("paused", 2)


async def test_patches_at_once_each_get_a_version_of_their_own(admin: Any, made: Any, db: Connection) -> None:
    await asyncio.gather(
        *(admin("PATCH", f"/v1/partners/{made.partner_id}", json={"name": f"Name {n}"}) for n in range(20))
    )
    assert await db.fetchval("SELECT version FROM partner WHERE id = $1", made.partner_id) == 21


async def test_each_change_is_queued_for_the_publisher(made: Any, db: Connection) -> None:
    queued = await db.fetch("SELECT kind, row_id FROM outbox WHERE kind <> 'reference' ORDER BY id")
    assert [tuple(row) for row in queued] == [
        ("advertiser", made.advertiser_id),
        ("partner", made.partner_id),
        ("offer", made.offer_id),
        ("link", made.link_id),
    ]


TERMS: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({"model": "cpa", "amount_minor": 0, "currency": "JPY"}, ("cpa", 0, None, "JPY")),
    ({"model": "cpa", "amount_minor": 10**15, "currency": "EUR"}, ("cpa", 10**15, None, "EUR")),
    ({"model": "cps", "percent": "7.25", "currency": "EUR"}, ("cps", None, Decimal("7.25"), "EUR")),
    ({"model": "cps", "percent": "100", "currency": "BHD"}, ("cps", None, Decimal(100), "BHD")),
    ({"model": "cps", "percent": "0.000001", "currency": "EUR"}, ("cps", None, Decimal("0.000001"), "EUR")),
]


async def test_terms_are_kept_to_the_digit(admin: Any, made: Any, db: Connection) -> None:
    for payout, stored in TERMS:
        status, offer = await admin("POST", "/v1/offers", json=offer_body(made.advertiser_id, payout))
        assert status == 201
        row = await db.fetchrow(
            "SELECT model, amount_minor, percent, currency FROM offer_terms WHERE offer_id = $1", offer["id"]
        )
        assert row is not None
        assert tuple(row) == stored


def offer_body(advertiser_id: int, payout: dict[str, Any]) -> dict[str, Any]:
    return {
        "advertiser_id": advertiser_id,
        "name": "x",
        "destination_url": "https://a.example",
        "payout": payout,
    }


async def test_tokens_and_keys_are_kept_only_as_hashes(admin: Any, made: Any, db: Connection) -> None:
    _, key = await admin("POST", "/v1/keys", json={"role": "partner", "partner_id": made.partner_id})
    row = await db.fetchrow("SELECT * FROM api_key WHERE id = $1", key["id"])
    assert row is not None
    assert (row["role"], row["partner_id"], row["last_four"]) == ("partner", made.partner_id, key["key"][-4:])
    assert row["key_sha256"] == hashlib.sha256(key["key"].encode()).digest()
    assert key["key"] not in str(dict(row))
    digest = hashlib.sha256(made.token.encode()).digest()
    assert await db.fetchval("SELECT id FROM advertiser WHERE token_sha256 = $1", digest) == made.advertiser_id


async def test_names_in_every_alphabet_come_back_as_sent(admin: Any, db: Connection) -> None:
    name = "Žluťoučký 商店 متجر 🛒 <b>'; DROP TABLE partner; --"
    _, partner = await admin("POST", "/v1/partners", json={"name": name})
    assert await db.fetchval("SELECT name FROM partner WHERE id = $1", partner["id"]) == name
