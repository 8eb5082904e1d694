"""The intake log: every authenticated postback as it was sent, without its secrets, and what came of it; and the way to
run again what was refused, once what was wrong is put right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal
from uuid import UUID

import msgspec
from aiohttp import web

from aggregator.api import dates, rows
from aggregator.api.calling import CALLER, ID_MAX, UUID_TEXT, Api, Id, Name, answer, parameters, read_body
from aggregator.api.dates import Instant
from aggregator.api.writing import changing, respond, transaction
from aggregator.conversions.rerun import Range, Rerun
from aggregator.conversions.rerun import rerun as run_again
from aggregator.db.connect import Database, Row, acquire
from aggregator.db.instants import at, rfc3339, to_ms
from aggregator.publish.denormalise import current
from aggregator.reports.asked import number, read_time, read_zone, word
from schemas import limits, links
from schemas.click_id import uuid_ms
from schemas.errors import Refused
from schemas.outcomes import Result

COLUMNS = (
    "intake_id", "advertiser_id", "conversion_id", "order_id", "result", "reason", "door", "dialect", "raw", "rerun_at",
)  # fmt: skip
_WORDS = ("order_id", "result", "reason")
PARAMETERS = ("advertiser_id", "conversion_id", *_WORDS, "from", "to", "limit", "cursor")
_INTAKES = """
SELECT {columns} FROM conversion_intake
WHERE intake_id < $1 AND intake_id >= $2 {rules} ORDER BY intake_id DESC LIMIT $3
"""
_FIRST, _LAST = UUID(int=0), UUID(int=2**128 - 1)


class RerunBody(msgspec.Struct, forbid_unknown_fields=True, rename={"starts": "from", "ends": "to"}):
    """What was received from `from` on and before `to`; of an advertiser, refused for a reason, if said."""

    starts: Instant
    ends: Instant
    advertiser_id: Id | None = None
    reason: Name | None = None
    cursor: str | None = None
    dry_run: bool = False


async def listed(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/intakes?from&to&advertiser_id&order_id&conversion_id&result&reason&limit&cursor` -> `{data, truncated,
    next_cursor}`, the latest first; an advertiser sees its own. A date is midnight in the programme's time zone."""
    given = parameters(request, PARAMETERS)
    limit = number("limit", given.get("limit", str(limits.INTAKE_ROWS_MAX)), limits.INTAKE_ROWS_MAX)
    rules = _rules(given, request[CALLER].advertiser_id)
    sql = _INTAKES.format(
        columns=", ".join(COLUMNS), rules=" ".join(f"AND {name} = ${n}" for n, name in enumerate(rules, 4))
    )
    async with acquire(api.pool) as db:
        since, before = _range(given, await db.fetchval("SELECT timezone FROM programme"))
        found = await db.fetch(sql, before, since, limit + 1, *rules.values())
    page, truncated = found[:limit], len(found) > limit
    cursor = str(page[-1]["intake_id"]) if truncated else None
    return answer({"data": [_shown(row) for row in page], "truncated": truncated, "next_cursor": cursor})


async def rerun(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/intakes/rerun {from, to, advertiser_id?, reason?, cursor?, dry_run?}` -> `{results, reasons, dry_run,
    truncated, next_cursor}`: what was rejected is read and judged again as its advertiser is set up now, with the same
    ids, at the time it was received. `results` is what it comes to; `reasons` why some is rejected again."""
    body = await read_body(request, RerunBody)
    wanted = _read(body)
    async with changing(api, request) as change:
        async with transaction(change.db, undone=body.dry_run):
            done = await run_again(change.db, wanted, partial(_configs, change.db), api.click_keys)
        told = _told(done, is_dry=body.dry_run)
        if not body.dry_run:
            await change.record("rerun_intakes", "intakes", after={"asked": msgspec.to_builtins(body), **told})
        change.answers(told)
    return await respond(api, change)


def _rules(given: Mapping[str, str], own: int | None) -> dict[str, Any]:
    """Columns and their values; `own` is the advertiser that asks. Raises Refused."""
    rules: dict[str, Any] = {name: word(name, given[name]) for name in _WORDS if name in given}
    if "result" in rules and rules["result"] not in set(Result):
        raise Refused("bad_value", f"result is one of {', '.join(Result)}", "result")
    if "advertiser_id" in given:
        rules["advertiser_id"] = number("advertiser_id", given["advertiser_id"], ID_MAX)
    if "conversion_id" in given:
        rules["conversion_id"] = _read_uuid("conversion_id", given["conversion_id"])
    if own is not None and rules.setdefault("advertiser_id", own) != own:
        raise Refused("forbidden", "these are another advertiser's", "advertiser_id")
    return rules


def _range(given: Mapping[str, str], zone: str) -> tuple[UUID, UUID]:
    """The first intake that may be shown, and the first that may not any more; ids have their times in them."""
    since, before = (
        _first_at(to_ms(read_time(name, given[name], read_zone(zone)))) if name in given else default
        for name, default in (("from", _FIRST), ("to", _LAST))
    )
    return since, min(before, _read_uuid("cursor", given["cursor"])) if "cursor" in given else before


def _shown(row: Row) -> dict[str, Any]:
    return {"received_at": rfc3339(at(uuid_ms(row["intake_id"])))} | rows.shown(row, COLUMNS)


def _read(body: RerunBody) -> Range:
    """Raises Refused naming the field."""
    starts, ends = dates.to_ms("from", body.starts), dates.to_ms("to", body.ends)
    if ends <= starts:
        raise Refused("bad_value", "to must be after from, and is not itself included", "to")
    after = _read_uuid("cursor", body.cursor) if body.cursor is not None else UUID(int=_first_at(to_ms(starts)).int - 1)
    return Range(after, _first_at(to_ms(ends)), body.advertiser_id, body.reason)


def _told(done: Rerun, *, is_dry: bool) -> dict[str, Any]:
    return {
        "results": dict(done.results),
        "reasons": dict(done.reasons),
        "dry_run": is_dry,
        "truncated": done.last is not None,
        "next_cursor": None if done.last is None else str(done.last),
    }


async def _configs(db: Database, kind: Literal["advertiser", "offer"], ids: Iterable[int]) -> Mapping[int, Any]:
    found = await current(db, kind, ids, epoch=0)
    return {one.id: one for one in found.values() if isinstance(one, links.Advertiser | links.Offer)}


def _first_at(ms: int) -> UUID:
    return UUID(int=ms << 80)


def _read_uuid(name: str, text: str) -> UUID:
    if not UUID_TEXT.fullmatch(text):
        raise Refused("bad_cursor" if name == "cursor" else "bad_value", f"{name} is one that an answer had", name)
    return UUID(text)
