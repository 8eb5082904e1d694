"""Rollups that are not what the clicks come to are found, and put right when that is asked for."""

from __future__ import annotations

import io
import random
from datetime import timedelta
from typing import Any

import pytest
from rich.console import Console

from aggregator.db.connect import Connection
from aggregator.db.instants import QUARTER_MS, at, rfc3339
from aggregator.flush.session import Session
from aggregator.settled.recompute import recompute, settled
from deploy.run.children import CannotStart
from deploy.run.recomputing import run
from schemas import limits
from tests.aggregator.settled.test_quarters import an_hour, complete, flush, settle, visit

_SUMS = {
    "click_rollup": "quarter, link_id, offer_id, partner_id, country, device",
    "detail_rollup": "quarter, partner_id, name, value, offer_id",
}


async def sums(db: Connection) -> list[Any]:
    """What reports see: rows with their shards together."""
    return [
        await db.fetch(
            f"""SELECT {key}, sum(clicks), sum(invalid_clicks), sum(unique_clicks) FROM {table}
                GROUP BY {key} ORDER BY {key}"""
        )
        for table, key in _SUMS.items()
    ]


@pytest.fixture
async def begins_ms(db: Connection, session: Session) -> int:
    """Three settled quarter hours with clicks, and one that is open."""
    begins_ms, chance = an_hour(), random.Random(1)
    for shard in range(2):
        await flush(session, *(
            visit(
                begins_ms + chance.randrange(3 * QUARTER_MS), n % 9, click_class=(0, 0, 0, 1, 4)[n % 5], link_id=n % 3,
                source_id=f"s{n % 4}", country="DE", device=("phone", "")[n % 2],
            )
            for n in range(80)
        ), shard=shard)  # fmt: skip
    await flush(session, visit(begins_ms + 3 * QUARTER_MS))
    await complete(db, begins_ms + 3 * QUARTER_MS)
    assert await settle(db) == 3
    return begins_ms


DAMAGE = {
    "counted too many": "UPDATE click_rollup SET clicks = clicks + 3 WHERE shard = 0 AND quarter < $1",
    "counted too few": "UPDATE click_rollup SET clicks = clicks - 1, invalid_clicks = 0 WHERE shard = 1",
    "rows gone": "DELETE FROM click_rollup WHERE shard = 1",
    "all gone": "DELETE FROM click_rollup WHERE quarter < $1; DELETE FROM detail_rollup",
    "uniques wrong": "UPDATE click_rollup SET unique_clicks = unique_clicks + 1 WHERE shard = 1",
    "details wrong": "UPDATE detail_rollup SET clicks = 0 WHERE value = 's1'",
    "a detail too many": "INSERT INTO detail_rollup SELECT 1, 'os', min(quarter), 1, 'x', 1, 0, 1 FROM settled_quarter",
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_what_is_wrong_is_told_left_and_then_put_right(damage: str, begins_ms: int, db: Connection) -> None:
    right = await sums(db)
    await db.execute(DAMAGE[damage].replace("$1", f"'{rfc3339(at(begins_ms + 3 * QUARTER_MS))}'"))
    wrong = await sums(db)
    assert wrong != right
    quarters = await settled(db, at(begins_ms), at(begins_ms + 4 * QUARTER_MS))
    assert quarters == [at(begins_ms + n * QUARTER_MS) for n in range(3)]
    told = [await recompute(db, quarter, apply=False) for quarter in quarters]
    assert any(told)
    assert await sums(db) == wrong
    assert [await recompute(db, quarter, apply=True) for quarter in quarters] == told
    shown = [[row for row in rows if any([*row][-3:])] for rows in await sums(db)]
    assert shown == right
    assert not any([await recompute(db, quarter, apply=True) for quarter in quarters])


async def test_what_is_not_settled_or_has_lost_its_clicks_is_left_alone(begins_ms: int, db: Connection) -> None:
    assert not await settled(db, at(begins_ms + 3 * QUARTER_MS), at(begins_ms + 8 * QUARTER_MS))
    long_ago = at(begins_ms) - timedelta(days=90)
    await db.execute("INSERT INTO settled_quarter (quarter, recorded, reported) VALUES ($1, 5, 5)", long_ago)
    assert len(await settled(db, long_ago, at(begins_ms + 8 * QUARTER_MS))) == 3


async def test_the_command_prints_what_differs_and_how_many_rows(
    begins_ms: int, db: Connection, shared_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DIFFERENCES_SHOWN_MAX", 2)
    times = rfc3339(at(begins_ms)), rfc3339(at(begins_ms + 4 * QUARTER_MS))

    async def said(*, apply: bool) -> tuple[int, str]:
        console = Console(file=io.StringIO(), width=200)
        return await run(shared_database_url, *times, console, apply=apply), console.file.getvalue()

    count, text = await said(apply=False)
    assert (count, "3 settled quarter hours and 0 with conversions looked at: 0 rows differ" in text) == (0, True)
    await db.execute("UPDATE click_rollup SET clicks = clicks + 7000 WHERE shard = 0")
    count, text = await said(apply=False)
    assert count > 2
    assert f"{count:,} rows differ\nthe first 2 are shown" in text
    assert "click_rollup" in text
    assert f"{count:,} rows differ, put right" in (await said(apply=True))[1]
    assert (await said(apply=False))[0] == 0


async def test_what_is_no_time_is_one_clear_line(shared_database_url: str) -> None:
    with pytest.raises(CannotStart, match="'soon' is neither a day"):
        await run(shared_database_url, "2026-11-27", "soon", Console(file=io.StringIO()), apply=False)
