"""Coupons, and clicks of another tracker: what may be said, whose they are, what a second file changes."""

import json
from typing import Any

import pytest

from aggregator.api import keys
from aggregator.db.connect import Connection
from schemas import limits
from tests.aggregator.api.conftest import Client, Made, state

CSV = {"Content-Type": "text/csv"}
AT = "2026-11-01T10:00:00Z"


@pytest.fixture
async def coupon(admin: Client, made: Made) -> dict[str, Any]:
    body = {"code": " Save10 ", "offer_id": made.offer_id, "partner_id": made.partner_id}
    status, found = await admin("POST", "/v1/coupons", json=body)
    assert status == 201, found
    return dict(found)


async def test_a_code_is_an_advertisers_own_whatever_its_case(
    admin: Client, made: Made, coupon: dict[str, Any], db: Connection
) -> None:
    assert (coupon["code"], coupon["advertiser_id"], coupon["status"]) == ("SAVE10", made.advertiser_id, "active")
    _, other = await admin("POST", "/v1/partners", json={"name": "Deals"})
    body = {"code": "sAVE10", "offer_id": made.offer_id, "partner_id": other["id"]}
    status, answer = await admin("POST", "/v1/coupons", json=body)
    assert (status, answer["error"]["field"]) == (409, "code")
    await db.execute(
        """WITH other AS (INSERT INTO advertiser (name, token_sha256) VALUES ('b', 'b') RETURNING id)
           INSERT INTO offer (advertiser_id, name, destination_url, currency)
           SELECT id, 'o', 'https://b.example', 'EUR' FROM other"""
    )
    offer_id = await db.fetchval("SELECT max(id) FROM offer")
    assert (await admin("POST", "/v1/coupons", json=body | {"offer_id": offer_id}))[0] == 201
    _, listed = await admin("GET", f"/v1/coupons?code=SAVE10&offer_id={offer_id}")
    assert [one["partner_id"] for one in listed["data"]] == [other["id"]]
    assert [act["action"] for act in (await admin("GET", f"/v1/audit?subject=coupon:{coupon['id']}"))[1]["data"]] == [
        "create_coupon"
    ]


async def test_archived_a_coupon_ends_and_is_brought_back_by_its_dates(admin: Client, coupon: dict[str, Any]) -> None:
    path = f"/v1/coupons/{coupon['id']}"
    assert (await admin("DELETE", path, headers={"If-Match": '"9"'}))[0] == 412
    _, archived = await admin("DELETE", path)
    assert archived["status"] == "archived"
    assert archived["ends_at"] > coupon["created_at"]
    assert await admin("DELETE", path) == (200, archived)
    assert (await admin("GET", "/v1/coupons"))[1]["data"] == []
    for change in ({"ends_at": None}, {"ends_at": None, "status": "archived"}, {"starts_at": AT}):
        status, answer = await admin("PATCH", path, json=change)
        assert (status, answer["error"]["field"]) == (409, "status"), change
    assert (await admin("PATCH", path, json={"status": "archived"}))[1] == archived
    _, back = await admin("PATCH", path, json={"status": "active", "ends_at": None})
    assert (back["status"], back["ends_at"]) == ("active", None)
    _, past = await admin("PATCH", path, json={"ends_at": "2026-01-01T00:00:00Z"})
    assert (await admin("DELETE", path))[1]["ends_at"] == past["ends_at"]


async def test_a_partner_sees_its_own_coupons_and_no_others(
    admin: Client, made: Made, coupon: dict[str, Any], db: Connection
) -> None:
    _, other = await admin("POST", "/v1/partners", json={"name": "Deals"})
    body = {"code": "DEALS", "offer_id": made.offer_id, "partner_id": other["id"]}
    await admin("POST", "/v1/coupons", json=body)
    for partner_id, code in ((made.partner_id, "SAVE10"), (other["id"], "DEALS")):
        key = (await keys.create(db, keys.Wanted("partner", partner_id))).key
        for query in ("", "?status=active", f"?offer_id={made.offer_id}"):
            status, found = await admin.with_key(key)("GET", f"/v1/me/coupons{query}")
            assert (status, [one["code"] for one in found["data"]]) == (200, [code])
            assert {"partner_id", "advertiser_id"}.isdisjoint(found["data"][0])
        for query in (f"?partner_id={other['id']}", "?advertiser_id=1"):
            assert (await admin.with_key(key)("GET", f"/v1/me/coupons{query}"))[0] == 400


BAD = [
    ({}, "code"), ({"code": ""}, "code"), ({"code": "  "}, "code"), ({"code": "x" * 65}, "code"),
    ({"code": 5}, "code"), ({"code": "a\x00"}, "code"), ({"offer_id": 404}, "offer_id"),
    ({"offer_id": "1"}, "offer_id"), ({"partner_id": 404}, "partner_id"), ({"partner_id": 2**31}, "partner_id"),
    ({"starts_at": "2026-01-01"}, "starts_at"), ({"status": "active"}, "status"),
    ({"ends_at": "2026-01-01T00:00:00Z", "starts_at": "2026-01-01T00:00:00Z"}, "ends_at"),
    ({"ends_at": "0001-01-01T00:00:00Z"}, "ends_at"), ({"advertiser_id": 1}, "advertiser_id"),
]  # fmt: skip
BAD_CHANGES = [
    ({"code": "X"}, "code"), ({"offer_id": 1}, "offer_id"), ({"partner_id": 1}, "partner_id"),
    ({"status": "gone"}, "status"),
    ({"starts_at": "2027-01-01T00:00:00Z", "ends_at": "2026-01-01T00:00:00Z"}, "ends_at"), ({"ends_at": 5}, "ends_at"),
]  # fmt: skip


async def test_bad_bodies_are_refused_by_field_and_write_nothing(
    admin: Client, made: Made, coupon: dict[str, Any], db: Connection
) -> None:
    good = {"code": "OTHER", "offer_id": made.offer_id, "partner_id": made.partner_id}
    before = await state(db)
    for changed, field in BAD:
        status, answer = await admin("POST", "/v1/coupons", json=(good | changed) if changed else {})
        assert (status, answer["error"].get("field")) == (400, field), (changed, answer)
    for changed, field in BAD_CHANGES:
        status, answer = await admin("PATCH", f"/v1/coupons/{coupon['id']}", json=changed)
        assert (status, answer["error"].get("field")) == (400, field), (changed, answer)
    assert await state(db) == before


async def sent(admin: Client, kind: str, text: str, query: str = "", **headers: str) -> dict[str, Any]:
    status, answer = await admin("POST", f"/v1/{kind}/import{query}", data=text.encode(), headers=CSV | headers)
    assert status == 200, answer
    return dict(answer)


async def test_coupons_come_as_a_file_and_a_second_one_changes_their_dates(
    admin: Client, made: Made, coupon: dict[str, Any], db: Connection
) -> None:
    await named(admin, made)
    head = "code,offer_external_id,partner_external_id,starts_at,ends_at\n"
    sheet = f"{head}save10,O1,P1,,\nnew,O1,P1,{AT},\nother,O1,P1,,{AT}\n"
    assert figures(await sent(admin, "coupons", sheet, "?dry_run=1")) == (2, 0, 1, 0)
    assert figures(await sent(admin, "coupons", sheet)) == (2, 0, 1, 0)
    assert figures(await sent(admin, "coupons", sheet)) == (0, 0, 3, 0)
    changes = f"code,offer_id,partner_id,starts_at\nSAVE10,{made.offer_id},{made.partner_id},{AT}\nNEW,1,1,\n"
    assert figures(await sent(admin, "coupons", changes)) == (0, 2, 0, 0)
    found = {row["code"]: row for row in await db.fetch("SELECT * FROM coupon")}
    assert [found[code]["starts_at"] is None for code in ("SAVE10", "NEW", "OTHER")] == [False, True, True]
    assert [found[code]["ends_at"] is None for code in ("SAVE10", "NEW", "OTHER")] == [True, True, False]
    _, audit = await admin("GET", f"/v1/audit?subject=coupon:{coupon['id']}")
    assert [act["action"] for act in audit["data"]] == ["change_coupon", "create_coupon"]


BAD_COUPONS = [
    ({"code": ""}, "code"), ({"code": "x" * 65}, "code"), ({"offer_id": ""}, "offer_external_id"),
    ({"offer_id": "404"}, "offer_id"), ({"partner_id": "404"}, "partner_id"), ({"starts_at": "x"}, "starts_at"),
    ({"code": "SAVE10", "partner_id": "2"}, "partner_id"), ({"starts_at": AT, "ends_at": AT}, "ends_at"),
    ({"ends_at": "0001-01-01T00:00:00Z"}, "ends_at"),
]  # fmt: skip


async def test_coupons_go_out_and_come_back_and_an_archived_one_stays_over(
    admin: Client, coupon: dict[str, Any], db: Connection
) -> None:
    _, archived = await admin("DELETE", f"/v1/coupons/{coupon['id']}")
    asking = {"Authorization": f"Bearer {admin.key}"}
    async with admin.session.get("/v1/export/coupons", headers=asking) as answer:
        text = await answer.text()
    assert (await sent(admin, "coupons", text))["unchanged"] == 1
    found = await sent(admin, "coupons", text.replace(archived["ends_at"], ""))
    assert [one["field"] for one in found["errors"]] == ["status"]
    assert await db.fetchval("SELECT ends_at <= now() FROM coupon")
    await db.execute("DELETE FROM coupon")
    assert (await sent(admin, "coupons", text))["created"] == 1
    assert await db.fetchval("SELECT ends_at <= now() FROM coupon")


async def test_a_bad_coupon_stops_no_other(admin: Client, made: Made, coupon: dict[str, Any], db: Connection) -> None:
    await admin("POST", "/v1/partners", json={"name": "Deals"})
    columns = ("code", "offer_id", "partner_id", "starts_at", "ends_at")
    good = {"offer_id": "1", "partner_id": "1", "starts_at": "", "ends_at": ""}
    rows = [good | {"code": f"c{n}"} | changed for n, (changed, _) in enumerate(BAD_COUPONS)]
    rows += [good | {"code": "good"}, good | {"code": "GOOD"}]
    sheet = "".join(f"{','.join(row[name] for name in columns)}\n" for row in rows)
    answer = await sent(admin, "coupons", f"{','.join(columns)}\n{sheet}")
    assert [error["field"] for error in answer["errors"]] == [field for _, field in BAD_COUPONS] + ["code"]
    assert figures(answer) == (1, 0, 0, len(BAD_COUPONS) + 1)
    assert await db.fetchval("SELECT count(*) FROM coupon") == 2


# -------------------------------------------------------------------------------------------------- clicks elsewhere


async def send(admin: Client, text: str, query: str = "", **headers: str) -> dict[str, Any]:
    return await sent(admin, "clicks", text, query, **headers)


def figures(answer: dict[str, Any]) -> tuple[int, ...]:
    return tuple(answer[name] for name in ("created", "updated", "unchanged", "failed"))


async def named(admin: Client, made: Made) -> None:
    """What is there gets the names that it had elsewhere."""
    for kind, row_id, name in (
        ("offers", made.offer_id, "O1"), ("partners", made.partner_id, "P1"), ("links", made.link_id, "L1"),
    ):  # fmt: skip
        assert (await admin("PATCH", f"/v1/{kind}/{row_id}", json={"external_id": name}))[0] == 200


async def test_clicks_come_by_whatever_names_their_link_or_their_offer_and_partner(
    admin: Client, made: Made, db: Connection
) -> None:
    await named(admin, made)
    sheet = (
        "click_id,clicked_at,link_code,link_external_id,link_id,offer_external_id,offer_id,partner_external_id,"
        "partner_id,sub1,sub10\n"
        f"a,{AT},{made.code},,,,,,,x,y\nb,{AT},,L1,,,,,,,\nc,{AT},,,{made.link_id},,,,,,\n"
        f"d,{AT},,,,O1,,P1,,,\ne,{AT},,,,,{made.offer_id},,{made.partner_id},,\n"
    )
    assert figures(await send(admin, sheet, "?dry_run=1")) == (5, 0, 0, 0)
    assert await db.fetchval("SELECT count(*) FROM imported_click") == 0
    assert figures(await send(admin, sheet)) == (5, 0, 0, 0)
    assert figures(await send(admin, sheet)) == (0, 0, 5, 0)
    rows = {row["foreign_id"]: row for row in await db.fetch("SELECT * FROM imported_click")}
    whose = {(row["advertiser_id"], row["offer_id"], row["partner_id"]) for row in rows.values()}
    assert whose == {(made.advertiser_id, made.offer_id, made.partner_id)}
    assert [rows[name]["link_id"] for name in "abcde"] == [made.link_id] * 3 + [0, 0]
    assert (rows["a"]["subs"], rows["b"]["subs"]) == ({"sub1": "x", "sub10": "y"}, None)
    assert {row["id"].int >> 80 for row in rows.values()} == {1_793_527_200_000}
    assert len({row["id"] for row in rows.values()}) == 5
    assert await db.fetchval("SELECT count(*) FROM audit WHERE action = 'import_clicks'") == 1


BAD_ROWS = [
    ({"clicked_at": ""}, "clicked_at"), ({"clicked_at": "2026-11-01"}, "clicked_at"),
    ({"clicked_at": "2026-11-01T10:00:00"}, "clicked_at"), ({"clicked_at": "2999-01-01T00:00:00Z"}, "clicked_at"),
    ({"click_id": ""}, "click_id"), ({"click_id": "x" * 256}, "click_id"), ({"link_code": "nobody"}, "link_code"),
    ({"link_code": ""}, "link_code"), ({"link_code": "", "offer_id": "1"}, "link_code"),
    ({"link_code": "", "offer_id": "404", "partner_id": "1"}, "offer_id"), ({"sub1": "x" * 256}, "sub1"),
    ({"link_code": "", "offer_id": "1", "partner_id": "99"}, "partner_id"), ({"offer_id": "x"}, "offer_id"),
]  # fmt: skip


async def test_a_bad_row_stops_no_other_and_says_why(admin: Client, made: Made, db: Connection) -> None:
    columns = ("click_id", "clicked_at", "link_code", "offer_id", "partner_id", "sub1")
    good = {"clicked_at": AT, "link_code": made.code, "offer_id": "", "partner_id": "", "sub1": ""}
    rows = [good | {"click_id": f"c{n}"} | changed for n, (changed, _) in enumerate(BAD_ROWS)]
    rows += [good | {"click_id": "good"}, good | {"click_id": "good"}]
    sheet = "".join(f"{','.join(row[name] for name in columns)}\n" for row in rows)
    answer = await send(admin, f"{','.join(columns)}\n{sheet}")
    assert figures(answer) == (1, 0, 0, len(BAD_ROWS) + 1)
    assert [error["field"] for error in answer["errors"]] == [field for _, field in BAD_ROWS] + ["click_id"]
    assert await db.fetchval("SELECT array_agg(foreign_id) FROM imported_click") == ["good"]


async def test_json_lines_are_taken_as_well_and_unknown_columns_refused(admin: Client, made: Made) -> None:
    line = {"click_id": "j", "clicked_at": AT, "link_id": made.link_id, "sub2": "s", "partner_external_id": None}
    answer = await send(admin, json.dumps(line), **{"Content-Type": "application/x-ndjson"})
    assert figures(answer) == (1, 0, 0, 0), answer
    odd = json.dumps({"click_id": "k", "clicked_at": AT, "link_code": "\0"})
    answer = await send(admin, odd, **{"Content-Type": "application/x-ndjson"})
    assert [one["field"] for one in answer["errors"]] == ["link_code"]
    status, answer = await admin("POST", "/v1/clicks/import", data=b"click_id,clickedat\n", headers=CSV)
    assert (status, answer["error"]["code"], answer["error"]["field"]) == (400, "unknown_field", "clickedat")


async def test_no_click_is_taken_for_a_link_of_tests(admin: Client, made: Made, db: Connection) -> None:
    _, link = await admin("POST", f"/v1/offers/{made.offer_id}/test")
    for name in ("id", "code"):
        answer = await send(admin, f"click_id,clicked_at,link_{name}\nc-1,{AT},{link[name]}\n")
        assert [error["field"] for error in answer["errors"]] == [f"link_{name}"]
    assert await db.fetchval("SELECT count(*) FROM imported_click") == 0


async def test_a_click_is_put_right_until_it_has_a_conversion(admin: Client, made: Made, db: Connection) -> None:
    head = "click_id,clicked_at,link_code,sub1\n"
    await send(admin, f"{head}a,{AT},{made.code},x\nb,{AT},{made.code},x\n")
    await db.execute(
        """INSERT INTO conversion (conversion_id, intake_id, click_id, link_id, offer_id, partner_id, advertiser_id,
                                   event, event_at, received_at, status, sale_currency, currency, booked_payout_minor)
           SELECT gen_random_uuid(), gen_random_uuid(), id, link_id, offer_id, partner_id, advertiser_id, 'sale',
                  now(), now(), 'approved', 'EUR', 'EUR', 0 FROM imported_click WHERE foreign_id = 'b'"""
    )
    later = "2026-11-02T10:00:00Z"
    answer = await send(admin, f"{head}a,{later},{made.code},y\nb,{later},{made.code},x\nc,{later},{made.code},\n")
    assert figures(answer) == (1, 1, 0, 1)
    assert (answer["errors"][0]["row"], answer["errors"][0]["code"]) == (2, "conflict")
    rows = await db.fetch("SELECT foreign_id, subs, (get_byte(uuid_send(id), 5))::text FROM imported_click ORDER BY 1")
    assert [row["subs"] for row in rows] == [{"sub1": "y"}, {"sub1": "x"}, None]


async def test_ten_thousand_clicks_come_in_one_call_and_again_unchanged(admin: Client, made: Made) -> None:
    count = limits.IMPORT_BATCH_ROWS * 10
    sheet = "click_id,clicked_at,link_code\n" + "".join(f"k{n},{AT},{made.code}\n" for n in range(count))
    headers = {"Idempotency-Key": "k"}
    assert figures(await send(admin, sheet, **headers)) == (count, 0, 0, 0)
    assert figures(await send(admin, sheet, **headers)) == (count, 0, 0, 0)  # the former answer
    assert figures(await send(admin, sheet)) == (0, 0, count, 0)
