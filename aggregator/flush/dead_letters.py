"""Put aside what cannot be applied, with the place it was found at, the reason and its bytes."""

from __future__ import annotations

from collections.abc import Sequence

from aggregator.db.connect import Connection
from aggregator.flush.batch import Batch
from aggregator.flush.decode import Dead
from schemas import limits

_REASON_MAX = 300


async def bury(db: Connection, batch: Batch, dead: Sequence[Dead]) -> None:
    """Write dead letters in the batch's own transaction, so that none is lost or written twice."""
    if not dead:
        return
    await db.copy_records_to_table(
        "dead_letter",
        columns=["source", "partition", "offset", "line", "reason", "body"],
        records=[(batch.source, batch.partition, *_row(letter)) for letter in dead],
    )


def _row(letter: Dead) -> tuple[int, int, str, bytes]:
    # the reason may quote the record, and text in Postgres holds no NUL
    reason = letter.reason[:_REASON_MAX].replace("\0", "\N{REPLACEMENT CHARACTER}")
    return letter.record.offset, letter.record.line, reason, letter.record.body[: limits.DEAD_BYTES_MAX]
