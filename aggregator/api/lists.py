"""What the lists of single rows have in common: whose rows they are, what a role may ask by, how a page is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

from aiohttp import web

from aggregator.api.calling import CALLER, Api, Caller, answer, at_once, parameters
from aggregator.api.keys import OWNER
from aggregator.api.streams import stream, wants_csv
from aggregator.db.connect import Database, Row, acquire, acquire_to_read
from aggregator.db.instants import rfc3339
from aggregator.reports.asked import read_zone
from aggregator.reports.lists import Rule, Wanted, every, page
from schemas.errors import Refused

SPAN = ("from", "to", "timezone", "limit", "cursor", "format")
_OF_PAGES = frozenset({"limit", "cursor", "updated_since"})
Said = str | datetime | None
Tell = Callable[[Row], dict[str, Any]]  # a row as its reader may see it
Hidden = Mapping[str, frozenset[str]]  # by role, what it may not ask by: it is not shown it either


def read(request: web.Request, filters: Iterable[str], hidden: Hidden) -> dict[str, str]:
    """What the query says, by name. Raises Refused naming the parameter that is not for this role."""
    given, role = parameters(request, (*filters, *SPAN)), request[CALLER].role
    for name in sorted(given.keys() & hidden.get(role, frozenset())):
        raise Refused("forbidden", f"{name} is not for a key with the role {role}", name)
    for name in sorted(given.keys() & _OF_PAGES if wants_csv(request) else ()):
        raise Refused("bad_value", f"a file of CSV has all rows: it has no {name}", name)
    return given


def check_reason(given: Mapping[str, str], caller: Caller, for_partners: Iterable[str]) -> None:
    """Raises Refused for a partner that asks by a reason which it is not told."""
    told = sorted(filter(None, map(str, for_partners)))
    if caller.role == "partner" and given.get("reason", told[0]) not in told:
        raise Refused("bad_value", f"reason is one of {', '.join(told)}", "reason")


def own(caller: Caller) -> list[Rule]:
    """Which rows are the caller's; no rule, where all are."""
    owner = OWNER[caller.role]
    return [] if owner is None else [(f"{owner} = {{}}", getattr(caller, owner))]


async def programme_zone(api: Api, given: Mapping[str, str]) -> ZoneInfo:
    """In which dates are midnights: the programme's, unless the query says another."""
    async with acquire(api.pool) as db:
        return read_zone(given.get("timezone") or await db.fetchval("SELECT timezone FROM programme"))


async def respond(
    api: Api, request: web.Request, name: str, wanted: Wanted, columns: tuple[str, ...], told: Tell, **more: Said
) -> web.StreamResponse:
    """A page as JSON, `more` of what is said of all of it; or all its rows as a file of CSV."""
    if wants_csv(request):
        return await stream(api, request, name, columns, partial(_told, wanted, told))
    with at_once(api, request[CALLER]):
        async with acquire_to_read(api.readers) as db:
            found = await page(db, wanted)
    said = {name: rfc3339(value) if isinstance(value, datetime) else value for name, value in more.items()}
    ends = {"truncated": found.next_cursor is not None, "next_cursor": found.next_cursor}
    return answer({"data": [told(row) for row in found.rows], **said, **ends})


async def _told(wanted: Wanted, told: Tell, db: Database) -> AsyncIterator[dict[str, Any]]:
    async for row in every(db, wanted):
        yield told(row)
