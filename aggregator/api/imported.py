"""What a row of an import may say: the same as a call that makes or changes one, and the names that things had
elsewhere. Rows as they were read become rows as Postgres takes them, each judged by itself."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType, inspect

from aggregator.api import advertisers, links, offers, partners, terms
from aggregator.api.calling import Id, given, refusal_of
from aggregator.api.references import ExternalId
from aggregator.api.secret_text import random_base62
from schemas.errors import Refused

Subject = Literal["advertiser", "partner", "offer", "link"]
# columns of an export, and of a file of errors, that say nothing about what a row should be
PASSED_OVER = frozenset(("created_at", "paused_by_partner", "error_line", "error"))
_SCALARS = (inspect.StrType, inspect.IntType, inspect.BoolType, inspect.DateTimeType, inspect.LiteralType)


class OfferRow(offers.OfferChange):
    advertiser_id: Id | UnsetType = UNSET
    advertiser_external_id: ExternalId | UnsetType | None = UNSET
    payout: terms.Payout | UnsetType = UNSET


class LinkRow(links.LinkChange):
    code: str | UnsetType = UNSET
    domain: str | UnsetType | None = UNSET
    domain_id: Id | UnsetType | None = UNSET
    offer_id: Id | UnsetType = UNSET
    offer_external_id: ExternalId | UnsetType | None = UNSET
    partner_id: Id | UnsetType = UNSET
    partner_external_id: ExternalId | UnsetType | None = UNSET
    test: bool | UnsetType = UNSET


class Ref(NamedTuple):
    """A column that names a row of another table, and the field that names it as it was called elsewhere."""

    kind: Literal["advertiser", "partner", "offer", "domain"]
    column: str
    named: str


@dataclass(slots=True)
class Wanted:
    """A row as it should be: `values` by column, `names` what it names by their names elsewhere, `row` its number in
    the file, from 1; `own_id` where nothing else tells which row is meant."""

    row: int
    values: dict[str, Any]
    names: dict[str, str | None] = field(default_factory=dict)
    payout: terms.Payout | None = None
    own_id: int | None = None

    def named(self) -> list[tuple[str, tuple[Any, ...]]]:
        """What tells this row apart, by field."""
        external_id, code = self.values.get("external_id"), self.values.get("code")
        names: list[tuple[str, tuple[Any, ...]]] = [] if external_id is None else [("external_id", (external_id,))]
        if code is not None:
            names.append(("code", (code, self.names.get("domain"), self.values.get("domain_id"))))
        return names or [("id", (self.own_id,))]


@dataclass(frozen=True)
class Sheet:
    """One kind of rows: the table they go into, what they may say, what a new one needs, what stays as it is."""

    kind: Subject
    body: type[msgspec.Struct]
    read: Callable[[Any, tuple[str, ...]], dict[str, Any]]
    columns: tuple[str, ...]  # in the audit
    needed: tuple[str, ...]
    fixed: tuple[str, ...] = ()
    refs: tuple[Ref, ...] = ()

    @cached_property
    def fields(self) -> dict[str, tuple[inspect.Type, ...]]:
        """What the values of each field may be."""
        info = inspect.type_info(self.body)
        assert isinstance(info, inspect.StructType)
        return {one.name: _members(one.type) for one in info.fields}

    def check_columns(self, names: tuple[str, ...]) -> None:
        """Raises Refused for a CSV file with a column that nobody would read."""
        for name in names:
            if name.partition(".")[0] not in {*self.fields, "id", *PASSED_OVER}:
                known = ", ".join(["id", *self.fields])
                raise Refused(
                    "unknown_field", f"there is no column {name[:64]!a}, only {known}", ascii(name[:64])[1:-1]
                )


def _advertiser(body: advertisers.AdvertiserChange, _: tuple[str, ...]) -> dict[str, Any]:
    return advertisers.read(body)


def _partner(body: partners.PartnerChange, _: tuple[str, ...]) -> dict[str, Any]:
    return given(body)


_ADVERTISER = Ref("advertiser", "advertiser_id", "advertiser_external_id")
_OFFER = Ref("offer", "offer_id", "offer_external_id")
_PARTNER = Ref("partner", "partner_id", "partner_external_id")
_DOMAIN = Ref("domain", "domain_id", "domain")
SHEETS: dict[str, Sheet] = {
    "advertisers": Sheet("advertiser", advertisers.AdvertiserChange, _advertiser, advertisers.COLUMNS, ("name",)),
    "partners": Sheet("partner", partners.PartnerChange, _partner, partners.COLUMNS, ("name",)),
    "offers": Sheet(
        "offer", OfferRow, offers.read, offers.COLUMNS,
        ("advertiser_id", "name", "destination_url", "payout"), ("advertiser_id",), (_ADVERTISER,),
    ),
    "links": Sheet(
        "link", LinkRow, links.read, links.COLUMNS, ("offer_id", "partner_id"),
        ("code", "domain_id", "offer_id", "partner_id", "test"), (_OFFER, _PARTNER, _DOMAIN),
    ),
}  # fmt: skip


def read_wanted(sheet: Sheet, row: int, fields: dict[str, Any], own: tuple[str, ...], *, is_text: bool) -> Wanted:
    """A row as it should be, checked but for what only the database knows. `is_text`: its values are cells, of which an
    empty one clears what may be empty and else says nothing. Raises Refused naming the field."""
    said = {name: value for name, value in fields.items() if name not in PASSED_OVER}
    own_id = said.pop("id", None)
    if is_text:
        said = _from_cells(sheet, said)
    try:
        body = msgspec.convert(said, sheet.body, strict=not is_text)
    except msgspec.ValidationError as error:
        raise refusal_of(str(error)) from None
    values = sheet.read(body, own)
    names = {ref.named: values.pop(ref.named) for ref in sheet.refs if ref.named in values}
    values.pop("payout", None)
    if values.get("external_id") is None:  # a name, once given, stays
        values.pop("external_id", None)
    payout = getattr(body, "payout", None) or None
    if payout is not None:
        terms.check_payout(payout, "payout.")
    wanted = Wanted(row, values, names, payout)
    return wanted if _has_a_name(wanted) else _by_own_id(wanted, own_id)


def new_values(sheet: Sheet, wanted: Wanted) -> dict[str, Any]:
    """The columns of a row that is to be made. Raises Refused where one is missing."""
    for name in sheet.needed:
        if wanted.values.get(name) is None and not (name == "payout" and wanted.payout is not None):
            raise Refused("missing_field", f"{name} is missing", name)
    values = dict(wanted.values)
    if sheet.kind == "link" and values.get("code") is None:
        values["code"] = random_base62(links.CODE_LENGTH)
    if sheet.kind == "offer" and wanted.payout is not None:
        values.setdefault("currency", wanted.payout.currency)
    if sheet.kind == "advertiser":  # nobody knows this token: whoever needs it asks for a new one
        values = advertisers.with_pixel_key(values, None)
        values["token_sha256"] = f"\\x{hashlib.sha256(secrets.token_bytes(32)).hexdigest()}"
    return values


def _has_a_name(wanted: Wanted) -> bool:
    return wanted.values.get("external_id") is not None or wanted.values.get("code") is not None


def _by_own_id(wanted: Wanted, own_id: Any) -> Wanted:
    if own_id in (None, ""):
        raise Refused(
            "missing_field", "external_id is missing: without it the same row could not be found again", "external_id"
        )
    try:
        wanted.own_id = msgspec.convert(own_id, Id, strict=False)
    except msgspec.ValidationError:
        raise Refused("bad_value", "id must be that of a row here", "id") from None
    return wanted


def _from_cells(sheet: Sheet, cells: dict[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for name, cell in cells.items():
        members = sheet.fields.get(name, ())
        if cell == "":
            if any(isinstance(one, inspect.NoneType) for one in members):
                read[name] = None
        elif isinstance(cell, str) and members and not any(isinstance(one, _SCALARS) for one in members):
            read[name] = _json_cell(name, cell)
        else:
            read[name] = cell
    return read


def _json_cell(name: str, cell: str) -> Any:
    try:
        return msgspec.json.decode(cell)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        raise Refused("bad_value", f"{name} must be JSON, such as the API answers", name) from None


def _members(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)
