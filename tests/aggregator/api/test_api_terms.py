"""Terms through the API: for a partner, an event, with tiers, of revenue; and what they would have changed."""

from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import ClientSession

from aggregator.api import keys
from aggregator.api.keys import Wanted
from aggregator.conversions.terms import read_offers
from aggregator.db.connect import Connection
from aggregator.db.instants import to_ms
from tests.aggregator.api.conftest import Client, Made, offer_body, state
from tests.aggregator.conversions.test_periods import OCTOBER, sell

CPA = {"model": "cpa", "amount_minor": 500, "currency": "EUR"}
CPS = {"model": "cps", "percent": "5", "currency": "EUR"}
CPC = {"model": "cpc", "amount_minor": 3, "currency": "EUR"}
TIERS = [{"from": 11, "amount_minor": 600}, {"from": 101, "amount_minor": 750}]


async def test_terms_are_kept_as_they_were_posted(admin: Client, made: Made, db: Connection) -> None:
    path = f"/v1/offers/{made.offer_id}/terms"
    bodies: list[dict[str, Any]] = [
        CPA | {"side": "payout", "tiers": TIERS, "marginal": False},
        {"model": "cpl", "amount_minor": 30, "currency": "JPY", "event": "lead"},
        CPS | {"partner_id": made.partner_id},
        CPS | {"partner_id": made.partner_id, "event": "sale", "tiers": [{"from": 2, "percent": "7.125"}]},
        CPA | {"side": "revenue"},
        CPS | {"side": "revenue", "event": "sale"},
        CPC | {"partner_id": made.partner_id},
    ]
    for body in bodies:
        status, added = await admin("POST", path, json=body)
        shown = {"side": "payout"} | ({"marginal": True} if "tiers" in body else {}) | body
        assert (status, {name: added[name] for name in shown}) == (201, shown)
        assert added.keys() - shown.keys() == {"valid_from", "live"}
    listed = (await admin("GET", path))[1]["data"]
    assert [(row["side"], row.get("partner_id"), row.get("event"), row["in_force"]) for row in listed] == [
        ("payout", None, None, False),
        ("payout", None, None, True),
        ("payout", None, "lead", True),
        ("payout", made.partner_id, None, False),
        ("payout", made.partner_id, None, True),
        ("payout", made.partner_id, "sale", True),
        ("revenue", None, None, True),
        ("revenue", None, "sale", True),
    ]
    offer = (await read_offers(db, [made.offer_id]))[made.offer_id]
    now_ms = to_ms(datetime.now(UTC)) + 60_000
    held = offer.terms_at(now_ms, "payout", made.partner_id, "sale")
    assert held is not None
    assert (held.percent, held.beyond(2).percent) == (5, held.tiers[0].percent)
    general = offer.terms_at(now_ms)
    assert general is not None
    assert (general.beyond(11).amount_minor, general.marginal) == (600, False)


async def test_an_offers_payout_is_that_for_everybody(admin: Client, made: Made, db: Connection) -> None:
    """Whatever else it pays: in the offer, in an export, and where an import compares."""
    path = f"/v1/offers/{made.offer_id}"
    await admin("PATCH", path, json={"external_id": "O1"})
    for body in (CPS | {"partner_id": made.partner_id}, CPS | {"event": "lead"}, CPS | {"side": "revenue"}):
        assert (await admin("POST", f"{path}/terms", json=body))[0] == 201
    payout = (await admin("GET", path))[1]["payout"]
    assert payout == {"model": "cpa", "amount_minor": 425, "currency": "EUR", "valid_from": None}
    headers = {"Authorization": f"Bearer {admin.key}", "Accept": "application/x-ndjson"}
    async with admin.session.get("/v1/export/offers", headers=headers) as answer:
        sheet = await answer.read()
    assert b'"payout":{"model":"cpa","amount_minor":425,"currency":"EUR"}' in sheet
    import_headers = {"Content-Type": "application/x-ndjson"}
    status, outcome = await admin("POST", "/v1/offers/import", data=sheet, headers=import_headers)
    assert (status, outcome["unchanged"], outcome["failed"]) == (200, 1, 0), outcome
    assert await db.fetchval("SELECT count(*) FROM offer_terms") == 4


async def test_a_partner_sees_what_it_is_paid_itself(admin: Client, made: Made, db: Connection) -> None:
    other_id = (await admin("POST", "/v1/partners", json={"name": "Other"}))[1]["id"]
    for body in (
        CPA | {"partner_id": other_id, "amount_minor": 999},
        CPS | {"event": "lead"},
        CPS | {"event": "lead", "partner_id": other_id, "percent": "99"},
        CPA | {"side": "revenue", "amount_minor": 777},
    ):
        assert (await admin("POST", f"/v1/offers/{made.offer_id}/terms", json=body))[0] == 201
    paid = {}
    for partner_id in (made.partner_id, other_id):
        partner = admin.with_key((await keys.create(db, Wanted("partner", partner_id))).key)
        offer = (await partner("GET", f"/v1/me/offers/{made.offer_id}"))[1]
        paid[partner_id] = (offer["payout"]["amount_minor"], offer["event_payouts"]["lead"]["percent"])
        assert "777" not in str(offer)
    assert paid == {made.partner_id: (425, "5"), other_id: (999, "99")}
    for body in ({"partner_id": other_id}, {"partner_id": other_id, "event": "lead"}):
        status, added = await admin("POST", f"/v1/offers/{made.offer_id}/terms", json={"model": "none"} | body)
        assert (status, added["model"]) == (201, "none"), added
    offer = (await partner("GET", f"/v1/me/offers/{made.offer_id}"))[1]
    assert (offer["payout"]["amount_minor"], offer["event_payouts"]["lead"]["percent"]) == (425, "5")
    status, added = await admin("POST", f"/v1/offers/{made.offer_id}/terms", json={"model": "none", "event": "lead"})
    assert (await partner("GET", f"/v1/me/offers/{made.offer_id}"))[1]["event_payouts"] == {}
    path = f"/v1/offers/{made.offer_id}/terms?dry_run=1"
    assert (await admin("POST", path, json={"model": "none", "event": "lead"}))[0] == 200


async def test_a_lead_may_be_what_an_offer_pays_for(admin: Client, made: Made) -> None:
    body = {
        "advertiser_id": made.advertiser_id, "name": "Loans", "destination_url": "https://loans.example/",
        "payout": {"model": "cpl", "amount_minor": 700, "currency": "EUR"},
    }  # fmt: skip
    status, offer = await admin("POST", "/v1/offers", json=body)
    assert (status, offer["payout"]["model"], offer["payout"]["amount_minor"]) == (201, "cpl", 700)


BAD_TERMS: list[tuple[str, dict[str, Any]]] = [
    ("side", CPA | {"side": "profit"}),
    ("side", CPA | {"side": None}),
    ("partner_id", CPA | {"partner_id": 404}),
    ("partner_id", CPA | {"partner_id": 0}),
    ("partner_id", CPA | {"partner_id": "1"}),
    ("event", CPA | {"event": ""}),
    ("event", CPA | {"event": "x" * 65}),
    ("event", CPA | {"event": "a\x00"}),
    ("tiers", CPA | {"tiers": []}),
    ("tiers", CPA | {"tiers": TIERS * 2}),
    ("tiers", CPA | {"tiers": TIERS[::-1]}),
    ("tiers", CPA | {"tiers": [{"from": n + 2, "amount_minor": n} for n in range(21)]}),
    ("tiers", CPA | {"side": "revenue", "tiers": TIERS}),
    ("tiers[0].from", CPA | {"tiers": [{"from": 1, "amount_minor": 1}]}),
    ("tiers[0].from", CPA | {"tiers": [{"from": 2.5, "amount_minor": 1}]}),
    ("tiers[0].amount_minor", CPA | {"tiers": [{"from": 2, "amount_minor": -1}]}),
    ("tiers[0].amount_minor", CPA | {"tiers": [{"from": 2}]}),
    ("tiers[0].percent", CPA | {"tiers": [{"from": 2, "amount_minor": 1, "percent": "5"}]}),
    ("tiers[0].amount_minor", CPS | {"tiers": [{"from": 2, "amount_minor": 1}]}),
    ("tiers[0].percent", CPS | {"tiers": [{"from": 2, "percent": "101"}]}),
    ("tiers[1].percent", CPS | {"tiers": [{"from": 2, "percent": "9"}, {"from": 3, "percent": "0"}]}),
    ("model", {"model": "none"}),
    ("model", {"model": "none", "side": "revenue"}),
    ("currency", {"model": "none", "partner_id": 1, "currency": "EUR"}),
    ("tiers", {"model": "none", "partner_id": 1, "tiers": TIERS}),
    ("marginal", CPA | {"marginal": False}),
    ("marginal", CPA | {"tiers": TIERS, "marginal": "no"}),
    ("percent", CPA | {"percent": "5"}),
    ("amount_minor", CPS | {"amount_minor": 5}),
    ("amount_minor", {"model": "cpl", "currency": "EUR"}),
]


async def test_terms_that_cannot_be_are_refused_by_field(admin: Client, made: Made, db: Connection) -> None:
    before = await state(db)
    for field, body in BAD_TERMS:
        status, answer = await admin("POST", f"/v1/offers/{made.offer_id}/terms", json=body)
        assert (status, answer["error"].get("field")) == (400, field), (body, answer)
    assert await state(db) == before


BAD_QUERIES = [
    ("dry_run", "from=2025-10-01&to=2025-11-01"),
    ("dry_run", "dry_run=0"),
    ("dry_run", "dry_run=yes"),
    ("to", "dry_run=1&from=2025-10-01"),
    ("from", "dry_run=1&to=2025-10-01"),
    ("from", "dry_run=1&from=october&to=2025-11-01"),
    ("to", "dry_run=1&from=2025-11-01&to=2025-11-01"),
    ("dryrun", "dryrun=1"),
]


async def test_a_dry_run_says_what_it_is_asked(admin: Client, made: Made, db: Connection) -> None:
    before = await state(db)
    for field, query in BAD_QUERIES:
        status, answer = await admin("POST", f"/v1/offers/{made.offer_id}/terms?{query}", json=CPA)
        assert (status, answer["error"].get("field")) == (400, field), (query, answer)
    assert (await admin("POST", "/v1/offers/404/terms?dry_run=1", json=CPA))[0] == 404
    assert await state(db) == before


@pytest.fixture
async def sold(db: Connection, made: Made) -> None:
    """Three sales in October 2025, one of them another partner's."""
    await db.execute("INSERT INTO partner (name) VALUES ('Other')")
    await sell(db, OCTOBER, 2, offer_id=made.offer_id, partner_id=made.partner_id)
    await sell(db, OCTOBER, 1, offer_id=made.offer_id, partner_id=2)


async def test_what_terms_would_have_changed_is_told_and_nothing_written(
    admin: Client, made: Made, sold: None, db: Connection
) -> None:
    before = await state(db)
    path = f"/v1/offers/{made.offer_id}/terms?dry_run=1&from=2025-10-01&to=2025-11-01"
    status, answer = await admin("POST", path, json=CPS | {"partner_id": made.partner_id, "percent": "50"})
    told = {"offer_id": made.offer_id, "period": "2025-10", "currency": "EUR"}
    assert (status, answer) == (
        200,
        {
            "dry_run": True, "from": "2025-10-01T00:00:00.000Z", "to": "2025-11-01T00:00:00.000Z", "side": "payout",
            "data": [
                told | {"partner_id": 1, "conversions": 2, "was_minor": 850, "will_be_minor": 1000,
                        "difference_minor": 150},
                told | {"partner_id": 2, "conversions": 1, "was_minor": 425, "will_be_minor": 425,
                        "difference_minor": 0},
            ],
        },
    )  # fmt: skip
    status, answer = await admin("POST", f"/v1/offers/{made.offer_id}/terms?dry_run=1", json=CPA)
    last = datetime.fromisoformat(answer["to"])
    assert (status, answer["data"], last.day, last < datetime.now(UTC)) == (200, [], 1, True)
    assert await state(db) == before


async def test_a_call_without_a_key_is_told_nothing(session: ClientSession, made: Made) -> None:
    async with session.post(f"/v1/offers/{made.offer_id}/terms?dry_run=1", json=CPA) as answer:
        assert answer.status == 401


async def test_an_offer_may_pay_clicks_and_terms_of_clicks_are_for_no_event(
    admin: Client, made: Made, db: Connection
) -> None:
    status, offer = await admin("POST", "/v1/offers", json=offer_body(made.advertiser_id, payout=CPC))
    assert (status, offer["payout"]) == (201, CPC | {"valid_from": None})
    path, before = f"/v1/offers/{offer['id']}/terms", await state(db)
    for body, asked, field in (
        (CPC | {"event": "sale"}, {}, "event"), (CPC | {"tiers": TIERS}, {}, "tiers"),
        (CPC | {"marginal": False}, {}, "marginal"), (CPC, {"dry_run": "1"}, "model"),
        (CPC | {"amount_minor": 10**9 + 1}, {}, "amount_minor"),
    ):  # fmt: skip
        status, told = await admin("POST", path, json=body, params=asked)
        assert (status, told["error"]["field"]) == (400, field), body
    assert await state(db) == before
