"""How an advertiser's conversions are read and trusted, as an operator sets it up; and scopes and bounds of offers."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from aggregator.db.connect import Connection
from schemas import links, redis_keys
from schemas.redis import Redis, done
from tests.aggregator.api.conftest import Client, Made, offer_body, state

SETTINGS: dict[str, Any] = {
    "dialect": "keitaro", "decimal_separator": ",", "status_map": {" Paid ": "approved", "PING": "ignored"},
    "duplicates": "update", "attribution": "coupon", "networks": ["203.0.113.7", "10.0.0.0/8", "2001:DB8::/32"],
    "signature_required": True, "postbacks_per_minute": 600,
    "pixel_origins": ["HTTPS://Shop.example", "http://localhost:3000"],
    "foreign_clicks_until": "2027-01-01T00:00:00.123456+01:00",
}  # fmt: skip
KEPT: dict[str, Any] = SETTINGS | {
    "status_map": {"paid": "approved", "ping": "ignored"},
    "networks": ["10.0.0.0/8", "2001:db8::/32", "203.0.113.7/32"],
    "pixel_origins": ["http://localhost:3000", "https://shop.example"],
    "foreign_clicks_until": "2026-12-31T23:00:00.123Z",
}


async def config(redis: Redis, key: str) -> Any:
    value = await done(redis.get(key))
    return None if value is None else links.decode(key, value)


async def test_settings_are_kept_in_one_form_and_reach_the_edge(
    admin: Client, made: Made, redis: Redis, db: Connection
) -> None:
    path = f"/v1/advertisers/{made.advertiser_id}"
    status, told = await admin("PATCH", path, json=SETTINGS)
    assert (status, told | KEPT) == (200, told)
    status, made_new = await admin("POST", "/v1/advertisers", json=SETTINGS | {"name": "New"})
    assert (status, made_new | KEPT) == (201, made_new)
    published = await config(redis, redis_keys.advertiser_by_id(made.advertiser_id))
    assert (published.dialect, published.networks) == ("keitaro", tuple(KEPT["networks"]))
    assert published.foreign_clicks_until_ms == 1_798_758_000_123
    before = await state(db)
    assert (await admin("PATCH", path, json=SETTINGS))[0] == 200
    after = await state(db)
    assert {table for table in before if before[table] != after[table]} <= {"outbox"}


async def test_a_pixel_key_is_made_with_the_first_origins_and_stays(
    admin: Client, made: Made, redis: Redis, db: Connection
) -> None:
    path = f"/v1/advertisers/{made.advertiser_id}"
    assert (await admin("GET", path))[1]["pixel_key"] is None
    keys = []
    for origins in (["https://a.example"], ["https://b.example"], [], ["https://c.example"]):
        _, told = await admin("PATCH", path, json={"pixel_origins": origins})
        keys.append(told["pixel_key"])
    assert len(set(keys)) == 1
    assert keys[0].startswith("pk_")
    assert (await config(redis, redis_keys.pixel(keys[0]))).id == made.advertiser_id
    row = json.dumps({"external_id": "A1", "name": "x", "pixel_origins": ["https://a.example"]}).encode()
    for count in ("created", "unchanged"):
        headers = {"Content-Type": "application/x-ndjson"}
        status, told = await admin("POST", "/v1/advertisers/import", data=row, headers=headers)
        assert (status, told[count]) == (200, 1)
    assert await db.fetchval("SELECT pixel_key LIKE 'pk_%' FROM advertiser WHERE external_id = 'A1'")


async def test_a_signing_key_is_shown_once_and_in_nothing_else(
    admin: Client, made: Made, redis: Redis, db: Connection
) -> None:
    path = f"/v1/advertisers/{made.advertiser_id}"
    headers = {"Idempotency-Key": "k"}
    status, told = await admin("POST", f"{path}/signing-key", headers=headers)
    assert (status, told["live"]) == (201, True)
    signing_key = told["signing_key"]
    assert signing_key.startswith("sk_")
    published = await config(redis, redis_keys.advertiser_by_id(made.advertiser_id))
    assert published.signing_key == signing_key
    assert (await admin("POST", f"{path}/signing-key", headers=headers))[1]["signing_key"] == signing_key
    assert signing_key not in json.dumps((await admin("GET", path))[1])
    assert signing_key not in json.dumps((await admin("GET", "/v1/advertisers"))[1])
    assert signing_key not in json.dumps((await admin("GET", "/v1/audit"))[1])
    assert not await db.fetchval("SELECT count(*) FROM idempotency WHERE answer LIKE '%' || $1 || '%'", signing_key)
    _, other = await admin("POST", f"{path}/signing-key")
    assert other["signing_key"] != signing_key
    assert (await config(redis, redis_keys.advertiser_by_id(made.advertiser_id))).signing_key == other["signing_key"]
    assert (await admin("POST", f"{path}/signing-key", headers={"If-Match": '"1"'}))[0] == 412


BAD_SETTINGS: list[tuple[str, Any]] = [
    *(("dialect", one) for one in ("", "Everflow", "hasoffers", None, 5, ["keitaro"])),
    *(("decimal_separator", one) for one in (";", " ", "..", None, 1)),
    *(
        ("status_map", one)
        for one in (
            None, [], "paid", {"paid": "Approved"}, {"paid": ""}, {"paid": 1}, {"": "approved"}, {" ": "approved"},
            {"x" * 65: "approved"}, {"a\nb": "approved"}, {"Paid": "approved", "paid": "rejected"},
            {str(n): "approved" for n in range(101)},
        )
    ),
    *(("duplicates", one) for one in ("", "once", None)),
    *(("attribution", one) for one in ("", "last", None)),
    *(
        ("networks", one)
        for one in (
            None, "10.0.0.0/8", [""], ["10.0.0.1/8"], ["10.0.0"], ["shop.example"], ["10.0.0.0/33"], [5],
            [f"10.0.{n}.0/24" for n in range(101)],
        )
    ),
    *(("signature_required", one) for one in (None, 1, "yes")),
    *(("postbacks_per_minute", one) for one in (0, -1, 1.5, "5", None, 6_000_001, 10**30)),
    *(
        ("pixel_origins", one)
        for one in (
            None, "https://shop.example", [""], ["shop.example"], ["https://shop.example/"], ["https://shop.example/a"],
            ["https://shop.example?a"], ["https://*.shop.example"], ["https://shop.example:443"], ["ftp://a.example"],
            ["https://u:p@shop.example"], ["https://shop.example."], ["null"], ["https://shop.example:"], [1],
            ["https://sh\x00p.example"], [f"https://{n}.example" for n in range(101)],
        )
    ),
    *(("foreign_clicks_until", one) for one in ("", "2027-01-01", "2027-01-01T00:00:00", "1999-01-01T00:00:00Z", 5)),
    *(("signing_key", one) for one in ("sk_x", None)),
    *(("pixel_key", one) for one in ("pk_x", None)),
]  # fmt: skip
BAD_OFFERS: list[tuple[str, Any]] = [
    *(("click_window_days", one) for one in (0, -1, 366, 1.5, "30", None)),
    *(("min_conversion_s", one) for one in (-1, 365 * 86_400 + 1, "5", None)),
    *(("default_status", one) for one in ("rejected", "", None)),
    *(("auto_approve_days", one) for one in (-1, 366, 0.5, "1")),
    *(("amount_max_minor", one) for one in (-1, 10**15 + 1, 10**40, "1", 1.5)),
    *(("payout_override_max_minor", one) for one in (-1, 10**15 + 1, True)),
    *(("max_duration_months", one) for one in (0, 1_201, "12")),
    *(
        ("scopes", one)
        for one in (
            None, "offer", ["offer"], [{}], [{"scope": "order"}], [{"scope": "offer", "since": 1}],
            [{"scope": "offer", "valid_from": "2027-01-01"}], [{"scope": "offer", "valid_from": 5}],
            [{"scope": "offer", "valid_from": "1999-01-01T00:00:00Z"}],
            [{"scope": "offer"}, {"scope": "click"}],
        )
    ),
]  # fmt: skip


async def test_bad_settings_are_refused_by_field_and_change_nothing(admin: Client, made: Made, db: Connection) -> None:
    before = await state(db)
    for field, value in BAD_SETTINGS:
        for method, path, rest in (
            ("PATCH", f"/v1/advertisers/{made.advertiser_id}", {}),
            ("POST", "/v1/advertisers", {"name": "x"}),
        ):
            status, told = await admin(method, path, json={field: value} | rest)
            assert status == 400, (method, field, value, told)
            assert told["error"]["field"].partition(".")[0].partition("[")[0] == field, (value, told)
    for field, value in BAD_OFFERS:
        for method, path, rest in (
            ("PATCH", f"/v1/offers/{made.offer_id}", {}),
            ("POST", "/v1/offers", offer_body(made.advertiser_id)),
        ):
            status, told = await admin(method, path, json=rest | {field: value})
            assert status == 400, (method, field, value, told)
            assert told["error"]["field"].partition(".")[0].partition("[")[0] == field, (value, told)
    assert await state(db) == before


def later(**after: float) -> str:
    return (datetime.now(UTC) + timedelta(**after)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def test_scopes_begin_now_or_later_and_what_has_begun_stays(
    admin: Client, made: Made, redis: Redis, db: Connection
) -> None:
    path = f"/v1/offers/{made.offer_id}"
    assert (await admin("GET", path))[1]["scopes"] == []
    status, told = await admin("POST", f"{path}/scope", json={"scope": "offer"})
    assert (status, told["live"]) == (201, True)
    ahead = later(days=367)
    for scope in ("click", "programme"):  # what has not begun may still be another one
        assert (await admin("POST", f"{path}/scope", json={"scope": scope, "valid_from": ahead}))[0] == 201
    _, offer = await admin("GET", path)
    begun = {"scope": "offer", "valid_from": told["valid_from"]}
    assert offer["scopes"] == [begun, {"scope": "programme", "valid_from": ahead}]
    published = await config(redis, redis_keys.offer(made.offer_id))
    assert [one.scope for one in published.scopes] == ["offer", "programme"]
    status, told = await admin("POST", f"{path}/scope", json={"scope": "click", "valid_from": later(days=300)})
    assert (status, told["error"]["field"]) == (409, "scopes"), "an order is looked for under one former name, not two"
    for valid_from in ("2020-01-01T00:00:00Z", later(seconds=-1)):
        status, told = await admin("POST", f"{path}/scope", json={"scope": "click", "valid_from": valid_from})
        assert (status, told["error"]["field"]) == (400, "valid_from")
    assert (await admin("POST", f"{path}/scope", json={"scope": "click"}, headers={"If-Match": '"1"'}))[0] == 412
    for scopes in ([], [begun | {"scope": "click"}], [{"scope": "click"}, begun]):
        status, told = await admin("PATCH", path, json={"scopes": scopes})
        assert (status, told["error"]["field"]) == (409, "scopes"), scopes
    status, offer = await admin("PATCH", path, json={"scopes": [{"scope": "click", "valid_from": ahead}, begun]})
    assert (status, [one["scope"] for one in offer["scopes"]]) == (200, ["offer", "click"])
    row = json.dumps({"id": made.offer_id, "scopes": [begun | {"scope": "programme"}]}).encode()
    headers = {"Content-Type": "application/x-ndjson"}
    _, told = await admin("POST", "/v1/offers/import", data=row, headers=headers)
    assert [(one["field"], one["code"]) for one in told["errors"]] == [("scopes", "conflict")]


async def test_a_new_offer_may_have_its_scope_from_the_beginning(admin: Client, made: Made, redis: Redis) -> None:
    body = offer_body(made.advertiser_id, scopes=[{"scope": "click"}], default_status="pending", auto_approve_days=0)
    status, offer = await admin("POST", "/v1/offers", json=body)
    assert (status, offer["scopes"]) == (201, [{"scope": "click", "valid_from": None}])
    published = await config(redis, redis_keys.offer(offer["id"]))
    assert msgspec.to_builtins(published.scopes) == ({"scope": "click", "valid_from": 0},)


@pytest.mark.parametrize("access", ["open", "private"])
async def test_a_test_link_is_the_same_each_time_and_for_whoever_is_named(
    admin: Client, made: Made, redis: Redis, access: str
) -> None:
    await admin("PATCH", f"/v1/offers/{made.offer_id}", json={"access": access})
    path = f"/v1/offers/{made.offer_id}/test"
    status, link = await admin("POST", path)
    assert (status, link["test"], link["live"]) == (201, True, True)
    published = await config(redis, redis_keys.link(link["code"]))
    assert (published.test, published.partner_id) == (True, link["partner_id"])
    if access == "private":  # else the click would not reach the offer
        assert made.offer_id in (await config(redis, redis_keys.partner(link["partner_id"]))).offers
    status, again = await admin("POST", path)
    assert (status, again["id"]) == (200, link["id"])
    status, own = await admin("POST", path, json={"partner_id": made.partner_id})
    if access == "private":
        assert (status, own["error"]["code"]) == (409, "not_approved")
    else:
        assert (status, own["partner_id"], own["test"]) == (201, made.partner_id, True)
    for body, field in (
        ({"partner_id": 0}, "partner_id"),
        ({"partner_id": 404}, "partner_id"),
        ({"code": "x"}, "code"),
    ):
        status, told = await admin("POST", path, json=body)
        assert (status, told["error"]["field"]) == (400, field)
    assert (await admin("POST", "/v1/offers/404/test"))[0] == 404
    assert (await admin("PATCH", f"/v1/links/{made.link_id}", json={"test": True}))[0] == 400
