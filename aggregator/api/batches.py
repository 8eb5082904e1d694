"""One batch of an import, carried out as a whole: its rows are made, changed, or found to be so already, by a few
statements in one transaction. A row that cannot be is an error of its own and stops no other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec

from aggregator.api.advertisers import with_pixel_key
from aggregator.api.dates import check_order
from aggregator.api.imported import Ref, Sheet, Wanted, new_values
from aggregator.api.references import check_held, held_names, refer_all
from aggregator.api.rows import shown
from aggregator.api.scopes import check_past
from aggregator.api.terms import GENERAL, columns_of
from aggregator.api.writing import refusing_what_cannot_be
from aggregator.db.connect import Database, Pooled, Row
from aggregator.publish.outbox import enqueue_all
from schemas.errors import Refused

# Two files with the same rows would wait for each other for ever. And a plan that was made when a table was empty reads
# all of it, long after it has grown: 100,000 links then take four times as long. A plan for every statement
# (plan_cache_mode = force_custom_plan) costs more than it saves: 17 and 18 s where this takes 12 and 14.
_BEGIN = """
SELECT pg_advisory_xact_lock(hashtext('import'), hashtext($1)), set_config('enable_seqscan', 'off', true)
"""
# a domain's lock keeps it from sharing the codes of the public URL meanwhile
_REFERENCE = "SELECT name, target_id AS id FROM reference WHERE imported AND name = ANY($1::text[]) AND kind = "
_ID_BY_NAME = {
    "offer": f"{_REFERENCE}'offer'",
    "partner": f"{_REFERENCE}'partner'",
    "advertiser": "SELECT external_id AS name, id FROM advertiser WHERE external_id = ANY($1::text[])",
    "domain": "SELECT host AS name, id FROM domain WHERE own_links AND host = ANY($1::text[]) FOR SHARE",
}
_IDS = {
    "offer": "SELECT id FROM offer WHERE id = ANY($1::int[])",
    "partner": "SELECT id FROM partner WHERE id = ANY($1::int[])",
    "advertiser": "SELECT id FROM advertiser WHERE id = ANY($1::int[])",
    "domain": "SELECT id FROM domain WHERE own_links AND id = ANY($1::int[]) FOR SHARE",
}
_TERMS = f"""
SELECT DISTINCT ON (offer_id) offer_id, model, amount_minor, percent, currency FROM offer_terms
WHERE offer_id = ANY($1::int[]) AND valid_from <= clock_timestamp() AND {GENERAL}
ORDER BY offer_id, valid_from DESC
"""  # noqa: S608 - our own names
_ADD_TERMS = """
INSERT INTO offer_terms (offer_id, model, amount_minor, percent, currency, valid_from)
SELECT offer_id, model, amount_minor, percent, currency, CASE WHEN is_first THEN '-infinity' ELSE clock_timestamp() END
FROM unnest($1::int[], $2::text[], $3::bigint[], $4::numeric[], $5::text[], $6::bool[])
     AS added (offer_id, model, amount_minor, percent, currency, is_first)
ON CONFLICT (offer_id, side, partner_id, event, valid_from) DO UPDATE
    SET model = excluded.model, amount_minor = excluded.amount_minor, percent = excluded.percent,
        currency = excluded.currency
"""
_AUDIT = """
INSERT INTO audit (actor, action, subject, reason, before, after)
SELECT $1, action, subject, $2, before, after
FROM jsonb_to_recordset($3::jsonb) AS act (action text, subject text, before jsonb, after jsonb)
"""


@dataclass(slots=True)
class Outcome:
    """What became of some rows; `errors` has the number of each refused row and why."""

    created: int = 0
    updated: int = 0
    unchanged: int = 0
    errors: list[tuple[int, Refused]] = field(default_factory=list)


@dataclass(slots=True)
class _Found:
    """What is there already, of all that the rows of a batch may mean."""

    by_id: dict[int, Row]
    by_external_id: dict[str, Row]
    by_code: dict[tuple[str, int | None], Row]
    held: dict[str, int]  # whose an external id is
    terms: dict[int, Row]


@dataclass(slots=True)
class _Plan:
    """A row to be written: `before` is None for a new one; `values` are the columns that it gets."""

    wanted: Wanted
    before: Row | None
    values: dict[str, Any]
    after: Row | None = None


async def carry_out(db: Pooled, sheet: Sheet, rows: Iterable[Wanted], actor: str, source: str) -> Outcome:
    """Make the rows of a sheet what they say; belongs into a transaction. `source` tells the audit where from."""
    outcome = Outcome()
    await db.execute(_BEGIN, sheet.kind)
    named = await _resolve(db, sheet, list(rows), outcome)
    found = await _find(db, sheet, named)
    plans = [plan for row in named if (plan := _judged(outcome, row, lambda row: _plan(sheet, row, found)))]
    changed = [plan for plan in plans if plan.before is None or plan.values or _has_other_terms(plan, found)]
    outcome.unchanged = len(plans) - len(changed)
    written = [
        *await _write(db, _insert_into(sheet), [plan for plan in changed if plan.before is None], outcome),
        *await _write(db, _update(sheet), [plan for plan in changed if plan.before is not None], outcome),
    ]
    outcome.created = sum(plan.before is None for plan in written)
    outcome.updated = len(written) - outcome.created
    await _add_terms(db, [plan for plan in written if _has_other_terms(plan, found)])
    await _tell(db, sheet, written, actor, source)
    return outcome


def _judged(outcome: Outcome, row: Wanted, judge: Callable[[Wanted], Any]) -> Any:
    """What `judge` makes of a row; None when it refuses."""
    try:
        return judge(row)
    except Refused as refusal:
        outcome.errors.append((row.row, refusal))
        return None


async def _resolve(db: Database, sheet: Sheet, rows: list[Wanted], outcome: Outcome) -> list[Wanted]:
    """The rows whose offers, partners and so on are there, with the ids of those."""
    for ref in sheet.refs:
        ids = await _ids_by_name(db, ref.kind, {name for row in rows if (name := row.names.get(ref.named))})
        own = await _ids(db, ref.kind, {own_id for row in rows if (own_id := row.values.get(ref.column))})
        rows = [row for row in rows if _judged(outcome, row, lambda row: _with_id(row, ref, ids, own))]  # noqa: B023
    return rows


def _with_id(row: Wanted, ref: Ref, ids: dict[str, int], own: Collection[int]) -> Wanted:
    """A name from elsewhere wins over an id, which may be that of another Clickdam."""
    name = row.names.get(ref.named)
    if name:
        if name not in ids:
            raise Refused("bad_value", f"there is no {ref.kind} {name}", ref.named)
        row.values[ref.column] = ids[name]
    elif (row_id := row.values.get(ref.column)) is not None and row_id not in own:
        raise Refused("bad_value", f"there is no {ref.kind} {row_id}", ref.column)
    return row


async def _ids_by_name(db: Database, kind: str, names: Collection[str]) -> dict[str, int]:
    rows = await db.fetch(_ID_BY_NAME[kind], list(names)) if names else ()
    return {row["name"]: row["id"] for row in rows}


async def _ids(db: Database, kind: str, ids: Collection[int]) -> set[int]:
    rows = await db.fetch(_IDS[kind], list(ids)) if ids else ()
    return {row["id"] for row in rows}


async def _find(db: Database, sheet: Sheet, rows: Sequence[Wanted]) -> _Found:
    """The rows of the table that may be meant, locked in the order of their ids."""
    external_ids = [row.values["external_id"] for row in rows if row.values.get("external_id")]
    codes = [row.values["code"] for row in rows if row.values.get("code")]
    own_ids = [row.own_id for row in rows if row.own_id]
    code = " OR code = ANY($3::text[])" if sheet.kind == "link" else ""
    found = await db.fetch(
        f"SELECT * FROM {sheet.kind} WHERE external_id = ANY($1::text[]) OR id = ANY($2::int[]){code}"  # noqa: S608
        " ORDER BY id FOR NO KEY UPDATE",
        external_ids, own_ids, *([codes] if code else []),
    )  # fmt: skip
    ids = [row["id"] for row in found]
    return _Found(
        by_id={row["id"]: row for row in found},
        by_external_id={row["external_id"]: row for row in found if row["external_id"] is not None},
        by_code={(row["code"], row["domain_id"]): row for row in found} if code else {},
        held=await held_names(db, sheet.kind, external_ids) if sheet.kind in ("offer", "partner") else {},
        terms={row["offer_id"]: row for row in await db.fetch(_TERMS, ids)} if sheet.kind == "offer" else {},
    )


def _plan(sheet: Sheet, wanted: Wanted, found: _Found) -> _Plan:
    """Raises Refused for a row that cannot be made or changed so."""
    before = _meant(sheet, wanted, found)
    external_id = wanted.values.get("external_id")
    if external_id is not None:
        check_held(sheet.kind, before["id"] if before else None, found.held.get(external_id))
    if before is None:
        values = new_values(sheet, wanted)
    else:
        _check_fixed(sheet, wanted, before)
        values = {name: value for name, value in wanted.values.items() if before[name] != value}
        if "scopes" in values:
            check_past(before["scopes"], values["scopes"], datetime.now(UTC))
        if sheet.kind == "advertiser":
            values = with_pixel_key(values, before)
        if sheet.kind == "link" and "status" in values:
            values["paused_by_partner"] = False  # it is the operator's now
    if "starts_at" in sheet.columns:
        check_order({"starts_at": None, "ends_at": None} | (dict(before) if before else {}) | values)
    return _Plan(wanted, before, values)


def _meant(sheet: Sheet, wanted: Wanted, found: _Found) -> Row | None:
    """The row that is there already: of this external id, else under this code, else with this id."""
    external_id, code = wanted.values.get("external_id"), wanted.values.get("code")
    if external_id is not None and external_id in found.by_external_id:
        return found.by_external_id[external_id]
    if code is not None:
        taken = found.by_code.get((code, wanted.values.get("domain_id")))
        if taken is not None and None not in (external_id, taken["external_id"]):
            raise Refused("conflict", f"this code is that of the link {taken['external_id']}", "code")
        return taken
    if wanted.own_id is not None and wanted.own_id not in found.by_id:
        raise Refused("not_found", f"there is no {sheet.kind} {wanted.own_id} here", "id")
    return None if wanted.own_id is None else found.by_id[wanted.own_id]


def _check_fixed(sheet: Sheet, wanted: Wanted, before: Row) -> None:
    for name in sheet.fixed:
        if name in wanted.values and wanted.values[name] != before[name]:
            raise Refused("conflict", f"this {sheet.kind} has the {name} {before[name]}, which cannot change", name)


def _has_other_terms(plan: _Plan, found: _Found) -> bool:
    if plan.wanted.payout is None:
        return False
    before = found.terms.get(plan.before["id"]) if plan.before else None
    return before is None or any(before[name] != value for name, value in columns_of(plan.wanted.payout).items())


def _insert_into(sheet: Sheet) -> Callable[[Collection[str]], str]:
    def sql(columns: Collection[str]) -> str:
        names = ", ".join(columns)
        return (
            f"INSERT INTO {sheet.kind} ({names})"  # noqa: S608 - our own names
            f" SELECT {names} FROM jsonb_populate_recordset(NULL::{sheet.kind}, $1::jsonb) RETURNING *"
        )

    return sql


def _update(sheet: Sheet) -> Callable[[Collection[str]], str]:
    def sql(columns: Collection[str]) -> str:
        sets = ", ".join(f"{name} = new.{name}" for name in columns if name != "id")
        return (
            f"UPDATE {sheet.kind} SET {sets}{', ' if sets else ''}version = {sheet.kind}.version + 1"  # noqa: S608
            f" FROM jsonb_populate_recordset(NULL::{sheet.kind}, $1::jsonb) AS new"
            f" WHERE {sheet.kind}.id = new.id RETURNING {sheet.kind}.*"
        )

    return sql


async def _write(
    db: Pooled, sql: Callable[[Collection[str]], str], plans: Sequence[_Plan], outcome: Outcome
) -> list[_Plan]:
    """Write rows, those with the same columns at once, so that what is not said stays, or gets its default."""
    alike: dict[tuple[str, ...], list[_Plan]] = defaultdict(list)
    for plan in plans:
        if plan.before is not None:
            plan.values["id"] = plan.before["id"]
        alike[tuple(sorted(plan.values))].append(plan)
    return [written for columns, some in alike.items() for written in await _write_all(db, sql(columns), some, outcome)]


async def _write_all(db: Pooled, sql: str, plans: Sequence[_Plan], outcome: Outcome) -> list[_Plan]:
    """Write rows by one statement; where it fails by halves, until each row that cannot be is alone."""
    try:
        with refusing_what_cannot_be():
            async with db.transaction():
                rows = await db.fetch(sql, [plan.values for plan in plans])
    except (Refused, asyncpg.IntegrityConstraintViolationError, asyncpg.DataError) as error:
        if len(plans) == 1:
            refusal = error if isinstance(error, Refused) else Refused("bad_value", "the database refuses this row")
            outcome.errors.append((plans[0].wanted.row, refusal))
            return []
        half = len(plans) // 2
        first = await _write_all(db, sql, plans[:half], outcome)
        return first + await _write_all(db, sql, plans[half:], outcome)
    for plan, row in _side_by_side(plans, rows):
        plan.after = row
    return list(plans)


def _side_by_side(plans: Sequence[_Plan], rows: Sequence[Row]) -> Iterable[tuple[_Plan, Row]]:
    """Each plan with what was written for it, by what it is told apart by."""
    name = next(name for name in ("id", "external_id", "code") if all(plan.values.get(name) for plan in plans))
    if name == "code":
        by_code = {(row["code"], row["domain_id"]): row for row in rows}
        return [(plan, by_code[plan.values["code"], plan.values.get("domain_id")]) for plan in plans]
    by_name = {row[name]: row for row in rows}
    return [(plan, by_name[plan.values[name]]) for plan in plans]


async def _add_terms(db: Database, plans: Sequence[_Plan]) -> None:
    if not plans:
        return
    terms = [columns_of(plan.wanted.payout) for plan in plans if plan.wanted.payout is not None]
    columns = [[one[name] for one in terms] for name in ("model", "amount_minor", "percent", "currency")]
    ids = [plan.after["id"] for plan in plans if plan.after is not None]
    await db.execute(_ADD_TERMS, ids, *columns, [plan.before is None for plan in plans])


async def _tell(db: Database, sheet: Sheet, plans: Sequence[_Plan], actor: str, source: str) -> None:
    """Those who have to know: published links, by which names; the publisher; the audit."""
    rows = [plan.after for plan in plans if plan.after is not None]
    if sheet.kind in ("offer", "partner"):
        named = await refer_all(db, sheet.kind, [(row["id"], row["external_id"]) for row in rows])
        await enqueue_all(db, "reference", named)
    await enqueue_all(db, sheet.kind, [row["id"] for row in rows])
    await db.execute(_AUDIT, actor, source, [_act(sheet, plan) for plan in plans])


def _act(sheet: Sheet, plan: _Plan) -> dict[str, Any]:
    assert plan.after is not None
    payout = {"payout": msgspec.to_builtins(plan.wanted.payout)} if plan.wanted.payout else {}
    act = {
        "action": f"{'change' if plan.before else 'create'}_{sheet.kind}",
        "subject": f"{sheet.kind}:{plan.after['id']}",
        "after": shown(plan.after, sheet.columns) | payout,
    }
    return act | ({"before": shown(plan.before, sheet.columns)} if plan.before else {})
