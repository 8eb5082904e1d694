"""What an operator sees of the house, and what the acts by hand do and leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aggregator.db.connect import Connection
from aggregator.flush.session import open_session
from aggregator.flush.watermark import apply_beats
from loadtests.faults.journals import beat, now_ms, settings
from schemas import limits

Ago = Callable[[float], datetime]
Edge = Callable[..., Awaitable[None]]


@pytest.fixture
def ago() -> Ago:
    """The time so many seconds before the test began."""
    now = datetime.now(UTC)
    return lambda seconds: now - timedelta(seconds=seconds)


@pytest.fixture
def an_edge(db: Connection, ago: Ago) -> Edge:
    async def make(incarnation: str, *, heard_s: float = 1.0, complete_s: float | None = 2.0, **columns: Any) -> None:
        """Heard of and complete so many seconds ago."""
        times = {"registered_at": ago(3_600), "heard_at": ago(heard_s)}
        given = {"incarnation": incarnation, "name": "edge/0"} | times | columns
        values = ", ".join(f"${n}" for n in range(1, len(given) + 1))
        await db.execute(f"INSERT INTO edge ({', '.join(given)}) VALUES ({values})", *given.values())
        if complete_s is not None:
            await db.execute("INSERT INTO edge_beat VALUES ($1, $2, $2, '[]')", incarnation, ago(complete_s))

    return make


def shown(instant: datetime) -> str:
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def test_an_empty_house_has_nothing_to_show(admin: Any) -> None:
    assert await admin("GET", "/v1/system") == (
        200,
        {
            "complete_through": None,
            "edges_total": 0,
            "edges": [],
            "partitions_total": 0,
            "partitions": [],
            "dead_letters": 0,
        },
    )


async def test_edges_are_shown_with_who_holds_completeness_back_first(admin: Any, an_edge: Edge, ago: Ago) -> None:
    await an_edge("beats", complete_s=2)
    await an_edge("vanished", heard_s=limits.SILENT_S + 60, complete_s=90)
    await an_edge("closing", closing_to=ago(1), closing_acked=[["s", 0, 5]], complete_s=40)
    await an_edge("over", closing_to=ago(1), closing_acked=[], heard_s=900, complete_s=900)
    await an_edge("closed", closed_at=ago(800), heard_s=900, complete_s=900)
    _, answer = await admin("GET", "/v1/system")
    assert answer["complete_through"] == shown(ago(90))
    assert answer["edges_total"] == 3
    assert answer["edges"][0] == {
        "incarnation": "vanished",
        "name": "edge/0",
        "registered_at": shown(ago(3_600)),
        "complete_to": shown(ago(90)),
        "heard_at": shown(ago(limits.SILENT_S + 60)),
        "state": "silent",
        "holds_back": True,
    }
    assert [(edge["incarnation"], edge["state"], edge["holds_back"]) for edge in answer["edges"][1:]] == [
        ("closing", "closing", False),
        ("beats", "beating", False),
    ]


async def test_edges_of_which_nothing_is_known_all_hold_completeness_back(admin: Any, an_edge: Edge) -> None:
    await an_edge("a", complete_s=None)
    await an_edge("b", complete_s=None)
    await an_edge("c")
    _, answer = await admin("GET", "/v1/system")
    assert answer["complete_through"] is None
    assert [(edge["complete_to"], edge["holds_back"]) for edge in answer["edges"]][:2] == [(None, True)] * 2
    assert answer["edges"][2]["holds_back"] is False


async def test_partitions_that_stand_still_are_shown_first_and_dead_letters_counted(
    admin: Any, db: Connection, ago: Ago
) -> None:
    await db.execute("INSERT INTO log_position VALUES ('a', 0, 7)")
    await db.execute("INSERT INTO log_position VALUES ('z', 1, 9, 'recreated', $1)", ago(50))
    await db.execute(
        'INSERT INTO dead_letter (source, partition, "offset", line, reason, body)'
        " SELECT 's', 0, n, 1, 'r', '' FROM generate_series(1, 5) n"
    )
    _, answer = await admin("GET", "/v1/system")
    assert answer["partitions"] == [
        {"source": "z", "partition": 1, "next": 9, "stopped": "recreated", "stopped_at": shown(ago(50))},
        {"source": "a", "partition": 0, "next": 7, "stopped": None, "stopped_at": None},
    ]
    assert (answer["partitions_total"], answer["dead_letters"]) == (2, 5)


async def test_lists_are_bounded_and_their_totals_true(admin: Any, db: Connection) -> None:
    more = limits.SYSTEM_ROWS_MAX + 5
    await db.execute("INSERT INTO edge (incarnation, name) SELECT n::text, 'e' FROM generate_series(1, $1) n", more)
    await db.execute("INSERT INTO log_position SELECT 's', n, 0 FROM generate_series(1, $1) n", more)
    _, answer = await admin("GET", "/v1/system")
    for of in ("edges", "partitions"):
        assert (len(answer[of]), answer[f"{of}_total"]) == (limits.SYSTEM_ROWS_MAX, more)


async def test_an_edge_that_vanished_is_written_off_at_what_was_complete_of_it(
    admin: Any, db: Connection, an_edge: Edge, ago: Ago
) -> None:
    await an_edge("stays", complete_s=2)
    await an_edge("gone", heard_s=limits.SILENT_S + 1, complete_s=90)
    status, answer = await admin("POST", "/v1/system/edges/gone/write-off", json={"reason": "disk burnt"})
    assert (status, answer) == (200, {"incarnation": "gone", "name": "edge/0", "closed_at": shown(ago(90))})
    _, system = await admin("GET", "/v1/system")
    assert (system["complete_through"], system["edges_total"]) == (shown(ago(2)), 1)
    key_id = await db.fetchval("SELECT id FROM api_key")
    _, audit = await admin("GET", "/v1/audit")
    (act,) = audit["data"]
    assert datetime.fromisoformat(act.pop("at")) > ago(0)
    assert act == {
        "id": 1,
        "actor": f"admin:{key_id}",
        "action": "write_off_edge",
        "subject": "gone",
        "reason": "disk burnt",
        "before": {
            "name": "edge/0",
            "complete_to": shown(ago(90)),
            "heard_at": shown(ago(limits.SILENT_S + 1)),
        },
        "after": {"closed_at": shown(ago(90))},
    }


async def test_an_edge_of_which_nothing_was_ever_known_is_written_off_too(admin: Any, an_edge: Edge) -> None:
    await an_edge("gone", heard_s=limits.SILENT_S + 1, complete_s=None)
    status, answer = await admin("POST", "/v1/system/edges/gone/write-off")
    assert (status, answer["closed_at"]) == (200, None)
    _, system = await admin("GET", "/v1/system")
    assert (system["complete_through"], system["edges"]) == (None, [])


async def test_an_edge_whose_closing_can_never_be_passed_is_written_off(admin: Any, an_edge: Edge, ago: Ago) -> None:
    lost = {"closing_to": ago(50), "closing_acked": [["recreated", 0, 5]]}
    await an_edge("gone", heard_s=limits.SILENT_S + 1, complete_s=90, **lost)
    _, answer = await admin("POST", "/v1/system/edges/gone/write-off", json={})
    assert answer["closed_at"] == shown(ago(90))


async def test_who_still_beats_has_closed_or_never_was_is_not_written_off(
    admin: Any, db: Connection, an_edge: Edge, ago: Ago
) -> None:
    await an_edge("beats", heard_s=limits.SILENT_S - 20)
    await an_edge("closed", heard_s=900, closed_at=ago(900))
    await an_edge("over", heard_s=900, closing_to=ago(900), closing_acked=[])
    for incarnation in ("beats", "closed", "over"):
        status, answer = await admin("POST", f"/v1/system/edges/{incarnation}/write-off")
        assert (status, answer["error"]["code"]) == (409, "conflict"), incarnation
    for unknown in ("other", "%00", "%ff", "a%0ab", "x" * 500):
        status, answer = await admin("POST", f"/v1/system/edges/{unknown}/write-off")
        assert (status, answer["error"]["code"]) == (404, "not_found"), unknown
    assert await db.fetchval("SELECT count(*) FROM audit") == 0
    assert await db.fetchval("SELECT count(*) FROM edge WHERE closed_at IS NULL") == 2


async def test_what_is_heard_of_an_edge_that_was_written_off_changes_nothing(
    admin: Any, db: Connection, database_url: str, tmp_path: Path, an_edge: Edge, ago: Ago
) -> None:
    await an_edge("gone", heard_s=limits.SILENT_S + 1, complete_s=90)
    await admin("POST", "/v1/system/edges/gone/write-off")
    async with open_session(settings(database_url, tmp_path)) as session:
        await apply_beats(session.db, [beat("gone"), beat("gone", "closed"), beat("other", complete_to_ms=now_ms())])
    _, system = await admin("GET", "/v1/system")
    assert [edge["incarnation"] for edge in system["edges"]] == ["other"]
    assert await db.fetchval("SELECT closed_at FROM edge WHERE incarnation = 'gone'") == ago(90)


async def test_a_partition_that_stands_still_goes_on_at_the_earliest_record(
    admin: Any, db: Connection, ago: Ago
) -> None:
    await db.execute("INSERT INTO log_position VALUES ('t@1', 3, 9, 'overtaken', $1, '\\x01')", ago(50))
    body = {"source": "t@1", "partition": 3}
    assert await admin("POST", "/v1/system/partitions/resume", json=body) == (200, {**body, "next": -1})
    row = await db.fetchrow("SELECT next, stopped, stopped_at, last_digest FROM log_position")
    assert row is not None
    assert tuple(row) == (-1, None, None, None)
    _, audit = await admin("GET", "/v1/audit")
    (act,) = audit["data"]
    assert (act["action"], act["subject"], act["reason"]) == ("resume_partition", "t@1/3", None)
    assert act["before"] == {"next": 9, "stopped": "overtaken", "stopped_at": shown(ago(50))}
    assert act["after"] == {"next": -1}


async def test_a_partition_that_goes_on_or_never_was_is_not_resumed(admin: Any, db: Connection) -> None:
    await db.execute("INSERT INTO log_position VALUES ('t@1', 3, 9)")
    for partition, expected in ((3, (409, "conflict")), (4, (404, "not_found"))):
        body = {"source": "t@1", "partition": partition}
        status, answer = await admin("POST", "/v1/system/partitions/resume", json=body)
        assert (status, answer["error"]["code"]) == expected
    assert await db.fetchval("SELECT next FROM log_position") == 9
    assert await db.fetchval("SELECT count(*) FROM audit") == 0


async def test_of_two_who_write_the_same_edge_off_at_once_one_is_told_so(
    admin: Any, db: Connection, an_edge: Edge
) -> None:
    await an_edge("gone", heard_s=limits.SILENT_S + 1)
    calls = (admin("POST", "/v1/system/edges/gone/write-off") for _ in range(5))
    statuses = sorted([status for status, _ in await asyncio.gather(*calls)])
    assert statuses == [200, 409, 409, 409, 409]
    assert await db.fetchval("SELECT count(*) FROM audit") == 1


async def test_the_audit_is_read_from_the_latest_act_page_by_page(admin: Any, db: Connection) -> None:
    await db.execute(
        "INSERT INTO audit (actor, action, subject) SELECT 'admin:1', 'a', n::text FROM generate_series(1, 5) n"
    )
    pages, cursor = [], ""
    while True:
        _, page = await admin("GET", f"/v1/audit?limit=2{cursor}")
        pages.append([act["subject"] for act in page["data"]])
        if not page["truncated"]:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert pages == [["5", "4"], ["3", "2"], ["1"]]
    assert page["next_cursor"] is None
