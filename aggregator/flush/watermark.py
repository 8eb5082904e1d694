"""Apply the beats of the edges: who is there, how far each is complete, what each has counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import orjson

from aggregator.db.connect import Connection
from aggregator.db.instants import at
from aggregator.flush.batch import Begun
from aggregator.flush.decode import hour
from schemas import limits
from schemas.events import Beat

_COMPLETE_BEFORE = "SELECT coalesce(complete_through, '-infinity')::text FROM complete_through"
_REGISTER = """
INSERT INTO edge (incarnation, name) SELECT * FROM unnest($1::text[], $2::text[])
ON CONFLICT (incarnation) DO UPDATE SET heard_at = clock_timestamp() WHERE edge.closed_at IS NULL
"""
# It has said nothing yet that was applied, so it is complete up to its beginning and no further.
_BEGIN = """
WITH begun AS (
    INSERT INTO edge (incarnation, name) SELECT incarnation, name
    FROM unnest($1::text[], $2::text[]) AS new (incarnation, name) ON CONFLICT DO NOTHING RETURNING incarnation
)
INSERT INTO edge_beat (incarnation, at, complete_to, acked)
SELECT incarnation, began, began, $4
FROM unnest($1::text[], $3::timestamptz[]) AS new (incarnation, began) JOIN begun USING (incarnation)
WHERE began <= clock_timestamp() + make_interval(secs => $5)
"""
# A beat from a clock that runs ahead would promise completeness for a time that has yet to come.
_BEAT = """
INSERT INTO edge_beat (incarnation, at, complete_to, acked)
SELECT incarnation, at, least(complete_to, $5::text::timestamptz), acked
FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[], $4::jsonb[]) AS new (incarnation, at, complete_to, acked)
JOIN edge USING (incarnation)
WHERE closed_at IS NULL AND greatest(at, complete_to) <= clock_timestamp() + make_interval(secs => $6)
  AND $5::text::timestamptz > '-infinity'
ON CONFLICT DO NOTHING
"""
# How far it was complete, not when: another edge may have begun since that is not heard of yet.
_CLOSE = """
UPDATE edge SET closing_to = least(complete_to, clock_timestamp(), $4::text::timestamptz), closing_acked = acked
FROM unnest($1::text[], $2::timestamptz[], $3::jsonb[]) AS new (incarnation, complete_to, acked)
WHERE edge.incarnation = new.incarnation AND closed_at IS NULL AND closing_to IS NULL
"""
# The views know it already. One that another consumer is just promoting is left to that one.
_PROMOTE = """
UPDATE edge SET closed_at = closing_to
FROM (SELECT incarnation FROM edge WHERE closed_at IS NULL AND closing_to IS NOT NULL AND passed(closing_acked)
      FOR NO KEY UPDATE SKIP LOCKED) AS over
WHERE edge.incarnation = over.incarnation RETURNING edge.incarnation
"""
# What the newest beat that has been passed says makes all that say less superfluous; a closed edge needs none.
_FORGET = """
WITH standing AS MATERIALIZED (
    SELECT edge.incarnation, closed_at, newest.complete_to, newest.at
    FROM edge LEFT JOIN LATERAL (
        SELECT complete_to, at FROM edge_beat WHERE edge_beat.incarnation = edge.incarnation AND passed(acked)
        ORDER BY complete_to DESC, at DESC LIMIT 1) AS newest ON true
    WHERE edge.incarnation = ANY ($1::text[])
)
DELETE FROM edge_beat USING standing
WHERE edge_beat.incarnation = standing.incarnation
  AND (closed_at IS NOT NULL OR (edge_beat.complete_to, edge_beat.at) < (standing.complete_to, standing.at))
"""
# While events lie unread, beats wait for them. Of too many that wait, those stay that step evenly through the time they
# span, the first of each step because it is passed first, and the newest.
_THIN = """
WITH crowd AS (
    SELECT incarnation, extract(epoch FROM max(complete_to) - min(complete_to)) AS span_s
    FROM edge_beat WHERE incarnation = ANY ($1::text[]) GROUP BY incarnation HAVING count(*) > $2::int
), stepped AS (
    SELECT incarnation, complete_to, at, 2 ^ ceil(log(2, greatest(1, span_s * 2 / $2::int))) AS step_s
    FROM edge_beat JOIN crowd USING (incarnation)
), standing AS (
    SELECT incarnation, complete_to, at,
           row_number() OVER (PARTITION BY incarnation, floor(extract(epoch FROM complete_to) / step_s)
                              ORDER BY complete_to, at) AS place,
           row_number() OVER (PARTITION BY incarnation ORDER BY complete_to DESC, at DESC) AS newness
    FROM stepped
)
DELETE FROM edge_beat USING standing
WHERE edge_beat.incarnation = standing.incarnation AND edge_beat.complete_to = standing.complete_to
  AND edge_beat.at = standing.at AND place > 1 AND newness > 1
"""
_COUNT = """
INSERT INTO edge_counter AS held (incarnation, hour, outcome, count)
SELECT * FROM unnest($1::text[], $2::timestamptz[], $3::text[], $4::bigint[])
ON CONFLICT (incarnation, hour, outcome) DO UPDATE SET count = excluded.count WHERE held.count < excluded.count
"""

Offset = tuple[str, int, int]  # source, partition, offset


async def apply_beats(
    db: Connection, beats: Sequence[Beat], begun: Sequence[Begun] | None = (), after: Sequence[Offset] = ()
) -> None:
    """Register, beat and close edges. A closed edge stays closed; counters are absolute and only grow.

    A beat promises for all edges: that what another one of them received by then is known to be missing. So `begun`,
    the edges met before what they wrote was read, are registered with it, and what it promises holds when `after` has
    been passed too, because more registrations may lie before it. When `begun` is None they could not be asked for,
    and nothing in `beats` takes completeness beyond what it was.
    """
    if not beats:
        return
    bound = "infinity" if begun is not None else await db.fetchval(_COMPLETE_BEFORE)
    await _begin(db, begun or (), after)
    names = {beat.incarnation: beat.edge for beat in beats}
    incarnations = sorted(names)
    await db.execute(_REGISTER, incarnations, [names[incarnation] for incarnation in incarnations])
    await _beat(db, [beat for beat in beats if beat.state != "closed"], after, bound)
    await _close(db, {beat.incarnation: beat for beat in reversed(beats) if beat.state == "closed"}, after, bound)
    over = [row["incarnation"] for row in await db.fetch(_PROMOTE)]
    await db.execute(_FORGET, [*incarnations, *over])
    await db.execute(_THIN, incarnations, limits.BEATS_WAITING_MAX)
    await _count(db, beats)


async def _begin(db: Connection, begun: Sequence[Begun], after: Sequence[Offset]) -> None:
    first = {one.incarnation: one for one in reversed(begun)}
    ordered = [first[incarnation] for incarnation in sorted(first)]
    if ordered:
        await db.execute(
            _BEGIN,
            [one.incarnation for one in ordered],
            [one.edge for one in ordered],
            [at(one.at_ms) for one in ordered],
            _json(after),
            limits.CLOCK_AHEAD_MAX_S,
        )


async def _beat(db: Connection, beats: Iterable[Beat], after: Sequence[Offset], bound: str) -> None:
    ordered = sorted(beats, key=lambda beat: (beat.incarnation, beat.at_ms))
    if ordered:
        await db.execute(
            _BEAT,
            [beat.incarnation for beat in ordered],
            [at(beat.at_ms) for beat in ordered],
            [at(beat.complete_to_ms) for beat in ordered],
            [_json([*beat.acked, *after]) for beat in ordered],
            bound,
            limits.CLOCK_AHEAD_MAX_S,
        )


async def _close(db: Connection, closed: Mapping[str, Beat], after: Sequence[Offset], bound: str) -> None:
    if closed:
        await db.execute(
            _CLOSE,
            list(closed),
            [at(beat.complete_to_ms) for beat in closed.values()],
            [_json([*beat.acked, *after]) for beat in closed.values()],
            bound,
        )


def _json(offsets: Sequence[Offset]) -> str:
    return orjson.dumps(offsets).decode()


async def _count(db: Connection, beats: Iterable[Beat]) -> None:
    largest: dict[tuple[str, datetime, str], int] = {}
    for beat in beats:
        for text, outcomes in beat.counters.items():
            for outcome, count in outcomes.items():
                key = (beat.incarnation, hour(text), outcome)
                largest[key] = max(count, largest.get(key, 0))
    keys = sorted(largest)
    if keys:
        await db.execute(_COUNT, *zip(*keys, strict=True), [largest[key] for key in keys])
