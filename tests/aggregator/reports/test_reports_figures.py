import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from aggregator.db.connect import Connection, connect
from aggregator.reports.asked import Scope, read
from aggregator.reports.report import Report, report
from aggregator.reports.state import read_state
from schemas import limits

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
ALL = "clicks,invalid_clicks,conversions,sale_amount,payout"


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Connection]:
    connection = await connect(database_url, command_timeout_s=10)
    await connection.execute(
        "INSERT INTO advertiser (name, token_sha256) VALUES ('Shop', '\\x00');"
        "INSERT INTO partner (name) VALUES ('One'), ('Two');"
        "INSERT INTO offer (advertiser_id, name, destination_url, currency)"
        " VALUES (1, 'Shoes', 'https://a.example', 'EUR');"
        "INSERT INTO link (code, offer_id, partner_id) VALUES ('a', 1, 1), ('b', 1, 1), ('c', 1, 2)"
    )
    yield connection
    await connection.close()


async def add_clicks(db: Connection, at: datetime, link_id: int, clicks: int, invalid: int = 0, **where: Any) -> None:
    await db.execute(
        "INSERT INTO click_rollup SELECT $1, $2, $3, $4, $5, $6, $7,"
        " coalesce((SELECT offer_id FROM link WHERE id = $2), 0),"
        " coalesce((SELECT partner_id FROM link WHERE id = $2), 0)",
        at,
        link_id,
        where.get("country", "DE"),
        where.get("device", "phone"),
        where.get("shard", 0),
        clicks,
        invalid,
    )


async def add_sales(
    db: Connection, at: datetime, link_id: int, currency: str, figures: tuple[int, int, int], shard: int = 0
) -> None:
    await db.execute(
        "INSERT INTO conversion_rollup SELECT $1, $2, $3, $4, $5, $6, $7,"
        " coalesce((SELECT offer_id FROM link WHERE id = $2), 0),"
        " coalesce((SELECT partner_id FROM link WHERE id = $2), 0)",
        at,
        link_id,
        currency,
        shard,
        *figures,
    )


async def ask(db: Connection, partner_id: int | None = None, **params: str) -> dict[str, Any]:
    given = [(name.removesuffix("_"), value) for name, value in ({"metrics": ALL} | params).items()]
    wanted = Report(read(given, "UTC", NOW, "admin"), "EUR", Scope(partner_id))
    return await report(db, wanted, await read_state(db))


def happened(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the times at which nothing did."""
    return [row for row in rows if any(row.get(name) for name in ALL.split(","))]


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


async def test_countries_devices_and_shards_add_up(db: Connection) -> None:
    at = utc("2026-11-27T10:15")
    await add_clicks(db, at, 1, 5, 1)
    await add_clicks(db, at, 1, 7, 2, country="FR")
    await add_clicks(db, at, 1, 11, 3, device="desktop")
    await add_clicks(db, at, 2, 13, 0, shard=3)
    await add_sales(db, at, 1, "EUR", (2, 9980, 1000))
    await add_sales(db, at, 2, "EUR", (1, 20, 5), shard=3)
    answer = await ask(db)
    assert happened(answer["data"]) == [
        {
            "day": "2026-11-27",
            "clicks": 36,
            "invalid_clicks": 6,
            "conversions": 3,
            "sale_amount": 10000,
            "payout": 1005,
            "currency": "EUR",
        }
    ]
    assert (answer["from"], answer["to"], answer["timezone"]) == (
        "2026-11-21T00:00:00Z",
        "2026-11-28T00:00:00Z",
        "UTC",
    )
    assert (answer["truncated"], answer["next_cursor"]) == (False, None)


async def test_clicks_stand_on_one_row_of_a_group_that_was_paid_in_two_currencies(db: Connection) -> None:
    at = utc("2026-11-27T10:15")
    await add_clicks(db, at, 1, 5, 1)
    await add_sales(db, at, 1, "USD", (1, 100, 10))
    await add_sales(db, at, 1, "CHF", (2, 200, 20))
    await add_clicks(db, at, 2, 3)
    await add_sales(db, at, 3, "USD", (4, 400, 40))
    rows = (await ask(db, group_by="link"))["data"]
    assert [tuple(row.values()) for row in rows] == [
        (1, 5, 1, 2, 200, 20, "CHF"),
        (1, 0, 0, 1, 100, 10, "USD"),
        (2, 3, 0, 0, 0, 0, "EUR"),
        (3, 0, 0, 4, 400, 40, "USD"),
    ]


async def test_what_is_not_approved_makes_no_row(db: Connection) -> None:
    """Conversions that are pending, or were reversed, are in the rollups, too, with nothing that is paid."""
    at = utc("2026-11-27T10:15")
    await add_clicks(db, at, 1, 5)
    await add_sales(db, at, 1, "CHF", (0, 0, 0))
    await add_sales(db, at, 2, "EUR", (0, 0, 0))
    rows = (await ask(db, group_by="link"))["data"]
    assert [tuple(row.values()) for row in rows] == [(1, 5, 0, 0, 0, 0, "EUR")]


async def test_only_asked_metrics_are_answered(db: Connection) -> None:
    await add_clicks(db, utc("2026-11-27T10:15"), 1, 5)
    assert happened((await ask(db, metrics="clicks,payout"))["data"]) == [
        {"day": "2026-11-27", "clicks": 5, "payout": 0, "currency": "EUR"}
    ]


async def test_sums_beyond_64_bits_are_exact(db: Connection) -> None:
    for shard in range(3):
        await add_sales(db, utc("2026-11-27T10:15"), 1, "EUR", (1, 2**63 - 1, 1), shard)
    assert (await ask(db))["data"][-1]["sale_amount"] == 3 * (2**63 - 1)


async def test_the_range_is_half_open_to_the_quarter_hour(db: Connection) -> None:
    for quarter, clicks in (("09:45", 1), ("10:00", 10), ("10:15", 100), ("10:30", 1000)):
        await add_clicks(db, utc(f"2026-11-27T{quarter}"), 1, clicks)
    answer = await ask(db, from_="2026-11-27T10:00Z", to="2026-11-27T10:30Z")
    assert [row["clicks"] for row in answer["data"]] == [110]


@pytest.mark.parametrize(
    ("zone", "first", "last"),
    [
        ("Asia/Kathmandu", "2026-11-20", "2026-11-24"),
        ("Europe/Berlin", "2026-10-23", "2026-10-28"),
        ("Europe/Berlin", "2026-03-27", "2026-04-01"),
        ("Australia/Lord_Howe", "2026-10-02", "2026-10-07"),
        ("America/St_Johns", "2026-10-30", "2026-11-03"),
    ],
)
async def test_days_of_a_zone_are_exact(db: Connection, zone: str, first: str, last: str) -> None:
    """Against each quarter hour's own wall clock."""
    expected: Counter[str] = Counter()
    start = utc(first) - timedelta(days=1)
    rows = [(start + timedelta(minutes=15 * n), n + 1) for n in range(4 * 24 * 8)]
    await db.executemany("INSERT INTO click_rollup VALUES ($1, 1, 'DE', 'phone', 0, $2, 0, 1, 1)", rows)
    for quarter, clicks in rows:
        expected[quarter.astimezone(ZoneInfo(zone)).date().isoformat()] += clicks
    told = (await ask(db, from_=first, to=last, timezone=zone))["data"]
    assert {row["day"]: row["clicks"] for row in told} == {
        day: clicks for day, clicks in expected.items() if first <= day < last
    }


async def test_a_partner_sees_its_own_rows_and_nobody_elses(db: Connection) -> None:
    at = utc("2026-11-27T10:15")
    for link_id in (1, 2, 3, 0):
        await add_clicks(db, at, link_id, 10 + link_id)
        await add_sales(db, at, link_id, "EUR", (link_id + 1, 100, 10))
    assert [row["link_id"] for row in (await ask(db, group_by="link"))["data"]] == [0, 1, 2, 3]
    assert [row["link_id"] for row in (await ask(db, 1, group_by="link"))["data"]] == [1, 2]
    assert [row["link_id"] for row in (await ask(db, 2, group_by="link"))["data"]] == [3]
    by_day = happened((await ask(db, 2))["data"])
    assert [(row["clicks"], row["conversions"]) for row in by_day] == [(13, 4)]
    assert happened((await ask(db, 2, link_id="1"))["data"]) == []
    assert happened((await ask(db, 99))["data"]) == []


async def test_pages_joined_are_the_whole(db: Connection) -> None:
    chosen = random.Random(5)
    for link_id in range(1, 41):
        await add_clicks(db, utc("2026-11-27T10:15"), link_id, link_id)
        for currency in chosen.sample(["EUR", "USD", "CHF"], chosen.randint(0, 3)):
            await add_sales(db, utc("2026-11-26T10:15"), link_id, currency, (1, 2, 3))
    for group_by, sort in (("link", "-payout"), ("day", "-day"), ("day", "day")):
        whole = (await ask(db, group_by=group_by, sort=sort))["data"]
        pages, cursor = [], ""
        while True:
            page = await ask(
                db, group_by=group_by, limit="7" if group_by == "link" else "1", sort=sort, **_after(cursor)
            )
            pages += page["data"]
            assert page["truncated"] == bool(page["next_cursor"])
            if not page["next_cursor"]:
                break
            cursor = page["next_cursor"]
        assert pages == whole


def _after(cursor: str) -> dict[str, str]:
    return {"cursor": cursor} if cursor else {}


async def test_a_report_is_complete_through_its_slowest_open_edge(db: Connection) -> None:
    assert (await ask(db))["complete_through"] is None  # no edge was ever there
    await db.execute("INSERT INTO log_position VALUES ('s', 0, 10)")
    await db.execute("INSERT INTO edge (incarnation, name) VALUES ('a', 'a'), ('b', 'b')")
    await _beat(db, "a", "2026-11-27T10:00:00.250Z", 9)
    assert (await ask(db))["complete_through"] is None  # of `b` nothing is known yet
    await _beat(db, "b", "2026-11-27T09:00:00Z", 5)
    await _beat(db, "b", "2026-11-27T11:00:00Z", 10)  # not applied yet
    assert (await ask(db))["complete_through"] == "2026-11-27T09:00:00.000Z"
    await db.execute("UPDATE edge SET closed_at = now() WHERE incarnation = 'b'")
    assert (await ask(db))["complete_through"] == "2026-11-27T10:00:00.250Z"
    await db.execute("UPDATE edge SET closed_at = '2026-11-27T10:30Z' WHERE incarnation = 'a'")
    await db.execute("UPDATE edge SET closed_at = '2026-11-27T10:40Z' WHERE incarnation = 'b'")
    # not now: another edge may have begun that is not heard of yet
    assert (await ask(db))["complete_through"] == "2026-11-27T10:40:00.000Z"


async def _beat(db: Connection, edge: str, complete_to: str, offset: int) -> None:
    at = datetime.fromisoformat(complete_to)
    await db.execute("INSERT INTO edge_beat VALUES ($1, $2, $2, $3)", edge, at, [["s", 0, offset]])


async def test_a_year_of_a_big_programme_is_answered_in_time(db: Connection) -> None:
    await db.execute(
        "INSERT INTO click_rollup SELECT quarter, link, 'DE', 'phone', 0, 1, 0, 1, 1 + link / 101"
        " FROM generate_series("
        "timestamptz '2025-11-28', timestamptz '2026-11-27 23:45', interval '6 hours') quarter,"
        " generate_series(1, 200) link",
        timeout=60,
    )
    await db.execute("ANALYZE click_rollup", timeout=60)
    started = datetime.now(UTC)
    answer = await ask(db, 1, from_="2025-11-28", to="2026-11-28", timezone="Asia/Kathmandu")
    assert sum(row["clicks"] for row in answer["data"]) > 2 * 4 * 360
    assert (datetime.now(UTC) - started).total_seconds() < limits.STATEMENT_S
