"""Whose call it is. Postgres is asked for each, so that a key ends with its revocation, or with its owner."""

from __future__ import annotations

import re

from aiohttp import web

from aggregator.api.calling import Api, Caller
from aggregator.api.secret_text import checksum, digest
from aggregator.db.connect import Database, Row, acquire
from schemas import limits
from schemas.errors import Refused

_KEY = re.compile(r"cd_([0-9A-Za-z]{32})([0-9A-Za-z]{6})", re.ASCII)
_BEARER = re.compile(r"bearer +(\S+) *", re.ASCII | re.IGNORECASE)
_FIND = """
SELECT api_key.id, role, partner_id, advertiser_id, scopes, requests_per_minute,
       revoked_at IS NOT NULL AS is_revoked, coalesce(expires_at <= now(), false) AS is_expired,
       coalesce(partner.status, advertiser.status, 'active') AS owner_status,
       coalesce(last_used_at < now() - make_interval(secs => $2), true) AS is_unused
FROM api_key LEFT JOIN partner ON partner.id = partner_id LEFT JOIN advertiser ON advertiser.id = advertiser_id
WHERE key_sha256 = $1
"""
# who changes the key at this moment is not waited for
_USE = """
UPDATE api_key SET last_used_at = now() WHERE id = (SELECT id FROM api_key WHERE id = $1
    AND coalesce(last_used_at < now() - make_interval(secs => $2), true) FOR NO KEY UPDATE SKIP LOCKED)
"""


async def authenticate(api: Api, request: web.Request) -> Caller:
    """Who sent this request. A text that cannot be a key costs no query. Raises Refused."""
    key = _bearer(request)
    if not is_well_formed(key):
        raise Refused("unauthorized", "send a key as `Authorization: Bearer cd_...`")
    async with acquire(api.pool) as db:
        row = await _find(db, key)
    scopes = None if row["scopes"] is None else frozenset(row["scopes"])
    return Caller(
        row["role"], row["id"], row["partner_id"], row["advertiser_id"], scopes, row["requests_per_minute"], key=key
    )


def is_well_formed(key: str) -> bool:
    found = _KEY.fullmatch(key)
    return found is not None and checksum(found[1]) == found[2]


async def _find(db: Database, key: str) -> Row:
    row = await db.fetchrow(_FIND, digest(key), limits.LAST_USED_EVERY_S)
    if row is None:
        raise Refused("unauthorized", "this key is not known")
    if row["is_revoked"] or row["is_expired"]:
        raise Refused("unauthorized", f"this key {'was revoked' if row['is_revoked'] else 'has expired'}")
    if row["owner_status"] in ("blocked", "archived"):
        raise Refused("unauthorized", f"this key's {row['role']} is {row['owner_status']}")
    if row["is_unused"]:
        await db.execute(_USE, row["id"], limits.LAST_USED_EVERY_S)
    return row


def _bearer(request: web.Request) -> str:
    given = request.headers.getall("Authorization", [])
    found = _BEARER.fullmatch(given[0]) if len(given) == 1 else None
    return found[1] if found else ""
