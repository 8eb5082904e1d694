"""Clicks, one by one: those of all for an admin, its own for a partner."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

from aiohttp import web

from aggregator.api import lists, rows
from aggregator.api.calling import CALLER, Api
from aggregator.db.connect import Row
from aggregator.reports.lists import CLICK_FILTERS, read_clicks
from schemas.outcomes import ClickClass, Reason

_FOR_ALL = (
    "id", "clicked_at", "link_id", "offer_id", "partner_id", "class", "reason", "unique", "country", "device", "os",
    "browser", "referer", "source_id", "click_ref", "subs",
)  # fmt: skip
# Nobody is shown `visitor`, not even as the hash that it is.
COLUMNS: dict[str, tuple[str, ...]] = {"admin": (*_FOR_ALL, "ip"), "partner": _FOR_ALL}
_KEPT = {role: tuple(name for name in names if name != "class") for role, names in COLUMNS.items()}
HIDDEN: lists.Hidden = {"partner": frozenset({"advertiser_id"})}
# What a partner is told of the reasons. One that is added says here whether it would help to get around it.
_FOR_PARTNERS = frozenset(
    {
        Reason.KNOWN_BOT, Reason.NO_USER_AGENT, Reason.LINK_PAUSED, Reason.OFFER_PAUSED, Reason.PARTNER_BLOCKED,
        Reason.NOT_STARTED, Reason.EXPIRED, Reason.NOT_APPROVED, Reason.BLOCKED_SOURCE, Reason.OFF_TARGET_COUNTRY,
        Reason.OFF_TARGET_DEVICE, Reason.OFF_TARGET_OS, Reason.OFF_TARGET_BROWSER, Reason.OFF_TARGET_LANGUAGE,
        Reason.OFF_HOURS, Reason.OVER_CAP,
    }
)  # fmt: skip


async def listed(api: Api, request: web.Request) -> web.StreamResponse:
    """`GET /v1/clicks?from&to&timezone&<filters>&limit&cursor&format` -> `{data, complete_through, settled_through,
    truncated, next_cursor}`, the latest first."""
    caller, given = request[CALLER], lists.read(request, CLICK_FILTERS, HIDDEN)
    lists.check_reason(given, caller, _FOR_PARTNERS)
    wanted = read_clicks(given, lists.own(caller), await lists.programme_zone(api, given), datetime.now(UTC))
    state = await api.versions.state()
    return await lists.respond(
        api, request, "clicks", wanted, COLUMNS[caller.role], partial(_shown, caller.role),
        complete_through=state.complete_through, settled_through=state.settled_through,
    )  # fmt: skip


def _shown(role: str, row: Row) -> dict[str, Any]:
    kept = rows.shown(row, _KEPT[role])
    reason = kept["reason"] if role == "admin" or kept["reason"] in _FOR_PARTNERS else None
    told = kept | {"class": ClickClass(row["click_class"]).name.lower(), "reason": reason, "subs": kept["subs"] or {}}
    return {name: told[name] for name in COLUMNS[role]}
