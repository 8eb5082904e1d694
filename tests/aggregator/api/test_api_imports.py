"""Imports: what a file of rows comes to, whatever is in it and however it arrives."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.api.sheets import Cutter, read_header, read_row, write_header, write_rows
from aggregator.db.connect import Connection
from aggregator.publish.outbox import drain
from schemas import limits, links, redis_keys
from schemas.errors import Refused
from schemas.redis import Redis, done

CSV = {"Content-Type": "text/csv"}
JSONL = {"Content-Type": "application/x-ndjson"}
NONE = {"created": 0, "updated": 0, "unchanged": 0, "failed": 0, "errors": [], "truncated": False, "dry_run": False}


async def send(call: Any, kind: str, data: Any, query: str = "", **headers: str) -> tuple[int, Any]:
    if isinstance(data, str):
        data = data.encode()
    answered: tuple[int, Any] = await call("POST", f"/v1/{kind}/import{query}", data=data, headers=CSV | headers)
    return answered


async def brought(admin: Any) -> None:
    """A small programme as another tracker had it."""
    offers = (
        "external_id,advertiser_external_id,name,destination_url,payout.model,payout.amount_minor,payout.percent,"
        "payout.currency,deep_link_hosts\n"
        'O1,A1,Shoes,https://shop.example/?c={click_id},cpa,425,,EUR,"[""shop.example""]"\n'
        "O2,A1,Boots,https://boots.example/,cps,,7.50,USD,\n"
    )
    for kind, sheet in (
        ("advertisers", "external_id,name\nA1,Shop\n"),
        ("partners", "external_id,name,status\nP1,Blog,active\nP2,Deals,pending\n"),
        ("offers", offers),
    ):
        status, found = await send(admin, kind, sheet)
        assert (status, found["failed"]) == (200, 0), found


LINKS = "external_id,code,offer_external_id,partner_external_id,status\nL1,one,O1,P1,active\nL2,two,O2,P2,paused\n"


async def test_a_programme_comes_over_and_a_second_time_changes_nothing(
    admin: Any, db: Connection, redis: Redis
) -> None:
    await brought(admin)
    assert await send(admin, "links", LINKS) == (200, NONE | {"rows": 2, "created": 2})
    acts = await db.fetchval("SELECT count(*) FROM audit")
    queued = await db.fetchval("SELECT count(*) FROM outbox")
    await brought(admin)
    assert await send(admin, "links", LINKS) == (200, NONE | {"rows": 2, "unchanged": 2})
    assert await db.fetchval("SELECT count(*) FROM audit") == acts
    assert await db.fetchval("SELECT count(*) FROM outbox") == queued
    while await drain(db, redis):
        pass
    value = msgspec.json.decode(await done(redis.get(redis_keys.link("two"))), type=links.Link)
    assert (value.status, value.v[1]) == ("paused", 1)
    reference = msgspec.json.decode(await done(redis.get(redis_keys.offer_reference("O2"))), type=links.Reference)
    assert reference.id == value.offer_id
    terms = await db.fetch("SELECT model, amount_minor, percent::text, currency FROM offer_terms ORDER BY offer_id")
    assert [tuple(row) for row in terms] == [("cpa", 425, None, "EUR"), ("cps", None, "7.500000", "USD")]


async def test_what_changes_is_changed_told_and_in_the_audit(admin: Any, db: Connection) -> None:
    await brought(admin)
    await send(admin, "links", LINKS)
    await db.execute("DELETE FROM outbox")
    sheet = LINKS.replace("L1,one,O1,P1,active", "L1,one,O1,P1,archived")
    _, found = await send(admin, "links", sheet)
    assert found == NONE | {"rows": 2, "updated": 1, "unchanged": 1}
    row = await db.fetchrow("SELECT id, status, version FROM link WHERE external_id = 'L1'")
    assert row is not None
    assert (row["status"], row["version"]) == ("archived", 2)
    assert await db.fetch("SELECT kind, row_id FROM outbox") == [("link", row["id"])]
    act = await db.fetchrow("SELECT * FROM audit ORDER BY id DESC LIMIT 1")
    assert act is not None
    assert (act["action"], act["subject"], act["actor"]) == ("change_link", f"link:{row['id']}", "admin:1")
    assert (act["before"]["status"], act["after"]["status"]) == ("active", "archived")
    assert act["reason"].startswith("import sha256:")


async def test_new_terms_hold_from_now_on_and_leave_the_old_ones(admin: Any, db: Connection) -> None:
    await brought(admin)
    row = {"external_id": "O1", "payout": {"model": "cps", "percent": "5", "currency": "EUR"}}
    for wanted in ("updated", "unchanged"):
        _, found = await send(admin, "offers", json.dumps(row), **JSONL)
        assert found == NONE | {"rows": 1, wanted: 1}
    terms = await db.fetch(
        "SELECT model, isfinite(valid_from) AS begins FROM offer_terms JOIN offer ON offer.id = offer_id"
        " WHERE external_id = 'O1' ORDER BY valid_from"
    )
    assert [tuple(row) for row in terms] == [("cpa", False), ("cps", True)]
    assert await db.fetchval("SELECT version FROM offer WHERE external_id = 'O1'") == 2


BAD_LINKS: list[tuple[str, str | None, str]] = [
    ("X1,x1,O1,P1", None, ""),
    ("X2,x2,O9,P1", "offer_external_id", "bad_value"),
    ("X3,x3,,P1", "offer_id", "missing_field"),
    ("X4,-bad,O1,P1", "code", "bad_value"),
    ("L1,other,O1,P1", "code", "conflict"),
    ("L1,one,O2,P1", "external_id", "conflict"),  # named twice: by the row before
    ("X5,one,O1,P1", "code", "conflict"),
    ("X 6,x6,O1,P1", "external_id", "bad_value"),
    ("X7,x7,O1", None, "bad_value"),
    ('X8,"x8"z,O1,P1', None, "bad_value"),
    (",,O1,P1", "external_id", "missing_field"),
    ("X9,x1,O1,P1", "code", "conflict"),  # that of the first row
    ("L2,two,O1,P2", "offer_id", "conflict"),
    ("X\udce41,x,O1,P1", None, "bad_value"),  # latin-1
    ("X10,x10,O1,P1", None, ""),
]


async def test_a_bad_row_stops_no_other_and_says_why(admin: Any, db: Connection) -> None:
    await brought(admin)
    await send(admin, "links", LINKS)
    sheet = "External_ID,code,Offer_External_Id,partner_external_id\n" + "\n".join(row for row, _, _ in BAD_LINKS)
    status, found = await send(admin, "links", sheet.encode("utf-8", "surrogateescape"))
    assert status == 200
    wanted = [(n, field, code) for n, (_, field, code) in enumerate(BAD_LINKS, 1) if code]
    assert [(one["row"], one["field"], one["code"]) for one in found["errors"]] == wanted
    assert (found["rows"], found["created"], found["failed"]) == (len(BAD_LINKS), 2, len(wanted))
    made = await db.fetch("SELECT code FROM link WHERE external_id LIKE 'X%' ORDER BY code")
    assert [row["code"] for row in made] == ["x1", "x10"]


async def test_a_refusal_says_what_a_name_may_be(admin: Any) -> None:
    for external_id in ("a b", "a/b", "ä"):
        _, answer = await admin("POST", "/v1/partners", json={"name": "x", "external_id": external_id})
        assert answer["error"]["message"] == "external_id: may have letters, digits and . _ ~ - only"
    _, found = await send(admin, "partners", "external_id,name\na b,x\n")
    assert found["errors"][0]["message"] == "external_id: may have letters, digits and . _ ~ - only"
    _, answer = await send(admin, "partners", "external_id,nmae\na,x\n")
    assert answer["error"]["field"] == "nmae"


async def test_what_only_the_database_refuses_is_found_also_by_a_dry_run(admin: Any, db: Connection) -> None:
    await brought(admin)
    await db.execute("ALTER TABLE link ADD CONSTRAINT odd CHECK (code NOT IN ('n3', 'n7'))")
    sheet = "code,offer_external_id,partner_external_id\n" + "".join(f"n{n},O1,P1\n" for n in range(10))
    before = await counted(db)
    for query in ("?dry_run=1", ""):
        status, found = await send(admin, "links", sheet, query)
        assert (status, found["created"], found["dry_run"]) == (200, 8, bool(query))
        assert [one["row"] for one in found["errors"]] == [4, 8]
        if query:
            assert await counted(db) == before
    assert await db.fetchval("SELECT count(*) FROM link") == 8


async def counted(db: Connection) -> list[int]:
    tables = ("advertiser", "partner", "offer", "offer_terms", "link", "reference", "outbox", "audit", "idempotency")
    return [await db.fetchval(f"SELECT count(*) FROM {table}") for table in tables]


async def test_empty_cells_clear_what_may_be_empty_and_else_say_nothing(admin: Any, db: Connection) -> None:
    await brought(admin)
    row = {"external_id": "O1", "fallback_url": "https://f.example/", "starts_at": "2026-11-27T00:00:00Z"}
    await send(admin, "offers", json.dumps(row | {"pass_parameters": True}), **JSONL)
    _, found = await send(admin, "offers", "external_id,fallback_url,starts_at,name,pass_parameters\nO1,,,,\n")
    assert found == NONE | {"rows": 1, "updated": 1}
    offer = await db.fetchrow("SELECT * FROM offer WHERE external_id = 'O1'")
    assert offer is not None
    kept = (offer["fallback_url"], offer["starts_at"], offer["name"], offer["pass_parameters"])
    assert kept == (None, None, "Shoes", True)
    assert offer["deep_link_hosts"] == ["shop.example"]


async def test_a_link_that_is_there_takes_the_external_id_it_is_given(admin: Any, made: Any, db: Connection) -> None:
    sheet = f"external_id,code,offer_id,partner_id\nL9,{made.code},{made.offer_id},{made.partner_id}\n"
    assert await send(admin, "links", sheet) == (200, NONE | {"rows": 1, "updated": 1})
    assert await db.fetchval("SELECT external_id FROM link WHERE id = $1", made.link_id) == "L9"


async def test_a_link_stays_paused_by_its_partner_until_its_status_changes(admin: Any, db: Connection) -> None:
    await brought(admin)
    await send(admin, "links", LINKS)
    await db.execute("UPDATE link SET paused_by_partner = true WHERE code = 'two'")
    for status, kept in (("paused", True), ("active", False)):
        _, found = await send(admin, "links", f"code,status\ntwo,{status}\n")
        assert (found["unchanged"], found["updated"]) == (kept, not kept)
        assert await db.fetchval("SELECT paused_by_partner FROM link WHERE code = 'two'") is kept


async def test_an_id_tells_which_row_is_meant_only_where_nothing_else_does(admin: Any, made: Any) -> None:
    sheet = f"id,external_id,name\n{made.partner_id},,Renamed\n{made.partner_id},P7,Another\n999,,Nobody\n"
    status, found = await send(admin, "partners", sheet)
    assert (status, found["updated"], found["created"]) == (200, 1, 1)
    assert [(one["row"], one["field"], one["code"]) for one in found["errors"]] == [(3, "id", "not_found")]


REFUSED: list[tuple[dict[str, str], bytes, str, int, str]] = [
    ({"Content-Type": "application/json"}, b"{}", "", 415, "unsupported_media_type"),
    (CSV, b"", "", 400, "bad_value"),
    (CSV, b"code,colour\na,b\n", "", 400, "unknown_field"),
    (CSV, b"code,Code\na,b\n", "", 400, "bad_value"),
    (CSV, "code\na\n".encode("utf-16"), "", 400, "bad_value"),
    (CSV, b"code\n", "?dry_run=yes", 400, "bad_value"),
    (CSV, b"code\n", "?colour=1", 400, "bad_value"),
]


@pytest.mark.parametrize(("headers", "data", "query", "status", "code"), REFUSED)
async def test_a_file_that_nobody_could_read_is_refused_as_a_whole(
    admin: Any, headers: dict[str, str], data: bytes, query: str, status: int, code: str
) -> None:
    answered, found = await send(admin, "links", data, query, **headers)
    assert (answered, found["error"]["code"]) == (status, code)


async def test_too_many_rows_and_too_many_bytes_are_refused(admin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IMPORT_ROWS_MAX", 2_000)
    sheet = "external_id,name\n" + "".join(f"P{n},N\n" for n in range(2_500))
    status, found = await send(admin, "partners", sheet)
    assert (status, found["error"]["code"]) == (413, "too_large")
    assert found["error"]["message"].endswith("rows 1 to 2000 are carried out")
    monkeypatch.setattr(limits, "IMPORT_BYTES_MAX", 10_000)
    assert (await send(admin, "partners", sheet))[0] == 413

    async def pieces() -> AsyncIterator[bytes]:
        for line in sheet.splitlines(keepends=True):
            yield line.encode()

    assert (await send(admin, "partners", pieces()))[0] == 413  # no Content-Length says so beforehand


async def test_a_body_that_does_not_come_is_cut(admin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SLOW_BODY_S", 0.2)

    async def never() -> AsyncIterator[bytes]:
        yield b"external_id,name\nP1,"
        await asyncio.sleep(3)

    status, found = await send(admin, "partners", never())
    assert (status, found["error"]["message"]) == (400, "the file did not arrive in time")


async def test_a_repeated_request_has_the_same_answer_and_another_file_is_refused(admin: Any, db: Connection) -> None:
    sheet = "external_id,name\n" + "".join(f"P{n},N\n" for n in range(1_500)) + "bad id,N\n"
    first = await send(admin, "partners", sheet, **{"Idempotency-Key": "k"})
    assert first[1]["created"] == 1_500
    await db.execute("UPDATE partner SET name = 'by hand' WHERE external_id = 'P3'")
    assert await send(admin, "partners", sheet, **{"Idempotency-Key": "k"}) == first
    assert await db.fetchval("SELECT name FROM partner WHERE external_id = 'P3'") == "by hand"
    for other in (sheet.replace("P1499,N", "P1499,M"), sheet + "P1500,N\n"):
        status, found = await send(admin, "partners", other, **{"Idempotency-Key": "k"})
        assert (status, found["error"]["code"]) == (422, "idempotency_key_reused")
    assert await db.fetchval("SELECT count(*) FROM partner") == 1_500


async def test_two_files_with_the_same_rows_at_once_make_each_row_once(admin: Any, db: Connection) -> None:
    await brought(admin)
    lines = [f"E{n},c{n},O1,P1\n" for n in range(2_000)]
    head = "external_id,code,offer_external_id,partner_external_id\n"
    answers = await asyncio.gather(
        send(admin, "links", head + "".join(lines)), send(admin, "links", head + "".join(reversed(lines)))
    )
    assert [status for status, _ in answers] == [200, 200]
    assert sum(found["created"] for _, found in answers) == 2_000
    assert sum(found["unchanged"] for _, found in answers) == 2_000
    assert await db.fetchval("SELECT count(*) FROM link") == 2_000


async def test_many_imports_at_once_leave_connections_to_other_calls(
    admin: Any, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "API_ACQUIRE_S", 0.5)
    async with db.transaction():
        await db.execute("SELECT pg_advisory_xact_lock(hashtext('import'), hashtext('partner'))")
        waiting = [
            asyncio.create_task(send(admin, "partners", f"external_id,name\nP{n},N\n"))
            for n in range(2 * limits.API_POOL_MAX)
        ]
        await asyncio.sleep(1)  # each would have its connection by now
        assert [(await admin("GET", "/v1/partners"))[0] for _ in range(3)] == [200, 200, 200]
        assert not any(one.done() for one in waiting)
    assert {status for status, _ in await asyncio.gather(*waiting)} == {200}


async def test_a_link_is_not_put_on_a_domain_that_has_no_links_of_its_own(admin: Any, made: Any) -> None:
    _, shared = await admin("POST", "/v1/domains", json={"host": "shared.example"})
    _, own = await admin("POST", "/v1/domains", json={"host": "own.example", "own_links": True})
    await admin("DELETE", f"/v1/domains/{own['id']}")
    head = "code,offer_id,partner_id,domain_id,domain\n"
    for cells, wanted in (
        (f"{shared['id']},", ("domain_id", "bad_value")),
        (",shared.example", ("domain", "bad_value")),
        ("404,", ("domain_id", "bad_value")),
        (f"{own['id']},", None),  # it leads somewhere once its domain is back
        (",own.example", None),
    ):
        _, found = await send(admin, "links", f"{head}here,{made.offer_id},{made.partner_id},{cells}\n")
        assert [(one["field"], one["code"]) for one in found["errors"]] == ([wanted] if wanted else []), cells


async def test_only_an_admin_with_the_scope_imports_and_exports(admin: Any, made: Any) -> None:
    partner = {"role": "partner", "partner_id": made.partner_id}
    for body in (partner, {"role": "admin", "scopes": ["offers.write", "offers.read"]}):
        _, key = await admin("POST", "/v1/keys", json=body)
        other = admin.with_key(key["key"])
        assert (await send(other, "links", LINKS))[0] == 403
        assert (await other("GET", "/v1/export/links"))[0] == 403


def cut(data: bytes, form: Any, sizes: list[int]) -> list[Any]:
    cutter, found = Cutter(form), []
    for size in sizes:
        found += cutter.feed(data[:size])
        data = data[size:]
    return [*found, *cutter.feed(data), *cutter.end()]


cells = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
rows_of = st.lists(st.lists(cells, min_size=3, max_size=3), max_size=8)


@settings(deadline=None)
@given(rows=rows_of, sizes=st.lists(st.integers(1, 9), max_size=30), bom=st.booleans(), crlf=st.booleans())
def test_rows_are_read_as_they_were_written_however_the_bytes_arrive(
    rows: list[list[str]], sizes: list[int], bom: bool, crlf: bool
) -> None:
    columns = ("a", "b", "c")
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    clean = [
        [cell.replace("\r", "").replace("\n", " ") if crlf else cell.replace("\r", "") for cell in row] for row in rows
    ]
    data = write_header(columns, "csv") + write_rows(
        [dict(zip(columns, row, strict=True)) for row in clean], columns, "csv"
    )
    data = (b"\xef\xbb\xbf" if bom else b"") + (data.replace(b"\n", b"\r\n") if crlf else data)
    first, *records = cut(data, "csv", sizes)
    header = read_header(first.text)
    assert [list(read_row(record, header).values()) for record in records] == clean


@settings(deadline=None)
@given(rows=st.lists(st.dictionaries(st.sampled_from("abc"), cells | st.integers(0, 9), min_size=1), max_size=8))
def test_json_lines_are_read_as_they_were_written(rows: list[dict[str, Any]]) -> None:
    records = cut(write_rows(rows, (), "jsonl"), "jsonl", [])
    assert [read_row(record, None) for record in records] == rows


async def test_a_quote_that_is_never_closed_costs_one_row(admin: Any, db: Connection) -> None:
    sheet = 'external_id;name\nP1;"Two\nlines"\nP2;"open\nP3;Three\nP4;"Four; and more"\n'
    _, found = await send(admin, "partners", sheet)
    assert (found["created"], [one["row"] for one in found["errors"]]) == (2, [1, 2])  # names have no line ends
    rows = await db.fetch("SELECT external_id, name FROM partner ORDER BY external_id")
    assert [tuple(row) for row in rows] == [("P3", "Three"), ("P4", "Four; and more")]


@pytest.mark.parametrize("begin", [b'"open\n' + b"a\n" * 200_000, b'x","y\n' * 100_000])
def test_quotes_that_are_never_closed_cost_no_more_than_other_rows(begin: bytes) -> None:
    started_s = time.process_time()
    records = cut(begin + b"last,one\n", "csv", [])
    assert [record.line for record in records] == list(range(1, begin.count(b"\n") + 2))
    assert time.process_time() - started_s < 20  # it was two minutes, and hours


def test_a_header_of_very_many_columns_is_read_or_refused_at_once() -> None:
    started_s = time.process_time()
    assert len(read_header(",".join(f"{n:x}" for n in range(13_000))).names) == 13_000
    with pytest.raises(Refused, match="at most 65536 bytes"):
        read_header("x" * 65_537)
    assert time.process_time() - started_s < 1  # it was three seconds


async def test_five_thousand_links_in_one_go_are_all_live(admin: Any, db: Connection, redis: Redis) -> None:
    await brought(admin)
    head = "external_id,code,offer_external_id,partner_external_id\n"
    sheet = head + "".join(f"E{n},c{n},O{n % 2 + 1},P1\n" for n in range(5_000))
    assert await send(admin, "links", sheet) == (200, NONE | {"rows": 5_000, "created": 5_000})
    assert await db.fetchval("SELECT count(*) FROM audit WHERE action = 'create_link'") == 5_000
    while await drain(db, redis):
        pass
    assert await done(redis.exists(*(redis_keys.link(f"c{n}") for n in range(5_000)))) == 5_000
