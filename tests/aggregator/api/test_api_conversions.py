"""Conversions: what each role is told of one, and what people may make of it."""

import asyncio
import uuid
from typing import Any, NamedTuple

import pytest

from aggregator.api import keys
from aggregator.api.keys import Wanted
from aggregator.conversions import ledger
from aggregator.db.connect import Connection
from schemas.outcomes import ClickClass
from tests.aggregator.api.conftest import Client, Made, sold, state

UNKNOWN = uuid.UUID(int=0x8 << 76 | 0x2 << 62)


class Callers(NamedTuple):
    admin: Client
    partner: Client
    advertiser: Client


@pytest.fixture
async def callers(admin: Client, made: Made, db: Connection) -> Callers:
    """The offer pays 5 % to the partner, and brings in 8 %; its conversions are looked at first."""
    await db.execute("UPDATE offer SET default_status = 'pending' WHERE id = $1", made.offer_id)
    await db.execute("DELETE FROM offer_terms")
    await db.execute(
        "INSERT INTO offer_terms (offer_id, side, model, percent, currency, valid_from)"
        " VALUES ($1, 'payout', 'cps', 5, 'EUR', '-infinity'), ($1, 'revenue', 'cps', 8, 'EUR', '-infinity')",
        made.offer_id,
    )
    partner = await keys.create(db, Wanted("partner", made.partner_id))
    advertiser = await keys.create(db, Wanted("advertiser", None, made.advertiser_id))
    return Callers(admin, admin.with_key(partner.key), admin.with_key(advertiser.key))


def path(conversion_id: uuid.UUID, rest: str = "") -> str:
    return f"/v1/conversions/{conversion_id}{rest}"


async def decided(call: Client, conversion_id: uuid.UUID, status: str, reason: str | None = "because") -> Any:
    answered = await call("PATCH", path(conversion_id), json={"status": status, "reason": reason})
    assert answered[0] == 200, answered
    return answered[1]


async def booked(db: Connection, made: Made) -> tuple[int, int]:
    """What we owe the partner, what the advertiser owes us; the ledger is whole."""
    assert await ledger.check(db) == []
    partner = await ledger.balance(db, ledger.partner(made.partner_id))
    advertiser = await ledger.balance(db, ledger.advertiser(made.advertiser_id))
    return partner.get("EUR", 0), -advertiser.get("EUR", 0)


def names(told: Any) -> set[str]:
    """All names in an answer, however deep, with the accounts of ledger lines."""
    if isinstance(told, list):
        return {name for one in told for name in names(one)}
    if not isinstance(told, dict):
        return set()
    return {*told, *(told.get("account", "").split()), *(name for one in told.values() for name in names(one))}


async def test_each_is_told_what_concerns_it_and_nothing_of_the_others_money(
    callers: Callers, made: Made, db: Connection
) -> None:
    said = {"customer_id": "c-7", "adv": {"adv1": "x"}, "original_status": "ok", "revenue_minor": None}
    conversion_id = await sold(db, made, click_class=int(ClickClass.NORMAL), **said)
    await decided(callers.admin, conversion_id, "approved", "looked at it")
    told = {role: await call("GET", path(conversion_id)) for role, call in callers._asdict().items()}
    assert {status for status, _ in told.values()} == {200}
    admin, partner, advertiser = (told[role][1] for role in ("admin", "partner", "advertiser"))
    assert (admin["payout_minor"], admin["revenue_minor"], admin["booked_payout_minor"]) == (500, 800, 500)
    assert (partner["payout_minor"], advertiser["revenue_minor"]) == (500, 800)
    assert names(partner) <= names(admin)
    assert not {name for name in names(partner) if "revenue" in name or "advertiser" in name or "programme" in name}
    assert not names(partner) & {"customer_id", "adv", "intakes", "raw", "original_status", "foreign_click"}
    assert not {name for name in names(advertiser) if "payout" in name or "partner:" in name or "programme" in name}
    assert [(one["actor"], one["to_status"], one["reason"]) for one in admin["changes"]][-1] == (
        "admin:1", "approved", "looked at it",
    )  # fmt: skip
    assert [(one["actor"], one["reason"]) for one in partner["changes"]][-1] == ("admin", None)
    assert [line["account"] for line in partner["ledger"][0]["lines"]] == [f"partner:{made.partner_id}"]
    assert [line["amount_minor"] for line in advertiser["ledger"][0]["lines"]] == [-800]
    assert sum(line["amount_minor"] for line in admin["ledger"][0]["lines"]) == 0
    assert [one["result"] for one in advertiser["intakes"]] == ["accepted"]
    assert "raw" not in names(advertiser)


async def test_a_partner_is_told_reasons_of_its_traffic_and_no_others(
    callers: Callers, made: Made, db: Connection
) -> None:
    for order_id, said, reason, shown in (
        ("a", {}, "awaits_approval", "awaits_approval"),
        ("b", {"click_class": int(ClickClass.FLAGGED)}, "flagged_click", "flagged_click"),
        ("c", {"reason": "above_bound"}, "above_bound", None),
        ("d", {"currency": "USD"}, "no_rate", None),
    ):
        conversion_id = await sold(db, made, order_id, **said)
        assert (await callers.admin("GET", path(conversion_id)))[1]["reason"] == reason
        assert (await callers.partner("GET", path(conversion_id)))[1]["reason"] == shown


async def test_what_is_not_here_yet_is_a_404_that_says_when_to_ask_again(callers: Callers, made: Made) -> None:
    for call in callers:
        for name in (str(UNKNOWN), str(UNKNOWN).upper()):
            headers = {"Authorization": f"Bearer {call.key}"}
            async with call.session.get(f"/v1/conversions/{name}", headers=headers) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (404, "2")
    for name in ("1", "abc", UNKNOWN.hex, f"{{{UNKNOWN}}}", f"urn:uuid:{UNKNOWN}", "%00", "%D9%A1"):
        assert (await callers.admin("GET", f"/v1/conversions/{name}"))[0] == 404


async def test_an_order_is_found_by_the_name_on_any_of_its_receipts(
    callers: Callers, made: Made, db: Connection
) -> None:
    """One that was reported before and after its offer's scope changed has two."""
    first = await sold(db, made)
    other = await sold(db, made, conversion_id=UNKNOWN, former_id=first)
    for call in callers:
        status, told = await call("GET", path(other))
        assert (status, told["conversion_id"]) == (200, str(first))
    assert (await decided(callers.admin, other, "approved"))["conversion_id"] == str(first)
    assert len((await callers.admin("GET", path(other)))[1]["intakes"]) == 2
    sheet = f"conversion_id,status\n{other},reversed\n{first},reversed\n"
    headers = {"Content-Type": "text/csv"}
    _, told = await callers.advertiser("POST", "/v1/conversions/import", data=sheet, headers=headers)
    assert (told["updated"], [one["code"] for one in told["errors"]]) == (1, ["conflict"])
    _, stranger = await callers.admin("POST", "/v1/advertisers", json={"name": "Other"})
    key = (await keys.create(db, Wanted("advertiser", None, stranger["id"]))).key
    assert (await callers.admin.with_key(key)("GET", path(other)))[0] == 404


async def test_a_change_of_an_order_that_is_not_known_is_told_as_waiting_to_who_sent_it(
    callers: Callers, made: Made, db: Connection
) -> None:
    conversion_id = await sold(db, made, status="reversed")
    for call in (callers.admin, callers.advertiser):
        status, told = await call("GET", path(conversion_id))
        assert (status, told["status"], [one["result"] for one in told["intakes"]]) == (200, None, ["waiting"])
    assert (await callers.partner("GET", path(conversion_id)))[0] == 404


async def test_people_approve_reject_and_reverse_once_and_all_of_it_is_on_the_record(
    callers: Callers, made: Made, db: Connection
) -> None:
    one, other = await sold(db, made, "one"), await sold(db, made, "other")
    assert await booked(db, made) == (0, 0)
    assert (await decided(callers.admin, one, "approved", None))["status"] == "approved"
    assert await booked(db, made) == (500, 800)
    assert (await decided(callers.advertiser, other, "rejected", "returned"))["status"] == "rejected"
    for conversion_id, status in ((one, "approved"), (other, "rejected"), (other, "approved"), (other, "reversed")):
        body = {"status": status, "reason": "again"}
        assert (await callers.admin("PATCH", path(conversion_id), json=body))[0] == 409, (conversion_id, status)
    assert (await decided(callers.admin, one, "reversed", "returned"))["booked_payout_minor"] == 0
    assert await booked(db, made) == (0, 0)
    acts = await db.fetch("SELECT action, subject, actor, reason FROM audit WHERE subject LIKE 'conversion:%'")
    assert sorted(tuple(act) for act in acts) == sorted(
        [
            ("change_conversion_to_approved", f"conversion:{one}", "admin:1", None),
            ("change_conversion_to_rejected", f"conversion:{other}", "advertiser:3", "returned"),
            ("change_conversion_to_reversed", f"conversion:{one}", "admin:1", "returned"),
        ]
    )


async def test_an_advertiser_approves_what_awaits_it_and_nothing_that_is_held_for_the_operators_sake(
    callers: Callers, made: Made, db: Connection
) -> None:
    await db.execute("UPDATE offer SET amount_max_minor = 20000")
    for order_id, said, status in (
        ("a", {}, 200),
        ("b", {"status": "pending"}, 200),
        ("c", {"reason": "pixel", "door": "pixel"}, 200),
        ("c2", {"reason": "pixel", "door": "pixel", "amount_minor": 20_001}, 403),  # a page hides no bound
        ("d", {"click_class": int(ClickClass.FLAGGED)}, 403),
        ("e", {"reason": "payout_above_bound", "payout_minor": 9_999_999}, 403),
    ):
        conversion_id = await sold(db, made, order_id, **said)
        answered = await callers.advertiser("PATCH", path(conversion_id), json={"status": "approved"})
        assert answered[0] == status, (order_id, answered)
        if status == 403:
            await decided(callers.admin, conversion_id, "approved")
    assert await ledger.check(db) == []


async def test_a_part_is_refunded_once_by_its_name_and_what_remains_is_said_as_often_as_one_likes(
    callers: Callers, made: Made, db: Connection
) -> None:
    conversion_id = await sold(db, made)
    await decided(callers.admin, conversion_id, "approved")
    part = {"amount_minor": 4_000, "event_id": "r-1", "reason": "shoes returned"}
    for _ in range(2):
        status, told = await callers.advertiser("POST", path(conversion_id, "/refunds"), json=part)
        assert (status, told["sale_amount_minor"], told["status"]) == (200, 6_000, "approved")
        assert await booked(db, made) == (300, 480)
    for _ in range(2):
        body = {"remaining_minor": 1_000, "reason": "more returned"}
        status, told = await callers.admin("POST", path(conversion_id, "/refunds"), json=body)
        assert (status, told["sale_amount_minor"], told["payout_minor"]) == (200, 1_000, 50)
        assert await booked(db, made) == (50, 80)
    status, told = await callers.admin("GET", path(conversion_id))
    assert told["steps"] == ["refund:r-1"]
    status, told = await callers.advertiser("POST", path(conversion_id, "/chargeback"), json={"reason": "the bank"})
    assert (status, told["status"]) == (200, "reversed")
    assert await booked(db, made) == (0, 0)
    kinds = [row["kind"] for row in await db.fetch("SELECT kind FROM ledger_entry ORDER BY id")]
    assert kinds == ["accrual", "refund", "refund", "chargeback"]


async def test_a_decision_is_for_the_version_that_was_seen_and_repeated_by_its_key_it_is_one(
    callers: Callers, made: Made, db: Connection
) -> None:
    conversion_id = await sold(db, made)
    headers = {"If-Match": '"7"'}
    body = {"status": "approved"}
    status, told = await callers.admin("PATCH", path(conversion_id), json=body, headers=headers)
    assert (status, told["error"]["code"]) == (412, "precondition_failed")
    assert (await callers.admin("PATCH", path(conversion_id), json=body, headers={"If-Match": '"1"'}))[0] == 200
    part = {"amount_minor": 4_000, "event_id": "r-1", "reason": "returned"}
    first = await callers.admin("POST", path(conversion_id, "/refunds"), json=part, headers={"Idempotency-Key": "k"})
    await callers.admin("POST", path(conversion_id, "/refunds"), json=part | {"event_id": "r-2"})
    before = await state(db)
    again = await callers.admin("POST", path(conversion_id, "/refunds"), json=part, headers={"Idempotency-Key": "k"})
    assert again == first
    assert await state(db) == before


async def test_a_cap_holds_for_people_too(callers: Callers, made: Made, db: Connection) -> None:
    cap = {"offer_id": made.offer_id, "kind": "conversions", "period": "total", "conversions": 1}
    assert (await callers.admin("POST", "/v1/caps", json=cap))[0] == 201
    one, other = await sold(db, made, "one"), await sold(db, made, "other")
    await decided(callers.admin, one, "approved")
    status, told = await callers.admin("PATCH", path(other), json={"status": "approved"})
    assert (status, told["error"]["code"]) == (409, "over_cap")
    assert await booked(db, made) == (500, 800)


BAD: list[tuple[str, str, Any, str | None]] = [
    ("PATCH", "", {}, "status"),
    ("PATCH", "", {"status": "pending", "reason": "x"}, "status"),
    ("PATCH", "", {"status": "paid", "reason": "x"}, "status"),
    ("PATCH", "", {"status": None}, "status"),
    ("PATCH", "", {"status": "rejected"}, "reason"),
    ("PATCH", "", {"status": "reversed", "reason": None}, "reason"),
    ("PATCH", "", {"status": "approved", "reason": ""}, "reason"),
    ("PATCH", "", {"status": "approved", "reason": "a\x00b"}, "reason"),
    ("PATCH", "", {"status": "approved", "payout_minor": 1}, "payout_minor"),
    ("PATCH", "", [], None),
    *(
        ("POST", "/refunds", {"amount_minor": amount, "event_id": "e", "reason": "x"}, "amount_minor")
        for amount in (0, -1, 1.5, "1", 10**15 + 1, 10**40, True, None)
    ),
    *(
        ("POST", "/refunds", {"remaining_minor": amount, "reason": "x"}, None)
        for amount in (-1, 1.5, "1", 10**15 + 1, True, None)
    ),
    ("POST", "/refunds", {"amount_minor": 1, "reason": "x"}, "event_id"),
    ("POST", "/refunds", {"amount_minor": 1, "event_id": "", "reason": "x"}, "event_id"),
    ("POST", "/refunds", {"amount_minor": 1, "event_id": "x" * 256, "reason": "x"}, "event_id"),
    ("POST", "/refunds", {"amount_minor": 1, "event_id": "a\nb", "reason": "x"}, "event_id"),
    ("POST", "/refunds", {"amount_minor": 1, "remaining_minor": 1, "event_id": "e", "reason": "x"}, "amount_minor"),
    ("POST", "/refunds", {"amount_minor": 1, "event_id": "e"}, "reason"),
    ("POST", "/chargeback", {}, "reason"),
    ("POST", "/chargeback", {"reason": "x", "amount_minor": 1}, "amount_minor"),
]


async def test_bad_bodies_are_refused_by_field_and_change_nothing(callers: Callers, made: Made, db: Connection) -> None:
    conversion_id = await sold(db, made)
    before = await state(db)
    for method, rest, body, field in BAD:
        for call in (callers.admin, callers.advertiser):
            status, told = await call(method, path(conversion_id, rest), json=body)
            assert status == 400, (rest, body, told)
            assert field is None or told["error"]["field"] == field, (rest, body, told)
    assert await state(db) == before


async def test_people_who_decide_at_once_about_the_same_orders_book_each_once(
    callers: Callers, made: Made, db: Connection
) -> None:
    """Beside a sheet that says the same, row by row with other amounts, in the opposite order."""
    ids = [await sold(db, made, f"order-{n}") for n in range(6)]
    sheet = "order_id,status,amount_minor\n" + "".join(f"order-{n},approved,8000\n" for n in reversed(range(6)))
    calls = [
        callers.admin("PATCH", path(conversion_id), json={"status": "approved"})
        for conversion_id in ids
        for _ in range(4)
    ]
    answered, imported = await asyncio.gather(
        asyncio.gather(*calls),
        callers.advertiser("POST", "/v1/conversions/import", data=sheet.encode(), headers={"Content-Type": "text/csv"}),
    )
    assert {status for status, _ in answered} <= {200, 409, 503}, answered
    assert imported[0] in (200, 503), imported
    again = await callers.advertiser(
        "POST", "/v1/conversions/import", data=sheet.encode(), headers={"Content-Type": "text/csv"}
    )
    assert (again[0], again[1]["failed"]) == (200, 0), again
    assert await booked(db, made) == (6 * 400, 6 * 640)
    approvals = "SELECT count(*) FROM conversion_change WHERE to_status = 'approved' AND from_status = 'pending'"
    assert await db.fetchval(approvals) == 6


@pytest.mark.parametrize("way", ["call", "sheet"])
async def test_an_advertiser_approves_what_it_may_as_it_is_then(
    callers: Callers, made: Made, db: Connection, way: str
) -> None:
    """What its own next post has put in doubt meanwhile is the operator's to decide."""
    conversion_id = await sold(db, made)
    sheet = {"data": f'{{"conversion_id": "{conversion_id}", "status": "approved"}}'}
    said = {
        "call": ("PATCH", path(conversion_id), {"json": {"status": "approved"}}),
        "sheet": ("POST", "/v1/conversions/import", sheet | {"headers": {"Content-Type": "application/x-ndjson"}}),
    }
    method, url, request = said[way]
    async with db.transaction():
        await db.execute("UPDATE conversion SET doubt = 'above_bound', reason = 'above_bound'")
        decision = asyncio.create_task(callers.advertiser(method, url, **request))
        async with asyncio.timeout(10):
            while not await db.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.02)
    _, told = await decision
    refusal = told["error"] if way == "call" else told["errors"][0]
    assert refusal["code"] == "forbidden", told
    assert await db.fetchval("SELECT status FROM conversion") == "pending"
