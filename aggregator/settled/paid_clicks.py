"""Clicks that are paid each: what the unique, valid ones of a settled day come to by the terms of their time, booked in
the ledger. Later versions of the day book what is more."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

from aggregator.conversions import ledger
from aggregator.conversions.ledger import Entry, Line
from aggregator.conversions.terms import Offer, Side, read_offers
from aggregator.db.connect import Connection
from aggregator.db.instants import to_ms
from aggregator.settled.uniques import first_id

_SIDES: tuple[Side, ...] = ("payout", "revenue")
_OFFERS = "SELECT DISTINCT offer_id FROM offer_terms WHERE model = 'cpc'"
# Where the day has other uniques than its last version says.
_CHANGED = """
SELECT partner_id, offer_id FROM (
    SELECT partner_id, offer_id, sum(unique_clicks) AS uniques FROM click_rollup
    WHERE quarter >= $2 AND quarter < $3 AND offer_id = ANY ($4::int[]) GROUP BY partner_id, offer_id
) AS told
WHERE uniques <> coalesce((
    SELECT unique_clicks FROM settled_total AS held
    WHERE (day, held.partner_id, held.offer_id, currency) = ($1, told.partner_id, told.offer_id, '')
    ORDER BY version DESC LIMIT 1), 0)
ORDER BY partner_id, offer_id
"""
# After a change of the programme's zone, a click may be the first one of two days.
_COUNT = """
SELECT (SELECT count(DISTINCT click_id) FROM first_click
        WHERE day = ANY ($5::date[]) AND partner_id = part.partner_id AND offer_id = part.offer_id
          AND click_id >= part.first AND click_id < part.past)
FROM unnest($1::int[], $2::int[], $3::uuid[], $4::uuid[]) WITH ORDINALITY
    AS part (partner_id, offer_id, first, past, place) ORDER BY place
"""
_HELD = "SELECT partner_id, offer_id, side, currency, clicks, amount_minor FROM paid_clicks WHERE day = $1"
_WRITE = """
INSERT INTO paid_clicks (day, partner_id, offer_id, side, currency, clicks, amount_minor)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (day, partner_id, offer_id, side, currency) DO UPDATE
    SET clicks = excluded.clicks, amount_minor = excluded.amount_minor
"""


class Part(NamedTuple):
    """A partner's clicks on an offer in a time during which its terms stayed (ms since 1970, the end not in it)."""

    partner_id: int
    offer_id: int
    begins_ms: int
    ends_ms: int


class Key(NamedTuple):
    partner_id: int
    offer_id: int
    side: Side
    currency: str


class Paid(NamedTuple):
    clicks: int
    amount_minor: int


async def book(db: Connection, day: date, starts_at: datetime, ends_at: datetime, version: int) -> None:
    """Book what the day's clicks come to, less what is booked of it, before `version` says that they are in it.
    Belongs into the transaction that writes it. Raises what the database raises."""
    offer_ids = [row["offer_id"] for row in await db.fetch(_OFFERS)]
    changed = await db.fetch(_CHANGED, day, starts_at, ends_at, offer_ids) if offer_ids else []
    if not changed:
        return
    offers = await read_offers(db, {row["offer_id"] for row in changed})
    span_ms = to_ms(starts_at), to_ms(ends_at)
    parts = [part for row in changed for part in _parts(row["partner_id"], row["offer_id"], offers, *span_ms)]
    held = {Key(*row[:4]): Paid(*row[4:]) for row in map(tuple, await db.fetch(_HELD, day))}
    more = _more(_priced(parts, await _count(db, day, parts), offers), held)
    await db.executemany(_WRITE, [(day, *key, *paid) for key, paid in more.items()])
    await ledger.book(db, [*_entries(day, version, more, held, offers)])


def _parts(partner_id: int, offer_id: int, offers: Mapping[int, Offer], starts_ms: int, ends_ms: int) -> Iterator[Part]:
    """The day of an offer, cut where terms begin."""
    begin = {math.ceil(one.valid_from_ms) for one in offers[offer_id].terms if starts_ms < one.valid_from_ms < ends_ms}
    cuts = [starts_ms, *sorted(begin - {ends_ms}), ends_ms]
    return (Part(partner_id, offer_id, *pair) for pair in pairwise(cuts))


async def _count(db: Connection, day: date, parts: Sequence[Part]) -> list[int]:
    """How many unique clicks each has."""
    days = [day + timedelta(days=apart) for apart in (-1, 0, 1)]
    bounds = [(one.partner_id, one.offer_id, first_id(one.begins_ms), first_id(one.ends_ms)) for one in parts]
    return [row[0] for row in await db.fetch(_COUNT, *map(list, zip(*bounds, strict=True)), days)]


def _priced(parts: Sequence[Part], counts: Sequence[int], offers: Mapping[int, Offer]) -> dict[Key, Paid]:
    """What they come to by the terms that hold for clicks, which are for no event."""
    sums: dict[Key, Paid] = defaultdict(lambda: Paid(0, 0))
    for part, clicks in zip(parts, counts, strict=True):
        for side in _SIDES:
            terms = offers[part.offer_id].terms_at(part.begins_ms, side, part.partner_id)
            if clicks and terms and terms.model == "cpc" and terms.amount_minor is not None:
                key = Key(part.partner_id, part.offer_id, side, terms.currency)
                sums[key] = Paid(sums[key].clicks + clicks, sums[key].amount_minor + clicks * terms.amount_minor)
    return dict(sums)


def _more(priced: Mapping[Key, Paid], held: Mapping[Key, Paid]) -> dict[Key, Paid]:
    """Where there are more than were paid. First clicks are only ever added: where there are fewer, they are gone with
    the clicks that are no longer kept, and were paid all the same."""
    return {key: paid for key, paid in sorted(priced.items()) if key not in held or paid.clicks > held[key].clicks}


def _entries(
    day: date, version: int, more: Mapping[Key, Paid], held: Mapping[Key, Paid], offers: Mapping[int, Offer]
) -> Iterator[Entry]:
    """One for each partner and offer."""
    lines: dict[tuple[int, int], list[Line]] = defaultdict(list)
    for key, paid in more.items():
        amount_minor = paid.amount_minor - (held[key].amount_minor if key in held else 0)
        if key.side == "payout":
            line = Line(ledger.partner(key.partner_id), amount_minor, key.currency)
        else:
            line = Line(ledger.advertiser(offers[key.offer_id].advertiser_id), -amount_minor, key.currency)
        lines[key.partner_id, key.offer_id].append(line)
    for (partner_id, offer_id), owed in lines.items():
        if balanced := ledger.balanced(*owed):
            once = f"clicks:{day}:{partner_id}:{offer_id}:{version}"
            yield Entry("clicks", balanced, "auto", None, None, offer_id, None, once, day, partner_id)
