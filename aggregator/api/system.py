"""How the house stands, and what an operator does about it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from aggregator.api.calling import ID_MAX, Api, Name, answer, read_body
from aggregator.api.writing import changing, respond
from aggregator.db.connect import Database, Row, acquire
from aggregator.db.instants import rfc3339
from aggregator.reports.system import system
from schemas import limits
from schemas.errors import Refused

Source = Annotated[str, msgspec.Meta(min_length=1, max_length=limits.SOURCE_MAX, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
Partition = Annotated[int, msgspec.Meta(ge=0, le=ID_MAX)]

_LOCK_EDGE = "SELECT incarnation FROM edge WHERE incarnation = $1 FOR NO KEY UPDATE"
_STANDING = """
SELECT name, complete_to, heard_at, heard_at >= clock_timestamp() - make_interval(secs => $2) AS is_heard
FROM edge_complete WHERE incarnation = $1
"""
_CLOSE = "UPDATE edge SET closed_at = coalesce($2::timestamptz, '-infinity') WHERE incarnation = $1"
_LOCK_POSITION = """
SELECT next, stopped, stopped_at FROM log_position WHERE source = $1 AND partition = $2 FOR NO KEY UPDATE
"""
# -1 is the earliest offset that the broker still has. What was there before says nothing about the record before that.
_RESUME = """
UPDATE log_position SET next = -1, stopped = NULL, stopped_at = NULL, last_digest = NULL
WHERE source = $1 AND partition = $2
"""


class WriteOffBody(msgspec.Struct, forbid_unknown_fields=True):
    reason: Name | None = None


class ResumeBody(msgspec.Struct, forbid_unknown_fields=True):
    source: Source
    partition: Partition


async def get(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/system` -> `{complete_through, edges_total, edges, partitions_total, partitions, dead_letters}`."""
    async with acquire(api.pool) as db:
        return answer(await system(db))


async def write_off(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/system/edges/{incarnation}/write-off {reason?}` -> `{incarnation, name, closed_at}`.

    The edge counts as closed at the time up to which it was complete, null if that is not known. What of it still
    turns up is applied, but `complete_through` does not wait for it any more.
    """
    incarnation = request.match_info["incarnation"]
    body = await read_body(request, WriteOffBody) if request.body_exists else WriteOffBody()
    async with changing(api, request) as change:
        edge = await _vanished(change.db, incarnation)
        closed_at = edge["complete_to"] and rfc3339(edge["complete_to"])
        await change.db.execute(_CLOSE, incarnation, edge["complete_to"])
        await change.db.execute("DELETE FROM edge_beat WHERE incarnation = $1", incarnation)
        await change.record(
            "write_off_edge", incarnation, reason=body.reason,
            before={"name": edge["name"], "complete_to": closed_at, "heard_at": rfc3339(edge["heard_at"])},
            after={"closed_at": closed_at},
        )  # fmt: skip
        change.answers({"incarnation": incarnation, "name": edge["name"], "closed_at": closed_at})
    return await respond(api, change)


async def resume(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/system/partitions/resume {source, partition}` -> `{source, partition, next}`.

    A partition that stands still goes on at the earliest record that its broker has. What lies between there and where
    it stood is applied again, which counts nothing twice; what has gone from there is skipped.
    """
    body = await read_body(request, ResumeBody)
    async with changing(api, request) as change:
        stood = await change.db.fetchrow(_LOCK_POSITION, body.source, body.partition)
        if stood is None:
            raise Refused("not_found", "there is no such partition")
        if stood["stopped"] is None:
            raise Refused("conflict", "this partition does not stand still")
        await change.db.execute(_RESUME, body.source, body.partition)
        await change.record(
            "resume_partition", f"{body.source}/{body.partition}",
            before={"next": stood["next"], "stopped": stood["stopped"], "stopped_at": rfc3339(stood["stopped_at"])},
            after={"next": -1},
        )  # fmt: skip
        change.answers({"source": body.source, "partition": body.partition, "next": -1})
    return await respond(api, change)


async def _vanished(db: Database, incarnation: str) -> Row:
    """An edge that is neither over nor heard of, and is neither while this transaction lasts. Raises Refused."""
    if not incarnation.isprintable() or await db.fetchrow(_LOCK_EDGE, incarnation) is None:
        raise Refused("not_found", "there is no such edge")
    edge = await db.fetchrow(_STANDING, incarnation, limits.SILENT_S)
    if edge is None:
        raise Refused("conflict", "this edge has closed already")
    if edge["is_heard"]:
        raise Refused("conflict", f"this edge beats: it was last heard of at {rfc3339(edge['heard_at'])}")
    return edge
