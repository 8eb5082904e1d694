"""What a change of conversions leaves behind: the conversion, who changed it, the ledger and the rollups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

from aggregator.conversions import caps, ledger, rows
from aggregator.conversions.caps import Approval
from aggregator.conversions.rollup import roll_up
from aggregator.conversions.rows import Change
from aggregator.conversions.states import State
from aggregator.db.connect import Database
from schemas.outcomes import Status


class Move(NamedTuple):
    """A conversion before (None: it is new) and after, by whom and why. `kind` is the ledger's, where the conversion
    does not say it."""

    before: State | None
    after: State
    actor: str
    reason: str | None = None
    kind: ledger.Kind | None = None


async def over_caps(db: Database, moves: Iterable[tuple[State | None, State]]) -> dict[UUID, Status]:
    """Count what these come to against caps; what becomes of those that are over. An approval counts once, however it
    goes on; what is added to an approved one counts as well."""
    taking = [one for one in map(_approval, moves) if one]
    return await caps.take(db, taking) if taking else {}


async def record(db: Database, moves: Sequence[Move], changes: Sequence[Change], shard: int) -> None:
    """Write down what became of conversions that this transaction has inserted or locked."""
    await rows.add_changes(db, changes)
    await ledger.book(db, [entry for entry in map(_entry, moves) if entry.lines])
    await roll_up(db, ((move.before, move.after) for move in moves), shard)


def _approval(move: tuple[State | None, State]) -> Approval | None:
    before, after = move
    if after.status is not Status.APPROVED:
        return None
    stands = before if before and before.status is Status.APPROVED else None
    payout_minor = after.booked_payout_minor - (stands.booked_payout_minor if stands else 0)
    revenue_minor = after.booked_revenue_minor - (stands.booked_revenue_minor if stands else 0)
    if stands and payout_minor <= 0 and revenue_minor <= 0:
        return None
    return Approval(
        after.conversion_id, after.offer_id, after.partner_id, after.event_at_ms, max(0, payout_minor),
        after.currency, max(0, revenue_minor), after.revenue_currency, 0 if stands else 1,
    )  # fmt: skip


def _entry(move: Move) -> ledger.Entry:
    lines = [*_lines(move.after, 1), *(_lines(move.before, -1) if move.before else ())]
    return ledger.Entry(
        _kind(move), ledger.balanced(*lines), move.actor, move.reason, move.after.conversion_id, move.after.offer_id
    )


def _lines(state: State, sign: int) -> list[ledger.Line]:
    """What it has booked."""
    lines = []
    if state.booked_payout_minor:
        account = ledger.partner(state.partner_id)
        lines.append(ledger.Line(account, sign * state.booked_payout_minor, state.currency))
    if state.booked_revenue_minor and state.revenue_currency:
        account = ledger.advertiser(state.advertiser_id)
        lines.append(ledger.Line(account, -sign * state.booked_revenue_minor, state.revenue_currency))
    return lines


def _kind(move: Move) -> ledger.Kind:
    before, after = move.before, move.after
    if before is None or before.status is not Status.APPROVED:
        return "accrual"
    if after.is_refunded or _refunds(after) > _refunds(before):
        return "refund"
    if after.status is not Status.REVERSED:
        return "change"
    return move.kind or ("chargeback" if after.is_chargeback else "reversal")


def _refunds(state: State) -> int:
    """What was taken off its amount."""
    return (state.gross_minor or 0) - (state.sale_amount_minor or 0)
