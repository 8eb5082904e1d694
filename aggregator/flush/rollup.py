"""Count the clicks that were new, per quarter hour, link, offer, partner, country and device, in the partition's own
shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from aggregator.db.connect import Connection
from aggregator.db.instants import at, quarter
from schemas.click_id import uuid_ms
from schemas.events import Click
from schemas.outcomes import INVALID, ClickClass

_Key = tuple[int, int, int, int, str, str]
_UNREPORTED = frozenset({ClickClass.TEST, ClickClass.UNCOUNTED})
_UPSERT = """
INSERT INTO click_rollup AS held
    (quarter, link_id, offer_id, partner_id, country, device, shard, clicks, invalid_clicks)
SELECT quarter, link_id, offer_id, partner_id, country, device, $7, clicks, invalid_clicks
FROM unnest($1::timestamptz[], $2::int[], $3::int[], $4::int[], $5::text[], $6::text[], $8::bigint[], $9::bigint[])
    AS new (quarter, link_id, offer_id, partner_id, country, device, clicks, invalid_clicks)
ON CONFLICT (quarter, link_id, offer_id, partner_id, country, device, shard) DO UPDATE
    SET clicks = held.clicks + excluded.clicks, invalid_clicks = held.invalid_clicks + excluded.invalid_clicks
"""


async def roll_up(db: Connection, clicks: Iterable[Click], shard: int) -> None:
    """Add new clicks to their rollups, in the order of the rows' keys."""
    counted, invalid = _counts(clicks)
    keys = sorted(counted)
    if not keys:
        return
    quarters, *others = zip(*keys, strict=True)
    await db.execute(
        _UPSERT,
        [at(quarter_ms) for quarter_ms in quarters], *others, shard,
        [counted[key] for key in keys], [invalid[key] for key in keys],
    )  # fmt: skip


def _counts(clicks: Iterable[Click]) -> tuple[Counter[_Key], Counter[_Key]]:
    counted: Counter[_Key] = Counter()
    invalid: Counter[_Key] = Counter()
    for click in clicks:
        if click.click_class in _UNREPORTED:
            continue
        begins_ms = quarter(uuid_ms(click.id))
        key = (begins_ms, click.link_id, click.offer_id, click.partner_id, click.country, click.device)
        counted[key] += 1
        invalid[key] += click.click_class in INVALID
    return counted, invalid
