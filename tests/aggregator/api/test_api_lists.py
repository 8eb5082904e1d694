"""The lists of single rows: whose they show and what of them, what they are asked by, and pages while rows arrive."""

import asyncio
import csv
import io
import os
import time
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import quote
from uuid import UUID

import pytest

from aggregator.api import keys
from aggregator.api.keys import Wanted
from aggregator.conversions import change
from aggregator.db.connect import Connection, connect
from aggregator.db.instants import at, quarter, rfc3339
from aggregator.db.partitions import ensure
from schemas import limits
from schemas.click_id import uuid7_bytes
from schemas.outcomes import ClickClass
from tests.aggregator.api.conftest import Client, Made, offer_body, sold

NOW_MS = time.time_ns() // 1_000_000
HOUR_MS = 3_600_000
VISITOR = "00000000000000a1"
CLICK_COLUMNS = {
    "id", "clicked_at", "link_id", "offer_id", "partner_id", "class", "reason", "unique", "country", "device", "os",
    "browser", "referer", "source_id", "click_ref", "subs",
}  # fmt: skip
CONVERSION_COLUMNS = {
    "conversion_id", "status", "reason", "event", "clicked_at", "event_at", "received_at", "changed_at", "offer_id",
    "partner_id", "link_id", "click_id", "sale_amount_minor", "sale_currency", "coupon_code", "country", "device",
    "click_seen",
}  # fmt: skip
OF_PARTNERS = {"source_id", "click_ref", "subs", "payout_minor", "currency", "booked_payout_minor"}
OF_ADVERTISERS = {
    "order_id", "advertiser_id", "door", "original_status", "foreign_click", "base_minor", "increments_minor",
    "refunds_minor", "remaining_minor", "revenue_minor", "revenue_currency", "revenue_stated_minor",
    "booked_revenue_minor", "customer_id", "adv",
}  # fmt: skip
LEDGER_COLUMNS = {
    "entry_id", "at", "kind", "conversion_id", "offer_id", "period", "day", "amount_minor", "currency", "reason",
    "actor",
}  # fmt: skip


class Callers(NamedTuple):
    admin: Client
    partner: Client
    advertiser: Client


class Two(NamedTuple):
    """Two partners with an offer, a link and an advertiser each, and their keys."""

    mine: Made
    other: Made
    callers: Callers
    others: Callers


@pytest.fixture
async def two(admin: Client, made: Made, db: Connection) -> Two:
    await ensure(db, [at(NOW_MS + days * 24 * HOUR_MS).date() for days in (-9, -8, -7, -2, -1, 0, 1)])
    other = await programme(admin)
    for one in (made, other):
        await db.execute(
            "INSERT INTO offer_terms (offer_id, side, model, percent, currency, valid_from)"
            " VALUES ($1, 'revenue', 'cps', 8, 'EUR', '-infinity')",
            one.offer_id,
        )
    return Two(made, other, await callers_of(admin, db, made), await callers_of(admin, db, other))


async def programme(admin: Client) -> Made:
    _, advertiser = await admin("POST", "/v1/advertisers", json={"name": "Other shop"})
    _, partner = await admin("POST", "/v1/partners", json={"name": "Other blog"})
    _, offer = await admin("POST", "/v1/offers", json=offer_body(advertiser["id"]))
    _, link = await admin("POST", "/v1/links", json={"offer_id": offer["id"], "partner_id": partner["id"]})
    return Made(advertiser["id"], advertiser["token"], partner["id"], offer["id"], link["id"], link["code"])


async def callers_of(admin: Client, db: Connection, made: Made) -> Callers:
    partner = await keys.create(db, Wanted("partner", made.partner_id, requests_per_minute=60_000))
    advertiser = await keys.create(db, Wanted("advertiser", None, made.advertiser_id, requests_per_minute=60_000))
    return Callers(admin, admin.with_key(partner.key), admin.with_key(advertiser.key))


async def clicked(db: Connection, made: Made, at_ms: int = NOW_MS, **fields: Any) -> str:
    row = {
        "id": UUID(bytes=uuid7_bytes(at_ms, os.urandom(10))), "link_id": made.link_id, "offer_id": made.offer_id,
        "partner_id": made.partner_id, "click_class": 0, "country": "DE", "device": "mobile", "os": "android",
        "browser": "chrome mobile", "visitor": VISITOR, "ip": "203.0.113.0", "referer": "blog.example",
        "subs": {"sub1": "one", "gclid": "ad-1"},
    } | fields  # fmt: skip
    places = ", ".join(f"${n}" for n in range(1, len(row) + 1))
    await db.execute(f"INSERT INTO click ({', '.join(row)}) VALUES ({places})", *row.values())
    return str(row["id"])


async def listed(call: Client, path: str, **asked: Any) -> Any:
    status, told = await call("GET", path, params={name: str(value) for name, value in asked.items()})
    assert status == 200, (path, asked, told)
    return told


async def every_page(call: Client, path: str, between: Any = None, **asked: Any) -> tuple[list[Any], Any]:
    """The rows of all pages, and what the last one said; `between` is awaited after each."""
    rows, told = [], await listed(call, path, **asked)
    while True:
        rows += told["data"]
        assert told["truncated"] is (told["next_cursor"] is not None)
        if between is not None:
            await between()
        if not told["truncated"]:
            return rows, told
        told = await listed(call, path, **asked, cursor=told["next_cursor"])


async def test_a_click_is_shown_to_its_partner_and_the_operator_and_who_clicked_to_nobody(
    two: Two, db: Connection
) -> None:
    mine = await clicked(db, two.mine, source_id="s", click_ref="r")
    other = await clicked(db, two.other)
    assert {row["id"] for row in (await listed(two.callers.admin, "/v1/clicks"))["data"]} == {mine, other}
    (row,) = (await listed(two.callers.partner, "/v1/clicks"))["data"]
    assert set(row) == CLICK_COLUMNS
    assert (row["id"], row["class"], row["subs"]) == (mine, "normal", {"sub1": "one", "gclid": "ad-1"})
    assert row["clicked_at"] == rfc3339(at(NOW_MS))
    assert not {"203.0.113.0", VISITOR} & set(map(str, row.values()))
    (row,) = (await listed(two.callers.admin, "/v1/clicks", click_id=mine))["data"]
    assert (set(row), row["ip"]) == (CLICK_COLUMNS | {"ip"}, "203.0.113.0")
    assert VISITOR not in map(str, row.values())
    assert (await two.callers.advertiser("GET", "/v1/clicks"))[0] == 403


async def test_a_reason_that_is_not_for_partners_is_neither_shown_nor_asked_by(two: Two, db: Connection) -> None:
    flagged = await clicked(db, two.mine, click_class=int(ClickClass.FLAGGED), reason="known_bot")
    watched = await clicked(db, two.mine, click_class=int(ClickClass.FLAGGED), reason="a_trap_of_the_operator")
    for call, told in ((two.callers.admin, "a_trap_of_the_operator"), (two.callers.partner, None)):
        reasons = {row["id"]: row["reason"] for row in (await listed(call, "/v1/clicks"))["data"]}
        assert reasons == {flagged: "known_bot", watched: told}
    for path, reason in (("/v1/clicks", "a_trap_of_the_operator"), ("/v1/conversions", "above_bound")):
        status, told = await two.callers.partner("GET", path, params={"reason": reason})
        assert (status, told["error"]["field"]) == (400, "reason")
        assert reason not in told["error"]["message"]
        assert await listed(two.callers.admin, path, reason=reason)


async def test_a_click_is_unique_once_its_quarter_hour_is_settled(two: Two, db: Connection) -> None:
    first, again = await clicked(db, two.mine, NOW_MS - HOUR_MS), await clicked(db, two.mine, NOW_MS - HOUR_MS + 1)
    robot = await clicked(db, two.mine, NOW_MS - HOUR_MS + 2, click_class=int(ClickClass.FLAGGED))
    unknown = await clicked(db, two.mine, NOW_MS - HOUR_MS + 3, visitor=None)
    late = await clicked(db, two.mine, NOW_MS)
    day = at(NOW_MS - HOUR_MS).date()
    place = (day, two.mine.partner_id, two.mine.offer_id, int(VISITOR, 16), UUID(first))
    await db.execute("INSERT INTO first_click VALUES ($1, $2, $3, $4, $5)", *place)

    async def told() -> dict[str, bool | None]:
        return {row["id"]: row["unique"] for row in (await listed(two.callers.partner, "/v1/clicks"))["data"]}

    assert await told() == {first: None, again: None, robot: False, unknown: None, late: None}
    await db.execute("UPDATE settling SET through = $1", at(NOW_MS))
    assert await told() == {first: True, again: False, robot: False, unknown: False, late: None}
    await db.execute("INSERT INTO stale_quarter VALUES ($1)", at(quarter(NOW_MS - HOUR_MS)))
    assert (await told())[again] is None


async def test_each_role_sees_its_own_conversions_and_just_its_columns(two: Two, db: Connection) -> None:
    mine, other = await sold(db, two.mine), await sold(db, two.other)
    for callers, own in ((two.callers, mine), (two.others, other)):
        for role, columns in (("partner", OF_PARTNERS), ("advertiser", OF_ADVERTISERS)):
            (row,) = (await listed(getattr(callers, role), "/v1/conversions"))["data"]
            assert (row["conversion_id"], set(row)) == (str(own), CONVERSION_COLUMNS | columns), role
    rows = (await listed(two.callers.admin, "/v1/conversions"))["data"]
    assert {row["conversion_id"] for row in rows} == {str(mine), str(other)}
    assert set(rows[0]) == CONVERSION_COLUMNS | OF_PARTNERS | OF_ADVERTISERS | {"payout_override_minor"}


async def test_no_filter_brings_a_row_of_another(two: Two, db: Connection) -> None:
    theirs = two.other
    click, conversion = await clicked(db, theirs, click_ref="r"), await sold(db, theirs)
    bought = await db.fetchval("SELECT click_id FROM conversion WHERE conversion_id = $1", conversion)
    asked = [
        *((path, name, getattr(theirs, name)) for path in ("/v1/clicks", "/v1/conversions")
          for name in ("link_id", "offer_id", "partner_id", "advertiser_id")),
        ("/v1/clicks", "click_id", click), ("/v1/clicks", "click_ref", "r"), ("/v1/clicks", "sub1", "one"),
        ("/v1/conversions", "click_id", bought), ("/v1/conversions", "order_id", "order-1"),
        ("/v1/conversions", "updated_since", "2020-01-01"), ("/v1/conversions", "status", "approved"),
        ("/v1/ledger", "partner_id", theirs.partner_id), ("/v1/ledger", "advertiser_id", theirs.advertiser_id),
        ("/v1/balance", "partner_id", theirs.partner_id), ("/v1/balance", "advertiser_id", theirs.advertiser_id),
    ]  # fmt: skip
    for path, name, value in asked:
        for call in (two.callers.partner, two.callers.advertiser):
            for form in ({}, {"format": "csv"}):
                if path == "/v1/balance" and form:
                    continue
                headers = {"Authorization": f"Bearer {call.key}"}
                async with call.session.get(path, params={name: str(value)} | form, headers=headers) as answer:
                    body = await answer.text()
                    assert answer.status in (200, 400, 403), body
                    assert click not in body, (path, name)
                    assert str(conversion) not in body, (path, name)
                    if path in ("/v1/ledger", "/v1/balance"):
                        assert answer.status == 403


async def test_what_a_role_does_not_see_it_does_not_ask_by(two: Two) -> None:
    hidden = [
        ("partner", "/v1/clicks", ["advertiser_id"]),
        ("partner", "/v1/conversions", ["advertiser_id", "order_id"]),
        ("advertiser", "/v1/conversions", ["source_id", "click_ref", *(f"sub{n}" for n in range(1, 11))]),
    ]
    for role, path, names in hidden:
        for name in names:
            status, told = await getattr(two.callers, role)("GET", path, params={name: "1"})
            assert (status, told["error"]["code"], told["error"]["field"]) == (403, "forbidden", name)


async def test_a_balance_is_the_sum_of_the_lines_that_its_owner_may_see(two: Two, db: Connection) -> None:
    reversed_one = await sold(db, two.mine, "b", amount_minor=5_000)
    await sold(db, two.mine, "a")
    await sold(db, two.other, "c")
    async with db.transaction():
        await change.reverse(db, [reversed_one], "admin:1", "the words of an operator")
        await change.adjust(db, two.mine.partner_id, 700, "USD", "a bonus", "admin:1", None)
    owes = {"partner": {"EUR": 425, "USD": 700}, "advertiser": {"EUR": -800}}
    for role, sums in owes.items():
        call, owner_id = getattr(two.callers, role), getattr(two.mine, f"{role}_id")
        told = await listed(call, "/v1/balance")
        assert {row["currency"]: row["amount_minor"] for row in told["data"]} == sums
        assert told["account"] == f"{role}:{owner_id}"
        assert await listed(two.callers.admin, "/v1/balance", **{f"{role}_id": owner_id}) == told
        assert await listed(call, "/v1/balance", **{f"{role}_id": owner_id}) == told
        lines, _ = await every_page(call, "/v1/ledger", limit=1)
        assert {set(line) == LEDGER_COLUMNS for line in lines} == {True}
        assert {one: sum(line["amount_minor"] for line in lines if line["currency"] == one) for one in sums} == sums
        assert [line["entry_id"] for line in lines] == sorted((line["entry_id"] for line in lines), reverse=True)
        assert {line["actor"] for line in lines} <= {"sender", "admin", "auto"}
    assert {line["reason"] for line in (await listed(two.callers.partner, "/v1/ledger"))["data"]} == {None}
    kinds = {line["kind"] for line in (await listed(two.callers.partner, "/v1/ledger", currency="USD"))["data"]}
    assert kinds == {"adjustment"}
    programme = {
        row["currency"]: row["amount_minor"] for row in (await listed(two.callers.admin, "/v1/balance"))["data"]
    }
    assert programme == {"EUR": 2 * (800 - 425), "USD": -700}


BAD: list[tuple[str, str, str]] = [
    *((path, name, value) for path in ("/v1/clicks", "/v1/conversions", "/v1/ledger") for name, value in (
        ("from", "yesterday"), ("from", ""), ("to", "2026-02-30"), ("from", "1999-01-01"), ("to", "2300-01-01"),
        ("timezone", "Mars/Olympus"), ("timezone", "localtime"), ("limit", "0"), ("limit", "1001"), ("limit", "-1"),
        ("limit", "1e1"), ("limit", "٣"), ("cursor", ""), ("cursor", "7"), ("cursor", "id"), ("cursor", "\x00"),
        ("cursor", "entry.0.EUR"), ("cursor", "entry.1.XXX"), ("cursor", "entry.9999999999999999999.EUR"),
        ("cursor", "event_at.-1." + str(UUID(int=0))), ("cursor", "event_at.9223372036854775807." + str(UUID(int=0))),
        ("cursor", "id." + "0" * 36), ("cursor", "id.1.2"), ("format", "xml"), ("offer_id", "0"),
        ("offer_id", "2147483648"), ("offer_id", "x"), ("offer_id", "9" * 5000), ("unknown", "1"), ("group_by", "day"),
    )),
    *((path, name, value) for path in ("/v1/clicks", "/v1/conversions") for name, value in (
        ("click_id", "x"), ("click_id", "{" + str(UUID(int=0)) + "}"), ("click_id", UUID(int=0).hex),
        ("country", "\x00"), ("sub1", "a\x00"), ("click_ref", "\x00"), ("sub11", "a"), ("link_id", "1.0"),
        ("partner_id", "-1"), ("advertiser_id", ""),
    )),
    ("/v1/clicks", "class", "uncounted"), ("/v1/clicks", "class", "0"), ("/v1/clicks", "class", "NORMAL"),
    ("/v1/clicks", "status", "approved"), ("/v1/clicks", "updated_since", "2026-01-01"),
    ("/v1/conversions", "status", "paid"), ("/v1/conversions", "os", "ios"),
    ("/v1/conversions", "date_basis", "ledger"),
    ("/v1/conversions", "updated_since", "now"), ("/v1/conversions", "cursor", "changed_at.1." + str(UUID(int=0))),
    ("/v1/conversions", "cursor", "clicked_at.1." + str(UUID(int=0))), ("/v1/ledger", "kind", "bonus"),
    ("/v1/ledger", "partner_id", "404"), ("/v1/ledger", "advertiser_id", "404"), ("/v1/ledger", "currency", "\x00"),
    ("/v1/balance", "partner_id", "404"), ("/v1/balance", "partner_id", "x"), ("/v1/balance", "limit", "1"),
]  # fmt: skip


async def test_what_is_asked_wrongly_is_refused_by_name(two: Two) -> None:
    for path, name, value in BAD:
        status, told = await two.callers.admin("GET", f"{path}?{name}={quote(value)}")
        assert (status, told["error"].get("field")) == (400, name), (path, name, value, told)
    for query in (
        "/v1/clicks?from=2026-02-01&to=2026-02-01", "/v1/conversions?from=2026-02-01&to=2026-01-01",
        "/v1/ledger?partner_id=1&advertiser_id=1", "/v1/balance?partner_id=1&advertiser_id=1",
        "/v1/clicks?limit=1&limit=1", "/v1/clicks?format=csv&limit=5", "/v1/ledger?format=csv&cursor=entry.1.EUR",
        "/v1/conversions?format=csv&updated_since=2026-01-01",
    ):  # fmt: skip
        assert (await two.callers.admin("GET", query))[0] == 400, query


async def test_each_filter_finds_what_it_names_and_nothing_else(two: Two, db: Connection) -> None:
    await clicked(db, two.other)
    wanted: dict[str, Any] = {
        "country": "AT", "device": "tablet", "os": "ios", "browser": "safari", "source_id": "s", "click_ref": "r",
        "reason": "over_cap", "subs": {f"sub{n}": f"v{n}" for n in range(1, 11)},
    }  # fmt: skip
    click = await clicked(db, two.mine, click_class=int(ClickClass.OVER_CAP), **wanted)
    named = {"link_id": two.mine.link_id, "offer_id": two.mine.offer_id, "partner_id": two.mine.partner_id}
    subs = wanted.pop("subs")
    asked = wanted | subs | named | {"class": "over_cap", "click_id": click, "advertiser_id": two.mine.advertiser_id}
    for name, value in asked.items():
        found = (await listed(two.callers.admin, "/v1/clicks", **{name: value}))["data"]
        assert [row["id"] for row in found] == [click], name
        other = {"click_id": UUID(int=1), "class": "normal"} | vars(two.other)
        found = (await listed(two.callers.admin, "/v1/clicks", **{name: other.get(name, "none")}))["data"]
        assert click not in {row["id"] for row in found}, name
    assert len((await listed(two.callers.admin, "/v1/clicks", **asked))["data"]) == 1


async def test_conversions_are_found_by_what_they_are_and_what_their_click_said(two: Two, db: Connection) -> None:
    await sold(db, two.other, "b", event="lead")
    mine = await sold(db, two.mine, "a")
    await db.execute(
        "UPDATE conversion SET country = 'AT', device = 'tablet', source_id = 's', click_ref = 'r', subs = $2"
        " WHERE conversion_id = $1",
        mine, {"sub3": "x"},
    )  # fmt: skip
    click = await db.fetchval("SELECT click_id FROM conversion WHERE conversion_id = $1", mine)
    for name, value in {
        "country": "AT", "device": "tablet", "source_id": "s", "click_ref": "r", "sub3": "x", "order_id": "a",
        "click_id": click, "event": "sale", "link_id": two.mine.link_id, "offer_id": two.mine.offer_id,
        "partner_id": two.mine.partner_id, "advertiser_id": two.mine.advertiser_id,
    }.items():  # fmt: skip
        found = (await listed(two.callers.admin, "/v1/conversions", **{name: value}))["data"]
        assert [row["conversion_id"] for row in found] == [str(mine)], name
    assert len((await listed(two.callers.admin, "/v1/conversions", status="approved"))["data"]) == 2
    assert (await listed(two.callers.admin, "/v1/conversions", status="rejected"))["data"] == []


async def test_dates_are_midnights_of_the_zone_that_is_asked_for(two: Two, db: Connection) -> None:
    day = at(NOW_MS - 24 * HOUR_MS).date()
    noon = datetime(day.year, day.month, day.day, tzinfo=UTC)
    for zone, ahead in (("UTC", "00:00"), ("Asia/Kathmandu", "05:45"), ("America/Phoenix", "-07:00")):
        hours, _, minutes = ahead.lstrip("-").partition(":")
        apart = timedelta(hours=int(hours), minutes=int(minutes)) * (-1 if ahead.startswith("-") else 1)
        begins_ms = round((noon - apart).timestamp() * 1000)
        await db.execute("TRUNCATE click; DELETE FROM conversion_change; DELETE FROM conversion")
        edges = [begins_ms - 1, begins_ms, begins_ms + 24 * HOUR_MS - 1, begins_ms + 24 * HOUR_MS]
        clicks = [await clicked(db, two.mine, one) for one in edges]
        sales = [await sold(db, two.mine, f"{zone} {one}", event_at_ms=one) for one in edges]
        asked = {"from": day, "to": day + timedelta(days=1), "timezone": zone}
        found = (await listed(two.callers.partner, "/v1/clicks", **asked))["data"]
        assert [row["id"] for row in found] == [clicks[2], clicks[1]], zone
        found = (await listed(two.callers.partner, "/v1/conversions", **asked))["data"]
        assert [row["conversion_id"] for row in found] == [str(sales[2]), str(sales[1])], zone
    early = (await listed(two.callers.partner, "/v1/conversions", date_basis="click", to=rfc3339(at(begins_ms))))[
        "data"
    ]
    assert early == []


async def test_a_week_of_clicks_is_listed_unless_another_time_is_named(two: Two, db: Connection) -> None:
    old = await clicked(db, two.mine, NOW_MS - 8 * 24 * HOUR_MS)
    new = await clicked(db, two.mine)
    rows = [row["id"] for row in (await listed(two.callers.partner, "/v1/clicks"))["data"]]
    assert rows == [new]
    since = rfc3339(at(NOW_MS - 9 * 24 * HOUR_MS))
    assert [row["id"] for row in (await listed(two.callers.partner, "/v1/clicks", **{"from": since}))["data"]] == [
        new,
        old,
    ]
    assert [row["id"] for row in (await listed(two.callers.partner, "/v1/clicks", click_id=old))["data"]] == [old]


async def test_no_row_is_missed_or_doubled_while_rows_arrive_and_change(two: Two, db: Connection) -> None:
    clicks = {await clicked(db, two.mine, NOW_MS - n * 1000) for n in range(30)}
    sales = [await sold(db, two.mine, f"order {n}", event_at_ms=NOW_MS - n // 2 * 1000) for n in range(30)]
    left = list(sales)

    async def more() -> None:
        for at_ms in (NOW_MS + 1000, NOW_MS - HOUR_MS):
            await clicked(db, two.mine, at_ms)
            await sold(db, two.mine, os.urandom(4).hex(), event_at_ms=at_ms)
        await change.reverse(db, [left.pop()], "admin:1", "returned")

    for path, key, there in (("/v1/clicks", "id", clicks), ("/v1/conversions", "conversion_id", set(map(str, sales)))):
        rows, _ = await every_page(two.callers.partner, path, more, limit=4, to=rfc3339(at(NOW_MS + 5_000)))
        ids = [row[key] for row in rows]
        assert len(set(ids)) == len(ids)
        assert there <= set(ids)
        times = [row["clicked_at" if path == "/v1/clicks" else "event_at"] for row in rows]
        assert times == sorted(times, reverse=True)


async def test_a_page_that_looked_at_enough_rows_goes_on_from_there(
    two: Two, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIST_ROWS_READ", 7)
    for n in range(23):
        await clicked(db, two.mine, NOW_MS - n * 1000, country="AT" if n % 11 == 0 else "DE")
        await sold(db, two.mine, f"order {n}", event_at_ms=NOW_MS - n * 1000, event="lead" if n % 11 == 0 else "sale")
    for path, asked in (("/v1/clicks", {"country": "AT"}), ("/v1/conversions", {"event": "lead"})):
        for limit in (1, 2, 7, 100):
            rows, _ = await every_page(two.callers.partner, path, **asked, limit=limit)
            assert len({str(row) for row in rows}) == len(rows) == 3, (path, limit)


async def test_every_change_is_listed_once_while_a_writer_changes_and_adds(
    two: Two, db: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that follows `updated_through` has in the end what the table has, and each version of a row once."""
    monkeypatch.setattr(limits, "TRANSACTION_S", 0.4)
    writer = await connect(database_url, command_timeout_s=5)
    ids = [await sold(db, two.mine, f"order {n}") for n in range(12)]

    async def write() -> None:
        for n in range(10):
            async with writer.transaction():
                await change.reverse(writer, [ids[n]], "admin:1", "returned")
                await asyncio.sleep(0.08)  # others begin later and commit sooner
            await sold(writer, two.mine, f"later {n}")

    async def quick() -> None:
        for n in range(20):
            await sold(db, two.mine, f"quick {n}")
            await asyncio.sleep(0.03)

    seen: list[Any] = []
    since = "2020-01-01T00:00:00Z"
    writing = asyncio.gather(write(), quick())
    ends_at_s = None
    while ends_at_s is None or time.monotonic() < ends_at_s:
        rows, told = await every_page(two.callers.admin, "/v1/conversions", limit=4, updated_since=since)
        seen += rows
        since = told["updated_through"]
        if writing.done() and ends_at_s is None:
            ends_at_s = time.monotonic() + 1
    await writing
    await writer.close()
    versions = [(row["conversion_id"], row["changed_at"]) for row in seen]
    assert len(set(versions)) == len(versions)
    last = {row["conversion_id"]: (row["status"], row["changed_at"]) for row in seen}
    rows = await db.fetch("SELECT conversion_id, status, changed_at FROM conversion")
    assert last == {str(row["conversion_id"]): (row["status"], rfc3339(row["changed_at"])) for row in rows}
    assert len(rows) == 42


async def test_a_change_that_commits_late_is_waited_for(
    two: Two, db: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TRANSACTION_S", 0.3)
    late = await sold(db, two.mine, "late")
    slow = await connect(database_url, command_timeout_s=5)
    async with slow.transaction():
        await change.reverse(slow, [late], "admin:1", "returned")
        begun: datetime = await slow.fetchval("SELECT now()")
        await sold(db, two.mine, "quick")
        await asyncio.sleep(0.6)
        rows, told = await every_page(two.callers.admin, "/v1/conversions", updated_since="2020-01-01")
        assert [row["conversion_id"] for row in rows] == [str(late)]
        assert told["updated_through"] <= rfc3339(begun)
    await slow.close()
    rows, _ = await every_page(two.callers.admin, "/v1/conversions", updated_since=told["updated_through"])
    assert [row["status"] for row in rows] == ["reversed", "approved"]


async def test_a_file_has_the_rows_and_columns_of_all_pages(two: Two, db: Connection) -> None:
    for n in range(7):
        await clicked(db, two.mine, NOW_MS - n, click_ref="=cmd()")
        await sold(db, two.mine, f"order {n}")
    for path, role in (
        ("/v1/clicks", "partner"), ("/v1/clicks", "admin"), ("/v1/conversions", "partner"),
        ("/v1/conversions", "advertiser"), ("/v1/ledger", "partner"), ("/v1/ledger", "advertiser"),
    ):  # fmt: skip
        call = getattr(two.callers, role)
        rows, _ = await every_page(call, path, limit=3)
        headers = {"Authorization": f"Bearer {call.key}", "Accept": "text/csv"}
        async with call.session.get(path, headers=headers) as answer:
            assert answer.headers["Content-Type"].startswith("text/csv")
            lines = list(csv.DictReader(io.StringIO(await answer.text(), newline="")))
        assert len(lines) == len(rows) == 7, path
        assert set(lines[0]) == set(rows[0]), path
        if path != "/v1/ledger":
            key = "id" if path == "/v1/clicks" else "conversion_id"
            assert [line[key] for line in lines] == [row[key] for row in rows]
        if path == "/v1/clicks":
            assert {line["click_ref"] for line in lines} == {"'=cmd()"}
