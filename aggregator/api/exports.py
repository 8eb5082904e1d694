"""`GET /v1/export/{what}`: everything that an operator has typed in, as CSV or JSON lines; no secrets. What has an
import can be imported again.

It is read page by page, each by a query of its own, so that a slow reader keeps no transaction open (which would keep
Postgres from tidying up): a row is as it was when its page was read, and what is made meanwhile comes last.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import structlog
from aiohttp import web

from aggregator.api import sheets
from aggregator.api.calling import Api, flag
from aggregator.api.rows import shown
from aggregator.api.scopes import SHOWN as SCOPES
from aggregator.api.sheets import Format
from aggregator.db.connect import Row, acquire
from schemas import limits
from schemas.errors import Refused

log = structlog.get_logger()

_TYPES: dict[Format, str] = {form: kind for kind, form in sheets.CONTENT_TYPES.items()}


class Export(NamedTuple):
    """What is exported: a query, and the columns whose values put its rows in order. Those that begin with _ are not
    shown."""

    sql: str
    order: tuple[str, ...] = ("id",)


EXPORTS = {
    "programme": Export("SELECT id, timezone, currency, fallback_url FROM programme"),
    "domains": Export("SELECT id, host, own_links, fallback_url, status, created_at FROM domain"),
    "advertisers": Export("""
        SELECT id, external_id, name, status, dialect, decimal_separator, status_map, duplicates, attribution, networks,
               signature_required, postbacks_per_minute, pixel_origins, foreign_clicks_until, created_at
        FROM advertiser
    """),
    "partners": Export("SELECT id, external_id, name, status, created_at FROM partner"),
    "offers": Export(f"""
        SELECT offer.id, offer.external_id, advertiser_id, advertiser.external_id AS advertiser_external_id, offer.name,
               offer.status, destination_url, model AS "payout.model", amount_minor AS "payout.amount_minor",
               trim_scale(percent)::text AS "payout.percent", terms.currency AS "payout.currency", offer.currency,
               access, fallback_url, click_id_parameter, deep_link_hosts, pass_parameters, starts_at, ends_at, timezone,
               targeting, landings, {SCOPES} AS scopes, click_window_days, min_conversion_s, default_status,
               auto_approve_days, amount_max_minor, payout_override_max_minor, max_duration_months, offer.created_at
        FROM offer JOIN advertiser ON advertiser.id = advertiser_id
        LEFT JOIN LATERAL (SELECT * FROM offer_terms
                           WHERE offer_id = offer.id AND valid_from <= now() AND side = 'payout'
                             AND num_nulls(partner_id, event) = 2
                           ORDER BY valid_from DESC LIMIT 1) AS terms ON true
    """),  # noqa: S608 - our own names
    "terms": Export("""
        SELECT offer_terms.id, offer_id, offer.external_id AS offer_external_id, side, partner_id,
               partner.external_id AS partner_external_id, event, nullif(valid_from, '-infinity') AS valid_from, model,
               amount_minor, trim_scale(percent)::text AS percent, offer_terms.currency, tiers, marginal,
               CASE WHEN isfinite(valid_from) THEN extract(epoch FROM valid_from) ELSE -1e12 END AS _begins
        FROM offer_terms JOIN offer ON offer.id = offer_id LEFT JOIN partner ON partner.id = partner_id
    """, ("offer_id", "_begins", "id")),
    "approvals": Export("""
        SELECT offer_id, offer.external_id AS offer_external_id, partner_id,
               partner.external_id AS partner_external_id, approval.status, changed_at
        FROM approval JOIN offer ON offer.id = offer_id JOIN partner ON partner.id = partner_id
    """, ("offer_id", "partner_id")),
    "links": Export("""
        SELECT link.id, link.external_id, code, host AS domain, offer_id, offer.external_id AS offer_external_id,
               partner_id, partner.external_id AS partner_external_id, link.status, paused_by_partner,
               link.destination_url, link.fallback_url, link.starts_at, link.ends_at, link.test,
               link.created_at
        FROM link JOIN offer ON offer.id = offer_id JOIN partner ON partner.id = partner_id
        LEFT JOIN domain ON domain.id = domain_id
    """),
    "caps": Export("""
        SELECT cap.id, offer_id, offer.external_id AS offer_external_id, partner_id,
               partner.external_id AS partner_external_id, kind, period, amount, cap.currency, over_cap,
               over_cap_status, cap.created_at
        FROM cap LEFT JOIN offer ON offer.id = offer_id LEFT JOIN partner ON partner.id = partner_id
    """),
    "coupons": Export("""
        SELECT coupon.id, code, offer_id, offer.external_id AS offer_external_id, partner_id,
               partner.external_id AS partner_external_id, coupon.advertiser_id, coupon.starts_at, coupon.ends_at,
               coupon.status, coupon.created_at
        FROM coupon JOIN offer ON offer.id = offer_id JOIN partner ON partner.id = partner_id
    """),
    "exchange-rates": Export("""
        SELECT day::text, currency, in_currency, trim_scale(rate)::text AS rate, created_at FROM rate
    """, ("currency", "in_currency", "day")),
    "blocks": Export("""
        SELECT block.id, offer_id, offer.external_id AS offer_external_id, partner_id,
               partner.external_id AS partner_external_id, field, value, block.created_at
        FROM block LEFT JOIN offer ON offer.id = offer_id LEFT JOIN partner ON partner.id = partner_id
    """),
}  # fmt: skip


def of(name: str) -> Callable[[Api, web.Request], Awaitable[web.StreamResponse]]:
    """The handler that exports rows of one kind."""

    async def get(api: Api, request: web.Request) -> web.StreamResponse:
        """`Accept: text/csv` or `application/x-ndjson`; `?safe=1` for CSV that a spreadsheet may open."""
        safe = flag(request, "safe")
        form: Format = "jsonl" if request.headers.get("Accept", "").startswith(_TYPES["jsonl"]) else "csv"
        pages = _pages(api, EXPORTS[name])
        columns, rows = await anext(pages)
        response = web.StreamResponse(
            headers={
                "Content-Type": f"{_TYPES[form]}; charset=utf-8",
                "Content-Disposition": f'attachment; filename="{name}.{form}"',
            }
        )
        await response.prepare(request)
        try:
            await _send(response, sheets.write_header(columns, form))
            await _send(response, sheets.write_rows(rows, columns, form, safe=safe))
            async for _, rows in pages:
                await _send(response, sheets.write_rows(rows, columns, form, safe=safe))
        except (Refused, TimeoutError, ConnectionError) as error:
            log.warning("export_cut", what=name, error=type(error).__name__)
            if request.transport is not None:  # what has begun can no longer be refused, but it must not look whole
                request.transport.abort()
        return response

    return get


async def _send(response: web.StreamResponse, data: bytes) -> None:
    """Raises TimeoutError when the reader takes nothing."""
    async with asyncio.timeout(limits.EXPORT_PAUSE_MAX_S):
        await response.write(data)


async def _pages(api: Api, export: Export) -> AsyncIterator[tuple[tuple[str, ...], list[dict[str, Any]]]]:
    """The columns, with page after page of rows. Raises Refused."""
    last: tuple[Any, ...] = ()
    while True:
        names, rows = await _page(api, export, last)
        columns = tuple(name for name in names if not name.startswith("_"))
        yield columns, [shown(row, columns) for row in rows]
        if len(rows) < limits.PAGE_ROWS_MAX:
            return
        last = tuple(rows[-1][name] for name in export.order)


async def _page(api: Api, export: Export, last: Sequence[Any]) -> tuple[tuple[str, ...], list[Row]]:
    """The names of the columns, and the rows after `last`: the values of the columns that put them in order."""
    names = ", ".join(export.order)
    places = ", ".join(f"${n}" for n in range(1, len(last) + 1))
    after = f"WHERE {export.order[0]} >= $1 AND ({names}) > ({places})" if last else ""
    sql = f"SELECT * FROM ({export.sql}) AS row {after} ORDER BY {names} LIMIT {limits.PAGE_ROWS_MAX}"  # noqa: S608
    async with acquire(api.pool) as db:
        query = await db.prepare(sql)
        return tuple(column.name for column in query.get_attributes()), await query.fetch(*last)
