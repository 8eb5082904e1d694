"""The report calls: whose rows a key may see, and what was asked for."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

from aiohttp import web

from aggregator.api.calling import CALLER, Api, at_once, given_answer, read_body
from aggregator.api.streams import stream, wants_csv
from aggregator.reports.asked import QueryBody, Scope, read, read_query
from aggregator.reports.question import question
from aggregator.reports.report import Report, columns, lines
from schemas.errors import Refused


async def get(api: Api, request: web.Request) -> web.StreamResponse:
    """`GET /v1/reports`: of all rows for an admin, of its own for a partner and an advertiser."""
    given = [(name, value) for name, value in request.rel_url.query.items() if name != "format"]
    state = await api.versions.state()
    asked = read(given, state.timezone, datetime.now(UTC), request[CALLER].role)
    return await answered(api, request, Report(asked, state.currency, _scope(request)))


async def query(api: Api, request: web.Request) -> web.StreamResponse:
    """`POST /v1/reports/query {from?, to?, timezone?, granularity?, group_by?, metrics?, filters?, exclusions?,
    date_basis?, sort?, limit?, cursor?, totals?, live?}`: the same, asked for by a body."""
    body = await read_body(request, QueryBody)
    state = await api.versions.state()
    asked = read_query(body, state.timezone, datetime.now(UTC), request[CALLER].role)
    return await answered(api, request, Report(asked, state.currency, _scope(request)))


async def answered(api: Api, request: web.Request, report: Report) -> web.StreamResponse:
    """A report as it is remembered, else made; as CSV all of its rows, as they are read."""
    if wants_csv(request):
        if report.asked.live:
            raise Refused("bad_value", "live is not for files", "live")
        return await stream(api, request, "report", columns(report.asked), partial(lines, wanted=report))
    with at_once(api, request[CALLER]):
        return given_answer(request, await api.reports.answer(await question(api.versions, report)))


def _scope(request: web.Request) -> Scope:
    caller = request[CALLER]
    return Scope(caller.partner_id, caller.advertiser_id)
