"""API keys: `cd_`, 32 random characters, 6 of a checksum. Only a key's hash is kept, so it can be shown just once."""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

import msgspec
from aiohttp import web

from aggregator.api.calling import Api, Caller, Id, read_body
from aggregator.api.secret_text import LENGTH, api_key, checksum, random_base62
from aggregator.api.writing import changing, refusing_what_cannot_be, respond
from aggregator.db.connect import Database, acquire
from schemas.errors import Refused

OWNER = {"admin": None, "partner": "partner_id", "advertiser": "advertiser_id"}
_KEY = re.compile(r"cd_([0-9A-Za-z]{32})([0-9A-Za-z]{6})", re.ASCII)
_BEARER = re.compile(r"bearer +(\S+) *", re.ASCII | re.IGNORECASE)


class NewKey(NamedTuple):
    """`key` is the secret itself, which is not kept anywhere."""

    id: int
    key: str


class KeyBody(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    partner_id: Id | None = None
    advertiser_id: Id | None = None


async def post(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/keys {role, partner_id?, advertiser_id?}` -> `{id, key}`."""
    body = await read_body(request, KeyBody)
    async with changing(api, request) as change:
        key_id = await _insert(change.db, change.secret("key"), body.role, body.partner_id, body.advertiser_id)
        await change.record("create_key", f"key:{key_id}", after=msgspec.to_builtins(body))
        change.answers({"id": key_id}, 201)
    return await respond(api, change)


async def create(db: Database, role: str, partner_id: int | None = None, advertiser_id: int | None = None) -> NewKey:
    """Make a key. Raises Refused for an unknown role, or an owner that does not fit it or does not exist."""
    key = api_key(random_base62(LENGTH))
    with refusing_what_cannot_be():
        return NewKey(await _insert(db, key, role, partner_id, advertiser_id), key)


async def _insert(db: Database, key: str, role: str, partner_id: int | None, advertiser_id: int | None) -> int:
    _check_owner(role, {"partner_id": partner_id, "advertiser_id": advertiser_id})
    key_id: int = await db.fetchval(
        "INSERT INTO api_key (role, partner_id, advertiser_id, key_sha256, last_four) VALUES ($1, $2, $3, $4, $5)"
        " RETURNING id",
        role,
        partner_id,
        advertiser_id,
        _digest(key),
        key[-4:],
    )
    return key_id


async def authenticate(api: Api, request: web.Request) -> Caller:
    """Who sent this request. A text that cannot be a key costs no query. Raises Refused."""
    key = _bearer(request)
    if not is_well_formed(key):
        raise Refused("unauthorized", "send a key as `Authorization: Bearer cd_...`")
    async with acquire(api.pool) as db:
        row = await db.fetchrow(
            "SELECT id, role, partner_id, advertiser_id FROM api_key WHERE key_sha256 = $1", _digest(key)
        )
    if row is None:
        raise Refused("unauthorized", "this key is not known")
    return Caller(row["role"], row["id"], row["partner_id"], row["advertiser_id"], key=key)


def is_well_formed(key: str) -> bool:
    found = _KEY.fullmatch(key)
    return found is not None and checksum(found[1]) == found[2]


def _check_owner(role: str, owners: dict[str, int | None]) -> None:
    if role not in OWNER:
        raise Refused("bad_value", f"role must be one of {', '.join(OWNER)}", "role")
    wanted = OWNER[role]
    for field, value in owners.items():
        if field == wanted and value is None:
            raise Refused("missing_field", f"a key for a {role} needs {field}", field)
        if field != wanted and value is not None:
            raise Refused("bad_value", f"a key for the role {role} has no {field}", field)


def _bearer(request: web.Request) -> str:
    given = request.headers.getall("Authorization", [])
    found = _BEARER.fullmatch(given[0]) if len(given) == 1 else None
    return found[1] if found else ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("ascii")).digest()
