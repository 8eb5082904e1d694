"""The report call: whose rows a key may see, and what was asked for."""

from __future__ import annotations

from datetime import UTC, datetime

from aiohttp import web

from aggregator.api.calling import CALLER, Api, at_once, given_answer
from aggregator.db.connect import acquire
from aggregator.reports import asked
from aggregator.reports.question import question
from aggregator.reports.report import Report


async def get(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/reports`: of all links for an admin, of its own for a partner."""
    async with acquire(api.pool) as db:
        programme = await db.fetchrow("SELECT timezone, currency FROM programme")
        assert programme is not None
        query = asked.read(list(request.rel_url.query.items()), programme["timezone"], datetime.now(UTC))
    return await answered(api, request, Report(query, programme["currency"], request[CALLER].partner_id))


async def answered(api: Api, request: web.Request, report: Report) -> web.Response:
    """A report as it is remembered, else made."""
    with at_once(api, request[CALLER]):
        return given_answer(request, await api.reports.answer(await question(api.versions, report)))
