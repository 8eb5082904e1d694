"""Whether what edges received is in Postgres, hour by hour."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from aiohttp import web

from aggregator.api import lists
from aggregator.api.calling import CALLER, Api, answer, at_once, parameters
from aggregator.db.connect import acquire_to_read
from aggregator.reports.asked import read_time
from aggregator.reports.reconciliation import HOUR, floor, reconciliation
from schemas import limits
from schemas.errors import Refused

PARAMETERS = ("from", "to")


async def get(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/reconciliation?from&to` -> `{data, drift, unaccounted, imported, complete_through, from, to}`: what
    edges have counted and how many rows there are of it, by the hour (UTC) of the events; two days unless said."""
    given = parameters(request, PARAMETERS)
    starts, ends = _span(given, await lists.programme_zone(api, given), datetime.now(UTC))
    with at_once(api, request[CALLER]):
        async with acquire_to_read(api.readers) as db:
            return answer(await reconciliation(db, starts, ends))


def _span(given: Mapping[str, str], zone: ZoneInfo, now: datetime) -> tuple[datetime, datetime]:
    """Whole hours around what is asked for. Raises Refused."""
    ends = _ceiling(read_time("to", given["to"], zone) if "to" in given else now)
    starts = floor(read_time("from", given["from"], zone)) if "from" in given else ends - limits.DRIFT_HOURS * HOUR
    if ends <= starts:
        raise Refused("bad_value", "to must be after from, and is not itself included", "to")
    if ends - starts > limits.RECONCILED_HOURS_MAX * HOUR:
        raise Refused("bad_value", f"this spans at most {limits.RECONCILED_HOURS_MAX} hours", "to")
    return starts, ends


def _ceiling(instant: datetime) -> datetime:
    return floor(instant + HOUR - timedelta(microseconds=1))
