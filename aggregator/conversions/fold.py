"""Several events of one order, one after the other. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from uuid import UUID

from msgspec.structs import replace

from aggregator.conversions.attribution import PIXEL
from aggregator.conversions.intakes import Outcome
from aggregator.conversions.rows import Change
from aggregator.conversions.states import Applied, Known, State, apply, is_post, step_of
from schemas.conversions.names import repeat_id
from schemas.events import Conversion
from schemas.outcomes import Held, Result, Status

SENDER = "sender"
CAPS = "caps"


@dataclass(slots=True)
class Order:
    """One order, what was sent of it, and what came of that: `before` and `after` (None while it is not known), what
    Postgres has of it by now (`written`), `outcomes` by intake, the changes, the steps that were counted before and
    those that this adds, and the conversions it repeats as."""

    id: UUID
    events: list[Conversion]
    before: State | None = None
    after: State | None = None
    written: State | None = None
    counted: Collection[str] = ()
    outcomes: dict[UUID, Outcome] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    steps: list[tuple[UUID, str, UUID | None]] = field(default_factory=list)
    repeats: list[Conversion] = field(default_factory=list)

    @property
    def is_new(self) -> bool:
        return self.before is None and self.after is not None

    @property
    def changes_what_is_there(self) -> bool:
        return self.before is not None and bool(self.after != self.before or self.steps or self.repeats)


def fold(
    order_id: UUID,
    before: State | None,
    events: Iterable[Conversion],
    known: Known,
    counted: Collection[str] = (),
    *,
    no_more: bool = False,
) -> Order:
    """What becomes of an order. What only changes one waits until it is there. `counted` are the steps that were
    counted before; with `no_more`, nothing may raise what an approved one has booked: a cap is full."""
    order = Order(order_id, list(events), before, before, before, counted)
    steps = set(counted)
    for posts in (True, False) if before is None else (None,):
        for event in order.events:
            if posts is None or is_post(event) is posts:
                _apply_one(order, event, known, steps, no_more=no_more)
    return order


def _apply_one(order: Order, event: Conversion, known: Known, steps: set[str], *, no_more: bool) -> None:
    step = step_of(event)
    applied = apply(order.after, event, known, seen=step in steps)
    if no_more and (_raises(order.after, applied.state) or _raises(order.before, applied.state)):
        applied = Applied(order.after, Result.REJECTED, Held.OVER_CAP)
    order.outcomes[event.intake_id] = Outcome(order.id, applied.result, applied.reason)
    if applied.step and applied.step not in steps:
        steps.add(applied.step)
        order.steps.append((order.id, applied.step, event.intake_id))
    if applied.repeats:
        repeat = replace(event, conversion_id=repeat_id(order.id, event.event_id or str(event.intake_id)))
        order.repeats.append(repeat)
    if applied.state is None:
        return
    known.owners.converted |= _converts(applied.state)
    if order.after is not None and applied.changed:
        reason = event.original_status or event.status or None
        order.changes.append(Change(order.after, applied.state, SENDER, reason, event.intake_id))
    order.after = replace(applied.state, conversion_id=order.id)


def _raises(before: State | None, after: State | None) -> bool:
    if before is None or after is None or before.status is not Status.APPROVED:
        return False
    more = after.booked_payout_minor - before.booked_payout_minor
    return more > 0 or after.booked_revenue_minor > before.booked_revenue_minor


def _converts(state: State) -> set[UUID]:
    """Its click has a conversion now."""
    counts = state.status is Status.APPROVED or (state.status is Status.PENDING and state.door != PIXEL)
    return {state.click_id} if state.click_id and counts else set()
