"""Sheets by which advertisers say what became of their orders: approved, rejected, reversed, or worth less.

A row names an order by its `conversion_id`, or as the advertiser does, by `order_id` and, where there are several, by
`event`. `amount` is what is left of it. Each row is judged by itself; what is so already is found unchanged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import msgspec

from aggregator.api import conversions
from aggregator.api.batches import Outcome
from aggregator.api.calling import UUID_TEXT, Caller, Id, Name, refusal_of
from aggregator.api.imported import PASSED_OVER
from aggregator.api.imports import Kind
from aggregator.api.references import ExternalId
from aggregator.conversions import change as by_hand
from aggregator.conversions.states import NO_CURRENCY
from aggregator.db.connect import Database, Pooled, Row
from schemas import limits, money
from schemas.conversions.dialects import DIALECTS, IGNORED, OWN
from schemas.errors import Refused
from schemas.outcomes import Status

_ADVERTISERS = """
SELECT id, external_id, decimal_separator, status_map, dialect FROM advertiser
WHERE id = ANY ($1::int[]) OR external_id = ANY ($2::text[])
      OR id IN (SELECT advertiser_id FROM conversion WHERE conversion_id = ANY ($3::uuid[]))
"""
# As a receipt named it, where an order is kept by the name of its offer's former scope.
_NAMED = """
SELECT DISTINCT ON (named_as) named_as, conversion_id FROM conversion_intake
WHERE named_as = ANY ($1::uuid[]) ORDER BY named_as, intake_id
"""
_BY_ORDER = """
SELECT conversion_id FROM unnest($1::int[], $2::text[]) AS named (advertiser_id, order_id)
JOIN conversion USING (advertiser_id, order_id)
"""
# In the order in which everybody locks them, before the first is judged.
_LOCK = """
SELECT * FROM conversion WHERE conversion_id = ANY ($1::uuid[]) AND advertiser_id = coalesce($2, advertiser_id)
ORDER BY conversion_id FOR UPDATE
"""
_AUDIT = """
INSERT INTO audit (actor, action, subject, reason, after)
SELECT $1, 'import_verdict', 'conversion:' || (said ->> 'conversion_id'), $2, said
FROM jsonb_array_elements($3::jsonb) AS said
"""
_TAKEN_BACK = {"rejected", "reversed"}  # to an advertiser the same
AmountMinor = Annotated[int, msgspec.Meta(ge=0, le=limits.AMOUNT_MINOR_MAX)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=limits.ORDER_ID_MAX, pattern=conversions.PLAIN)]


class VerdictRow(msgspec.Struct, forbid_unknown_fields=True):
    conversion_id: str | None = None
    order_id: Text | None = None
    event: Text | None = None
    advertiser_id: Id | None = None
    advertiser_external_id: ExternalId | None = None
    status: Text | None = None
    amount: Text | None = None
    amount_minor: AmountMinor | None = None
    reason: Name | None = None


@dataclass(slots=True)
class Verdict:
    """A row of a sheet, read."""

    row: int
    said: VerdictRow

    def named(self) -> list[tuple[str, tuple[Any, ...]]]:
        """What tells this row apart, by field."""
        said = self.said
        if said.conversion_id is not None:
            return [("conversion_id", (said.conversion_id,))]
        return [("order_id", (said.advertiser_id, said.advertiser_external_id, said.order_id, said.event))]


class _Act(NamedTuple):
    """What a row comes to: `remaining_minor` and `status` where they are something new."""

    verdict: Verdict
    conversion: Row
    remaining_minor: int | None
    status: str | None
    reason: str


class _Known(NamedTuple):
    """What the rows of a batch name: advertisers by either of their names, conversions by id and by order."""

    advertisers: Mapping[int | str, Row]
    by_id: Mapping[UUID, Row]
    by_order: Mapping[tuple[int, str], Sequence[Row]]


def check_columns(names: tuple[str, ...]) -> None:
    """Raises Refused for a CSV file with a column that nobody would read."""
    known = VerdictRow.__struct_fields__
    for name in names:
        if name not in {*known, *PASSED_OVER}:
            shown = ascii(name[:64])
            raise Refused("unknown_field", f"there is no column {shown}, only {', '.join(known)}", shown[1:-1])


def read(row: int, fields: dict[str, Any], is_text: bool, _: tuple[str, ...]) -> Verdict:
    """A row, checked as far as it says for itself; an empty cell says nothing. Raises Refused naming the field."""
    said = {name: value for name, value in fields.items() if name not in PASSED_OVER and not (is_text and value == "")}
    try:
        verdict = Verdict(row, msgspec.convert(said, VerdictRow, strict=not is_text))
    except msgspec.ValidationError as error:
        raise refusal_of(str(error)) from None
    _check(verdict.said)
    return verdict


async def carry_out(db: Pooled, verdicts: Sequence[Verdict], caller: Caller, source: str) -> Outcome:
    """Make conversions what a sheet says, or find that they are, in a bounded number of statements; belongs into a
    transaction."""
    outcome = Outcome()
    known = await _lock_known(db, [verdict.said for verdict in verdicts], caller)
    acts: dict[UUID, _Act] = {}
    for verdict in verdicts:
        _judge(acts, outcome, verdict, known, caller)
    wanted = [act for act in acts.values() if act.status is not None or act.remaining_minor is not None]
    outcome.unchanged = len(acts) - len(wanted)
    done = await _decided(db, wanted, caller, outcome)
    outcome.updated = len(done)
    if done:
        await db.execute(_AUDIT, caller.actor, source, list(map(_audited, done)))
    return outcome


VERDICTS = Kind(check_columns, read, carry_out)


def _check(said: VerdictRow) -> None:
    if said.conversion_id is None and said.order_id is None:
        raise Refused("missing_field", "order_id is missing, or conversion_id", "order_id")
    if said.conversion_id is not None and not UUID_TEXT.fullmatch(said.conversion_id):
        raise Refused("bad_value", "conversion_id is one that a receipt had", "conversion_id")
    if said.status is None and said.amount is None and said.amount_minor is None:
        raise Refused("missing_field", "status is missing, or amount", "status")
    if said.amount is not None and said.amount_minor is not None:
        raise Refused("bad_value", "amount and amount_minor exclude each other", "amount")


async def _lock_known(db: Database, said: Sequence[VerdictRow], caller: Caller) -> _Known:
    """What rows name; the conversions, of the caller's alone, stay as they are to the transaction's end."""
    own = [] if caller.advertiser_id is None else [caller.advertiser_id]
    ids = [*own, *(one.advertiser_id for one in said if one.advertiser_id)]
    conversion_ids = [UUID(one.conversion_id) for one in said if one.conversion_id]
    kept = {row["named_as"]: row["conversion_id"] for row in await db.fetch(_NAMED, conversion_ids)}
    conversion_ids += kept.values()
    names = [one.advertiser_external_id for one in said if one.advertiser_external_id]
    found = await db.fetch(_ADVERTISERS, ids, names, conversion_ids)
    advertisers = {row["id"]: row for row in found} | {row["external_id"]: row for row in found}
    orders = {
        (advertiser["id"], one.order_id)
        for one in said
        if one.order_id and (advertiser := advertisers.get(_sender(one, caller)))
    }
    ordered = await db.fetch(_BY_ORDER, [one[0] for one in orders], [one[1] for one in orders])
    conversion_ids += [row["conversion_id"] for row in ordered]
    locked = await db.fetch(_LOCK, conversion_ids, caller.advertiser_id)
    by_order: dict[tuple[int, str], list[Row]] = defaultdict(list)
    for row in locked:
        by_order[row["advertiser_id"], row["order_id"]].append(row)
    by_id = {row["conversion_id"]: row for row in locked}
    return _Known(advertisers, {name: by_id[uuid] for name, uuid in kept.items() if uuid in by_id} | by_id, by_order)


def _sender(said: VerdictRow, caller: Caller) -> int | str | None:
    """What names the advertiser: a name from elsewhere wins over an id."""
    return said.advertiser_external_id or said.advertiser_id or caller.advertiser_id


def _judge(acts: dict[UUID, _Act], outcome: Outcome, verdict: Verdict, known: _Known, caller: Caller) -> None:
    """What a row comes to; each conversion's first one holds, by whatever name."""
    try:
        act = _act(verdict, known, caller)
        earlier = acts.setdefault(act.conversion["conversion_id"], act)
        if earlier is not act:
            field = "order_id" if verdict.said.conversion_id is None else "conversion_id"
            raise Refused("conflict", f"row {earlier.verdict.row} is of this conversion already", field)
    except Refused as refusal:
        outcome.errors.append((verdict.row, refusal))


def _act(verdict: Verdict, known: _Known, caller: Caller) -> _Act:
    """Raises Refused naming the field."""
    said = verdict.said
    row = _meant(said, known, caller)
    status = _status(said.status, row, known)
    remaining_minor = _remaining(said, row, known)
    if status == "approved" and remaining_minor == 0:
        raise Refused("bad_value", "nothing is left of it, so there is nothing to approve", "amount")
    conversions.check_decides(caller, row, status)
    return _Act(verdict, row, remaining_minor, status, said.reason or said.status or "amount")


def _meant(said: VerdictRow, known: _Known, caller: Caller) -> Row:
    """The conversion that a row names. That of another advertiser is not found."""
    name = _sender(said, caller)
    advertiser = known.advertisers.get(name) if name is not None else None
    if name is not None and (advertiser is None or caller.advertiser_id not in (None, advertiser["id"])):
        field = "advertiser_external_id" if isinstance(name, str) else "advertiser_id"
        raise Refused("bad_value", f"there is no advertiser {name}", field)
    if said.conversion_id is not None:
        row = known.by_id.get(UUID(said.conversion_id))
        if row is None or (advertiser is not None and row["advertiser_id"] != advertiser["id"]):
            raise Refused("not_found", "there is no such conversion", "conversion_id")
        return row
    if advertiser is None:
        raise Refused(
            "missing_field", "advertiser_id is missing: orders of others may have the same id", "advertiser_id"
        )
    found = known.by_order.get((advertiser["id"], said.order_id or ""), ())
    rows = [row for row in found if said.event in (None, row["event"])]
    if not rows:
        raise Refused("not_found", "there is no such order", "order_id")
    if len(rows) > 1:
        field = "event" if said.event is None else "conversion_id"
        raise Refused("conflict", f"{len(rows)} conversions have this order_id: say {field}", field)
    return rows[0]


def _status(word: str | None, row: Row, known: _Known) -> str | None:
    """What a conversion is to become, by the advertiser's own words; None where it is that, or nothing is said."""
    if word is None:
        return None
    advertiser = known.advertisers[row["advertiser_id"]]
    said = word.strip().lower()
    own = DIALECTS[advertiser["dialect"]].statuses | advertiser["status_map"]
    status = own.get(said) or DIALECTS[OWN].statuses.get(said)
    if status is None:
        raise Refused("bad_value", f"{word[:32]!a} is no status that is known for this advertiser", "status")
    if status in (IGNORED, row["status"]) or {status, row["status"]} == _TAKEN_BACK:
        return None
    if status == "pending":
        raise Refused("conflict", f"this is {row['status']}, and cannot be pending again", "status")
    return status


def _remaining(said: VerdictRow, row: Row, known: _Known) -> int | None:
    """What is left of a conversion's amount, where that is less than before."""
    minor = said.amount_minor
    if said.amount is not None:
        minor = _minor(said.amount, row, known)
    if minor is None or row["sale_amount_minor"] is None or minor == row["sale_amount_minor"]:
        return None  # where no amount was reported, none is expected
    if minor > row["sale_amount_minor"]:
        message = f"amount is more than the {row['sale_amount_minor']} (minor units) that are reported and not refunded"
        raise Refused("conflict", message, "amount")
    return minor


def _minor(text: str, row: Row, known: _Known) -> int:
    separator = known.advertisers[row["advertiser_id"]]["decimal_separator"]
    if row["sale_currency"] == NO_CURRENCY:
        raise Refused("conflict", "its currency is not known yet: say amount_minor", "amount")
    try:
        minor = money.major_to_minor(text, row["sale_currency"], separator)
    except money.AmbiguousAmount:
        raise Refused("bad_value", f"{text!a} is a thousand or one and a bit", "amount") from None
    except (ValueError, OverflowError):
        raise Refused("bad_value", f"{text[:32]!a} is no amount", "amount") from None
    if minor < 0:
        raise Refused("bad_value", "an amount is not negative", "amount")
    return minor


async def _decided(db: Pooled, acts: Sequence[_Act], caller: Caller, outcome: Outcome) -> list[_Act]:
    """All at once, because whoever else changes conversions takes what is locked in one order; those that were done."""
    by_id = {act.conversion["conversion_id"]: act for act in acts}
    done = []
    for changed in await by_hand.decide(db, {uuid: _verdict(act) for uuid, act in by_id.items()}, caller.actor):
        act = by_id[changed.conversion_id]
        if changed.refused is None:
            done.append(act)
        else:
            outcome.errors.append((act.verdict.row, changed.refused))
    return done


def _verdict(act: _Act) -> by_hand.Verdict:
    return by_hand.Verdict(Status(act.status) if act.status else None, act.remaining_minor, act.reason)


def _audited(act: _Act) -> dict[str, Any]:
    return {
        "conversion_id": str(act.conversion["conversion_id"]),
        "status": act.status,
        "remaining_minor": act.remaining_minor,
        "reason": act.reason,
    }
