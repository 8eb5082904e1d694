"""Apply one batch exactly once: the whole procedure, in one place."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from aggregator.conversions.settle import settle
from aggregator.flush import metrics
from aggregator.flush.batch import Applied, Batch
from aggregator.flush.clicks import write_clicks
from aggregator.flush.dead_letters import bury
from aggregator.flush.decode import Dead, Decoded, Good, decode
from aggregator.flush.fence import begin_partition, fence
from aggregator.flush.rollup import roll_up
from aggregator.flush.session import Poison, Session, savepoint, transaction
from aggregator.flush.watermark import apply_beats
from schemas.events import Beat, Click, Conversion

log = structlog.get_logger()


async def commit(batch: Batch, session: Session, decoded: Decoded | None = None, *, sifting: bool = False) -> Applied:
    """Apply one batch exactly once.

    1 fence  2 decode  3 clicks  4 rollups  5 conversions, beats  6 commit

    Decoding is pure and comes before the transaction in time, because the days it finds need their partitions first;
    `decoded` is what came of it where it was done while another batch was applied.
    With `sifting`, records that Postgres refuses for their content are found by halving and become dead letters.

    Raises Fenced when another consumer has moved on, Unknown when the commit's fate is not known, one of `Poison`
    when a record is refused for its content (not when sifting), else what the database raises. In all of these cases
    nothing is kept here: the caller drops the batch and reads the fence again.
    """
    decoded = decoded or decode(batch.records, await session.window())  # 2
    await session.ensure(decoded.days())
    await begin_partition(session.db, batch)
    async with transaction(session.db):
        await fence(session, batch)  # 1
        apply = _sift if sifting else _apply
        applied, poisonous = await apply(session, batch, decoded.good)  # 3 4 5
        dead = decoded.dead + poisonous
        await bury(session.db, batch, dead)
    if dead:
        first = dead[0]
        log.error("dead_letters", count=len(dead), source=batch.source, offset=first.record.offset, reason=first.reason)
    return Applied(batch.next, *applied, len(dead))  # 6


_Counts = tuple[int, int, int]


async def _apply(session: Session, batch: Batch, good: Sequence[Good]) -> tuple[_Counts, list[Dead]]:
    db, events = session.db, [event for _, event in good]
    with metrics.STAGE_SECONDS.labels("clicks").time():
        new = await write_clicks(session, [event for event in events if isinstance(event, Click)])  # 3
    with metrics.STAGE_SECONDS.labels("rollups").time():
        await roll_up(db, new, shard=batch.partition)  # 4
    conversions = [event for event in events if isinstance(event, Conversion)]
    settled = await settle(db, conversions, shard=batch.partition)  # 5
    beats = [event for event in events if isinstance(event, Beat)]
    after = [] if batch.end is None else [(batch.source, batch.partition, batch.end - 1)]
    await apply_beats(db, beats, batch.begun, after)
    return (len(new), settled, len(beats)), []


async def _sift(session: Session, batch: Batch, good: Sequence[Good]) -> tuple[_Counts, list[Dead]]:
    try:
        async with savepoint(session.db, *Poison):
            return await _apply(session, batch, good)
    except Poison as error:
        reason = type(error).__name__
    if len(good) == 1:
        return (0, 0, 0), [Dead(good[0].record, f"refused: {reason}")]
    half = len(good) // 2
    (clicks, conversions, beats), dead = await _sift(session, batch, good[:half])
    more, more_dead = await _sift(session, batch, good[half:])
    return (clicks + more[0], conversions + more[1], beats + more[2]), dead + more_dead
