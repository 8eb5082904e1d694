"""What is told of settled days: whose lines, which figures, in pages; and days that were corrected, beside reports."""

import os
import time
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from aggregator.conversions import change
from aggregator.db.connect import Connection
from aggregator.db.instants import at
from aggregator.settled import days
from schemas import limits
from schemas.click_id import uuid7_bytes
from tests.aggregator.api.conftest import Client, Made, sold
from tests.aggregator.api.test_api_lists import Two, every_page, listed, two

__all__ = ["two"]
DAY_MS = 86_400_000
NOW_MS = time.time_ns() // 1_000_000
LATER_MS = NOW_MS + int(limits.DAY_CORRECT_S * 1000) + 86_400_000  # also where the suite comes here an hour later
BEGINS_MS = (NOW_MS // DAY_MS - 3) * DAY_MS
DAY = at(BEGINS_MS).date()
NEXT = DAY + timedelta(days=1)


async def settled(db: Connection) -> None:
    """All days that can be, and all that was marked."""
    await db.execute("UPDATE settling SET through = $1", at(NOW_MS))
    await db.execute("DELETE FROM edge")
    await db.execute("INSERT INTO edge (incarnation, name, closed_at) VALUES ('i', 'e', $1)", at(NOW_MS))
    while await days.settle_once(db, LATER_MS):
        pass


async def sold_then(db: Connection, made: Made, order_id: str, at_ms: int = BEGINS_MS) -> UUID:
    click = UUID(bytes=uuid7_bytes(at_ms - 60_000, os.urandom(10)))
    return await sold(db, made, order_id, event_at_ms=at_ms, click_uuid=click)


async def clicks(db: Connection, made: Made, count: int, at_ms: int = BEGINS_MS) -> None:
    await db.execute(
        """INSERT INTO click_rollup (quarter, link_id, offer_id, partner_id, country, device, shard, clicks,
               invalid_clicks, unique_clicks) VALUES ($1, $2, $3, $4, 'DE', '', 0, $5, 1, 1)""",
        at(at_ms), made.link_id, made.offer_id, made.partner_id, count,
    )  # fmt: skip


@pytest.fixture
async def corrected(two: Two, db: Connection) -> Two:
    """A day with sales of two partners, of which one sale was reversed when it was settled, and the day after."""
    for made in (two.mine, two.other):
        await clicks(db, made, 5)
        for n in range(2):
            await sold_then(db, made, f"order-{made.offer_id}-{n}")
        await sold_then(db, made, f"order-{made.offer_id}-next", BEGINS_MS + DAY_MS - 1)
    await sold_then(db, two.mine, "order-next", BEGINS_MS + DAY_MS)
    await settled(db)
    await reverse(db, two.mine)
    await settled(db)
    return two


async def reverse(db: Connection, made: Made) -> None:
    one = await db.fetchval(
        "SELECT conversion_id FROM conversion WHERE partner_id = $1 AND status = 'approved' ORDER BY order_id LIMIT 1",
        made.partner_id,
    )
    async with db.transaction():
        await change.reverse(db, [one], "admin:1", None)


def of(line: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(line[name] for name in names)


async def test_a_partner_is_told_of_its_own_lines_and_no_revenue(corrected: Two) -> None:
    lines, told = await every_page(corrected.callers.partner, "/v1/reports/days")
    assert {line["partner_id"] for line in lines} == {corrected.mine.partner_id}
    assert [of(line, "day", "currency", "version", "clicks", "conversions", "payout") for line in lines] == [
        (str(DAY), None, 1, 5, 0, 0), (str(DAY), "EUR", 1, 0, 3, 1275), (str(DAY), "EUR", 2, 0, 2, 850),
        (str(NEXT), "EUR", 1, 0, 1, 425),
    ]  # fmt: skip
    assert not [line for line in lines if "revenue" in line or "revenue" in (line["before"] or {})]
    assert [line["before"] and line["before"]["payout"] for line in lines] == [None, None, 1275, None]
    assert (lines[2]["reversed"], lines[2]["payout_reversed"], lines[2]["before"]["reversed"]) == (1, 425, 0)
    assert told["days_through"] == f"{at(BEGINS_MS + 2 * DAY_MS).isoformat()[:19]}.000Z"
    foreign = {"partner_id": corrected.other.partner_id}
    assert (await listed(corrected.callers.partner, "/v1/reports/days", **foreign))["data"] == []


async def test_an_admin_is_told_of_all_page_by_page(corrected: Two) -> None:
    admin, path = corrected.callers.admin, "/v1/reports/days"
    whole = (await listed(admin, path))["data"]
    assert len(whole) == 6
    assert sorted(whole, key=lambda one: of(one, "day", "partner_id")) == whole
    for limit in (1, 4):
        assert (await every_page(admin, path, limit=limit))[0] == whole
    for asked, count in (
        ({"partner_id": corrected.other.partner_id}, 2), ({"offer_id": corrected.mine.offer_id}, 4),
        ({"corrections": 1}, 1), ({"from": NEXT}, 1), ({"from": DAY, "to": NEXT}, 5), ({"to": DAY}, 0),
    ):  # fmt: skip
        assert len((await listed(admin, path, **asked))["data"]) == count, asked
    assert [line["revenue"] for line in whole if line["currency"]] == [2400, 1600, 2400, 800]
    status, _ = await admin("GET", path, params={"corrections": "0"})
    assert status == 400


async def test_what_only_others_are_shown_is_no_correction(two: Two, db: Connection) -> None:
    """The revenue of a sale changes, and nothing else."""
    await sold_then(db, two.mine, "order")
    await settled(db)
    await db.execute("UPDATE conversion_rollup SET revenue_minor = revenue_minor + 1")
    await db.execute("INSERT INTO stale_day (quarter) VALUES ($1)", at(BEGINS_MS))
    await settled(db)
    asked = {"from": DAY, "to": NEXT}
    versions, reported = [], []
    for call in two.callers:
        reported.append((await listed(call, "/v1/reports", **asked))["corrected_days"])
    for call in two.callers[:2]:
        versions.append([line["version"] for line in (await listed(call, "/v1/reports/days"))["data"]])
    assert versions == [[1, 2], [1]]
    assert reported == [[str(DAY)], [], [str(DAY)]]


async def test_reports_name_the_days_that_were_corrected_as_soon_as_they_are(corrected: Two, db: Connection) -> None:
    asked = {"from": DAY, "to": NEXT + timedelta(days=1)}
    told = [(await listed(call, "/v1/reports", **asked))["corrected_days"] for call in corrected.callers]
    assert told == [[str(DAY)]] * 3
    others = [(await listed(call, "/v1/reports", **asked))["corrected_days"] for call in corrected.others[1:]]
    assert others == [[], []]
    assert (await listed(corrected.callers.partner, "/v1/reports", **{"from": NEXT}))["corrected_days"] == []
    await reverse(db, corrected.other)
    await settled(db)
    await db.execute("UPDATE conversion SET changed_at = now() - interval '1 hour'")
    await db.execute("UPDATE settled_version SET settled_at = settled_at - interval '1 hour'")
    found = await listed(corrected.others.partner, "/v1/reports", **asked, limit=2)
    assert found["corrected_days"] == [str(DAY)]


async def test_a_file_has_all_lines(corrected: Two) -> None:
    call = corrected.callers.partner
    headers = {"Authorization": f"Bearer {call.key}"}
    async with call.session.get("/v1/reports/days?format=csv", headers=headers) as answer:
        lines = (await answer.text()).split("\r\n")
    assert (answer.status, len(lines), lines[0][:41]) == (200, 6, "day,version,settled_at,partner_id,offer_i")


async def test_an_advertiser_is_told_of_no_days(two: Two) -> None:
    client: Client = two.callers.advertiser
    assert (await client("GET", "/v1/reports/days"))[0] == 403
