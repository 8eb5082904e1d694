"""The intake log: every authenticated intake, what was sent and what came of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple
from uuid import UUID

from aggregator.db.connect import Database
from schemas import events
from schemas.events import Conversion, Intake
from schemas.outcomes import Result

NIL = UUID(int=0)
_THERE = "SELECT intake_id FROM conversion_intake WHERE intake_id = ANY ($1::uuid[])"
_INSERT = """
INSERT INTO conversion_intake
    (intake_id, conversion_id, named_as, result, reason, advertiser_id, order_id, door, dialect, raw, event)
SELECT intake_id, conversion_id, named_as, result, reason, advertiser_id, order_id, door, dialect, raw, event::jsonb
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::int[], $7::text[], $8::text[], $9::text[],
            $10::text[], $11::text[])
    AS new (intake_id, conversion_id, named_as, result, reason, advertiser_id, order_id, door, dialect, raw, event)
ON CONFLICT DO NOTHING RETURNING intake_id
"""
_UPDATE = """
UPDATE conversion_intake SET conversion_id = new.conversion_id, named_as = new.named_as, result = new.result,
    reason = new.reason,
    event = coalesce(new.event::jsonb, CASE WHEN new.result IN ('waiting', 'rejected') THEN conversion_intake.event END)
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[])
    AS new (intake_id, conversion_id, named_as, result, reason, event)
WHERE conversion_intake.intake_id = new.intake_id
"""
_WAITING = """
SELECT intake_id, conversion_id, event::text FROM conversion_intake
WHERE conversion_id = ANY ($1::uuid[]) AND result = 'waiting' ORDER BY intake_id
"""
_OVERDUE = """
SELECT conversion_id, EXISTS (
    SELECT FROM conversion AS made WHERE made.conversion_id IN (intake.conversion_id, former_id)) AS is_there
FROM (
    SELECT conversion_id, (event ->> 'former_id')::uuid AS former_id FROM conversion_intake
    WHERE result = 'waiting' AND conversion_id > $1 ORDER BY conversion_id LIMIT $2
) AS intake ORDER BY conversion_id
"""
_KEPT = frozenset({Result.WAITING, Result.REJECTED})  # to be applied later, or run again


class Outcome(NamedTuple):
    """What came of an intake, for which order."""

    conversion_id: UUID | None
    result: Result
    reason: str = ""


async def unseen(db: Database, intakes: Iterable[Conversion | Intake]) -> dict[UUID, Conversion | Intake]:
    """Those that Postgres has not, each once, in the order of the log."""
    by_id: dict[UUID, Conversion | Intake] = {}
    for one in intakes:
        by_id.setdefault(one.intake_id, one)
    for row in await db.fetch(_THERE, list(by_id)):
        del by_id[row["intake_id"]]
    return by_id


async def claim(
    db: Database, intakes: Mapping[UUID, Conversion | Intake], outcomes: Mapping[UUID, Outcome]
) -> set[UUID]:
    """Write down what is taken to come of them; those that nobody else has written meanwhile."""
    rows = [_row(intakes[intake_id], outcomes[intake_id]) for intake_id in sorted(intakes)]
    return {row["intake_id"] for row in await db.fetch(_INSERT, *zip(*rows, strict=True))}


async def correct(db: Database, outcomes: Mapping[UUID, Outcome], intakes: Mapping[UUID, Conversion | Intake]) -> None:
    """Write what came of them in the end."""
    rows = [
        (intake_id, *_named(intakes[intake_id], one), one.result, one.reason or None, _kept(intakes[intake_id], one))
        for intake_id, one in sorted(outcomes.items())
    ]
    if rows:
        await db.execute(_UPDATE, *zip(*rows, strict=True))


async def waiting(db: Database, conversion_ids: Collection[UUID]) -> list[Conversion]:
    """What waits for these orders. Who has locked the order is the only one to apply it."""
    rows = await db.fetch(_WAITING, sorted(conversion_ids)) if conversion_ids else []
    found = [events.decode(row["event"].encode()) for row in rows]
    return [one for one in found if isinstance(one, Conversion)]


async def overdue(db: Database, limit: int, after: UUID = NIL) -> tuple[set[UUID], UUID]:
    """Looks at so many changes that wait, by their orders: those orders that are there all the same, because they came
    while the change was being written, and the last one that was looked at; `NIL` when all were."""
    rows = await db.fetch(_OVERDUE, after, limit)
    last = rows[-1]["conversion_id"] if len(rows) == limit else NIL
    return {row["conversion_id"] for row in rows if row["is_there"]}, last


def _row(one: Conversion | Intake, outcome: Outcome) -> tuple[Any, ...]:
    return (
        one.intake_id, *_named(one, outcome), outcome.result, outcome.reason or None, one.advertiser_id,
        one.order_id or None, one.door or None, one.dialect or None, one.raw or None, _kept(one, outcome),
    )  # fmt: skip


def _named(one: Conversion | Intake, outcome: Outcome) -> tuple[UUID | None, UUID | None]:
    """The order that it is of, and what its receipt called that, where it is kept by another name."""
    receipt = one.conversion_id if isinstance(one, Conversion) else None
    return outcome.conversion_id, receipt if receipt != outcome.conversion_id else None


def _kept(one: Conversion | Intake, outcome: Outcome) -> str | None:
    return events.encode(one).decode() if outcome.result in _KEPT else None
