"""The audit: each act by hand leaves who did what, when and why, in the act's own transaction."""

from __future__ import annotations

from aiohttp import web

from aggregator.api.calling import Api, answer
from aggregator.db.connect import acquire
from aggregator.reports.asked import by_name, number
from aggregator.reports.audit import audit
from schemas import limits
from schemas.errors import Refused

_PARAMETERS = frozenset(("limit", "cursor"))
_ID_MAX = 2**63 - 1


async def get(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/audit?limit&cursor` -> `{data, truncated, next_cursor}`, the latest first."""
    given = by_name(list(request.rel_url.query.items()), _PARAMETERS)
    limit = number("limit", given.get("limit", str(limits.AUDIT_ROWS_MAX)), limits.AUDIT_ROWS_MAX)
    before_id = _read_cursor(given["cursor"]) if "cursor" in given else _ID_MAX
    async with acquire(api.pool) as db:
        return answer(await audit(db, before_id, limit))


def _read_cursor(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= _ID_MAX):
        raise Refused("bad_cursor", "this cursor is not one of the audit's", "cursor")
    return int(text)
