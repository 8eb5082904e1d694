"""The audit: each change leaves who did what, when and why, in its own transaction."""

from __future__ import annotations

from aiohttp import web

from aggregator.api.calling import Api, answer
from aggregator.db.connect import acquire
from aggregator.reports.asked import by_name, number, read_time, read_zone
from aggregator.reports.audit import Acts, audit
from schemas import limits
from schemas.errors import Refused

_WORDS = ("subject", "actor", "action")
_PARAMETERS = frozenset((*_WORDS, "from", "to", "limit", "cursor"))
_ID_MAX = 2**63 - 1


async def get(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/audit?subject&actor&action&from&to&limit&cursor` -> `{data, truncated, next_cursor}`, the latest first.

    A date is midnight in the programme's time zone.
    """
    given = by_name(list(request.rel_url.query.items()), _PARAMETERS)
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
        words={name: _read_word(name, given[name]) for name in _WORDS if name in given},
    )


def _read_word(name: str, text: str) -> str:
    if "\0" in text:
        raise Refused("bad_value", f"{name} has a control character", name)
    return text


def _read_cursor(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= _ID_MAX):
        raise Refused("bad_cursor", "this cursor is not one of the audit's", "cursor")
    return int(text)
