"""The HTTP API: its routes, who may call them, the shape of its errors, its start and its end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog
from aiohttp import web

from aggregator.api import (
    advertisers,
    approvals,
    audit,
    balance,
    blocks,
    caps,
    clicks,
    conversions,
    coupons,
    days,
    docs_page,
    domains,
    exchange_rates,
    exports,
    health,
    imported_clicks,
    imported_coupons,
    imports,
    intakes,
    keys,
    links,
    me,
    offers,
    partners,
    periods,
    programme,
    reconciliation,
    reports,
    scopes,
    scores,
    system,
    terms,
    verdicts,
)
from aggregator.api.authentication import authenticate
from aggregator.api.calling import CALLER, Api, Caller
from aggregator.api.idempotency import Replayed
from aggregator.api.rates import counting_calls
from aggregator.api.writing import respond_again
from aggregator.db.connect import Pool, acquire, acquire_to_read, pool, report_pool
from aggregator.reports import question, report
from aggregator.reports.live import read_live
from aggregator.reports.question import Question
from aggregator.reports.remembered import Remembered
from aggregator.reports.scores import Segment, score
from aggregator.reports.state import Versions
from schemas import limits
from schemas.errors import STATUS, Refused
from schemas.http import serving
from schemas.redis import Redis, publishing, reading
from schemas.settings import ApiSettings

log = structlog.get_logger()

Handler = Callable[[Api, web.Request], Awaitable[web.StreamResponse]]
_Serve = Callable[[web.Request], Awaitable[web.StreamResponse]]
_TOLD = web.RequestKey("told", dict[str, str])  # headers of an answer, whatever it is

NOBODY: frozenset[str] = frozenset()  # no key needed
ADMIN = frozenset({"admin"})
PARTNER = frozenset({"partner"})
OWNERS = frozenset({"partner", "advertiser"})  # of keys
OWN_ROWS = frozenset({"admin", "partner"})
SENDERS = frozenset({"admin", "advertiser"})
ALL = frozenset({"admin", "partner", "advertiser"})
READING: frozenset[Handler] = frozenset({reports.query})  # POSTs that change nothing
# A key needs the scope `<subject>.read` for these and a GET, `<subject>.write` for anything else.
ROUTES: tuple[tuple[str, str, frozenset[str], str, Handler], ...] = (
    ("GET", "/v1/programme", ADMIN, "programme", programme.get),
    ("PATCH", "/v1/programme", ADMIN, "programme", programme.patch),
    ("GET", "/v1/domains", ADMIN, "domains", domains.listed),
    ("POST", "/v1/domains", ADMIN, "domains", domains.post),
    ("GET", "/v1/domains/{id}", ADMIN, "domains", domains.get),
    ("PATCH", "/v1/domains/{id}", ADMIN, "domains", domains.patch),
    ("DELETE", "/v1/domains/{id}", ADMIN, "domains", domains.archive),
    ("GET", "/v1/advertisers", ADMIN, "advertisers", advertisers.listed),
    ("POST", "/v1/advertisers", ADMIN, "advertisers", advertisers.post),
    ("POST", "/v1/advertisers/import", ADMIN, "advertisers", imports.into("advertisers")),
    ("GET", "/v1/advertisers/{id}", ADMIN, "advertisers", advertisers.get),
    ("PATCH", "/v1/advertisers/{id}", ADMIN, "advertisers", advertisers.patch),
    ("DELETE", "/v1/advertisers/{id}", ADMIN, "advertisers", advertisers.archive),
    ("POST", "/v1/advertisers/{id}/token", ADMIN, "advertisers", advertisers.post_token),
    ("POST", "/v1/advertisers/{id}/signing-key", ADMIN, "advertisers", advertisers.post_signing_key),
    ("GET", "/v1/partners", ADMIN, "partners", partners.listed),
    ("POST", "/v1/partners", ADMIN, "partners", partners.post),
    ("POST", "/v1/partners/import", ADMIN, "partners", imports.into("partners")),
    ("GET", "/v1/partners/{id}", ADMIN, "partners", partners.get),
    ("PATCH", "/v1/partners/{id}", ADMIN, "partners", partners.patch),
    ("DELETE", "/v1/partners/{id}", ADMIN, "partners", partners.archive),
    ("GET", "/v1/offers", ADMIN, "offers", offers.listed),
    ("POST", "/v1/offers", ADMIN, "offers", offers.post),
    ("POST", "/v1/offers/import", ADMIN, "offers", imports.into("offers")),
    ("GET", "/v1/offers/{id}", ADMIN, "offers", offers.get),
    ("PATCH", "/v1/offers/{id}", ADMIN, "offers", offers.patch),
    ("DELETE", "/v1/offers/{id}", ADMIN, "offers", offers.archive),
    ("GET", "/v1/offers/{id}/terms", ADMIN, "offers", terms.listed),
    ("POST", "/v1/offers/{id}/terms", ADMIN, "offers", terms.post),
    ("POST", "/v1/offers/{id}/rerate", ADMIN, "offers", periods.rerate),
    ("POST", "/v1/offers/{id}/scope", ADMIN, "offers", scopes.post),
    ("POST", "/v1/offers/{id}/test", ADMIN, "offers", links.post_test),
    ("GET", "/v1/offers/{id}/partners", ADMIN, "offers", approvals.listed),
    ("PUT", "/v1/offers/{id}/partners/{partner_id}", ADMIN, "offers", approvals.put),
    ("GET", "/v1/links", ADMIN, "links", links.listed),
    ("POST", "/v1/links", ADMIN, "links", links.post),
    ("POST", "/v1/links/import", ADMIN, "links", imports.into("links")),
    ("GET", "/v1/links/{id}", ADMIN, "links", links.get),
    ("PATCH", "/v1/links/{id}", ADMIN, "links", links.patch),
    ("DELETE", "/v1/links/{id}", ADMIN, "links", links.archive),
    ("GET", "/v1/caps", ADMIN, "caps", caps.listed),
    ("POST", "/v1/caps", ADMIN, "caps", caps.post),
    ("GET", "/v1/caps/{id}", ADMIN, "caps", caps.get),
    ("PATCH", "/v1/caps/{id}", ADMIN, "caps", caps.patch),
    ("DELETE", "/v1/caps/{id}", ADMIN, "caps", caps.delete),
    ("GET", "/v1/coupons", ADMIN, "coupons", coupons.listed),
    ("POST", "/v1/coupons", ADMIN, "coupons", coupons.post),
    ("POST", "/v1/coupons/import", ADMIN, "coupons", imports.importing(imported_coupons.COUPONS)),
    ("GET", "/v1/coupons/{id}", ADMIN, "coupons", coupons.get),
    ("PATCH", "/v1/coupons/{id}", ADMIN, "coupons", coupons.patch),
    ("DELETE", "/v1/coupons/{id}", ADMIN, "coupons", coupons.archive),
    ("GET", "/v1/clicks", OWN_ROWS, "clicks", clicks.listed),
    ("POST", "/v1/clicks/import", ADMIN, "clicks", imports.importing(imported_clicks.CLICKS)),
    ("GET", "/v1/exchange-rates", ADMIN, "rates", exchange_rates.listed),
    ("PUT", "/v1/exchange-rates", ADMIN, "rates", exchange_rates.put),
    ("POST", "/v1/exchange-rates/import", ADMIN, "rates", exchange_rates.post_import),
    ("POST", "/v1/periods/{period}/close", ADMIN, "adjustments", periods.close),
    ("GET", "/v1/adjustments", ADMIN, "adjustments", periods.listed),
    ("POST", "/v1/adjustments", ADMIN, "adjustments", periods.post_adjustment),
    ("GET", "/v1/balance", ALL, "ledger", balance.get),
    ("GET", "/v1/ledger", ALL, "ledger", balance.ledger),
    ("GET", "/v1/conversions", ALL, "conversions", conversions.listed),
    ("POST", "/v1/conversions/import", SENDERS, "conversions", imports.importing(verdicts.VERDICTS)),
    ("GET", "/v1/conversions/{id}", ALL, "conversions", conversions.get),
    ("PATCH", "/v1/conversions/{id}", SENDERS, "conversions", conversions.patch),
    ("POST", "/v1/conversions/{id}/refunds", SENDERS, "conversions", conversions.post_refund),
    ("POST", "/v1/conversions/{id}/chargeback", SENDERS, "conversions", conversions.post_chargeback),
    ("GET", "/v1/intakes", SENDERS, "intakes", intakes.listed),
    ("POST", "/v1/intakes/rerun", ADMIN, "intakes", intakes.rerun),
    ("GET", "/v1/me", OWNERS, "me", me.get),
    ("GET", "/v1/me/offers", PARTNER, "me", me.offers),
    ("GET", "/v1/me/offers/{id}", PARTNER, "me", me.offer),
    ("POST", "/v1/me/offers/{id}/apply", PARTNER, "me", me.apply),
    ("GET", "/v1/me/coupons", PARTNER, "me", coupons.own),
    ("GET", "/v1/me/links", PARTNER, "me", me.own_links),
    ("POST", "/v1/me/links", PARTNER, "me", me.make_link),
    ("GET", "/v1/me/links/{id}", PARTNER, "me", me.own_link),
    ("PATCH", "/v1/me/links/{id}", PARTNER, "me", me.change_link),
    ("GET", "/v1/blocks", ADMIN, "blocks", blocks.listed),
    ("POST", "/v1/blocks", ADMIN, "blocks", blocks.post),
    ("GET", "/v1/blocks/{id}", ADMIN, "blocks", blocks.get),
    ("DELETE", "/v1/blocks/{id}", ADMIN, "blocks", blocks.delete),
    ("GET", "/v1/export/programme", ADMIN, "programme", exports.of("programme")),
    ("GET", "/v1/export/domains", ADMIN, "domains", exports.of("domains")),
    ("GET", "/v1/export/advertisers", ADMIN, "advertisers", exports.of("advertisers")),
    ("GET", "/v1/export/partners", ADMIN, "partners", exports.of("partners")),
    ("GET", "/v1/export/offers", ADMIN, "offers", exports.of("offers")),
    ("GET", "/v1/export/terms", ADMIN, "offers", exports.of("terms")),
    ("GET", "/v1/export/approvals", ADMIN, "offers", exports.of("approvals")),
    ("GET", "/v1/export/links", ADMIN, "links", exports.of("links")),
    ("GET", "/v1/export/caps", ADMIN, "caps", exports.of("caps")),
    ("GET", "/v1/export/blocks", ADMIN, "blocks", exports.of("blocks")),
    ("GET", "/v1/export/coupons", ADMIN, "coupons", exports.of("coupons")),
    ("GET", "/v1/export/exchange-rates", ADMIN, "rates", exports.of("exchange-rates")),
    ("GET", "/v1/keys", ADMIN, "keys", keys.listed),
    ("POST", "/v1/keys", ADMIN, "keys", keys.post),
    ("GET", "/v1/keys/{id}", ADMIN, "keys", keys.get),
    ("PATCH", "/v1/keys/{id}", ADMIN, "keys", keys.patch),
    ("DELETE", "/v1/keys/{id}", ADMIN, "keys", keys.revoke),
    ("POST", "/v1/keys/{id}/rotate", ADMIN, "keys", keys.rotate),
    ("GET", "/v1/reports", ALL, "reports", reports.get),
    ("GET", "/v1/reports/days", OWN_ROWS, "reports", days.listed),
    ("POST", "/v1/reports/query", ALL, "reports", reports.query),
    ("GET", "/v1/offers/{id}/score", OWN_ROWS, "reports", scores.get),
    ("GET", "/v1/reconciliation", ADMIN, "system", reconciliation.get),
    ("GET", "/v1/system", ADMIN, "system", system.get),
    ("POST", "/v1/system/edges/{incarnation}/write-off", ADMIN, "system", system.write_off),
    ("POST", "/v1/system/partitions/resume", ADMIN, "system", system.resume),
    ("GET", "/v1/audit", ADMIN, "audit", audit.get),
    ("GET", "/live", NOBODY, "", health.live),
    ("GET", "/ready", NOBODY, "", health.ready),
    ("GET", "/openapi.json", NOBODY, "", docs_page.openapi),
    ("GET", "/docs", NOBODY, "", docs_page.page),
)


async def serve(settings: ApiSettings, sock: socket.socket) -> None:
    """Serve on a listening socket until SIGTERM; requests in flight are finished. Waits for a Postgres that is away."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_api(settings) as api, serving(application(api), sock):
        await stop.wait()
        api.draining = True


@contextlib.asynccontextmanager
async def open_api(settings: ApiSettings) -> AsyncIterator[Api]:
    """Everything the calls need, opened in the order it depends on and closed in reverse."""
    url = settings.redis_url
    async with (
        publishing(url) as redis,
        reading(url) as reads,
        counting_calls(url) as rates,
        pool(settings.database_url) as connections,
        report_pool(settings.database_url) as readers,
    ):
        versions = Versions(connections)
        api = Api(
            connections, readers, redis, rates, settings.public_url, versions,
            Remembered("report", partial(make_report, readers, versions, reads), question.life_s, reads),
            Remembered("score", partial(make_score, readers), lambda _: limits.SCORE_S, reads), settings.keys,
        )  # fmt: skip
        warming = asyncio.create_task(warm_up(api), name="api-warm-up")
        try:
            yield api
        finally:
            warming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await warming


async def make_report(readers: Pool, versions: Versions, redis: Redis, asked: Question) -> dict[str, Any]:
    wanted, counted = asked.report, None
    state = await versions.state()  # before the rows, which then have at least what it says
    async with acquire_to_read(readers) as db:
        if wanted.asked.live:
            counted = await read_live(db, redis, wanted.asked, wanted.scope, state, datetime.now(UTC))
        return await report.report(db, wanted, state, counted)


async def make_score(readers: Pool, segment: Segment) -> dict[str, Any]:
    async with acquire_to_read(readers) as db:
        return await score(db, segment, datetime.now(UTC).date())


async def warm_up(api: Api) -> None:
    """Ready once Postgres has answered; what dies later is answered with 503, call by call."""
    while not api.warm:
        try:
            async with acquire(api.pool) as db:
                await db.execute("SELECT")
            api.warm = True
            log.info("api_ready")
        except Refused:
            await asyncio.sleep(limits.DATABASE_RETRY_MAX_S)


def application(api: Api) -> web.Application:
    app = web.Application(middlewares=[errors], client_max_size=limits.BODY_BYTES_MAX)
    app[docs_page.DOCS] = docs_page.docs(ROUTES, api.public_url)
    for method, path, roles, subject, handler in ROUTES:
        scope = f"{subject}.{'read' if method == 'GET' or handler in READING else 'write'}"
        app.router.add_route(method, path, _guarded(api, roles, scope, handler))
    app.on_response_prepare.append(_tell)
    return app


def _guarded(api: Api, roles: frozenset[str], scope: str, handler: Handler) -> _Serve:
    async def handle(request: web.Request) -> web.StreamResponse:
        if not roles:
            return await handler(api, request)
        caller = request[CALLER] = await authenticate(api, request)
        await _count(api, request, caller)
        if caller.role not in roles:
            raise Refused("forbidden", f"not for a key with the role {caller.role}")
        if not caller.may(scope):
            raise Refused("forbidden", f"this key has not the scope {scope}")
        try:
            return await handler(api, request)
        except Replayed as former:
            replayed = await respond_again(api, caller, former.nonce, former.answer)
            replayed.headers["Idempotent-Replayed"] = "true"
            return replayed

    return handle


async def _count(api: Api, request: web.Request, caller: Caller) -> None:
    """Whatever becomes of this call, its answer says how many its key has left. Raises Refused where it has none."""
    spent = await api.rates.spend(caller.key_id, caller.requests_per_minute)
    if spent is None:
        return
    request[_TOLD] = spent.headers
    if spent.is_too_much:
        raise Refused("too_many_requests", f"this key may make {spent.limit} calls a minute")


async def _tell(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(request.get(_TOLD, {}))


@web.middleware
async def errors(request: web.Request, handler: _Serve) -> web.StreamResponse:
    """Whatever goes wrong leaves in one shape: `{"error": {"code", "message", "field"?}}`."""
    try:
        if len(request.raw_path) > limits.QUERY_BYTES_MAX:
            raise Refused("too_long", f"a request line has at most {limits.QUERY_BYTES_MAX} bytes")
        return await handler(request)
    except Refused as refusal:
        return _refuse(refusal)
    except web.HTTPException as error:
        code = next((code for code, status in STATUS.items() if status == error.status), "bad_request")
        return _refuse(Refused(code, error.reason), allow=error.headers.get("Allow"))
    except Exception as error:
        # neither message nor values: they may hold what a caller sent, a token among it
        log.error("request_failed", error=type(error).__name__, trace=traceback.format_tb(error.__traceback__))
        return _refuse(Refused("internal", "something went wrong on our side"))


def _refuse(refusal: Refused, allow: str | None = None) -> web.Response:
    if refusal.status >= 500 and refusal.__cause__ is not None:
        log.warning("request_refused", code=refusal.code, error=type(refusal.__cause__).__name__)
    headers = dict(refusal.headers) | ({"Allow": allow} if allow else {})
    return web.json_response(refusal.body(), status=refusal.status, headers=headers)
