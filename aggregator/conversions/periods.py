"""Months: what volume tiers add when one is closed, and what other terms would have paid for what was sold.

All three (`close`, `rerate`, `what_if`) compare two ways of paying the same approved conversions, each partner's of a
month in the order of (event time, id), and none of them changes what a conversion earned: the difference is an
adjustment in the ledger.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from aggregator.conversions import ledger
from aggregator.conversions.rates import Rates, day_of, read_rates
from aggregator.conversions.terms import Offer, Side, Terms, Worth, by_terms, read_offers
from aggregator.db.connect import Database, Row
from aggregator.db.instants import at, to_ms
from schemas import limits
from schemas.click_id import uuid_ms
from schemas.errors import Refused

_PERIOD = re.compile(r"20\d\d-(0[1-9]|1[0-2])", re.ASCII)
_ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtext('periods'))"
_SALES = """
SELECT partner_id, event, click_id, event_at, sale_amount_minor, sale_currency,
       CASE WHEN num_nulls(payout_override_minor, payout_override_max_minor) = 0 THEN payout_minor END AS payout_said,
       conversion.currency AS payout_currency, revenue_stated_minor AS revenue_said, revenue_currency
FROM conversion JOIN offer ON offer.id = offer_id
WHERE offer_id = $1 AND conversion.status = 'approved' AND event_at >= $2 AND event_at < $3
ORDER BY partner_id, event_at, conversion_id
"""
_CURRENCIES = """
SELECT DISTINCT sale_currency, (event_at AT TIME ZONE 'UTC')::date AS day
FROM conversion WHERE offer_id = $1 AND status = 'approved' AND event_at >= $2 AND event_at < $3
"""
_TIERED = """
SELECT DISTINCT offer_id FROM offer_terms WHERE tiers IS NOT NULL AND side = 'payout' ORDER BY offer_id
"""
# Of months that were closed before: where something changed since. Transactions that were under way then may have
# committed later than they say.
_CHANGED = """
SELECT DISTINCT offer_id, to_char(event_at AT TIME ZONE $1, 'YYYY-MM') AS period FROM conversion
WHERE offer_id = ANY ($2::int[])
  AND changed_at > (SELECT max(closed_at) FROM closed_period) - make_interval(secs => $3)
  AND to_char(event_at AT TIME ZONE $1, 'YYYY-MM') IN (SELECT period FROM closed_period)
ORDER BY offer_id, period
"""
_CLOSED = "INSERT INTO closed_period (period) VALUES ($1) ON CONFLICT (period) DO UPDATE SET closed_at = now()"
_BOOKED = """
SELECT split_part(account, ':', 2)::int AS partner_id, currency, sum(amount_minor)::bigint AS amount_minor,
       count(*) AS entries
FROM ledger_entry JOIN ledger_line ON entry_id = id
WHERE conversion_id IS NULL AND offer_id = $1 AND once LIKE $2 AND account LIKE 'partner:%'
GROUP BY 1, currency
"""
_RERATED = """
SELECT DISTINCT split_part(once, ':', 3)::bigint AS since_ms, split_part(once, ':', 4)::bigint AS until_ms
FROM ledger_entry WHERE conversion_id IS NULL AND offer_id = $1 AND once LIKE 'rerate:%'
"""

_Paid = tuple[int | None, str]  # an amount if it can be told, in a currency


@dataclass(frozen=True, slots=True)
class Sale:
    """An approved conversion. `at_ms`: the terms of then count. `said`: what it pays, where the sender said that, and
    not the terms."""

    partner_id: int
    event: str
    at_ms: int
    event_at: datetime
    worth: Worth
    said: _Paid | None


@dataclass(frozen=True, slots=True)
class Difference:
    """What a partner's `conversions` on an offer in a period paid (or brought in) and what they do by other terms, in
    minor units; `entry_id` of the ledger where the difference was booked."""

    offer_id: int
    partner_id: int
    period: str
    currency: str
    conversions: int
    was_minor: int
    will_be_minor: int
    entry_id: int | None = None

    @property
    def difference_minor(self) -> int:
        return self.will_be_minor - self.was_minor


async def close(db: Database, period: str, actor: str, *, dry_run: bool) -> list[Difference]:
    """Settle the volume tiers of a month (`2026-10`, in the programme's zone) that is over: for each partner on an
    offer one adjustment, of what its tiers add to what was paid at once. Belongs into a transaction.

    It can be closed again: only what is not booked yet is. So is each month that was closed before, where a conversion
    was approved, reversed or changed since. Raises Refused for a month that is not over.
    """
    zone = ZoneInfo(await db.fetchval("SELECT timezone FROM programme"))
    if bounds(period, zone)[1] > await db.fetchval("SELECT clock_timestamp()"):
        raise Refused("conflict", f"{period} is not over yet", "period")
    await db.execute(_ONE_AT_A_TIME)
    tiered = [row["offer_id"] for row in await db.fetch(_TIERED)]
    changed = await db.fetch(_CHANGED, zone.key, tiered, limits.CHANGED_LATER_S)
    months = sorted({(row["offer_id"], row["period"]) for row in changed} | {(offer, period) for offer in tiered})
    offers = await read_offers(db, tiered)
    settled = []
    for offer_id, month in months:
        settled += await _close_offer(db, offer_id, offers[offer_id], month, zone, actor, dry_run=dry_run)
    if not dry_run:
        await db.execute(_CLOSED, period)
    return settled


async def _close_offer(
    db: Database, offer_id: int, offer: Offer, period: str, zone: ZoneInfo, actor: str, *, dry_run: bool
) -> list[Difference]:
    untiered = replace(offer, terms=tuple(replace(terms, tiers=()) for terms in offer.terms))
    span = bounds(period, zone)
    found = await _compare(db, offer_id, span, zone, untiered, offer)
    name = f"tiers:{offer_id}:{period}"
    return await _book(db, name, found, actor, f"volume tiers of {period}", period, dry_run=dry_run)


async def rerate(
    db: Database, offer_id: int, since: datetime, until: datetime, actor: str, reason: str, *, dry_run: bool
) -> list[Difference]:
    """Pay what the terms that hold now would have paid for what was sold on an offer from `since` on, before `until`:
    for each partner and currency one adjustment. Belongs into a transaction.

    The same range again books what is not booked yet. Raises Refused for one that overlaps an earlier one in part.
    """
    await db.execute(_ONE_AT_A_TIME)
    offer, zone = await _offer(db, offer_id)
    since, until = at(to_ms(since)), at(to_ms(until))  # to the millisecond, as it is remembered
    for row in await db.fetch(_RERATED, offer_id):
        range_ms = (row["since_ms"], row["until_ms"])
        if range_ms != (to_ms(since), to_ms(until)) and range_ms[0] < to_ms(until) and to_ms(since) < range_ms[1]:
            raise Refused("conflict", "part of this range was re-rated before: name that range, or adjust", "from")
    now_ms = to_ms(await db.fetchval("SELECT clock_timestamp()"))
    found = await _compare(db, offer_id, (since, until), zone, offer, _as_of(offer, now_ms))
    name = f"rerate:{offer_id}:{to_ms(since)}:{to_ms(until)}"
    return await _book(db, name, found, actor, reason, None, dry_run=dry_run)


async def what_if(db: Database, offer_id: int, proposed: Terms, since: datetime, until: datetime) -> list[Difference]:
    """What would have been paid (or brought in) for what was sold on an offer from `since` on, before `until`, had
    these terms held in place of others for the same partner and event."""
    offer, zone = await _offer(db, offer_id)
    always = replace(proposed, valid_from_ms=float("-inf"))  # as the last of its kind it goes before all of them
    changed = replace(offer, terms=(*offer.terms, always))
    return _by_partner(await _compare(db, offer_id, (since, until), zone, offer, changed, proposed.side))


def check(period: str) -> None:
    """Raises Refused for what is no month."""
    if not _PERIOD.fullmatch(period):
        raise Refused("bad_value", "a period is a month, such as 2026-10", "period")


def bounds(period: str, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """The month's beginning and its end, which is not part of it. Raises Refused."""
    check(period)
    first = datetime(int(period[:4]), int(period[5:]), 1, tzinfo=zone)
    return first, (first.replace(tzinfo=None) + timedelta(days=32)).replace(day=1, tzinfo=zone)


def last_month(now: datetime, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """The bounds of the last month that is over."""
    first, _ = bounds(_month(now, zone), zone)
    return bounds(_month(first - timedelta(days=1), zone), zone)


def amounts(offer: Offer, sales: Sequence[Sale], rates: Rates, side: Side = "payout") -> list[_Paid]:
    """What each of one partner's sales of a month pays by an offer's terms, tiers counted; in the order of their times.

    Tiers count what is paid by terms for the same event (or for all): leads do not raise the price of sales.
    """
    held = [offer.terms_at(sale.at_ms, side, sale.partner_id, sale.event) for sale in sales]
    totals = Counter(terms.event for terms in held if terms)
    numbers: Counter[str | None] = Counter()
    paid: list[_Paid] = []
    for sale, terms in zip(sales, held, strict=True):
        if terms is None:
            paid.append(sale.said or (None, sale.worth.currency))
            continue
        numbers[terms.event] += 1
        number = numbers[terms.event] if terms.marginal else totals[terms.event]
        paid.append(sale.said or (by_terms(terms.beyond(number), sale.worth, rates)[0], terms.currency))
    return paid


def _as_of(offer: Offer, at_ms: int) -> Offer:
    """The offer as if the terms that held at a time had always held."""
    newest = {terms.key: terms for terms in offer.terms if terms.valid_from_ms <= at_ms}
    return replace(offer, terms=tuple(replace(terms, valid_from_ms=float("-inf")) for terms in newest.values()))


async def _offer(db: Database, offer_id: int) -> tuple[Offer, ZoneInfo]:
    """With the programme's zone, by which months are told apart."""
    offers = await read_offers(db, [offer_id])
    if offer_id not in offers:
        raise Refused("not_found", "there is no such offer")
    return offers[offer_id], ZoneInfo(await db.fetchval("SELECT timezone FROM programme"))


async def _compare(
    db: Database,
    offer_id: int,
    span: tuple[datetime, datetime],
    zone: ZoneInfo,
    old: Offer,
    new: Offer,
    side: Side = "payout",
) -> list[Difference]:
    """What an offer paid by its old terms and by the new ones, by partner, month and currency. Whole months are read,
    so that tiers count from their beginning. What the new ones cannot tell an amount of is as it was."""
    since, until = span
    months = bounds(_month(since, zone), zone)[0], bounds(_month(until - timedelta(microseconds=1), zone), zone)[1]
    rates = await _rates(db, offer_id, months, old.currencies | new.currencies)
    found = []
    async for partner_id, period, sales in _read_sales(db, offer_id, months, zone, side):
        # a thread, because a hundred thousand of them take seconds, in which others are to be answered
        sums = await asyncio.to_thread(_sums, sales, old, new, span, rates, side)
        found += [
            Difference(offer_id, partner_id, period, currency, conversions, was_minor, will_be_minor)
            for currency, (was_minor, will_be_minor, conversions) in sums.items()
        ]
    return found


def _sums(
    sales: Sequence[Sale], old: Offer, new: Offer, span: tuple[datetime, datetime], rates: Rates, side: Side
) -> dict[str, list[int]]:
    """By currency: what one partner's sales of a month were paid, what they will be, and how many there are."""
    since, until = span
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    ways = amounts(old, sales, rates, side), amounts(new, sales, rates, side)
    for sale, (was, was_in), (will_be, will_be_in) in zip(sales, *ways, strict=True):
        if since <= sale.event_at < until:
            sums[was_in][0] += was or 0
            paid_in, pays = (was_in, was) if will_be is None else (will_be_in, will_be)
            sums[paid_in][1] += pays or 0
            sums[paid_in][2] += 1
    return sums


async def _rates(db: Database, offer_id: int, span: tuple[datetime, datetime], currencies: frozenset[str]) -> Rates:
    """The rates that the sales of an offer need."""
    rows = await db.fetch(_CURRENCIES, offer_id, *span)
    return await read_rates(db, currencies | {row["sale_currency"] for row in rows}, {row["day"] for row in rows})


async def _read_sales(
    db: Database, offer_id: int, span: tuple[datetime, datetime], zone: ZoneInfo, side: Side
) -> AsyncIterator[tuple[int, str, list[Sale]]]:
    """Partner, month and its approved sales, in the order that tiers count them."""
    sales: list[Sale] = []
    group = (0, "")
    async for row in db.cursor(_SALES, offer_id, *span, prefetch=limits.SALES_READ):
        of = (row["partner_id"], _month(row["event_at"], zone))
        if of != group and sales:
            yield *group, sales
            sales = []
        group = of
        sales.append(_sale(row, side))
    if sales:
        yield *group, sales


def _sale(row: Row, side: Side) -> Sale:
    event_at, said = row["event_at"], row[f"{side}_said"]
    return Sale(
        row["partner_id"],
        row["event"],
        uuid_ms(row["click_id"]) if row["click_id"] else to_ms(event_at),
        event_at,
        Worth(row["sale_amount_minor"], row["sale_currency"], day_of(to_ms(event_at))),
        None if said is None else (said, row[f"{side}_currency"]),
    )


def _month(instant: datetime, zone: ZoneInfo) -> str:
    return instant.astimezone(zone).strftime("%Y-%m")


async def _book(
    db: Database,
    name: str,
    found: Iterable[Difference],
    actor: str,
    reason: str,
    period: str | None,
    *,
    dry_run: bool,
) -> list[Difference]:
    """Book the differences under a name, one entry for each partner and currency, less what is booked under it already:
    of what was found, and of what is no longer there."""
    offer_id = int(name.split(":")[1])
    rows = await db.fetch(_BOOKED, offer_id, f"{name}:%")
    booked = {(row["partner_id"], row["currency"]): row["amount_minor"] for row in rows}
    numbers: Counter[int] = Counter()
    for row in rows:
        numbers[row["partner_id"]] += row["entries"]
    wanted = {(one.partner_id, one.currency): one for one in _by_partner(found)}
    for partner_id, currency in booked.keys() - wanted.keys():
        wanted[partner_id, currency] = Difference(offer_id, partner_id, period or "", currency, 0, 0, 0)
    due = [replace(one, was_minor=one.was_minor + booked.get(key, 0)) for key, one in sorted(wanted.items())]
    if dry_run:
        return due
    entries = {}
    for one in due:
        if one.difference_minor:
            line = ledger.Line(ledger.partner(one.partner_id), one.difference_minor, one.currency)
            once = f"{name}:{one.partner_id}:{numbers[one.partner_id]}"
            entries[one.partner_id, one.currency] = ledger.Entry(
                "adjustment", ledger.balanced(line), actor, reason, offer_id=offer_id, period=period, once=once
            )
            numbers[one.partner_id] += 1
    ids = dict(zip(entries, await ledger.book(db, list(entries.values())), strict=True))
    return [replace(one, entry_id=ids.get((one.partner_id, one.currency))) for one in due]


def _by_partner(found: Iterable[Difference]) -> list[Difference]:
    """Months added up."""
    sums: dict[tuple[int, str], Difference] = {}
    for one in found:
        before = sums.get((one.partner_id, one.currency))
        sums[one.partner_id, one.currency] = one if before is None else _added(before, one)
    return list(sums.values())


def _added(one: Difference, other: Difference) -> Difference:
    return replace(
        one,
        period=one.period if one.period == other.period else f"{one.period[:7]}/{other.period}",
        conversions=one.conversions + other.conversions,
        was_minor=one.was_minor + other.was_minor,
        will_be_minor=one.will_be_minor + other.will_be_minor,
    )
