"""The version of rows: it moves with every change of them, and says when it cannot tell."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from aggregator.db.connect import Connection, Pool, acquire_to_read, connect, pool, report_pool
from aggregator.reports.state import Rows, State, Versions, read_state, read_version
from schemas import limits
from schemas.errors import Refused

DAY = datetime(2026, 11, 20, tzinfo=UTC)
QUARTER = timedelta(minutes=15)
OURS = Rows(1, DAY, DAY + timedelta(days=1))


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Connection]:
    connection = await connect(database_url, command_timeout_s=10)
    yield connection
    await connection.close()


async def sell(db: Connection, partner_id: int, changed_s_ago: float) -> UUID:
    conversion_id = uuid4()
    await db.execute(
        "INSERT INTO conversion (conversion_id, intake_id, link_id, offer_id, partner_id, advertiser_id, event,"
        " event_at, received_at, status, sale_currency, currency, booked_payout_minor, changed_at)"
        " VALUES ($1, $1, 1, 1, $2, 1, 'sale', $3, $3, 'pending', 'EUR', 'EUR', 0,"
        "         now() - make_interval(secs => $4))",
        conversion_id, partner_id, DAY, changed_s_ago,
    )  # fmt: skip
    return conversion_id


async def settle(db: Connection, quarter: datetime, settled_s_ago: float) -> None:
    await db.execute(
        "INSERT INTO settled_quarter (quarter, recorded, reported, settled_at)"
        " VALUES ($1, 0, 0, now() - make_interval(secs => $2))"
        " ON CONFLICT (quarter) DO UPDATE SET settled_at = excluded.settled_at",
        quarter, settled_s_ago,
    )  # fmt: skip


async def test_a_version_moves_with_each_change_of_its_own_rows_and_no_others(db: Connection) -> None:
    versions = [await read_version(db, OURS)]
    for partner_id, ago_s in ((1, 5000), (1, 4000), (1, 100)):
        await sell(db, partner_id, ago_s)
        versions.append(await read_version(db, OURS))
    await settle(db, DAY, 90)
    versions.append(await read_version(db, OURS))
    await settle(db, DAY, 80)
    versions.append(await read_version(db, OURS))
    assert all(versions)
    assert len(set(versions)) == len(versions)
    await sell(db, 2, 50)
    await settle(db, OURS.starts - QUARTER, 70)
    await settle(db, OURS.ends, 60)
    await db.execute("INSERT INTO stale_quarter (quarter) VALUES ($1)", OURS.ends)
    assert await read_version(db, OURS) == versions[-1]


async def test_a_partners_version_is_of_its_conversions_and_the_programmes_of_all(db: Connection) -> None:
    of_all = Rows(None, OURS.starts, OURS.ends)
    seen = []
    for partner_id, ago_s in ((1, 300), (2, 200), (2, 100)):
        await sell(db, partner_id, ago_s)
        seen.append((await read_version(db, OURS), await read_version(db, of_all)))
    assert seen[0][0] == seen[1][0] == seen[2][0]
    assert len({everything for _, everything in seen}) == 3


async def test_a_version_is_unsure_while_a_change_may_come_that_began_before_the_newest(db: Connection) -> None:
    sale = await sell(db, 1, limits.TRANSACTION_S / 2)
    assert await read_version(db, OURS) == ""
    await db.execute(
        "UPDATE conversion SET changed_at = now() - make_interval(secs => $2) WHERE conversion_id = $1",
        sale, 2 * limits.TRANSACTION_S,
    )  # fmt: skip
    assert await read_version(db, OURS) != ""
    await settle(db, DAY, limits.TRANSACTION_S / 2)
    assert await read_version(db, OURS) == ""


async def test_a_version_is_unsure_as_long_as_a_change_is_under_way_that_began_before_the_newest(
    db: Connection, database_url: str
) -> None:
    """However long it takes: the newest change is older than any transaction should be."""
    late = await sell(db, 1, 5000)
    slow = await connect(database_url, command_timeout_s=10)
    async with slow.transaction():
        await slow.execute(
            "UPDATE conversion SET changed_at = now(), status = 'approved' WHERE conversion_id = $1", late
        )
        assert await read_version(db, OURS) != ""
        newest = await sell(db, 1, 0)
        booked = (await read_state(db)).booked_through
        assert booked < await slow.fetchval("SELECT now()")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(limits, "TRANSACTION_S", -1.0)  # as if that were long ago
            assert await read_version(db, OURS) == ""
            assert (await read_state(db)).booked_through == await slow.fetchval("SELECT now()")
    await db.execute(
        "UPDATE conversion SET changed_at = changed_at - make_interval(secs => $2) WHERE conversion_id = $1",
        newest, 2 * limits.TRANSACTION_S,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "TRANSACTION_S", -1.0)
        assert await read_version(db, OURS) != ""
    await slow.close()


async def test_a_version_is_unsure_while_a_quarter_hour_is_to_be_settled_anew(db: Connection) -> None:
    assert await read_version(db, OURS) != ""
    await db.execute("INSERT INTO stale_quarter (quarter) VALUES ($1)", OURS.ends - QUARTER)
    assert await read_version(db, OURS) == ""


async def complete(db: Connection, through: datetime | None, settled: datetime | None) -> None:
    await db.execute("DELETE FROM edge; UPDATE settling SET through = '-infinity'")
    if through:
        await db.execute("INSERT INTO edge (incarnation, name, closed_at) VALUES ('a', 'a', $1)", through)
    if settled:
        await db.execute("UPDATE settling SET through = $1", settled)


async def test_only_rows_whose_whole_time_is_complete_and_settled_have_a_version(
    db: Connection, database_url: str
) -> None:
    ends = OURS.ends
    for through, settled, is_closed in (
        (None, None, False), (ends, None, False), (None, ends, False), (ends, ends - QUARTER, False),
        (ends - QUARTER, ends, False), (ends, ends, True), (ends + QUARTER, ends + QUARTER, True),
    ):  # fmt: skip
        await complete(db, through, settled)
        state = await read_state(db)
        assert state == State(through, settled, None, state.booked_through, "UTC", "EUR", False)
        async with pool(database_url) as connections:
            assert (await Versions(connections).version(OURS) is not None) == is_closed, (through, settled)


async def test_what_was_booked_has_a_version_once_nobody_can_be_booking_as_of_then(
    db: Connection, database_url: str
) -> None:
    now = await db.fetchval("SELECT now()")
    await complete(db, now, now)
    async with pool(database_url) as connections:
        for ends, booked, is_closed in (
            (now - QUARTER, True, True), (now - timedelta(seconds=limits.TRANSACTION_S / 2), True, False),
            (now - timedelta(seconds=limits.TRANSACTION_S / 2), False, True),
        ):  # fmt: skip
            version = await Versions(connections).version(Rows(1, DAY, ends, booked))
            assert (version is not None) == is_closed, (ends, booked)


async def test_what_is_being_booked_by_who_settles_days_is_waited_for(
    db: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TRANSACTION_S", 0.0)
    settling = await connect(database_url, command_timeout_s=10, application_name="clickdam-settled")
    async with settling.transaction():
        began = await settling.fetchval("SELECT now()")
        assert (await read_state(db)).booked_through == began
    assert (await read_state(db)).booked_through > began
    await settling.close()


async def test_a_version_is_read_again_after_its_second_and_never_used_when_postgres_is_away(
    db: Connection, database_url: str
) -> None:
    await complete(db, OURS.ends, OURS.ends)
    now = 1_000.0
    async with pool(database_url) as connections:
        versions = Versions(connections, clock=lambda: now)
        first = await versions.version(OURS)
        await sell(db, 1, 100)
        assert await versions.version(OURS) == first
        now += limits.STATE_S
        second = await versions.version(OURS)
        assert second != first
        now += limits.STATE_S
        connections.terminate()
        with pytest.raises(Refused, match="please repeat"):
            await versions.version(OURS)


@pytest.fixture
async def readers(database_url: str) -> AsyncIterator[Pool]:
    async with report_pool(database_url) as connections:
        yield connections


async def test_connections_of_reports_only_read_and_have_their_limits(readers: Pool) -> None:
    async with readers.acquire() as db:
        shown = {
            name: await db.fetchval(f"SHOW {name}")
            for name in ("transaction_read_only", "statement_timeout", "work_mem", "application_name")
        }
    assert shown == {
        "transaction_read_only": "on",
        "statement_timeout": f"{limits.REPORT_STATEMENT_S:.0f}s",
        "work_mem": f"{limits.REPORT_WORK_MEM_BYTES // 1024**2}MB",
        "application_name": "clickdam-reports",
    }


async def test_a_report_that_postgres_gave_up_is_said_to_be_too_heavy(readers: Pool) -> None:
    with pytest.raises(Refused, match="takes too long") as refused:
        await sleep_too_long(readers)
    assert (refused.value.code, refused.value.status) == ("too_heavy", 503)
    async with acquire_to_read(readers) as db:
        assert await db.fetchval("SHOW statement_timeout") == f"{limits.REPORT_STATEMENT_S:.0f}s"


async def sleep_too_long(readers: Pool) -> None:
    async with acquire_to_read(readers) as db:
        await db.execute("SET statement_timeout = 20")
        await db.execute("SELECT pg_sleep(5)")
