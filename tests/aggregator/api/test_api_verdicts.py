"""Sheets of conversions: what an advertiser says of its orders, row by row."""

import json
import time
from typing import Any

import pytest

from aggregator.api import keys
from aggregator.api.keys import Wanted
from aggregator.conversions import ledger
from aggregator.conversions.settle import settle
from aggregator.db.connect import Connection
from schemas.outcomes import ClickClass
from tests.aggregator.api.conftest import Client, Made, conversion, sold, state

CSV = {"Content-Type": "text/csv"}
JSONL = {"Content-Type": "application/x-ndjson"}


async def send(call: Client, sheet: str, query: str = "", **headers: str) -> Any:
    status, told = await call("POST", f"/v1/conversions/import{query}", data=sheet.encode(), headers={**CSV, **headers})
    assert status == 200, told
    return told


def counts(told: Any) -> tuple[int, int, int]:
    return told["updated"], told["unchanged"], told["failed"]


@pytest.fixture
async def advertiser(admin: Client, made: Made, db: Connection) -> Client:
    """Its orders wait for it; the offer pays 5 % of what is sold."""
    await db.execute("UPDATE offer SET default_status = 'pending' WHERE id = $1", made.offer_id)
    await db.execute("UPDATE offer_terms SET model = 'cps', amount_minor = NULL, percent = 5")
    await db.execute(
        "UPDATE advertiser SET decimal_separator = ',', status_map = $2 WHERE id = $1",
        made.advertiser_id, {"bezahlt": "approved", "storniert": "rejected", "offen": "pending", "egal": "ignored"},
    )  # fmt: skip
    return admin.with_key((await keys.create(db, Wanted("advertiser", None, made.advertiser_id))).key)


async def balance(db: Connection, made: Made) -> int:
    assert await ledger.check(db) == []
    return (await ledger.balance(db, ledger.partner(made.partner_id))).get("EUR", 0)


async def test_a_sheet_in_the_advertisers_own_words_is_carried_out_and_a_second_time_changes_nothing(
    advertiser: Client, made: Made, db: Connection
) -> None:
    for order_id in ("A-1", "A-2", "A-3", "A-4", "A-5"):
        await sold(db, made, order_id)
    sheet = (
        "order_id;status;amount;reason\n"
        "A-1;bezahlt;100,00;\n"
        "A-2;bezahlt;60,00;two of five came back\n"
        "A-3;Storniert;;\n"
        "A-4;offen;;\n"
        "A-5;egal;;\n"
    )
    before = await state(db)
    assert counts(await send(advertiser, sheet, "?dry_run=1")) == (3, 2, 0)
    assert await state(db) == before
    assert counts(await send(advertiser, sheet)) == (3, 2, 0)
    assert await balance(db, made) == 500 + 300
    acts = await db.fetch("SELECT actor, reason, after FROM audit WHERE action = 'import_verdict' ORDER BY id")
    assert {act["after"]["reason"] for act in acts} == {"bezahlt", "two of five came back", "Storniert"}
    assert {act["actor"] for act in acts} == {"advertiser:2"}
    assert all(act["reason"].startswith("import sha256:") for act in acts)
    before = await state(db)
    assert counts(await send(advertiser, sheet)) == (0, 5, 0)
    assert await state(db) == before
    assert counts(await send(advertiser, sheet.replace("bezahlt", "storniert"))) == (2, 3, 0)
    assert await balance(db, made) == 0


async def test_each_row_that_cannot_be_says_why_and_stops_no_other(
    advertiser: Client, admin: Client, made: Made, db: Connection
) -> None:
    conversion_id = await sold(db, made, "A-1")
    await sold(db, made, "A-2", click_class=int(ClickClass.FLAGGED))
    await sold(db, made, "A-3")
    await sold(db, made, "A-4")
    lead = await sold(db, made, "A-4", event="lead", conversion_id=conversion_id.__class__(int=conversion_id.int ^ 1))
    await sold(db, made, "A-5")
    await sold(db, made, "A-10")
    await db.execute("UPDATE conversion SET sale_currency = 'XXX' WHERE order_id = 'A-10'")
    rows: list[tuple[dict[str, Any], str | None, str]] = [
        ({"order_id": "A-1", "status": "approved"}, None, ""),
        ({"order_id": "A-1", "status": "approved"}, "order_id", "conflict"),  # named twice
        ({"order_id": "A-2", "status": "approved"}, "status", "forbidden"),  # held for the operator's sake
        ({"order_id": "A-3", "status": "paid"}, "status", "bad_value"),
        ({"order_id": "A-3", "event": "sale", "amount": "1.234.5"}, "amount", "bad_value"),
        ({"order_id": "A-3", "event": "lead", "status": "approved"}, "order_id", "not_found"),
        ({"order_id": "A-4", "status": "approved"}, "event", "conflict"),  # which of the two
        ({"order_id": "A-4", "event": "sale", "status": "approved"}, None, ""),
        ({"conversion_id": str(lead), "status": "rejected"}, None, ""),
        ({"conversion_id": "A-3", "status": "approved"}, "conversion_id", "bad_value"),
        ({"order_id": "none", "status": "approved"}, "order_id", "not_found"),
        ({"order_id": "A-5", "amount_minor": 10_001}, "amount", "conflict"),  # more than there was
        ({"order_id": "A-5", "event": "sale", "status": "approved", "amount_minor": 0}, "amount", "bad_value"),
        ({"order_id": "A-6"}, "status", "missing_field"),
        ({"status": "approved"}, "order_id", "missing_field"),
        ({"order_id": "A-7", "advertiser_id": made.advertiser_id + 1, "status": "x"}, "advertiser_id", "bad_value"),
        ({"order_id": "A-8", "amount": "1,00", "amount_minor": 1}, "amount", "bad_value"),
        ({"order_id": "A-9", "amount_minor": -1}, "amount_minor", "bad_value"),
        ({"order_id": "A-9", "state": "x"}, "state", "unknown_field"),
        ({"order_id": "A-9\0", "status": "approved"}, "order_id", "bad_value"),
        ({"conversion_id": str(conversion_id), "status": "rejected"}, "conversion_id", "conflict"),  # A-1 once more
        ({"order_id": "A-10", "amount": "1"}, "amount", "conflict"),  # of which currency is not known yet
    ]
    sheet = "\n".join(json.dumps(row) for row, _, _ in rows)
    found = await send(advertiser, sheet, **JSONL)
    wanted = [(n, field, code) for n, (_, field, code) in enumerate(rows, 1) if code]
    assert [(one["row"], one["field"], one["code"]) for one in found["errors"]] == wanted
    assert counts(found) == (3, 0, len(wanted))
    assert await balance(db, made) == 1_000
    for sender in ("", f'"advertiser_id": {made.advertiser_id}, '):
        found = await send(admin, f'{{{sender}"order_id": "A-2", "status": "approved"}}', **JSONL)
        assert counts(found) == ((1, 0, 0) if sender else (0, 0, 1)), found


async def test_a_row_whose_status_cannot_be_leaves_its_amount_alone(
    advertiser: Client, admin: Client, made: Made, db: Connection
) -> None:
    cap = {"offer_id": made.offer_id, "kind": "conversions", "period": "total", "conversions": 1}
    assert (await admin("POST", "/v1/caps", json=cap))[0] == 201
    for order_id in ("A-1", "A-2"):
        await sold(db, made, order_id)
    found = await send(advertiser, "order_id,status,amount_minor\nA-1,approved,5000\nA-2,approved,5000\n")
    assert counts(found) == (1, 0, 1)
    assert found["errors"][0]["code"] == "over_cap"
    amounts = await db.fetch("SELECT status, sale_amount_minor FROM conversion ORDER BY 1")
    assert [tuple(row) for row in amounts] == [("approved", 5_000), ("pending", 10_000)]
    assert await balance(db, made) == 250


async def test_another_advertisers_orders_are_not_found(
    advertiser: Client, admin: Client, made: Made, db: Connection
) -> None:
    conversion_id = await sold(db, made, "A-1")
    _, other = await admin("POST", "/v1/advertisers", json={"name": "Other", "external_id": "o"})
    stranger = admin.with_key((await keys.create(db, Wanted("advertiser", None, other["id"]))).key)
    before = await state(db)
    for row in (
        {"order_id": "A-1"}, {"conversion_id": str(conversion_id)},
        {"order_id": "A-1", "advertiser_id": made.advertiser_id},
        {"conversion_id": str(conversion_id), "advertiser_id": made.advertiser_id},
    ):  # fmt: skip
        found = await send(stranger, json.dumps(row | {"status": "rejected"}), **JSONL)
        assert counts(found) == (0, 0, 1)
    assert await state(db) == before


async def test_many_rows_are_carried_out_together_and_repeated_by_their_key_they_change_nothing(
    advertiser: Client, made: Made, db: Connection
) -> None:
    now_ms = time.time_ns() // 1_000_000
    async with db.transaction():
        await settle(db, [conversion(made, now_ms, f"A-{n}") for n in range(1_500)], 0)
    sheet = "order_id,status\n" + "".join(f"A-{n},{('bezahlt', 'storniert')[n % 2]}\n" for n in range(1_500))
    for _ in range(2):
        assert counts(await send(advertiser, sheet, **{"Idempotency-Key": "k"})) == (1_500, 0, 0)
        assert await balance(db, made) == 750 * 500
    assert await db.fetchval("SELECT count(*) FROM conversion_change") == 1_500
