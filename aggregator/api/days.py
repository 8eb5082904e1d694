"""Settled days and their corrections: those of all for an admin, of its own rows for a partner."""

from __future__ import annotations

from functools import partial
from typing import Any

from aiohttp import web

from aggregator.api import lists
from aggregator.api.calling import CALLER, Api
from aggregator.db.connect import Row
from aggregator.db.instants import rfc3339
from aggregator.reports import days
from aggregator.reports.lists import DAY_FILTERS

_KEY = ("day", "version", "settled_at", "partner_id", "offer_id", "currency")
COLUMNS = {role: (*_KEY, *days.figures_of(role), "before") for role in ("admin", "partner")}


async def listed(api: Api, request: web.Request) -> web.StreamResponse:
    """`GET /v1/reports/days?from&to&timezone&partner_id&offer_id&corrections&limit&cursor&format` -> `{data,
    days_through, truncated, next_cursor}`: version 1 of each settled day, and what later versions changed."""
    caller, given = request[CALLER], lists.read(request, DAY_FILTERS, {})
    wanted = days.read_days(given, lists.own(caller), await lists.programme_zone(api, given), caller.role)
    state = await api.versions.state()
    return await lists.respond(
        api, request, "days", wanted, COLUMNS[caller.role], partial(_shown, caller.role),
        days_through=state.days_through,
    )  # fmt: skip


def _shown(role: str, row: Row) -> dict[str, Any]:
    line = days.shown(row, role)
    return line | {"settled_at": rfc3339(line["settled_at"])}
