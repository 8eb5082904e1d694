"""Whose a conversion is: its click's, its coupon's, or whoever won its customer. What has to be known is read in bulk;
who owns a conversion is decided from that without a database."""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from aggregator.conversions.terms import Offer, read_offers
from aggregator.db.connect import Database, Row
from aggregator.db.instants import at, to_ms
from schemas.click_id import uuid_ms
from schemas.events import NO_CLICK, Conversion
from schemas.outcomes import EARNING, ClickClass, Held

PIXEL = "pixel"  # the door of pages
BEFORE_CLICK_MS = 60_000  # a sender's clock may lag ours by this much
REJECTED = frozenset({
    Held.NOT_YOUR_CLICK, Held.CLICK_NEVER_EARNS, Held.BEFORE_CLICK, Held.TOO_EARLY, Held.AFTER_WINDOW,
    Held.UNKNOWN_COUPON, Held.COUPON_NOT_VALID, Held.AFTER_DURATION,
})  # fmt: skip
_PENDING = {ClickClass.FLAGGED: Held.FLAGGED_CLICK, ClickClass.OVER_CAP: Held.OVER_CAP_CLICK}
Named = tuple[int, str]  # an advertiser's id, and what it calls a coupon, a customer, a click

_COUPONS = """
SELECT coupon.advertiser_id, code, offer_id, partner_id, starts_at, ends_at FROM coupon
JOIN unnest($1::int[], $2::text[]) AS asked (advertiser_id, code) USING (advertiser_id, code)
"""
_CUSTOMERS = """
SELECT customer.advertiser_id, customer_id, link_id, offer_id, partner_id, click_id, click_class, bound_at FROM customer
JOIN unnest($1::int[], $2::text[]) AS asked (advertiser_id, customer_id) USING (advertiser_id, customer_id)
"""
_IMPORTED = """
SELECT imported_click.advertiser_id, foreign_id, id, link_id, offer_id, partner_id, clicked_at FROM imported_click
JOIN unnest($1::int[], $2::text[]) AS asked (advertiser_id, foreign_id) USING (advertiser_id, foreign_id)
"""
_CONVERTED = """
SELECT id FROM unnest($1::uuid[]) AS asked (id)
WHERE EXISTS (
    SELECT FROM conversion WHERE click_id = id AND (status = 'approved' OR (status = 'pending' AND door <> 'pixel')))
"""
_LET_GO = """
WITH held AS (
    SELECT advertiser_id, customer_id FROM customer
    JOIN unnest($1::int[], $2::text[], $3::timestamptz[]) AS asked (advertiser_id, customer_id, bound_at)
        USING (advertiser_id, customer_id, bound_at)
    ORDER BY advertiser_id, customer_id FOR UPDATE OF customer
)
DELETE FROM customer USING held
WHERE customer.advertiser_id = held.advertiser_id AND customer.customer_id = held.customer_id
"""
_BIND = """
INSERT INTO customer (advertiser_id, customer_id, link_id, offer_id, partner_id, click_id, click_class, bound_at)
SELECT * FROM unnest($1::int[], $2::text[], $3::int[], $4::int[], $5::int[], $6::uuid[], $7::int[], $8::timestamptz[])
ON CONFLICT DO NOTHING
"""


class Coupon(NamedTuple):
    offer_id: int
    partner_id: int
    starts_at: datetime | None
    ends_at: datetime | None


class Customer(NamedTuple):
    """Bound by the sale of `bound_at`; `click_id` is the click that led there, if one did."""

    link_id: int
    offer_id: int
    partner_id: int
    click_id: UUID | None
    click_class: int
    bound_at: datetime


class ImportedClick(NamedTuple):
    id: UUID
    link_id: int
    offer_id: int
    partner_id: int
    clicked_at: datetime


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a conversion is, and `reason` why it is not just approved. All is 0 or None where nobody is known (yet);
    without a click `click_ms` is None."""

    click_uuid: UUID | None = None
    click_ms: int | None = None
    click_class: int = ClickClass.NORMAL
    link_id: int = 0
    offer_id: int = 0
    partner_id: int = 0
    reason: Held = Held.NONE

    @property
    def rejected(self) -> bool:
        return self.reason in REJECTED


Owned = tuple[Conversion, Owner]


@dataclass(slots=True)
class Owners:
    """What attribution goes by. `offers` are all that any of the conversions may be for. `converted` are clicks that
    have an approved conversion, or one that is pending and was not told by a page alone: whoever makes one adds its
    click."""

    offers: dict[int, Offer]
    coupons: dict[Named, Coupon]
    customers: dict[Named, Customer]
    clicks: dict[Named, ImportedClick]
    converted: set[UUID]


async def read_owners(db: Database, events: Sequence[Conversion]) -> Owners:
    """All that says whose these conversions are, in at most seven statements; three where each has a click of ours that
    lies in its window."""
    coupons = await _read_coupons(db, events)
    customers = await _read_customers(db, ((one.advertiser_id, one.customer_id) for one in events if one.customer_id))
    clicks = await _read_imported(db, events)
    ids = {event.offer_id for event in events}
    for known in (coupons, customers, clicks):
        ids |= {one.offer_id for one in known.values()}
    owners = Owners(dict(await read_offers(db, ids - {0})), coupons, customers, clicks, set())
    owners.converted = await _read_converted(db, events, owners)
    return owners


def attribute(event: Conversion, owners: Owners) -> Owner:
    """Who wins: a customer's partner, then click or coupon, as the advertiser wants it. What cannot earn leaves it to
    the next; where all cannot, the first one's reason stands."""
    found = [one for one in (_by_click(event, owners), _by_coupon(event, owners)) if one]
    if any(_prefers_coupon(one, owners) for one in found):
        found.reverse()
    customer = _by_customer(event, owners)
    if customer is not None:
        own = [one for one in found if one.partner_id == customer.partner_id and not one.rejected]
        found = [*own, customer, *found] if _is_later(event, owners) else [*found, customer]
    known = next((one for one in found if one.partner_id and not one.rejected), None)
    if known is None and (not found or _is_parked(event, owners)):
        return Owner(reason=Held.UNKNOWN_CLICK)
    return known or found[0]


async def bind_customers(db: Database, owned: Sequence[Owned], owners: Owners) -> list[Owned]:
    """Bind customers that are nobody's to the first of these that earns; the same conversions, with whose they are
    now, because another one may have been first. What a page says binds nobody: anybody could make the advertiser's
    customers theirs. Locks the customers, sorted, to the transaction's end."""
    first: dict[Named, Owned] = {}
    for event, owner in owned:
        earns = owner.partner_id and not owner.rejected and event.door != PIXEL
        if event.customer_id and earns and not _bound(event, owners):
            first.setdefault((event.advertiser_id, event.customer_id), (event, owner))
    if not first:
        return list(owned)
    await _let_go(db, [(named, owners.customers[named]) for named in sorted(first) if named in owners.customers])
    await db.execute(_BIND, *zip(*(_customer_row(*first[named]) for named in sorted(first)), strict=True))
    owners.customers |= await _read_customers(db, first)
    owners.offers |= await read_offers(db, {one.offer_id for one in owners.customers.values()} - owners.offers.keys())
    return [(event, attribute(event, owners)) for event, _ in owned]


def _by_click(event: Conversion, owners: Owners) -> Owner | None:
    """The owner of the click, ours or imported."""
    if event.click_uuid != NO_CLICK:
        owner = Owner(
            event.click_uuid, uuid_ms(event.click_uuid), event.click_class,
            event.link_id, event.offer_id, event.partner_id,
        )  # fmt: skip
    elif click := owners.clicks.get((event.advertiser_id, event.foreign_click)):
        owner = Owner(
            click.id, to_ms(click.clicked_at), ClickClass.NORMAL, click.link_id, click.offer_id, click.partner_id
        )
    else:
        return None
    return replace(owner, reason=_click_reason(event, owner, owners))


def _click_reason(event: Conversion, owner: Owner, owners: Owners) -> Held:
    offer = owners.offers.get(owner.offer_id)
    if owner.click_class not in EARNING:
        return Held.CLICK_NEVER_EARNS
    if offer and offer.advertiser_id != event.advertiser_id:
        return Held.NOT_YOUR_CLICK
    assert owner.click_ms is not None
    if event.event_at_ms < owner.click_ms - BEFORE_CLICK_MS:
        return Held.BEFORE_CLICK
    if offer and owner.click_uuid not in owners.converted and (late := _outside(event, owner.click_ms, offer)):
        return late
    return _PENDING.get(ClickClass(owner.click_class), Held.NONE)


def _outside(event: Conversion, click_ms: int, offer: Offer) -> Held:
    """What is wrong with the time between a click and its first conversion."""
    took_ms = event.event_at_ms - click_ms
    if took_ms < offer.min_conversion_s * 1000 and offer.min_conversion_s:
        return Held.TOO_EARLY
    return Held.AFTER_WINDOW if took_ms > offer.click_window_days * 86_400_000 else Held.NONE


def _by_coupon(event: Conversion, owners: Owners) -> Owner | None:
    """The owner of the coupon, which holds at the time of the sale, or not."""
    if not event.coupon_code:
        return None
    coupon = owners.coupons.get((event.advertiser_id, event.coupon_code.upper()))
    if coupon is None:
        return Owner(reason=Held.UNKNOWN_COUPON)
    when = at(event.event_at_ms)
    begun = coupon.starts_at is None or coupon.starts_at <= when
    over = coupon.ends_at is not None and coupon.ends_at <= when
    reason = Held.NONE if begun and not over else Held.COUPON_NOT_VALID
    return Owner(offer_id=coupon.offer_id, partner_id=coupon.partner_id, reason=reason)


def _by_customer(event: Conversion, owners: Owners) -> Owner | None:
    """The partner whose customer it is. What was sold before the customer was won is its click's or coupon's."""
    customer = owners.customers.get((event.advertiser_id, event.customer_id))
    if customer is None:
        return None
    reason = _PENDING.get(ClickClass(customer.click_class), Held.NONE)
    if not _bound(event, owners):
        reason = Held.AFTER_DURATION
    click_ms = uuid_ms(customer.click_id) if customer.click_id else None
    return Owner(
        customer.click_id, click_ms, customer.click_class,
        customer.link_id, customer.offer_id, customer.partner_id, reason,
    )  # fmt: skip


def _bound(event: Conversion, owners: Owners) -> bool:
    """Is the customer somebody's at the time of this sale?"""
    customer = owners.customers.get((event.advertiser_id, event.customer_id))
    if customer is None:
        return False
    offer = owners.offers.get(customer.offer_id)
    months = offer.max_duration_months if offer else None
    return months is None or at(event.event_at_ms) < _months_later(customer.bound_at, months)


def _is_later(event: Conversion, owners: Owners) -> bool:
    """Was the customer somebody's before this sale?"""
    return at(event.event_at_ms) >= owners.customers[event.advertiser_id, event.customer_id].bound_at


def _is_parked(event: Conversion, owners: Owners) -> bool:
    """May the click become known?"""
    return bool(event.foreign_click) and (event.advertiser_id, event.foreign_click) not in owners.clicks


def _prefers_coupon(owner: Owner, owners: Owners) -> bool:
    offer = owners.offers.get(owner.offer_id)
    return offer is not None and offer.attribution == "coupon"


def _months_later(when: datetime, months: int) -> datetime:
    """The same day of a later month, or its last one."""
    year, month = divmod(when.year * 12 + when.month - 1 + months, 12)
    return when.replace(year=year, month=month + 1, day=min(when.day, monthrange(year, month + 1)[1]))


async def _read_coupons(db: Database, events: Iterable[Conversion]) -> dict[Named, Coupon]:
    asked = {(event.advertiser_id, event.coupon_code.upper()) for event in events if event.coupon_code}
    return {(row[0], row[1]): Coupon(*row[2:]) for row in await _fetch(db, _COUPONS, asked)}


async def _read_customers(db: Database, asked: Iterable[Named]) -> dict[Named, Customer]:
    return {(row[0], row[1]): Customer(*row[2:]) for row in await _fetch(db, _CUSTOMERS, set(asked))}


async def _read_imported(db: Database, events: Iterable[Conversion]) -> dict[Named, ImportedClick]:
    asked = {(event.advertiser_id, event.foreign_click) for event in events if event.foreign_click}
    return {(row[0], row[1]): ImportedClick(*row[2:]) for row in await _fetch(db, _IMPORTED, asked)}


async def _read_converted(db: Database, events: Iterable[Conversion], owners: Owners) -> set[UUID]:
    """Of the clicks that it matters for, those that have converted."""
    late = set()
    for event in events:
        owner = _by_click(event, owners)
        if owner and owner.click_uuid and owner.reason in (Held.TOO_EARLY, Held.AFTER_WINDOW):
            late.add(owner.click_uuid)
    return {row["id"] for row in await db.fetch(_CONVERTED, sorted(late))} if late else set()


async def _fetch(db: Database, statement: str, asked: set[Named]) -> list[Row]:
    if not asked:
        return []
    advertisers, names = zip(*sorted(asked), strict=True)
    return await db.fetch(statement, advertisers, names)


async def _let_go(db: Database, held: Sequence[tuple[Named, Customer]]) -> None:
    """Customers that are nobody's any more, if they are still as they were read."""
    if held:
        columns = [(*named, customer.bound_at) for named, customer in held]
        await db.execute(_LET_GO, *zip(*columns, strict=True))


def _customer_row(event: Conversion, owner: Owner) -> tuple[Any, ...]:
    return (
        event.advertiser_id, event.customer_id, owner.link_id, owner.offer_id, owner.partner_id, owner.click_uuid,
        owner.click_class, at(event.event_at_ms),
    )  # fmt: skip
