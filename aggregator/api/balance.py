"""What a partner or an advertiser comes to, and the lines of the ledger that it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from aiohttp import web

from aggregator.api import conversions, lists, rows
from aggregator.api.calling import CALLER, ID_MAX, Api, Caller, answer, at_once, parameters
from aggregator.api.keys import OWNER
from aggregator.conversions.ledger import PROGRAMME
from aggregator.db.connect import Database, Row, acquire, acquire_to_read
from aggregator.reports.asked import number
from aggregator.reports.balance import balance, find_account
from aggregator.reports.lists import LEDGER_FILTERS, read_ledger
from schemas.errors import Refused

COLUMNS = (
    "entry_id", "at", "kind", "conversion_id", "offer_id", "period", "day", "amount_minor", "currency", "reason",
    "actor",
)  # fmt: skip
_OWNERS = ("partner_id", "advertiser_id")


async def get(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/balance?partner_id | advertiser_id` -> `{account, data}`: what we owe it, by currency."""
    given = parameters(request, _OWNERS)
    with at_once(api, request[CALLER]):
        async with acquire_to_read(api.readers) as db:
            account = await _account(db, request[CALLER], given)
            return answer({"account": account, "data": await balance(db, account)})


async def ledger(api: Api, request: web.Request) -> web.StreamResponse:
    """`GET /v1/ledger?partner_id | advertiser_id&from&to&timezone&kind&currency&offer_id&limit&cursor&format` ->
    `{data, account, truncated, next_cursor}`, the latest booked first."""
    caller, given = request[CALLER], lists.read(request, (*_OWNERS, *LEDGER_FILTERS), {})
    async with acquire(api.pool) as db:
        account = await _account(db, caller, given)
    wanted = read_ledger(given, account, await lists.programme_zone(api, given))
    return await lists.respond(api, request, "ledger", wanted, COLUMNS, partial(_shown, caller.role), account=account)


async def _account(db: Database, caller: Caller, given: Mapping[str, str]) -> str:
    """Whose lines are asked for: the caller's own; an admin names any, or means the programme's. Raises Refused."""
    asked = {name: number(name, given[name], ID_MAX) for name in _OWNERS if name in given}
    owner = OWNER[caller.role]
    own = {} if owner is None else {owner: getattr(caller, owner)}
    if own and asked not in ({}, own):
        raise Refused(
            "forbidden", "a key sees its own account", next(name for name in asked if asked[name] != own.get(name))
        )
    if len(asked) > 1:
        raise Refused("bad_value", "say partner_id, or advertiser_id", "advertiser_id")
    for name, owner_id in (own or asked).items():
        return await find_account(db, name.removesuffix("_id"), owner_id)
    return PROGRAMME


def _shown(role: str, row: Row) -> dict[str, Any]:
    return conversions.told_act(rows.shown(row, COLUMNS), role)
