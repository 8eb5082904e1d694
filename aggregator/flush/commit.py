"""Apply one batch exactly once: the whole procedure, in one place."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from aggregator.conversions.settle import settle
from aggregator.flush import metrics
from aggregator.flush.batch import Applied, Batch, records
from aggregator.flush.clicks import write_clicks
from aggregator.flush.dead_letters import bury
from aggregator.flush.decode import Dead, Decoded, Good, Window, decode, joined, one_by_one, part_of
from aggregator.flush.fence import begin_partition, fence
from aggregator.flush.rollup import count, roll_up
from aggregator.flush.session import Poison, Session, savepoint, transaction
from aggregator.flush.watermark import apply_beats

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
    decoded = decoded or decode(batch.entries, await session.window())  # 2
    await session.ensure(decoded.days())
    await begin_partition(session.db, batch)
    async with transaction(session.db):
        await fence(session, batch)  # 1
        if sifting:
            good, _ = one_by_one(records(batch.entries), decoded.window)
            applied, poisonous = await _sift(session, batch, good, decoded.window)
        else:
            applied, poisonous = await _apply(session, batch, decoded), []  # 3 4 5
        dead = decoded.dead + poisonous
        await bury(session.db, batch, dead)
    if dead:
        first = dead[0]
        log.error("dead_letters", count=len(dead), source=batch.source, offset=first.record.offset, reason=first.reason)
    return Applied(batch.next, *applied, len(dead))  # 6


_Counts = tuple[int, int, int]


async def _apply(session: Session, batch: Batch, decoded: Decoded) -> _Counts:
    db = session.db
    with metrics.STAGE_SECONDS.labels("clicks").time():
        new = await write_clicks(session, decoded.clicks)  # 3
    with metrics.STAGE_SECONDS.labels("rollups").time():
        counted = decoded.counted if len(new) == len(decoded.clicks) else count(new)
        await roll_up(db, counted, shard=batch.partition)  # 4
    settled = await settle(db, decoded.conversions, shard=batch.partition)  # 5
    after = [] if batch.end is None else [(batch.source, batch.partition, batch.end - 1)]
    await apply_beats(db, decoded.beats, batch.begun, after)
    return len(new), settled, len(decoded.beats)


async def _sift(session: Session, batch: Batch, good: Sequence[Good], window: Window) -> tuple[_Counts, list[Dead]]:
    try:
        async with savepoint(session.db, *Poison):
            return await _apply(session, batch, joined([part_of(good)], window)), []
    except Poison as error:
        reason = type(error).__name__
    if len(good) == 1:
        return (0, 0, 0), [Dead(good[0].record, f"refused: {reason}")]
    half = len(good) // 2
    (clicks, conversions, beats), dead = await _sift(session, batch, good[:half], window)
    more, more_dead = await _sift(session, batch, good[half:], window)
    return (clicks + more[0], conversions + more[1], beats + more[2]), dead + more_dead
