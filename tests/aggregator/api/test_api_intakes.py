"""The intake log: what was sent and what came of it, and running again what was rejected once things are put right."""

import os
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import aiohttp
import pytest

from aggregator.api import keys
from aggregator.api.keys import Wanted
from aggregator.conversions import ledger
from aggregator.conversions.settle import settle
from aggregator.db.connect import Connection
from aggregator.db.instants import at, rfc3339
from loadtests.faults.edges import KEYS
from schemas.click_id import ClickKeys, mint, uuid7_bytes
from schemas.conversions.reading import without_secrets
from schemas.events import Intake
from schemas.outcomes import ClickClass
from schemas.settings import ApiSettings
from tests.aggregator.api.conftest import Client, Made, answering, sold, state

NOW_MS = time.time_ns() // 1_000_000
DAY_MS = 86_400_000


@pytest.fixture
def settings(settings: ApiSettings) -> ApiSettings:
    return ApiSettings(**settings.model_dump() | {"click_keys": KEYS})


def intake_id(at_ms: int) -> UUID:
    return UUID(bytes=uuid7_bytes(at_ms, os.urandom(10)))


def click_id(made: Made, click_class: ClickClass = ClickClass.NORMAL, at_ms: int = NOW_MS - DAY_MS) -> str:
    key = ClickKeys.parse(KEYS).signing
    return mint(key, uuid7_bytes(at_ms, os.urandom(10)), made.link_id, made.offer_id, made.partner_id, click_class)


async def rejected(
    db: Connection, made: Made, reason: str, said: dict[str, str] | str, at_ms: int = NOW_MS, dialect: str = "clickdam"
) -> UUID:
    """What an edge writes of a postback that it rejected."""
    raw = said if isinstance(said, str) else without_secrets(f"{urlencode(said)}&token=secret")
    event = Intake(
        v=1, intake_id=intake_id(at_ms), advertiser_id=made.advertiser_id, result="rejected", reason=reason, raw=raw,
        door="json" if raw.startswith("{") else "postback", dialect=dialect,
    )  # fmt: skip
    async with db.transaction():
        await settle(db, [event], 0)
    return event.intake_id


async def rerun(call: Client, **asked: Any) -> Any:
    body = {"from": rfc3339(at(NOW_MS - DAY_MS)), "to": rfc3339(at(NOW_MS + DAY_MS))} | asked
    status, told = await call("POST", "/v1/intakes/rerun", json=body)
    assert status == 200, told
    return told


async def listed(call: Client, query: str = "") -> Any:
    status, told = await call("GET", f"/v1/intakes{query}")
    assert status == 200, told
    return told["data"]


async def balance(db: Connection, made: Made) -> int:
    assert await ledger.check(db) == []
    return (await ledger.balance(db, ledger.partner(made.partner_id))).get("EUR", 0)


async def test_intakes_are_found_by_time_sender_order_and_result_page_by_page(
    admin: Client, made: Made, db: Connection
) -> None:
    conversion_id = await sold(db, made, "one")
    await sold(db, made, "one")
    hour = 3_600_000
    for n in range(3):
        await rejected(db, made, "bad_amount", {"order_id": "old", "amount": "x"}, NOW_MS - (n + 5) * hour)
    found = await listed(admin)
    assert [one["result"] for one in found] == ["duplicate", "accepted", "rejected", "rejected", "rejected"]
    assert found[0]["received_at"] > found[-1]["received_at"]
    assert found[0]["raw"] == "order_id=one&token=***"
    at_6 = rfc3339(at(NOW_MS - 6 * hour))
    since = rfc3339(at(NOW_MS - 7 * hour))
    for query, count in (
        ("?order_id=one", 2), (f"?conversion_id={conversion_id}", 2), (f"?conversion_id={UUID(int=8)}", 0),
        ("?result=rejected", 3), ("?reason=bad_amount&result=rejected", 3), ("?reason=none", 0),
        (f"?to={at_6}", 1), (f"?from={at_6}", 4), (f"?from={since}&to={at_6}", 1), ("?advertiser_id=77", 0),
        (f"?advertiser_id={made.advertiser_id}&limit=200", 5),
    ):  # fmt: skip
        assert len(await listed(admin, query)) == count, query
    pages, query = [], "?limit=2"
    while query:
        _, told = await admin("GET", f"/v1/intakes{query}")
        pages.append([one["intake_id"] for one in told["data"]])
        query = f"?limit=2&cursor={told['next_cursor']}" if told["truncated"] else ""
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [name for page in pages for name in page] == [one["intake_id"] for one in found]


async def test_an_advertiser_finds_its_own_intakes_and_nobody_elses(admin: Client, made: Made, db: Connection) -> None:
    await sold(db, made, "one")
    _, other = await admin("POST", "/v1/advertisers", json={"name": "Other"})
    own = admin.with_key((await keys.create(db, Wanted("advertiser", None, made.advertiser_id))).key)
    stranger = admin.with_key((await keys.create(db, Wanted("advertiser", None, other["id"]))).key)
    assert len(await listed(own)) == len(await listed(own, f"?advertiser_id={made.advertiser_id}")) == 1
    assert await listed(stranger) == await listed(stranger, "?order_id=one") == []
    status, told = await stranger("GET", f"/v1/intakes?advertiser_id={made.advertiser_id}")
    assert (status, told["error"]["field"]) == (403, "advertiser_id")


BAD_QUERIES = [
    ("?result=paid", "result"), ("?advertiser_id=0", "advertiser_id"), ("?advertiser_id=x", "advertiser_id"),
    ("?limit=0", "limit"), ("?limit=201", "limit"), ("?cursor=7", "cursor"), ("?cursor=%00", "cursor"),
    ("?from=yesterday", "from"), ("?to=2026-13-01", "to"), ("?order_id=%00", "order_id"), ("?colour=1", "colour"),
    ("?conversion_id=7", "conversion_id"),
    ("?order_id=a&order_id=b", "order_id"),
]  # fmt: skip
BAD_BODIES: list[tuple[Any, str | None]] = [
    ({}, "from"), ({"from": "2026-01-01T00:00:00Z"}, "to"), ([], None),
    ({"from": "2026-01-01", "to": "2026-01-02T00:00:00Z"}, "from"),
    ({"from": "2026-01-01T00:00:00", "to": "2026-01-02T00:00:00Z"}, "from"),
    ({"from": "1900-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z"}, "from"),
    ({"from": "2026-01-02T00:00:00Z", "to": "2026-01-02T00:00:00Z"}, "to"),
    ({"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z", "advertiser_id": 0}, "advertiser_id"),
    ({"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z", "cursor": "7"}, "cursor"),
    ({"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z", "dry_run": 1}, "dry_run"),
    ({"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z", "result": "accepted"}, "result"),
]  # fmt: skip


async def test_bad_questions_and_bodies_are_refused_by_field(admin: Client, made: Made, db: Connection) -> None:
    for query, field in BAD_QUERIES:
        status, told = await admin("GET", f"/v1/intakes{query}")
        assert (status, told["error"].get("field")) == (400, field), query
    before = await state(db)
    for body, field in BAD_BODIES:
        status, told = await admin("POST", "/v1/intakes/rerun", json=body)
        assert (status, told["error"].get("field")) == (400, field), (body, told)
    assert await state(db) == before


def by_voluum(made: Made) -> dict[str, str]:
    return {"cid": click_id(made), "txid": "V-1", "payout": "12.50", "et": "sale"}


# What was wrong with an advertiser's settings, what it sent, why it was rejected, and what puts it right.
CASES: list[tuple[str, Any, str, dict[str, Any]]] = [
    ("the dialect", by_voluum, "missing_click_id", {"dialect": "voluum"}),
    (
        "the words for statuses",
        lambda made: {"click_id": click_id(made), "order_id": "S-1", "status": "Bezahlt"},
        "unknown_status",
        {"status_map": {"bezahlt": "approved"}},
    ),
    (
        "the decimal separator",
        lambda made: {"click_id": click_id(made), "order_id": "D-1", "amount": "1.234,50"},
        "bad_amount",
        {"decimal_separator": ","},
    ),
    (
        "the clicks of the former tracker",
        lambda _: {"click_id": "old-7", "order_id": "F-1", "amount": "10"},
        "bad_click_id",
        {"foreign_clicks_until": "2199-01-01T00:00:00Z"},
    ),
]


@pytest.mark.parametrize(("wrong", "sent", "reason", "fix"), CASES)
async def test_what_was_rejected_for_a_setting_is_paid_once_when_it_is_put_right(
    admin: Client, made: Made, db: Connection, wrong: str, sent: Any, reason: str, fix: dict[str, Any]
) -> None:
    await db.execute(
        "INSERT INTO imported_click (advertiser_id, foreign_id, id, link_id, offer_id, partner_id, clicked_at)"
        " VALUES ($1, 'old-7', $2, $3, $4, $5, now() - interval '1 day')",
        made.advertiser_id, intake_id(NOW_MS - DAY_MS), made.link_id, made.offer_id, made.partner_id,
    )  # fmt: skip
    name = await rejected(db, made, reason, sent(made))
    assert (await rerun(admin))["reasons"] == {reason: 1}
    assert await balance(db, made) == 0
    status, told = await admin("PATCH", f"/v1/advertisers/{made.advertiser_id}", json=fix)
    assert status == 200, told
    before = await state(db)
    assert (await rerun(admin, dry_run=True))["results"] == {"accepted": 1}
    assert await state(db) == before
    told = await rerun(admin, advertiser_id=made.advertiser_id, reason=reason)
    assert (told["results"], told["reasons"], told["truncated"]) == ({"accepted": 1}, {}, False)
    assert await balance(db, made) == 425
    (intake,) = await listed(admin)
    assert (intake["intake_id"], intake["result"]) == (str(name), "accepted")
    assert intake["rerun_at"] is not None
    _, conversion = await admin("GET", f"/v1/conversions/{intake['conversion_id']}")
    assert conversion["received_at"] == intake["received_at"]
    assert (await rerun(admin))["results"] == {}
    assert await balance(db, made) == 425
    assert await db.fetchval("SELECT count(*) FROM conversion") == 1


async def test_a_test_is_in_the_log_as_such_and_is_not_run_again(admin: Client, made: Made, db: Connection) -> None:
    event = Intake(v=1, intake_id=intake_id(NOW_MS), advertiser_id=made.advertiser_id, result="test", raw="order_id=1")
    async with db.transaction():
        await settle(db, [event], 0)
    (found,) = await listed(admin, "?result=test")
    assert (found["intake_id"], found["raw"], found["conversion_id"]) == (str(event.intake_id), "order_id=1", None)
    assert (await rerun(admin))["results"] == {}


async def test_an_order_that_came_again_meanwhile_is_not_paid_twice(admin: Client, made: Made, db: Connection) -> None:
    await rejected(db, made, "bad_amount", {"click_id": click_id(made), "order_id": "order-1", "amount": "1.234,50"})
    await sold(db, made, "order-1")
    await admin("PATCH", f"/v1/advertisers/{made.advertiser_id}", json={"decimal_separator": ","})
    assert (await rerun(admin))["results"] == {"duplicate": 1}
    assert await balance(db, made) == 425


async def test_what_no_setting_puts_right_stays_rejected_for_its_reason(
    admin: Client, made: Made, db: Connection
) -> None:
    good = click_id(made)
    forged = good[:-3] + ("AAA" if not good.endswith("AAA") else "BBB")
    sent: list[tuple[dict[str, str] | str, str]] = [
        ({"click_id": forged, "order_id": "1"}, "bad_click_id"),
        ({"click_id": good[:20] + "AAAA" + good[24:], "order_id": "2"}, "forged_click_id"),
        ({"click_id": click_id(made, ClickClass.FALLBACK), "order_id": "3"}, "click_never_earns"),
        ({"click_id": click_id(made, ClickClass.TEST), "order_id": "4"}, "click_never_earns"),
        ({"click_id": good, "order_id": "5", "amount": "-1"}, "negative_amount"),
        (f"click_id={good}&order_id={'6' * 4_000}…", "bad_parameters"),
        (without_secrets(f"click_id={good}&order_id=10.20.30.40"), "bad_parameters"),
        (f'{{"click_id": "{good}", "order_id": "***"}}', "bad_parameters"),
        ('{"click_id": 5}', "bad_parameters"),
        ('{"click_id"', "bad_parameters"),
    ]
    for said, _ in sent:
        await rejected(db, made, "wrong", said)
    told = await rerun(admin)
    assert told["results"] == {"rejected": len(sent)}
    found = {one["raw"]: one["reason"] for one in await listed(admin)}
    for said, reason in sent:
        raw = said if isinstance(said, str) else f"{urlencode(said)}&token=***"
        assert found[raw] in ({reason, "forged_click_id"} if reason == "bad_click_id" else {reason}), raw
    assert await db.fetchval("SELECT count(*) FROM conversion") == 0


async def test_a_json_conversion_is_read_in_our_own_words_whatever_the_advertisers_dialect(
    admin: Client, made: Made, db: Connection
) -> None:
    await rejected(db, made, "bad_amount", f'{{"click_id": "{click_id(made)}", "order_id": "J", "amount": "1,5"}}')
    await admin("PATCH", f"/v1/advertisers/{made.advertiser_id}", json={"dialect": "voluum"})
    assert (await rerun(admin))["results"] == {"accepted": 1}
    assert await balance(db, made) == 425


async def test_without_a_dialect_of_its_own_an_advertiser_is_read_in_that_of_the_path_it_posted_to(
    admin: Client, made: Made, db: Connection
) -> None:
    """Else in our own words: the dialect that it was read in may have been a mistake."""
    by_path = {"clickid": click_id(made), "action_id": "P-1", "sum": "1.234,50", "status": "1"}
    ours = {"click_id": click_id(made), "order_id": "P-2", "amount": "1.234,50"}
    await rejected(db, made, "bad_amount", by_path, dialect="affise")
    await rejected(db, made, "missing_click_id", ours, dialect="keitaro")
    await admin("PATCH", f"/v1/advertisers/{made.advertiser_id}", json={"decimal_separator": ","})
    assert (await rerun(admin))["results"] == {"accepted": 2}
    found = await db.fetch("SELECT order_id, sale_amount_minor FROM conversion ORDER BY order_id")
    assert [tuple(row) for row in found] == [("P-1", 123_450), ("P-2", 123_450)]


async def test_only_the_range_is_run_again_and_a_long_one_in_parts(
    admin: Client, made: Made, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schemas.limits.RERUN_INTAKES_MAX", 2)
    for n in range(5):
        await rejected(db, made, "wrong", {"click_id": click_id(made), "order_id": f"R-{n}"}, NOW_MS - n)
    await rejected(db, made, "wrong", {"click_id": click_id(made), "order_id": "old"}, NOW_MS - 2 * DAY_MS)
    await rejected(db, made, "wrong", {"click_id": click_id(made), "order_id": "other"}, NOW_MS + DAY_MS)
    results, cursor = [], None
    for _ in range(3):
        told = await rerun(admin, cursor=cursor)
        results.append((told["results"], told["truncated"]))
        cursor = told["next_cursor"]
    assert results == [({"accepted": 2}, True), ({"accepted": 2}, True), ({"accepted": 1}, False)]
    left = await listed(admin, "?result=rejected")
    assert ["other" in one["raw"] for one in left] == [True, False]


async def test_the_scope_is_that_of_the_first_receipt(admin: Client, made: Made, db: Connection) -> None:
    """A click of before the change, sent again after it, is the same order."""
    said = {"click_id": click_id(made), "order_id": "order-1", "amount": "1.234,50"}
    await rejected(db, made, "bad_amount", said)
    assert (await admin("POST", f"/v1/offers/{made.offer_id}/scope", json={"scope": "offer"}))[0] == 201
    conversion_id = await sold(db, made, "order-1")
    await admin("PATCH", f"/v1/advertisers/{made.advertiser_id}", json={"decimal_separator": ","})
    assert (await rerun(admin))["results"] == {"duplicate": 1}
    assert await db.fetchval("SELECT array_agg(conversion_id) FROM conversion") == [conversion_id]


async def test_without_the_keys_of_click_ids_nothing_that_names_a_click_is_judged(
    made: Made, db: Connection, settings: ApiSettings, admin: Client
) -> None:
    await rejected(db, made, "wrong", {"click_id": click_id(made), "order_id": "1"})
    keyless = ApiSettings(**settings.model_dump() | {"click_keys": None})
    async for session in _sessions(keyless):
        assert (await rerun(Client(session, admin.key)))["reasons"] == {"unknown_key": 1}
    assert (await rerun(admin))["results"] == {"accepted": 1}


async def _sessions(settings: ApiSettings) -> AsyncIterator[aiohttp.ClientSession]:
    async with answering(settings) as session:
        yield session
