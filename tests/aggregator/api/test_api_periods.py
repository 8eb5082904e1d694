"""Closing months, re-rating and bonuses through the API: a dry run first, then once."""

from datetime import UTC, datetime
from typing import Any

from aggregator.conversions import ledger
from aggregator.db.connect import Connection
from tests.aggregator.api.conftest import Client, Made, state
from tests.aggregator.conversions.test_periods import OCTOBER, sell

KEY = {"Idempotency-Key": "close-october"}
BONUS = {"amount_minor": 2500, "currency": "EUR", "reason": "for October"}


async def balance(db: Connection, partner_id: int) -> int:
    return (await ledger.balance(db, ledger.partner(partner_id))).get("EUR", 0)


async def test_a_month_is_closed_after_a_dry_run(admin: Client, made: Made, db: Connection) -> None:
    await db.execute("""UPDATE offer_terms SET tiers = '[{"from": 2, "amount_minor": 525}]'""")
    await sell(db, OCTOBER, 3, offer_id=made.offer_id, payout_minor=425, booked_payout_minor=425)
    before = await state(db)
    line = {
        "offer_id": made.offer_id, "partner_id": 1, "period": "2025-10", "currency": "EUR", "conversions": 3,
        "was_minor": 1275, "will_be_minor": 1475, "difference_minor": 200,
    }  # fmt: skip
    status, dry = await admin("POST", "/v1/periods/2025-10/close?dry_run=1")
    assert (status, dry) == (200, {"period": "2025-10", "dry_run": True, "data": [line | {"entry_id": None}]})
    assert await state(db) == before
    status, done = await admin("POST", "/v1/periods/2025-10/close", headers=KEY)
    entry_id = done["data"][0]["entry_id"]
    assert (status, done) == (200, {"period": "2025-10", "dry_run": False, "data": [line | {"entry_id": entry_id}]})
    assert await admin("POST", "/v1/periods/2025-10/close", headers=KEY) == (200, done)
    status, again = await admin("POST", "/v1/periods/2025-10/close")
    assert [(one["difference_minor"], one["entry_id"]) for one in again["data"]] == [(0, None)]
    assert await balance(db, 1) == 3 * 425 + 200
    shown = (await admin("GET", "/v1/adjustments?partner_id=1&period=2025-10"))[1]["data"]
    assert [(one["id"], one["amount_minor"], one["reason"]) for one in shown] == [
        (entry_id, 200, "volume tiers of 2025-10")
    ]
    act = await db.fetchrow("SELECT actor, subject, after FROM audit WHERE action = 'close_period' ORDER BY id LIMIT 1")
    assert act is not None
    assert tuple(act)[1:] == ("period:2025-10", {"differences": 1, "difference_minor": {"EUR": 200}})
    assert act["actor"] == shown[0]["actor"]


async def test_what_is_no_month_that_is_over_is_not_closed(admin: Client, made: Made, db: Connection) -> None:
    before = await state(db)
    for period in ("2025", "2025-13", "october", "2025-10-01"):
        status, answer = await admin("POST", f"/v1/periods/{period}/close")
        assert (status, answer["error"]["field"]) == (400, "period"), period
    this_month = datetime.now(UTC).strftime("%Y-%m")
    status, answer = await admin("POST", f"/v1/periods/{this_month}/close?dry_run=1")
    assert (status, answer["error"]["code"]) == (409, "conflict")
    status, answer = await admin("POST", "/v1/periods/2025-10/close?dry_run=2")
    assert (status, answer["error"]["field"]) == (400, "dry_run")
    assert await state(db) == before


async def test_a_range_is_re_rated_after_a_dry_run(admin: Client, made: Made, db: Connection) -> None:
    await sell(db, OCTOBER, 2, offer_id=made.offer_id, payout_minor=425, booked_payout_minor=425)
    await admin(
        "POST", f"/v1/offers/{made.offer_id}/terms", json={"model": "cps", "percent": "50", "currency": "EUR"}
    )  # fmt: skip
    path, body = f"/v1/offers/{made.offer_id}/rerate", {"from": "2025-10-01", "to": "2025-11-01", "reason": "promised"}
    before = await state(db)
    status, dry = await admin("POST", f"{path}?dry_run=1", json=body)
    assert (status, dry["dry_run"], dry["data"][0]["difference_minor"]) == (200, True, 150)
    assert await state(db) == before
    status, done = await admin("POST", path, json=body)
    assert (status, done["data"][0]["difference_minor"], done["data"][0]["entry_id"] is None) == (200, 150, False)
    assert (await admin("POST", path, json=body))[1]["data"][0]["entry_id"] is None
    status, answer = await admin("POST", path, json=body | {"to": "2025-10-15"})
    assert (status, answer["error"]["code"], answer["error"]["field"]) == (409, "conflict", "from")
    assert await balance(db, 1) == 850 + 150
    shown = (await admin("GET", f"/v1/adjustments?offer_id={made.offer_id}"))[1]["data"]
    assert [(one["amount_minor"], one["reason"], one["period"]) for one in shown] == [(150, "promised", None)]


async def test_a_range_that_cannot_be_is_refused_by_field(admin: Client, made: Made, db: Connection) -> None:
    before = await state(db)
    path, body = f"/v1/offers/{made.offer_id}/rerate", {"from": "2025-10-01", "to": "2025-11-01", "reason": "promised"}
    for field, changed in (
        ("from", {"from": "x"}), ("to", {"to": "2025-10-01"}), ("to", {"to": "2025-09-01"}), ("from", {"from": 5}),
        ("reason", {"reason": ""}), ("reason", {"reason": "  "}), ("partner_id", {"partner_id": 1}),
    ):  # fmt: skip
        status, answer = await admin("POST", path, json=body | changed)
        assert (status, answer["error"].get("field")) == (400, field), changed
    for name in body:
        status, answer = await admin("POST", path, json={key: value for key, value in body.items() if key != name})
        assert (status, answer["error"]["field"]) == (400, name)
    assert (await admin("POST", "/v1/offers/404/rerate", json=body))[0] == 404
    assert await state(db) == before


async def test_a_bonus_is_booked_once_with_who_gave_it(admin: Client, made: Made, db: Connection) -> None:
    body = BONUS | {"partner_id": made.partner_id}
    headers = {"Idempotency-Key": "bonus-1"}
    status, given = await admin("POST", "/v1/adjustments", json=body, headers=headers)
    assert (status, {name: given[name] for name in body}) == (201, body)
    assert await admin("POST", "/v1/adjustments", json=body, headers=headers) == (201, given)
    assert await balance(db, made.partner_id) == 2500
    taken = body | {"amount_minor": -1000, "period": "2026-10", "offer_id": made.offer_id, "reason": "too much"}
    status, back = await admin("POST", "/v1/adjustments", json=taken)
    assert (status, {name: back[name] for name in taken}) == (201, taken)
    assert await balance(db, made.partner_id) == 1500
    listed = (await admin("GET", "/v1/adjustments"))[1]
    assert (listed["data"], listed["truncated"]) == ([given, back], False)
    acts = await db.fetch("SELECT actor, subject, reason FROM audit WHERE action = 'adjust' ORDER BY id")
    assert [tuple(act) for act in acts] == [
        (given["actor"], f"partner:{made.partner_id}", reason) for reason in ("for October", "too much")
    ]
    assert given["actor"].startswith("admin:")
    assert await ledger.check(db) == []


BAD_ADJUSTMENTS: list[tuple[str, dict[str, Any]]] = [
    ("partner_id", {"partner_id": 404}),
    ("partner_id", {"partner_id": None}),
    ("offer_id", {"offer_id": 404}),
    ("amount_minor", {"amount_minor": 0}),
    ("amount_minor", {"amount_minor": 1.5}),
    ("amount_minor", {"amount_minor": "5"}),
    ("amount_minor", {"amount_minor": 10**15 + 1}),
    ("amount_minor", {"amount_minor": -(10**15) - 1}),
    ("currency", {"currency": "eur"}),
    ("currency", {"currency": "XXX"}),
    ("reason", {"reason": ""}),
    ("reason", {"reason": "a\nb"}),
    ("period", {"period": "2026-13"}),
    ("period", {"period": "October"}),
    ("amount", {"amount": "25.00"}),
]


async def test_a_bonus_that_cannot_be_is_refused_by_field(admin: Client, made: Made, db: Connection) -> None:
    before = await state(db)
    body = BONUS | {"partner_id": made.partner_id}
    for field, changed in BAD_ADJUSTMENTS:
        status, answer = await admin("POST", "/v1/adjustments", json=body | changed)
        assert (status, answer["error"].get("field")) == (400, field), changed
    for name in body:
        status, answer = await admin(
            "POST", "/v1/adjustments", json={key: value for key, value in body.items() if key != name}
        )
        assert (status, answer["error"]["field"]) == (400, name)
    assert await state(db) == before
