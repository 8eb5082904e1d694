"""`POST /v1/clicks/import`: clicks that another tracker counted, so that sales are paid that were under way when a
programme moved here. A conversion with such a click's id is that of the link, or the offer and partner, of its row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import msgspec

from aggregator.api import named
from aggregator.api.batches import Outcome
from aggregator.api.calling import Caller, Id, refusal_of
from aggregator.api.dates import Instant, to_ms
from aggregator.api.imported import PASSED_OVER
from aggregator.api.imports import Kind
from aggregator.api.references import ExternalId
from aggregator.db.connect import Database, Pooled, Row
from aggregator.db.instants import to_ms as ms_of
from schemas import limits
from schemas.click_id import uuid7_bytes
from schemas.errors import Refused

SUBS = tuple(f"sub{n}" for n in range(1, 11))
_LINK_NAMES = ("link_external_id", "link_code", "link_id")
_PRINTABLE = r"\A[^\x00-\x1f\x7f-\x9f]*\Z"
ClickId = Annotated[str, msgspec.Meta(min_length=1, max_length=limits.FOREIGN_CLICK_MAX, pattern=_PRINTABLE)]
Value = Annotated[str, msgspec.Meta(max_length=limits.VALUE_MAX, pattern=_PRINTABLE)]
_LINKS = """
SELECT link.id, code, link.external_id, domain_id, offer_id, partner_id, advertiser_id, test
FROM link JOIN offer ON offer.id = offer_id
WHERE code = ANY ($1::text[]) AND domain_id IS NULL OR link.external_id = ANY ($2::text[]) OR link.id = ANY ($3::int[])
"""
_AS_GIVEN = """
jsonb_to_recordset($1::jsonb) AS given (advertiser_id int, foreign_id text, id uuid, link_id int, offer_id int,
                                        partner_id int, clicked_at timestamptz, subs jsonb)
"""
_INSERT = f"""
INSERT INTO imported_click (advertiser_id, foreign_id, id, link_id, offer_id, partner_id, clicked_at, subs)
SELECT * FROM {_AS_GIVEN} ORDER BY advertiser_id, foreign_id ON CONFLICT DO NOTHING RETURNING advertiser_id, foreign_id
"""  # noqa: S608 - our own names
_HELD = """
SELECT held.*, EXISTS (SELECT FROM conversion WHERE click_id = held.id) AS converted
FROM imported_click AS held JOIN unnest($1::int[], $2::text[]) AS asked (advertiser_id, foreign_id)
     USING (advertiser_id, foreign_id)
ORDER BY advertiser_id, foreign_id FOR UPDATE OF held
"""
_UPDATE = f"""
UPDATE imported_click AS held SET id = given.id, link_id = given.link_id, offer_id = given.offer_id,
       partner_id = given.partner_id, clicked_at = given.clicked_at, subs = given.subs
FROM {_AS_GIVEN} WHERE held.advertiser_id = given.advertiser_id AND held.foreign_id = given.foreign_id
"""  # noqa: S608
_AUDIT = "INSERT INTO audit (actor, action, subject, reason, after) VALUES ($1, 'import_clicks', 'clicks', $2, $3)"
Named = tuple[int, str]  # an advertiser and its click


class ClickRow(msgspec.Struct, forbid_unknown_fields=True):
    """A click, and whose it is: its link, by one of three names, or its offer and partner where it had no link."""

    click_id: ClickId
    clicked_at: Instant
    link_id: Id | None = None
    link_code: Value | None = None
    link_external_id: ExternalId | None = None
    offer_id: Id | None = None
    offer_external_id: ExternalId | None = None
    partner_id: Id | None = None
    partner_external_id: ExternalId | None = None
    sub1: Value | None = None
    sub2: Value | None = None
    sub3: Value | None = None
    sub4: Value | None = None
    sub5: Value | None = None
    sub6: Value | None = None
    sub7: Value | None = None
    sub8: Value | None = None
    sub9: Value | None = None
    sub10: Value | None = None


@dataclass(slots=True)
class _Wanted:
    row: int
    click: ClickRow

    def named(self) -> list[tuple[str, tuple[Any, ...]]]:
        return [("click_id", (self.click.click_id,))]


class _Owner(NamedTuple):
    """Whose a click is; without a link its `link_id` is 0."""

    link_id: int
    advertiser_id: int
    offer_id: int
    partner_id: int


Links = Mapping[tuple[str, Any], Row]  # by the field that names one, and the name


def check_columns(names: tuple[str, ...]) -> None:
    """Raises Refused for a CSV file with a column that nobody would read."""
    for name in names:
        if name not in {*ClickRow.__struct_fields__, *PASSED_OVER}:
            known = ", ".join(ClickRow.__struct_fields__)
            raise Refused("unknown_field", f"there is no column {name[:64]!a}, only {known}", ascii(name[:64])[1:-1])


def read(row: int, fields: dict[str, Any], is_text: bool, _: tuple[str, ...]) -> _Wanted:
    """A row as it should be, checked but for what only the database knows; empty cells say nothing. Raises Refused."""
    said = {name: value for name, value in fields.items() if name not in PASSED_OVER and not (is_text and value == "")}
    try:
        click = msgspec.convert(said, ClickRow, strict=not is_text)
    except msgspec.ValidationError as error:
        raise refusal_of(str(error)) from None
    click.clicked_at = to_ms("clicked_at", click.clicked_at)
    if click.clicked_at > datetime.now(UTC) + timedelta(seconds=limits.EVENT_AHEAD_MAX_S):
        raise Refused("bad_value", "clicked_at lies ahead", "clicked_at")
    return _Wanted(row, click)


async def carry_out(db: Pooled, rows: list[_Wanted], caller: Caller, source: str) -> Outcome:
    """Keep clicks that are new, put right those that differ and have no conversion yet, in five statements."""
    outcome = Outcome()
    clicks = [row.click for row in rows]
    found, known = await _read_links(db, clicks), await named.read_known(db, clicks)
    given: dict[Named, tuple[_Wanted, dict[str, Any]]] = {}
    for row in rows:
        try:
            owner = _owner(row.click, found, known)
            given[owner.advertiser_id, row.click.click_id] = row, _values(row.click, owner)
        except Refused as refusal:
            outcome.errors.append((row.row, refusal))
    made = {tuple(row) for row in await db.fetch(_INSERT, [values for _, values in given.values()])}
    outcome.created = len(made)
    await _put_right(db, {name: one for name, one in given.items() if name not in made}, outcome)
    if outcome.created or outcome.updated:
        await db.execute(_AUDIT, caller.actor, source, {"created": outcome.created, "updated": outcome.updated})
    return outcome


CLICKS = Kind(check_columns, read, carry_out)


async def _put_right(db: Pooled, given: Mapping[Named, tuple[_Wanted, dict[str, Any]]], outcome: Outcome) -> None:
    """Those that are there already."""
    if not given:
        return
    changed = []
    for held in await db.fetch(_HELD, [name[0] for name in given], [name[1] for name in given]):
        row, values = given[held["advertiser_id"], held["foreign_id"]]
        if all(held[name] == value for name, value in values.items()):
            outcome.unchanged += 1
        elif held["converted"]:
            message = "this click has a conversion already, so it cannot become another one"
            outcome.errors.append((row.row, Refused("conflict", message, "click_id")))
        else:
            changed.append(values)
    if changed:
        await db.execute(_UPDATE, changed)
    outcome.updated = len(changed)


async def _read_links(db: Database, clicks: list[ClickRow]) -> Links:
    asked = {
        name: sorted({value for click in clicks if (value := getattr(click, name)) is not None}) for name in _LINK_NAMES
    }
    by_name: dict[tuple[str, Any], Row] = {}
    for link in await db.fetch(_LINKS, asked["link_code"], asked["link_external_id"], asked["link_id"]):
        by_name["link_id", link["id"]] = by_name["link_external_id", link["external_id"]] = link
        if link["domain_id"] is None:
            by_name["link_code", link["code"]] = link
    return by_name


def _owner(click: ClickRow, links: Links, known: named.Known) -> _Owner:
    """Whose a click is; a name from elsewhere wins over an id. Raises Refused naming the field."""
    for name in _LINK_NAMES:
        value = getattr(click, name)
        if value is not None:
            link = links.get((name, value))
            if link is None:
                raise Refused("bad_value", f"there is no link {value!a}", name)
            if link["test"]:
                raise Refused("bad_value", "this link is for tests, whose clicks earn nothing", name)
            return _Owner(link["id"], link["advertiser_id"], link["offer_id"], link["partner_id"])
    missing = Refused("missing_field", "a click is a link's, or an offer's and a partner's", "link_code")
    return _Owner(0, *named.owner_of(click, known, missing))


def _values(click: ClickRow, owner: _Owner) -> dict[str, Any]:
    subs = {name: value for name in SUBS if (value := getattr(click, name))}
    return {
        **owner._asdict(),
        "foreign_id": click.click_id,
        "id": _uuid(owner.advertiser_id, click),
        "clicked_at": click.clicked_at,
        "subs": subs or None,
    }


def _uuid(advertiser_id: int, click: ClickRow) -> UUID:
    """The same UUIDv7 whenever the click is imported: of its time, and of a hash of its name."""
    name = blake2b(f"{advertiser_id} {click.click_id}".encode(), digest_size=10).digest()
    return UUID(bytes=uuid7_bytes(ms_of(click.clicked_at), name))
