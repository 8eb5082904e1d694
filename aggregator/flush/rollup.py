"""Count the clicks that were new, per quarter hour, link, offer, partner, country and device, in the partition's own
shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from aggregator.db.connect import Connection
from aggregator.db.instants import QUARTER_MS
from aggregator.flush.click_rows import ClickRow, columns, spans
from schemas.outcomes import INVALID, ClickClass

_Key = tuple[int, int, int, str, str]  # link, offer, partner, country, device
Counts = list[tuple[Any, ...]]  # quarter (s since 1970), the key, clicks and those of them that are invalid; sorted

_UNREPORTED = frozenset({ClickClass.TEST, ClickClass.UNCOUNTED})
_counted = columns("link_id", "offer_id", "partner_id", "country", "device", "click_class")
_UPSERT = """
INSERT INTO click_rollup AS held
    (quarter, link_id, offer_id, partner_id, country, device, shard, clicks, invalid_clicks)
SELECT to_timestamp(quarter_s), link_id, offer_id, partner_id, country, device, $9, clicks, invalid_clicks
FROM unnest($1::text::bigint[], $2::text::int[], $3::text::int[], $4::text::int[], $5::text::bigint[],
            $6::text::bigint[], $7::text::text[], $8::text::text[])
    AS new (quarter_s, link_id, offer_id, partner_id, clicks, invalid_clicks, country, device)
ON CONFLICT (quarter, link_id, offer_id, partner_id, country, device, shard) DO UPDATE
    SET clicks = held.clicks + excluded.clicks, invalid_clicks = held.invalid_clicks + excluded.invalid_clicks
"""


def count(rows: Sequence[ClickRow]) -> Counts:
    """What sorted rows add to the rollups, in the order of the rollups' keys."""
    by_quarter = ((quarter_ms // 1_000, _sums(part)) for quarter_ms, part in spans(rows, QUARTER_MS))
    return [(quarter, *key, *sums[key]) for quarter, sums in by_quarter for key in sorted(sums)]


def _sums(rows: Iterable[ClickRow]) -> Mapping[_Key, Sequence[int]]:
    sums: dict[_Key, list[int]] = {}
    for (link, offer, partner, country, device, click_class), clicks in Counter(map(_counted, rows)).items():
        if click_class not in _UNREPORTED:
            total = sums.setdefault((link, offer, partner, country or "", device or ""), [0, 0])
            total[0] += clicks
            total[1] += clicks if click_class in INVALID else 0
    return sums


async def roll_up(db: Connection, counts: Counts, shard: int) -> None:
    """Add to the rollups."""
    if counts:
        quarters, links, offers, partners, countries, devices, clicks, invalid = zip(*counts, strict=True)
        numbers = [_literal(map(str, column)) for column in (quarters, links, offers, partners, clicks, invalid)]
        await db.execute(_UPSERT, *numbers, _literal(_quoted(countries)), _literal(_quoted(devices)), shard)


def _literal(elements: Iterable[str]) -> str:
    """An array as Postgres reads it. As text, because the driver takes 0.5 µs for each element of a list, and this
    0.1."""
    return f"{{{','.join(elements)}}}"


def _quoted(texts: Iterable[str]) -> Iterator[str]:
    return map(_Quotes().__getitem__, texts)


class _Quotes(dict[str, str]):
    """Texts as elements of such an array; there are few of them."""

    def __missing__(self, text: str) -> str:
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        self[text] = f'"{escaped}"'
        return self[text]
