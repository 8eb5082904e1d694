"""`POST /v1/coupons/import`: coupons as rows of a file, each found again by its code at its advertiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from aggregator.api import named
from aggregator.api.batches import Outcome
from aggregator.api.calling import Caller, Id, given, refusal_of
from aggregator.api.coupons import COLUMNS, Code, check_active, read_code
from aggregator.api.dates import Instant, check_order, read_dates
from aggregator.api.imported import PASSED_OVER
from aggregator.api.imports import Kind
from aggregator.api.references import ExternalId
from aggregator.api.rows import shown
from aggregator.db.connect import Pooled, Row
from schemas.errors import Refused

_DATES = ("starts_at", "ends_at")
# Columns of its export that say nothing more: one that was archived has ended.
_PASSED_OVER = PASSED_OVER | {"id", "advertiser_id", "status"}
_AS_GIVEN = """
jsonb_to_recordset($1::jsonb) AS given (code text, advertiser_id int, offer_id int, partner_id int,
                                        starts_at timestamptz, ends_at timestamptz)
"""
_INSERT = f"""
INSERT INTO coupon (code, advertiser_id, offer_id, partner_id, starts_at, ends_at)
SELECT * FROM {_AS_GIVEN} ORDER BY advertiser_id, code ON CONFLICT DO NOTHING RETURNING *
"""  # noqa: S608 - our own names
_HELD = """
SELECT coupon.* FROM coupon JOIN unnest($1::int[], $2::text[]) AS asked (advertiser_id, code)
     USING (advertiser_id, code)
ORDER BY id FOR NO KEY UPDATE OF coupon
"""
_UPDATE = f"""
UPDATE coupon SET starts_at = given.starts_at, ends_at = given.ends_at, version = version + 1
FROM {_AS_GIVEN} WHERE coupon.advertiser_id = given.advertiser_id AND coupon.code = given.code RETURNING coupon.*
"""  # noqa: S608
_AUDIT = """
INSERT INTO audit (actor, action, subject, reason, before, after)
SELECT $1, action, subject, $2, before, after
FROM jsonb_to_recordset($3::jsonb) AS act (action text, subject text, before jsonb, after jsonb)
"""


class CouponRow(msgspec.Struct, forbid_unknown_fields=True):
    code: Code
    offer_id: Id | None = None
    offer_external_id: ExternalId | None = None
    partner_id: Id | None = None
    partner_external_id: ExternalId | None = None
    starts_at: Instant | UnsetType | None = UNSET
    ends_at: Instant | UnsetType | None = UNSET


@dataclass(slots=True)
class _Wanted:
    row: int
    coupon: CouponRow

    def named(self) -> list[tuple[str, tuple[Any, ...]]]:
        """A code may be that of several advertisers, which are told apart when offers are known."""
        one = self.coupon
        return [("code", (read_code(one.code), one.offer_id, one.offer_external_id))]


Key = tuple[int, str]  # an advertiser and its code


def check_columns(names: tuple[str, ...]) -> None:
    """Raises Refused for a CSV file with a column that nobody would read."""
    for name in names:
        if name not in {*CouponRow.__struct_fields__, *_PASSED_OVER}:
            known = ", ".join(CouponRow.__struct_fields__)
            raise Refused("unknown_field", f"there is no column {name[:64]!a}, only {known}", ascii(name[:64])[1:-1])


def read(row: int, fields: dict[str, Any], is_text: bool, _: tuple[str, ...]) -> _Wanted:
    """A row as it should be, checked but for what only the database knows; an empty cell clears a date and else says
    nothing. Raises Refused."""
    said = {name: value for name, value in fields.items() if name not in _PASSED_OVER}
    if is_text:
        said = {name: value or None for name, value in said.items() if value or name in _DATES}
    try:
        coupon = msgspec.convert(said, CouponRow, strict=not is_text)
    except msgspec.ValidationError as error:
        raise refusal_of(str(error)) from None
    return _Wanted(row, coupon)


async def carry_out(db: Pooled, rows: list[_Wanted], caller: Caller, source: str) -> Outcome:
    """Make coupons that are new and change the dates of others, in eight statements."""
    outcome = Outcome()
    wanted = await _wanted(db, rows, outcome)
    held = {_key(row): row for row in await _held(db, list(wanted))}
    changed: dict[Key, dict[str, Any]] = {}
    for key, (row, values) in wanted.items():
        try:
            after = _after(held.get(key), values)
        except Refused as refusal:
            outcome.errors.append((row.row, refusal))
            continue
        if after is None:
            outcome.unchanged += 1
        else:
            changed[key] = after
    made = await _write(db, _INSERT, [values for key, values in changed.items() if key not in held])
    altered = await _write(db, _UPDATE, [values for key, values in changed.items() if key in held])
    outcome.created, outcome.updated = len(made), len(altered)
    acts = [_act("create_coupon", None, row) for row in made] + [
        _act("change_coupon", held[_key(row)], row) for row in altered
    ]
    await db.execute(_AUDIT, caller.actor, source, acts)
    return outcome


COUPONS = Kind(check_columns, read, carry_out)


async def _wanted(db: Pooled, rows: list[_Wanted], outcome: Outcome) -> dict[Key, tuple[_Wanted, dict[str, Any]]]:
    """What the rows say whose offers and partners are there, by advertiser and code."""
    known = await named.read_known(db, [row.coupon for row in rows])
    wanted: dict[Key, tuple[_Wanted, dict[str, Any]]] = {}
    for row in rows:
        try:
            missing = Refused("missing_field", "a coupon is a partner's, on an offer", "offer_external_id")
            owner = named.owner_of(row.coupon, known, missing)
            key = (owner.advertiser_id, read_code(row.coupon.code))
            if key in wanted:
                raise Refused("conflict", "an earlier row has this code of the same advertiser", "code")
            dates = read_dates({name: value for name, value in given(row.coupon).items() if name in _DATES})
            wanted[key] = row, {"code": key[1], **owner._asdict(), **dates}
        except Refused as refusal:
            outcome.errors.append((row.row, refusal))
    return wanted


async def _held(db: Pooled, keys: list[Key]) -> list[Row]:
    return await db.fetch(_HELD, [key[0] for key in keys], [key[1] for key in keys])


def _after(held: Row | None, values: dict[str, Any]) -> dict[str, Any] | None:
    """What is to be written; None where it is so already. Raises Refused."""
    dates = {name: held[name] if held else None for name in _DATES}
    after = dates | values
    check_order(after)
    if held is None:
        return after
    for name in ("offer_id", "partner_id"):
        if held[name] != after[name]:
            raise Refused("conflict", f"this coupon has the {name} {held[name]}, which cannot change", name)
    if all(held[name] == after[name] for name in _DATES):
        return None
    check_active(held)
    return after


async def _write(db: Pooled, statement: str, values: list[dict[str, Any]]) -> list[Row]:
    return await db.fetch(statement, values) if values else []


def _key(row: Row) -> Key:
    return row["advertiser_id"], row["code"]


def _act(action: str, before: Row | None, after: Row) -> Mapping[str, Any]:
    told = None if before is None else shown(before, COLUMNS)
    return {"action": action, "subject": f"coupon:{after['id']}", "before": told, "after": shown(after, COLUMNS)}
