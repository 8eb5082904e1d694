"""Files of CSV: any number of rows with bounded memory, whole or visibly cut."""

import asyncio
import contextlib
import csv
import io
import socket
from typing import Any

import aiohttp
import pytest

from aggregator.api.sheets import guarded
from aggregator.db.connect import Connection
from aggregator.reports.figures import METRICS
from schemas import limits
from tests.aggregator.api.conftest import Client
from tests.aggregator.api.test_api_cached_reports import CLOSED, OPEN, TODAY, YESTERDAY, clicks_of

CSV = {"Accept": "text/csv"}
BY_LINK = f"{CLOSED}&granularity=total&group_by=link&metrics=clicks"
WIDE = f"/v1/reports?{BY_LINK},{','.join(sorted(set(METRICS) - {'clicks'}))}&format=csv"


async def many(db: Connection, links: int) -> None:
    """Clicks of so many links, each as many as its number."""
    await db.execute(
        "INSERT INTO click_rollup (quarter, link_id, country, device, shard, clicks, invalid_clicks, offer_id,"
        " partner_id) SELECT $1, n, 'DE', 'mobile', 0, n, 0, 1, 1 FROM generate_series(1, $2) AS n",
        YESTERDAY, links,
    )  # fmt: skip


async def get(client: Client, path: str, **headers: str) -> tuple[aiohttp.ClientResponse, str]:
    headers |= {"Authorization": f"Bearer {client.key}"}
    async with client.session.get(path, headers=headers) as answer:
        return answer, await answer.text()


async def test_a_csv_has_the_rows_of_the_json_all_of_them_and_says_how_far_it_is_complete(
    admin: Client, made: Any, db: Connection
) -> None:
    await db.execute("INSERT INTO edge (incarnation, name, closed_at) VALUES ('a', 'a', $1)", TODAY)
    await clicks_of(db, made.link_id, 7)
    query = f"/v1/reports?{OPEN}&group_by=day,link&metrics=clicks,payout,profit,epc,cr"
    _, told = await admin("GET", query)
    for answer, text in (
        await get(admin, f"{query}&limit=1", Accept="text/csv, */*;q=0.1"),
        await get(admin, f"{query}&format=csv"),
    ):
        assert text.endswith("\r\n")
        assert [{k: v or None for k, v in row.items()} for row in csv.DictReader(io.StringIO(text))] == [
            {name: None if value is None else str(value) for name, value in row.items()} for row in told["data"]
        ]
        headers = answer.headers
        assert headers["Content-Type"] == "text/csv; charset=utf-8; header=present"
        assert headers["Clickdam-Complete-Through"] == told["complete_through"]
        assert "Clickdam-Settled-Through" not in headers  # nothing is settled yet
        assert (headers["Clickdam-Truncated"], headers["Cache-Control"]) == ("false", "no-store")
    both = {"Accept": "text/csv, application/json"}
    assert (await get(admin, query, **both))[0].content_type == "application/json"
    assert (await get(admin, f"{query}&format=json", **CSV))[0].content_type == "application/json"


async def test_a_query_in_a_body_and_the_lists_are_files_too(admin: Client, made: Any, db: Connection) -> None:
    await clicks_of(db, made.link_id, 7)
    body = {"from": str(YESTERDAY.date()), "to": str(TODAY.date()), "timezone": "UTC", "metrics": ["clicks"]}
    headers = CSV | {"Authorization": f"Bearer {admin.key}"}
    async with admin.session.post("/v1/reports/query", json=body, headers=headers) as answer:
        assert await answer.text() == f"day,clicks,currency\r\n{YESTERDAY.date()},7,EUR\r\n"
    for path in ("clicks", "conversions"):
        answer, text = await get(admin, f"/v1/{path}?{OPEN}", **CSV)
        assert (answer.status, answer.content_type, text.count("\r\n")) == (200, "text/csv", 1)


async def test_a_file_that_cannot_begin_is_refused_as_ever(admin: Client, db: Connection, made: Any) -> None:
    for query in ("format=xml", "format=csv&format=csv", "format=csv&metrics=x", "format=csv&from=x"):
        answer, text = await get(admin, f"/v1/reports?{query}", **CSV)
        assert (answer.status, '"error"' in text) == (400, True)
    await db.execute("ALTER TABLE click_rollup RENAME TO elsewhere")
    answer, text = await get(admin, f"/v1/reports?{CLOSED}", **CSV)
    assert (answer.status, '"code": "internal"' in text) == (500, True)


def test_a_text_that_a_spreadsheet_would_carry_out_is_guarded() -> None:
    for text in ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"):
        assert guarded(text) == f"'{text}"
    for text in ("", "a=1", "1-1", "shop.example"):
        assert guarded(text) == text


async def test_a_file_that_fails_in_the_middle_is_seen_to_be_cut(admin: Client, db: Connection) -> None:
    await many(db, 200_000)
    headers = {"Authorization": f"Bearer {admin.key}"}
    with pytest.raises(aiohttp.ClientError):
        await _read_and_lose(admin.session, f"/v1/reports?{BY_LINK}&format=csv", headers, db)
    answer, text = await get(admin, f"/v1/reports?{BY_LINK}&link_id=1,2&format=csv")
    assert (answer.status, text) == (200, "link_id,clicks,currency\r\n1,1,EUR\r\n2,2,EUR\r\n")


async def _read_and_lose(session: aiohttp.ClientSession, path: str, headers: dict[str, str], db: Connection) -> None:
    async with session.get(path, headers=headers) as answer:
        assert answer.status == 200
        await answer.content.readexactly(1_000)
        ended = await db.fetchval(
            "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE application_name = 'clickdam-reports' AND datname = current_database()"
        )
        assert ended
        await answer.read()


async def test_a_reader_who_takes_nothing_does_not_keep_a_connection(
    admin: Client, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "EXPORT_PAUSE_MAX_S", 0.5)
    await many(db, 150_000)  # 7 MB, of which Linux takes 4 before the reader has to
    url = admin.session._base_url
    assert url is not None
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((url.host, url.port))
        sock.sendall(f"GET {WIDE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {admin.key}\r\n\r\n".encode())
        async with asyncio.timeout(20):
            while not await db.fetchval(f"{_BUSY} AND query LIKE '%click_rollup%'"):
                await asyncio.sleep(0.05)
            while await db.fetchval(_BUSY):
                await asyncio.sleep(0.1)
        received = await asyncio.to_thread(_received, sock)
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert not received.endswith(b"0\r\n\r\n")


_BUSY = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'clickdam-reports' AND state <> 'idle'
"""


def _received(sock: socket.socket) -> bytes:
    """All that comes, to the end or the breaking off."""
    received = bytearray()
    sock.settimeout(10)
    with contextlib.suppress(ConnectionError):
        while data := sock.recv(65_536):
            received += data
    return bytes(received)
