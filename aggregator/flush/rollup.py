"""Count the clicks that were new, per quarter hour, link, country and device, in the partition's own shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from aggregator.db.connect import Connection
from aggregator.db.instants import at, quarter
from schemas.click_id import uuid_ms
from schemas.events import Click
from schemas.outcomes import INVALID, ClickClass

_UNREPORTED = frozenset({ClickClass.TEST, ClickClass.UNCOUNTED})
_UPSERT = """
INSERT INTO click_rollup AS held (quarter, link_id, country, device, shard, clicks, invalid_clicks)
SELECT quarter, link_id, country, device, $5, clicks, invalid_clicks
FROM unnest($1::timestamptz[], $2::int[], $3::text[], $4::text[], $6::bigint[], $7::bigint[])
    AS new (quarter, link_id, country, device, clicks, invalid_clicks)
ON CONFLICT (quarter, link_id, country, device, shard) DO UPDATE
    SET clicks = held.clicks + excluded.clicks, invalid_clicks = held.invalid_clicks + excluded.invalid_clicks
"""


async def roll_up(db: Connection, clicks: Iterable[Click], shard: int) -> None:
    """Add new clicks to their rollups, in the order of the rows' keys."""
    counted, invalid = _counts(clicks)
    keys = sorted(counted)
    if not keys:
        return
    quarters, links, countries, devices = zip(*keys, strict=True)
    await db.execute(
        _UPSERT,
        [at(quarter_ms) for quarter_ms in quarters], links, countries, devices, shard,
        [counted[key] for key in keys], [invalid[key] for key in keys],
    )  # fmt: skip


def _counts(clicks: Iterable[Click]) -> tuple[Counter[tuple[int, int, str, str]], Counter[tuple[int, int, str, str]]]:
    counted: Counter[tuple[int, int, str, str]] = Counter()
    invalid: Counter[tuple[int, int, str, str]] = Counter()
    for click in clicks:
        if click.click_class in _UNREPORTED:
            continue
        key = (quarter(uuid_ms(click.id)), click.link_id, click.country, click.device)
        counted[key] += 1
        invalid[key] += click.click_class in INVALID
    return counted, invalid
