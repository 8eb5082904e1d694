"""The audit: each change leaves who did what, when and why, in its own transaction."""

from __future__ import annotations

from aiohttp import web

from aggregator.api.calling import Api, answer, parameters
from aggregator.db.connect import acquire
from aggregator.reports.asked import is_whole, number, read_time, read_zone, word
from aggregator.reports.audit import Acts, audit
from schemas import limits
from schemas.errors import Refused

_WORDS = ("subject", "actor", "action")
_ID_MAX = 2**63 - 1


async def get(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/audit?subject&actor&action&from&to&limit&cursor` -> `{data, truncated, next_cursor}`, the latest first.

    A date is midnight in the programme's time zone.
    """
    given = parameters(request, (*_WORDS, "from", "to", "limit", "cursor"))
    async with acquire(api.pool) as db:
        zone = await db.fetchval("SELECT timezone FROM programme")
        return answer(await audit(db, _read(given, zone)))


def _read(given: dict[str, str], zone: str) -> Acts:
    times = [read_time(name, given[name], read_zone(zone)) if name in given else None for name in ("from", "to")]
    return Acts(
        before_id=_read_cursor(given["cursor"]) if "cursor" in given else _ID_MAX,
        limit=number("limit", given.get("limit", str(limits.AUDIT_ROWS_MAX)), limits.AUDIT_ROWS_MAX),
        starts=times[0],
        ends=times[1],
        words={name: word(name, given[name]) for name in _WORDS if name in given},
    )


def _read_cursor(text: str) -> int:
    if not is_whole(text, _ID_MAX, 0):
        raise Refused("bad_cursor", "this cursor is not one of the audit's", "cursor")
    return int(text)
