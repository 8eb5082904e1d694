"""Reports are remembered, and yet nobody sees another's rows, nor old ones of a range that has changed."""

import asyncio
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from aggregator.db.connect import Connection
from schemas import limits
from schemas.click_id import uuid7_bytes
from tests.aggregator.api.conftest import Client, sold

TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
CLOSED = f"from={TODAY - timedelta(days=3):%Y-%m-%d}&to={TODAY:%Y-%m-%d}&timezone=UTC"
OPEN = f"from={TODAY - timedelta(days=3):%Y-%m-%d}&to={TODAY + timedelta(days=1):%Y-%m-%d}&timezone=UTC"
YESTERDAY = TODAY - timedelta(hours=12)


@pytest.fixture
async def closed(db: Connection) -> None:
    """All that was before today is complete and settled."""
    await db.execute("INSERT INTO edge (incarnation, name, closed_at) VALUES ('a', 'a', $1)", TODAY)
    await db.execute("UPDATE settling SET through = $1", TODAY)


async def clicks_of(db: Connection, link_id: int, clicks: int, quarter: datetime = YESTERDAY) -> None:
    await db.execute(
        "INSERT INTO click_rollup (quarter, link_id, country, device, shard, clicks, invalid_clicks, offer_id,"
        " partner_id) SELECT $1, id, 'DE', 'mobile', 0, $3, 0, offer_id, partner_id FROM link WHERE id = $2"
        " ON CONFLICT (quarter, link_id, offer_id, partner_id, country, device, shard)"
        " DO UPDATE SET clicks = excluded.clicks",
        quarter, link_id, clicks,
    )  # fmt: skip


async def ask(client: Client, query: str, **headers: str) -> tuple[int, bytes, Any]:
    headers |= {"Authorization": f"Bearer {client.key}"}
    async with client.session.get(f"/v1/reports?{query}", headers=headers) as answer:
        return answer.status, await answer.read(), answer.headers


async def figure(client: Client, query: str, name: str) -> int:
    _, answer = await client("GET", f"/v1/reports?{query}&granularity=total&metrics={name}")
    return sum(row[name] for row in answer["data"])


async def becomes(read: Callable[[], Any], wanted: Any, within_s: float) -> None:
    until = time.monotonic() + within_s
    while (found := await read()) != wanted:
        assert time.monotonic() < until, (found, wanted)
        await asyncio.sleep(0.1)


async def test_a_closed_range_is_remembered_and_a_changed_conversion_in_it_is_seen_within_seconds(
    admin: Client, made: Any, db: Connection, closed: None
) -> None:
    at_ms = int(YESTERDAY.timestamp() * 1000)
    click = UUID(bytes=uuid7_bytes(at_ms - 60_000, os.urandom(10)))
    sale = await sold(db, made, event_at_ms=at_ms, click_uuid=click)
    await db.execute("UPDATE conversion SET changed_at = now() - interval '1 hour'")
    assert await figure(admin, CLOSED, "payout") == 425
    await db.execute("UPDATE conversion_rollup SET payout_minor = 1")
    await asyncio.sleep(limits.REPORT_OPEN_S + limits.STATE_S)
    assert await figure(admin, CLOSED, "payout") == 425  # it is remembered: nothing says that the row has changed
    await db.execute("UPDATE conversion_rollup SET payout_minor = 425")
    status, _ = await admin("PATCH", f"/v1/conversions/{sale}", json={"status": "reversed", "reason": "returned"})
    assert status == 200
    await becomes(lambda: figure(admin, CLOSED, "payout"), 0, within_s=limits.STATE_S + 8)
    await becomes(lambda: figure(admin, CLOSED, "payout_reversed"), 425, within_s=limits.STATE_S + 8)


async def test_an_open_range_and_a_closed_one_whose_clicks_are_to_be_settled_anew_live_for_seconds(
    admin: Client, made: Any, db: Connection, closed: None
) -> None:
    await clicks_of(db, made.link_id, 1)
    assert [await figure(admin, query, "clicks") for query in (OPEN, CLOSED)] == [1, 1]
    await clicks_of(db, made.link_id, 2)
    await becomes(lambda: figure(admin, OPEN, "clicks"), 2, within_s=limits.REPORT_OPEN_S + 8)
    assert await figure(admin, CLOSED, "clicks") == 1
    await db.execute("INSERT INTO stale_quarter (quarter) VALUES ($1)", YESTERDAY)
    await becomes(lambda: figure(admin, CLOSED, "clicks"), 2, within_s=limits.STATE_S + 8)


async def test_who_has_the_answer_already_is_told_so_in_304(
    admin: Client, made: Any, db: Connection, closed: None
) -> None:
    await clicks_of(db, made.link_id, 5)
    status, body, headers = await ask(admin, CLOSED)
    assert (status, headers["Vary"]) == (200, "Authorization, Accept")
    assert headers["Cache-Control"] in {f"private, max-age={n}" for n in range(int(limits.REPORT_OPEN_S) + 1)}
    etag = headers["ETag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        status, again, headers = await ask(admin, CLOSED, **{"If-None-Match": known})
        assert (status, again, headers["ETag"]) == (304, b"", etag)
        assert headers["X-RateLimit-Limit"]
    for known in ('"other"', "nonsense", ""):
        assert (await ask(admin, CLOSED, **{"If-None-Match": known}))[:2] == (200, body)
    status, _, headers = await ask(admin, CLOSED + "&metrics=clicks", **{"If-None-Match": etag})
    assert (status, headers["ETag"] != etag) == (200, True)
    query = {"from": CLOSED[5:15], "to": TODAY.date().isoformat(), "timezone": "UTC"}
    status, _ = await admin("POST", "/v1/reports/query", json=query, headers={"If-None-Match": etag})
    assert status == 200


async def test_a_304_is_for_the_same_rows_only(admin: Client, made: Any, db: Connection, closed: None) -> None:
    await clicks_of(db, made.link_id, 5)
    _, key = await admin("POST", "/v1/keys", json={"role": "partner", "partner_id": made.partner_id})
    _, other = await admin("POST", "/v1/partners", json={"name": "Other"})
    _, foreign = await admin("POST", "/v1/keys", json={"role": "partner", "partner_id": other["id"]})
    _, _, headers = await ask(admin.with_key(key["key"]), CLOSED)
    status, body, _ = await ask(admin.with_key(foreign["key"]), CLOSED, **{"If-None-Match": headers["ETag"]})
    assert status == 200
    assert b'"clicks":5' not in body


async def test_a_key_has_only_so_many_reports_at_once_and_other_keys_and_calls_are_not_held_up(
    admin: Client, made: Any, db: Connection
) -> None:
    _, key = await admin("POST", "/v1/keys", json={"role": "admin"})
    busy = admin.with_key(key["key"])
    async with db.transaction():
        await db.execute("LOCK TABLE click_rollup")
        under_way = [
            asyncio.create_task(ask(busy, f"{CLOSED}&limit={n}{'&format=csv' * (n % 2)}"))
            for n in range(1, limits.REPORTS_AT_ONCE_PER_KEY + 1)
        ]
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'click_rollup'::regclass"
        await becomes(lambda: db.fetchval(waiting), limits.MADE_AT_ONCE_MAX + limits.STREAMS_AT_ONCE, within_s=15)
        status, body, headers = await ask(busy, f"{CLOSED}&limit=99")
        assert (status, headers["Retry-After"], b"too_many_requests" in body) == (429, "1", True)
        status, _, _ = await ask(busy, f"{CLOSED}&limit=99&format=csv")
        assert status == 429
        status, body, _ = await ask(admin, f"{CLOSED}&format=csv")
        assert (status, b"as many files as may be" in body) == (503, True)
        other = asyncio.create_task(ask(admin, f"{CLOSED}&limit=99"))
        for _ in range(2 * limits.API_POOL_MAX):
            status, _ = await busy("GET", "/v1/partners")
            assert status == 200
        assert not other.done()
    assert [(await one)[0] for one in (*under_way, other)] == [200] * (len(under_way) + 1)
    assert (await ask(busy, f"{CLOSED}&limit=99&format=csv"))[0] == 200
