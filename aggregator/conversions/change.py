"""Change conversions by hand: the same states, caps and ledger as what senders say. The caller owns the transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple
from uuid import UUID

from aggregator.conversions import ledger, rows, states
from aggregator.conversions.attribution import Owner
from aggregator.conversions.ledger import Kind
from aggregator.conversions.record import Move, over_caps, record
from aggregator.conversions.rows import Change
from aggregator.conversions.settle import know
from aggregator.conversions.states import BY_HAND, Known, State
from aggregator.conversions.terms import read_offers
from aggregator.db.connect import Database
from schemas.errors import Refused
from schemas.outcomes import Held, Status

AUTO = "auto"
SHARD = -1  # of the rollups: nobody's but those who change by hand, and the tasks


class Changed(NamedTuple):
    """What became of a conversion; `refused` says why nothing did."""

    conversion_id: UUID
    status: Status
    refused: Refused | None = None


class Verdict(NamedTuple):
    """What a conversion is to become, and what is left of its amount, where they are said, and why."""

    status: Status | None
    remaining_minor: int | None
    reason: str


Apply = Callable[[State, Known], State]  # raises Refused
Reasons = Mapping[UUID, str | None]  # by conversion


async def approve(
    db: Database, ids: Iterable[UUID], actor: str, reason: str | None, shard: int = SHARD
) -> list[Changed]:
    """Approve what is pending, as far as caps have room. `actor` is `admin:3`, or `auto`, which lifts nothing but the
    wait for approval: what waits for something else by now says so. Answers sorted by id; nothing for an id that there
    is no conversion for."""

    def apply(state: State, known: Known) -> State:
        return _approved(state, known, by_person=actor != AUTO)

    return await _change(db, dict.fromkeys(ids, reason), apply, actor, shard)


async def reject(
    db: Database, ids: Iterable[UUID], actor: str, reason: str | None, shard: int = SHARD
) -> list[Changed]:
    """Reject what is pending; what is approved is reversed."""
    return await _state(db, ids, Status.REJECTED, actor, reason, None, shard)


async def reverse(
    db: Database, ids: Iterable[UUID], actor: str, reason: str | None, kind: Kind | None = None, shard: int = SHARD
) -> list[Changed]:
    """Take back what is approved; what is pending never will be. `kind` is the ledger's, `chargeback` or nothing."""
    return await _state(db, ids, Status.REVERSED, actor, reason, kind, shard)


async def decide(db: Database, verdicts: Mapping[UUID, Verdict], actor: str, shard: int = SHARD) -> list[Changed]:
    """Make of each what is said of it by a person, wholly or not at all; answers as `approve`."""

    def apply(state: State, known: Known) -> State:
        said = verdicts[state.conversion_id]
        if said.status in (Status.REJECTED, Status.REVERSED):
            return _stated(state, known, said.status)
        left = states.refunded(state, None, said.remaining_minor)
        if said.status is Status.APPROVED:
            return _approved(left, known, by_person=True)
        _allow(state, Status.REVERSED)
        return states.settled(left, known)

    return await _change(db, {uuid: said.reason for uuid, said in verdicts.items()}, apply, actor, shard)


async def refund(
    db: Database,
    conversion_id: UUID,
    actor: str,
    reason: str | None,
    *,
    refund_minor: int | None = None,
    remaining_minor: int | None = None,
    event_id: str = "",
    shard: int = SHARD,
) -> Changed:
    """Take a part of the amount back, which `event_id` names and which is counted once, or say what remains of it.
    Raises Refused."""
    if refund_minor is not None and not event_id:
        raise Refused("missing_field", "a refund needs an event_id, or it might be counted twice", "event_id")
    step = (conversion_id, f"refund:{event_id}")
    await rows.lock(db, [conversion_id])
    counted = refund_minor is None or step in await rows.read_steps(db, [step])

    def apply(state: State, known: Known) -> State:
        _allow(state, Status.REVERSED)
        return states.settled(states.refunded(state, None if counted else refund_minor, remaining_minor), known)

    changed = await _change(db, {conversion_id: reason}, apply, actor, shard)
    if not changed:
        raise Refused("not_found", "there is no such conversion")
    if changed[0].refused:
        raise changed[0].refused
    if not counted:
        await rows.add_steps(db, [(*step, None)])
    return changed[0]


async def reprice(db: Database, ids: Iterable[UUID], shard: int = SHARD) -> list[Changed]:
    """Work out again what waited for a rate that is there now."""
    return await _change(db, dict.fromkeys(ids, "there is a rate"), states.repriced, AUTO, shard)


async def give(db: Database, owners: Mapping[UUID, Owner], reason: str | None, shard: int = SHARD) -> list[Changed]:
    """Give parked conversions to whom their clicks turned out to be of; others are left as they are."""
    offers = await read_offers(db, {owner.offer_id for owner in owners.values()} - {0})

    def apply(state: State, known: Known) -> State:
        if state.held != Held.UNKNOWN_CLICK:
            return state
        known.owners.offers |= offers
        return states.owned(state, owners[state.conversion_id], known)

    return await _change(db, dict.fromkeys(owners, reason), apply, AUTO, shard)


async def adjust(
    db: Database,
    partner_id: int,
    amount_minor: int,
    currency: str,
    reason: str,
    actor: str,
    period: str | None = None,
    *,
    offer_id: int | None = None,
) -> int:
    """Book an amount for a partner, or against it where it is negative; the entry's id."""
    lines = ledger.balanced(ledger.Line(ledger.partner(partner_id), amount_minor, currency))
    entry = ledger.Entry("adjustment", lines, actor, reason, None, offer_id, period)
    return (await ledger.book(db, [entry]))[0]


def _allow(state: State, status: Status) -> None:
    if state.status not in BY_HAND[status]:
        raise Refused("conflict", f"it is {state.status}, and cannot become {status}")


async def _state(
    db: Database,
    ids: Iterable[UUID],
    status: Status,
    actor: str,
    reason: str | None,
    kind: Kind | None,
    shard: int,
) -> list[Changed]:
    def apply(state: State, known: Known) -> State:
        return _stated(state, known, status)

    return await _change(db, dict.fromkeys(ids, reason), apply, actor, shard, kind)


def _stated(state: State, known: Known, status: Status) -> State:
    _allow(state, status)
    return states.stated(state, status, known)


def _approved(state: State, known: Known, *, by_person: bool) -> State:
    _allow(state, Status.APPROVED)
    after = states.lifted(state, known, by_person=by_person)
    if after.status is Status.PENDING and by_person:
        raise Refused("conflict", f"it cannot be approved as long as it is {after.reason}")
    return after


async def _change(
    db: Database, reasons: Reasons, apply: Apply, actor: str, shard: int, kind: Kind | None = None
) -> list[Changed]:
    """Lock conversions, change those that may be changed, and write down what that leaves behind."""
    locked = await rows.lock(db, reasons)
    known = await know(db, [], locked.values())
    refused: dict[UUID, Refused] = {}
    after = dict(locked)
    for uuid, state in locked.items():
        try:
            after[uuid] = apply(state, known)
        except Refused as error:
            refused[uuid] = error
    for uuid, status in (await over_caps(db, ((locked[uuid], one) for uuid, one in after.items()))).items():
        if actor == AUTO:
            after[uuid] = states.over_cap(after[uuid], status, known)
        else:
            refused[uuid] = Refused("over_cap", "a cap has no room for it")
            after[uuid] = locked[uuid]
    moves = [Move(locked[uuid], one, actor, reasons[uuid], kind) for uuid, one in after.items() if one != locked[uuid]]
    await rows.update(db, [move.after for move in moves])
    changes = [Change(locked[one.after.conversion_id], one.after, actor, one.reason) for one in moves]
    await record(db, moves, changes, shard)
    return [Changed(uuid, after[uuid].status, refused.get(uuid)) for uuid in sorted(after)]
