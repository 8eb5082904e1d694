"""Conversions as they lie in Postgres: read, locked, added and changed, any number at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from aggregator.conversions.states import State
from aggregator.db.connect import Database, Row
from aggregator.db.instants import at, to_ms
from schemas.outcomes import Status

_COLUMNS = {
    "conversion_id": "uuid", "intake_id": "uuid", "click_id": "uuid", "link_id": "int", "offer_id": "int",
    "partner_id": "int", "advertiser_id": "int", "event": "text", "order_id": "text", "event_at": "timestamptz",
    "received_at": "timestamptz", "click_class": "int", "door": "text", "original_status": "text",
    "customer_id": "text", "coupon_code": "text", "foreign_click": "text", "adv": "text", "base_minor": "bigint",
    "base_intake_id": "uuid", "sale_currency": "text", "payout_override_minor": "bigint",
    "revenue_stated_minor": "bigint", "held": "text", "doubt": "text", "increments_minor": "bigint",
    "refunds_minor": "bigint", "remaining_minor": "bigint", "said": "text", "status": "text", "reason": "text",
    "sale_amount_minor": "bigint", "payout_minor": "bigint", "currency": "text", "revenue_minor": "bigint",
    "revenue_currency": "text", "booked_payout_minor": "bigint", "booked_revenue_minor": "bigint",
}  # fmt: skip
_NAMES = ", ".join(_COLUMNS)
_ARRAYS = ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(_COLUMNS.values(), 1))
_INSERT = f"""
INSERT INTO conversion ({_NAMES})
SELECT {_NAMES.replace(" adv,", " adv::jsonb,")} FROM unnest({_ARRAYS}) AS new ({_NAMES})
ON CONFLICT DO NOTHING RETURNING conversion_id
"""  # noqa: S608 - our own names
_SET = ", ".join(f"{name} = new.{name}" for name in _COLUMNS if name != "conversion_id")
_UPDATE = f"""
UPDATE conversion SET {_SET.replace("new.adv,", "new.adv::jsonb,")}, version = version + 1, changed_at = now(),
    click_seen = click_seen AND conversion.click_id IS NOT DISTINCT FROM new.click_id
FROM unnest({_ARRAYS}) AS new ({_NAMES}) WHERE conversion.conversion_id = new.conversion_id
"""  # noqa: S608 - our own names
_READ_NAMES = _NAMES.replace(" adv,", " adv::text,").replace(", booked_payout_minor, booked_revenue_minor", "")
_READ = f"SELECT {_READ_NAMES} FROM conversion WHERE conversion_id = ANY ($1::uuid[])"  # noqa: S608
_LOCK = f"{_READ} ORDER BY conversion_id FOR UPDATE"
_KEEP_NAMES = "SELECT pg_advisory_xact_lock(hashtext('names'), part) FROM unnest($1::int[]) AS part"
_NAMES_PARTS = 64  # what Postgres has locks for, however many names a batch has
_STEPS = """
SELECT conversion_id, event_id FROM conversion_step
JOIN unnest($1::uuid[], $2::text[]) AS asked (conversion_id, event_id) USING (conversion_id, event_id)
"""
_ADD_STEPS = """
INSERT INTO conversion_step (conversion_id, event_id, intake_id)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::uuid[])
ON CONFLICT DO NOTHING
"""
_CHANGE = (
    "conversion_id", "actor", "from_status", "to_status", "reason", "sale_amount_minor", "payout_minor", "intake_id",
)  # fmt: skip
Step = tuple[UUID, str]  # an order, and what was counted of it


class Change(NamedTuple):
    """Who changed what, and why; `intake_id` where a sender did."""

    before: State
    after: State
    actor: str
    reason: str | None = None
    intake_id: UUID | None = None


async def read(db: Database, ids: Iterable[UUID]) -> dict[UUID, State]:
    """The conversions with these ids, as far as there are any."""
    return {row["conversion_id"]: _state(row) for row in await db.fetch(_READ, list(set(ids)))}


async def lock(db: Database, ids: Iterable[UUID]) -> dict[UUID, State]:
    """The same, locked to the transaction's end, in the order of their ids."""
    return {row["conversion_id"]: _state(row) for row in await db.fetch(_LOCK, sorted(set(ids)))}


async def keep_names(db: Database, names: Iterable[UUID]) -> None:
    """Let nobody else insert a conversion by two of these names, to the transaction's end."""
    await db.execute(_KEEP_NAMES, sorted({name.int % _NAMES_PARTS for name in names}))


async def insert(db: Database, states: Iterable[State]) -> set[UUID]:
    """Add conversions in the order of their ids; the ids that were not there."""
    rows = sorted(map(_row, states))
    if not rows:
        return set()
    return {row["conversion_id"] for row in await db.fetch(_INSERT, *zip(*rows, strict=True))}


async def update(db: Database, states: Iterable[State]) -> None:
    """Write conversions that this transaction has locked."""
    rows = [*map(_row, states)]
    if rows:
        await db.execute(_UPDATE, *zip(*rows, strict=True))


async def read_steps(db: Database, asked: Collection[Step]) -> set[Step]:
    """Those that were counted."""
    if not asked:
        return set()
    rows = await db.fetch(_STEPS, *zip(*asked, strict=True))
    return {(row["conversion_id"], row["event_id"]) for row in rows}


async def add_steps(db: Database, steps: Sequence[tuple[UUID, str, UUID | None]]) -> None:
    if steps:
        await db.execute(_ADD_STEPS, *zip(*sorted(steps, key=lambda step: step[:2]), strict=True))


async def add_changes(db: Database, changes: Iterable[Change]) -> None:
    """Remember who changed what."""
    rows = [
        (
            one.after.conversion_id, one.actor, one.before.status, one.after.status, one.reason,
            one.after.sale_amount_minor, one.after.payout_minor, one.intake_id,
        )
        for one in changes
    ]  # fmt: skip
    if rows:
        await db.copy_records_to_table("conversion_change", records=rows, columns=_CHANGE)


def _state(row: Row) -> State:
    fields = dict(row)
    fields["event_at_ms"] = to_ms(fields.pop("event_at"))
    fields["received_at_ms"] = to_ms(fields.pop("received_at"))
    fields["said"] = frozenset(fields["said"].split())
    fields["status"] = Status(fields["status"])
    fields["reason"] = fields["reason"] or ""
    fields["original_status"] = fields["original_status"] or ""
    return State(**fields)


def _row(state: State) -> tuple[Any, ...]:
    return (
        state.conversion_id, state.intake_id, state.click_id, state.link_id, state.offer_id,
        state.partner_id, state.advertiser_id, state.event, state.order_id, at(state.event_at_ms),
        at(state.received_at_ms), state.click_class, state.door, state.original_status or None,
        state.customer_id, state.coupon_code, state.foreign_click, state.adv, state.base_minor,
        state.base_intake_id, state.sale_currency, state.payout_override_minor,
        state.revenue_stated_minor, state.held, state.doubt, state.increments_minor,
        state.refunds_minor, state.remaining_minor, " ".join(sorted(state.said)), state.status, state.reason or None,
        state.sale_amount_minor, state.payout_minor, state.currency, state.revenue_minor,
        state.revenue_currency, state.booked_payout_minor, state.booked_revenue_minor,
    )  # fmt: skip
