"""API keys: `cd_`, 32 random characters, 6 of a checksum. Only a key's hash is kept, so it can be shown just once.

A key hands out no more than it may itself: one with chosen scopes makes no admin's key with others, and leaves those
that have them alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, NamedTuple

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from aggregator.api import rows
from aggregator.api.calling import Api, Caller, Id, Name, given, path_id, read_body
from aggregator.api.dates import Instant, to_ms
from aggregator.api.secret_text import LENGTH, api_key, digest, random_base62
from aggregator.api.writing import Change, changing, refusing_what_cannot_be, respond
from aggregator.db.connect import Database, Row
from schemas import limits
from schemas.errors import Refused

OWNER = {"admin": None, "partner": "partner_id", "advertiser": "advertiser_id"}
# What a key of each role may be limited to; all of it, where nothing is chosen.
SCOPES: dict[str, frozenset[str]] = {
    "admin": frozenset(
        """adjustments.read adjustments.write advertisers.read advertisers.write audit.read blocks.read blocks.write
        caps.read caps.write clicks.read clicks.write conversions.read conversions.write coupons.read coupons.write
        domains.read domains.write intakes.read intakes.write keys.read keys.write ledger.read links.read links.write
        offers.read offers.write partners.read partners.write programme.read programme.write rates.read rates.write
        reports.read system.read system.write""".split()
    ),
    "partner": frozenset(("clicks.read", "conversions.read", "ledger.read", "me.read", "me.write", "reports.read")),
    "advertiser": frozenset(
        ("conversions.read", "conversions.write", "intakes.read", "ledger.read", "me.read", "reports.read")
    ),
}
COLUMNS = (
    "id", "role", "partner_id", "advertiser_id", "name", "last_four", "scopes", "requests_per_minute", "created_at",
    "expires_at", "revoked_at", "last_used_at", "replaces",
)  # fmt: skip
FILTERS: rows.Filters = {"role": str, "partner_id": int, "advertiser_id": int, "replaces": int}

PerMinute = Annotated[int, msgspec.Meta(ge=1, le=limits.REQUESTS_PER_MINUTE_MAX)]
Scopes = Annotated[list[str], msgspec.Meta(min_length=1, max_length=limits.SCOPES_MAX)]
OverlapH = Annotated[int, msgspec.Meta(ge=0, le=limits.ROTATION_H_MAX)]

_INSERT = """
INSERT INTO api_key (role, partner_id, advertiser_id, name, scopes, requests_per_minute, expires_at, replaces,
                     key_sha256, last_four)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING *
"""
LIVE = "revoked_at IS NULL AND coalesce(expires_at > now(), true)"
_NEIGHBOUR = f"SELECT id FROM api_key WHERE (replaces = $1 OR id = $2) AND {LIVE} LIMIT 1"  # noqa: S608 - our own names
# Two keys that revoke each other meet here, so that one of them stays.
_LOCK_ADMINS = "SELECT FROM api_key WHERE role = 'admin' AND revoked_at IS NULL ORDER BY id FOR NO KEY UPDATE"
_OTHER_ADMIN = f"""
SELECT EXISTS (SELECT FROM api_key WHERE role = 'admin' AND id <> $1 AND {LIVE}
               AND coalesce('keys.write' = ANY(scopes), true))
"""  # noqa: S608 - our own names
_END_LATER = """
UPDATE api_key SET expires_at = least(expires_at, now() + make_interval(hours => $2)), version = version + 1
WHERE id = $1 RETURNING *
"""


class NewKey(NamedTuple):
    """`key` is the secret itself, which is not kept anywhere."""

    id: int
    key: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a new key is to be. `scopes`: None for all that the role may."""

    role: str
    partner_id: int | None = None
    advertiser_id: int | None = None
    name: str | None = None
    scopes: Sequence[str] | None = None
    requests_per_minute: int = limits.REQUESTS_PER_MINUTE
    expires_at: datetime | None = None
    replaces: int | None = None


class KeyBody(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    partner_id: Id | None = None
    advertiser_id: Id | None = None
    name: Name | None = None
    scopes: Scopes | None = None
    requests_per_minute: PerMinute = limits.REQUESTS_PER_MINUTE
    expires_at: Instant | None = None


class KeyChange(msgspec.Struct, forbid_unknown_fields=True):
    name: Name | UnsetType | None = UNSET
    requests_per_minute: PerMinute | UnsetType = UNSET
    expires_at: Instant | UnsetType | None = UNSET


class RotationBody(msgspec.Struct, forbid_unknown_fields=True):
    overlap_h: OverlapH = limits.ROTATION_H
    expires_at: Instant | None = None


async def post(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/keys {role, partner_id?, advertiser_id?, name?, scopes?, requests_per_minute?, expires_at?}` -> the
    key's row and `key`, the secret, which is shown only this once."""
    wanted = checked(Wanted(**given(await read_body(request, KeyBody))))
    async with changing(api, request) as change:
        _check_reach(change.caller, wanted.role, wanted.scopes)
        row = await _insert(change.db, wanted, change.secret("key"))
        await change.record("create_key", f"key:{row['id']}", after=rows.shown(row, COLUMNS))
        change.answers(rows.shown(row, COLUMNS), 201, row["version"])
    return await respond(api, change)


async def get(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/keys/{id}` -> the key's row, without the key, its version as ETag."""
    return await rows.show(api, request, "api_key", COLUMNS)


async def listed(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/keys?role&partner_id&advertiser_id&replaces&limit&cursor` -> `{data, truncated, next_cursor}`, with
    those that are over."""
    return await rows.listing(api, request, "api_key", COLUMNS, FILTERS)


async def patch(api: Api, request: web.Request) -> web.Response:
    """`PATCH /v1/keys/{id} {name?, requests_per_minute?, expires_at?}`, `If-Match` -> the key's row.

    One that is over stays so: 409.
    """
    key_id, values = path_id(request, "key"), given(await read_body(request, KeyChange))
    if "expires_at" in values:
        values["expires_at"] = _later(values["expires_at"])
    async with changing(api, request) as change:
        before, after = await rows.update(change.db, "api_key", key_id, values, request)
        _check_live(before)
        _check_reach(change.caller, before["role"], before["scopes"])
        await rows.answer_change(change, "change_key", f"key:{key_id}", before, after, COLUMNS)
    return await respond(api, change)


async def revoke(api: Api, request: web.Request) -> web.Response:
    """`DELETE /v1/keys/{id}`, `If-Match` -> the key's row. It works no more from the moment this returns; its
    successor, if it has one, goes on."""
    key_id = path_id(request, "key")
    async with changing(api, request) as change:
        before, after = await end(change.db, key_id, request)
        _check_reach(change.caller, before["role"], before["scopes"])
        await rows.answer_change(change, "revoke_key", f"key:{key_id}", before, after, COLUMNS)
    return await respond(api, change)


async def rotate(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/keys/{id}/rotate {overlap_h?, expires_at?}` -> a successor's row and `key`, shown only this once.

    It may do what its predecessor may, which ends after the overlap. No third key of a chain lives: 409.
    """
    key_id = path_id(request, "key")
    body = await read_body(request, RotationBody) if request.body_exists else RotationBody()
    expires_at = _later(body.expires_at)
    async with changing(api, request) as change:
        before = await _rotatable(change, key_id, request)
        wanted = Wanted(**{name: before[name] for name in Wanted.__dataclass_fields__})
        row = await _insert(change.db, replace(wanted, expires_at=expires_at, replaces=key_id), change.secret("key"))
        after = await change.db.fetchrow(_END_LATER, key_id, body.overlap_h)
        assert after is not None
        await change.record(
            "rotate_key", f"key:{key_id}", before=rows.shown(before, COLUMNS), after=rows.shown(after, COLUMNS)
        )
        await change.record("create_key", f"key:{row['id']}", after=rows.shown(row, COLUMNS))
        change.answers(rows.shown(row, COLUMNS), 201, row["version"])
    return await respond(api, change)


async def create(db: Database, wanted: Wanted) -> NewKey:
    """Make a key. Raises Refused, as the API does."""
    key = api_key(random_base62(LENGTH))
    with refusing_what_cannot_be():
        row = await _insert(db, checked(wanted), key)
    return NewKey(row["id"], key)


async def end(db: Database, key_id: int, request: web.Request | None = None) -> tuple[Row, Row]:
    """Revoke a key; its row before and after, the same when it was revoked before. Belongs into a transaction.

    Raises Refused("not_found"), or "conflict" where nobody would be left to make other keys.
    """
    await db.fetch(_LOCK_ADMINS)
    key = await rows.one(db, "api_key", key_id)
    if key["revoked_at"] is not None:
        return key, key
    if key["role"] == "admin" and not await db.fetchval(_OTHER_ADMIN, key_id):
        raise Refused("conflict", "this is the last key that may make other keys: make another one first")
    return await rows.update(db, "api_key", key_id, {"revoked_at": datetime.now(UTC)}, request)


def checked(wanted: Wanted) -> Wanted:
    """Raises Refused for an unknown role, an owner that does not fit it, an unknown scope, an end that has passed."""
    _check_owner(wanted.role, {"partner_id": wanted.partner_id, "advertiser_id": wanted.advertiser_id})
    unknown = [scope for scope in wanted.scopes or () if scope not in SCOPES[wanted.role]]
    if unknown:
        raise Refused("bad_value", f"there is no scope {unknown[0][:64]!a} for the role {wanted.role}", "scopes")
    scopes = None if wanted.scopes is None else sorted(set(wanted.scopes))
    return replace(wanted, scopes=scopes, expires_at=_later(wanted.expires_at))


async def _rotatable(change: Change, key_id: int, request: web.Request) -> Row:
    """A key that may have a successor, locked. What is over in its chain stays so. Raises Refused."""
    key = await rows.one(change.db, "api_key", key_id, locked=True)
    rows.check_version(request, key["version"])
    _check_live(key)
    _check_reach(change.caller, key["role"], key["scopes"])
    other = await change.db.fetchval(_NEIGHBOUR, key_id, key["replaces"])
    if other is not None:
        raise Refused("conflict", f"key {other}, of the same chain, still works: revoke one of the two first")
    return key


async def _insert(db: Database, wanted: Wanted, key: str) -> Row:
    row = await db.fetchrow(
        _INSERT, wanted.role, wanted.partner_id, wanted.advertiser_id, wanted.name, wanted.scopes,
        wanted.requests_per_minute, wanted.expires_at, wanted.replaces, digest(key), key[-4:],
    )  # fmt: skip
    assert row is not None
    return row


def _check_owner(role: str, owners: dict[str, int | None]) -> None:
    if role not in OWNER:
        raise Refused("bad_value", f"role must be one of {', '.join(OWNER)}", "role")
    wanted = OWNER[role]
    for field, value in owners.items():
        if field == wanted and value is None:
            raise Refused("missing_field", f"a key for a {role} needs {field}", field)
        if field != wanted and value is not None:
            raise Refused("bad_value", f"a key for the role {role} has no {field}", field)


def _check_reach(caller: Caller, role: str, scopes: Sequence[str] | None) -> None:
    """Raises Refused where a key would hand out, or end, what it may not do itself."""
    if caller.scopes is None or role != "admin":
        return
    more = sorted(frozenset(SCOPES["admin"] if scopes is None else scopes) - caller.scopes)
    if more:
        raise Refused("forbidden", f"this key has not the scope {more[0]}, so it neither gives nor takes it", "scopes")


def _check_live(key: Row) -> None:
    if key["revoked_at"] is not None:
        raise Refused("conflict", "this key was revoked")
    if key["expires_at"] is not None and key["expires_at"] <= datetime.now(UTC):
        raise Refused("conflict", "this key has expired")


def _later(expires_at: datetime | None) -> datetime | None:
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise Refused("bad_value", "expires_at must be in the future", "expires_at")
    return None if expires_at is None else to_ms("expires_at", expires_at)
