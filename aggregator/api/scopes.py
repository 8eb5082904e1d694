"""What names an order of an offer, from when on: by click time, so what has begun stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

import msgspec
from aiohttp import web

from aggregator.api import rows
from aggregator.api.calling import Api, path_id, read_body
from aggregator.api.dates import Instant, to_ms
from aggregator.api.writing import changing, respond
from aggregator.db import instants
from aggregator.db.connect import Database
from schemas import limits
from schemas.errors import Refused
from schemas.links import Scope

# `scopes` as they are shown, in SQL; the first may have no beginning
SHOWN = """
coalesce((SELECT jsonb_agg(jsonb_build_object(
              'scope', one -> 'scope',
              'valid_from', to_char(to_timestamp(nullif((one ->> 'valid_from')::float8, 0) / 1000) AT TIME ZONE 'UTC',
                                    'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')) ORDER BY (one -> 'valid_from')::bigint)
          FROM jsonb_array_elements(offer.scopes) AS one), '[]')
"""


_APART_MS = limits.CLICK_WINDOW_DAYS_MAX * 86_400_000  # an order is looked for under one former name, not two


class ScopeFrom(msgspec.Struct, forbid_unknown_fields=True):
    """Without `valid_from` from the beginning, or, in a call of its own, from now on."""

    scope: Scope
    valid_from: Instant | None = None


async def post(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/offers/{id}/scope {scope, valid_from?}`, `If-Match` -> `{scope, valid_from}`: what names the orders of
    clicks from now on, or from a later time; the same time once more replaces what has not begun."""
    offer_id, body = path_id(request, "offer"), await read_body(request, ScopeFrom)
    async with changing(api, request) as change:
        offer = await rows.one(change.db, "offer", offer_id, locked=True)
        rows.check_version(request, offer["version"])
        begins_ms = await _begins_ms(change.db, body.valid_from)
        others = [one for one in offer["scopes"] if one["valid_from"] != begins_ms]
        kept = _in_order([*others, {"valid_from": begins_ms, "scope": body.scope}])
        await change.db.execute("UPDATE offer SET scopes = $2 WHERE id = $1", offer_id, kept)
        await rows.touch(change, "offer", offer_id)
        await change.record(
            "change_scope", f"offer:{offer_id}", before={"scopes": offer["scopes"]}, after={"scopes": kept}
        )
        added = {"scope": body.scope, "valid_from": instants.rfc3339(instants.at(begins_ms))}
        change.answers(added, 201, offer["version"] + 1)
    return await respond(api, change)


def read_scopes(asked: Sequence[ScopeFrom]) -> list[dict[str, Any]]:
    """As they are kept: the oldest first, times in ms, 0 for the beginning. Raises Refused naming the field."""
    return _in_order(
        [
            {"valid_from": _ms(one.valid_from, f"scopes[{n}].valid_from"), "scope": one.scope}
            for n, one in enumerate(asked)
        ]
    )


def check_past(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], now: datetime) -> None:
    """Raises Refused where something else would have named orders of a time that has passed."""
    now_ms = instants.to_ms(now)
    begun = [[one for one in scopes if one["valid_from"] <= now_ms] for scopes in (before, after)]
    if begun[0] != begun[1]:
        raise Refused("conflict", "scopes that have begun stay as they are: clicks of their time go by them", "scopes")


def _in_order(scopes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(scopes) > limits.SCOPES_PER_OFFER_MAX:
        raise Refused("conflict", f"an offer has at most {limits.SCOPES_PER_OFFER_MAX} scopes", "scopes")
    if len({one["valid_from"] for one in scopes}) < len(scopes):
        raise Refused("bad_value", "two scopes begin at the same time", "scopes")
    ordered = sorted(scopes, key=lambda one: int(one["valid_from"]))
    changes_ms = [one["valid_from"] for one in ordered if one["valid_from"]]
    if any(later - earlier < _APART_MS for earlier, later in pairwise(changes_ms)):
        days = limits.CLICK_WINDOW_DAYS_MAX
        raise Refused("conflict", f"changes of scope lie at least {days} days apart: an order has two names", "scopes")
    return ordered


async def _begins_ms(db: Database, valid_from: datetime | None) -> int:
    """When a new scope begins, by the clock of Postgres. Raises Refused for a time that has passed."""
    now: datetime = await db.fetchval("SELECT clock_timestamp()")
    if valid_from is None:
        return instants.to_ms(now)
    if valid_from <= now:
        raise Refused("bad_value", "valid_from must lie ahead: what was named stays so", "valid_from")
    return _ms(valid_from, "valid_from")


def _ms(valid_from: datetime | None, field: str) -> int:
    return 0 if valid_from is None else instants.to_ms(to_ms(field, valid_from))
