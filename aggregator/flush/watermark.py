"""Apply the beats of the edges: who is there, how far each is complete, what each has counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import orjson

from aggregator.db.connect import Connection
from aggregator.db.instants import at
from aggregator.flush.batch import Begun
from aggregator.flush.decode import hour
from schemas import limits
from schemas.events import Beat

_REGISTER = """
INSERT INTO edge (incarnation, name) SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT DO NOTHING
"""
# `closed_at` is how far it was complete: another edge may have begun since that is not heard of yet.
_CLOSE = """
UPDATE edge SET closed_at = least(complete_to, clock_timestamp())
FROM unnest($1::text[], $2::timestamptz[]) AS new (incarnation, complete_to)
WHERE edge.incarnation = new.incarnation AND closed_at IS NULL
"""
# It has said nothing yet that was applied, so it is complete up to its beginning and no further.
_BEGIN = """
WITH begun AS (
    INSERT INTO edge (incarnation, name) SELECT incarnation, name
    FROM unnest($1::text[], $2::text[]) AS new (incarnation, name) ON CONFLICT DO NOTHING RETURNING incarnation
)
INSERT INTO edge_beat (incarnation, at, complete_to, acked)
SELECT incarnation, began, began, '[]'
FROM unnest($1::text[], $3::timestamptz[]) AS new (incarnation, began) JOIN begun USING (incarnation)
WHERE began <= clock_timestamp() + make_interval(secs => $4)
"""
# A beat from a clock that runs ahead would promise completeness for a time that has yet to come.
_BEAT = """
INSERT INTO edge_beat (incarnation, at, complete_to, acked)
SELECT incarnation, at, complete_to, acked
FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[], $4::jsonb[]) AS new (incarnation, at, complete_to, acked)
JOIN edge USING (incarnation)
WHERE closed_at IS NULL AND greatest(at, complete_to) <= clock_timestamp() + make_interval(secs => $5)
ON CONFLICT DO NOTHING
"""
# What the newest beat that has been passed says makes all that say less superfluous; a closed edge needs none.
_FORGET = """
DELETE FROM edge_beat USING edge
WHERE edge_beat.incarnation = edge.incarnation AND edge.incarnation = ANY ($1::text[])
  AND (closed_at IS NOT NULL OR (complete_to, at) < (
      SELECT complete_to, at FROM edge_beat AS newest
      WHERE newest.incarnation = edge.incarnation AND passed(acked)
      ORDER BY complete_to DESC, at DESC LIMIT 1))
"""
_COUNT = """
INSERT INTO edge_counter AS held (incarnation, hour, outcome, count)
SELECT * FROM unnest($1::text[], $2::timestamptz[], $3::text[], $4::bigint[])
ON CONFLICT (incarnation, hour, outcome) DO UPDATE SET count = greatest(held.count, excluded.count)
"""


async def apply_beats(db: Connection, beats: Sequence[Beat], begun: Sequence[Begun] | None = ()) -> None:
    """Register, beat and close edges. A closed edge stays closed; counters are absolute and only grow.

    `begun` are edges met in the log before what they wrote was read; a beat promises for all edges, so they are
    registered with it.
    """
    if not beats:
        return
    await _begin(db, begun or ())
    names = {beat.incarnation: beat.edge for beat in beats}
    incarnations = sorted(names)
    await db.execute(_REGISTER, incarnations, [names[incarnation] for incarnation in incarnations])
    await _beat(db, [beat for beat in beats if beat.state != "closed"])
    closed = {beat.incarnation: at(beat.complete_to_ms) for beat in reversed(beats) if beat.state == "closed"}
    if closed:
        await db.execute(_CLOSE, list(closed), list(closed.values()))
    await db.execute(_FORGET, incarnations)
    await _count(db, beats)


async def _begin(db: Connection, begun: Sequence[Begun]) -> None:
    first = {one.incarnation: one for one in reversed(begun)}
    ordered = [first[incarnation] for incarnation in sorted(first)]
    if ordered:
        await db.execute(
            _BEGIN,
            [one.incarnation for one in ordered],
            [one.edge for one in ordered],
            [at(one.at_ms) for one in ordered],
            limits.CLOCK_AHEAD_MAX_S,
        )


async def _beat(db: Connection, beats: Iterable[Beat]) -> None:
    ordered = sorted(beats, key=lambda beat: (beat.incarnation, beat.at_ms))
    if ordered:
        await db.execute(
            _BEAT,
            [beat.incarnation for beat in ordered],
            [at(beat.at_ms) for beat in ordered],
            [at(beat.complete_to_ms) for beat in ordered],
            [orjson.dumps(beat.acked).decode() for beat in ordered],
            limits.CLOCK_AHEAD_MAX_S,
        )


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
