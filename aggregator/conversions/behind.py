"""What becomes of conversions after they were settled: changes whose order came beside them, clicks that became known,
waits that are over, rates that are there now, and what a conversion has from its click.

Any number of aggregators may run this: a batch is a transaction of its own, done by whoever has its job's lock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg
import structlog
from prometheus_client import Counter

from aggregator.conversions import change, intakes, rates, rows
from aggregator.conversions.attribution import attribute, bind_customers, read_owners
from aggregator.conversions.settle import settle_waiting
from aggregator.conversions.states import State
from aggregator.db.connect import Connection, DatabaseAway, connected
from aggregator.db.instants import EPOCH, at, to_ms
from schemas import limits
from schemas.click_id import uuid_ms
from schemas.events import NO_CLICK, Conversion
from schemas.outcomes import Held
from schemas.settings import AggregatorSettings

log = structlog.get_logger()

_DONE = Counter("clickdam_behind", "Conversions that were changed after they were settled", ["job"])
_FAILED = Counter("clickdam_behind_failed", "Batches of such changes that failed", ["job"])
# A frozen process must keep neither its locks nor its job. And a plan that was made when a table was empty reads all of
# it for a minute after it has grown: with 50,000 imported clicks a batch took 10 s instead of 0.3.
_SESSION = f"""
SELECT set_config('idle_in_transaction_session_timeout', '{limits.BEHIND_IDLE_S}s', false),
       set_config('enable_seqscan', 'off', false)
"""
_LOCK = "SELECT pg_try_advisory_xact_lock(hashtext('behind'), hashtext($1))"
_PARKED = """
SELECT conversion_id, received_at,
       EXISTS (SELECT FROM imported_click AS click
               WHERE click.advertiser_id = parked.advertiser_id AND foreign_id = foreign_click)
       OR EXISTS (SELECT FROM customer
                  WHERE customer.advertiser_id = parked.advertiser_id AND customer.customer_id = parked.customer_id)
       AS is_known
FROM conversion AS parked
WHERE status = 'pending' AND offer_id = 0 AND reason = 'unknown_click' AND (received_at, conversion_id) > ($1, $2)
ORDER BY received_at, conversion_id LIMIT $3
"""
_OVERDUE = """
SELECT found.conversion_id FROM offer, unnest($1::text[]) AS awaited (reason), LATERAL (
    SELECT conversion_id FROM conversion
    WHERE offer_id = offer.id AND status = 'pending' AND reason = awaited.reason
      AND received_at <= $2::timestamptz - make_interval(days => auto_approve_days)
    ORDER BY received_at LIMIT $3
) AS found
WHERE auto_approve_days IS NOT NULL LIMIT $3
"""
_AWAITED = [Held.DEFAULT, Held.SAID_PENDING]
# Who waits for nobody meets nobody in a circle: what others have locked is left for the next round.
_UNSEEN = """
SELECT conversion_id, received_at, click_id FROM conversion
WHERE NOT click_seen AND (received_at, conversion_id) > ($1, $2)
ORDER BY received_at, conversion_id LIMIT $3 FOR NO KEY UPDATE SKIP LOCKED
"""
_SEE = """
UPDATE conversion SET country = click.country, device = click.device, source_id = click.source_id,
    click_ref = click.click_ref, subs = coalesce(click.subs, imported.subs), click_seen = true,
    changed_at = now()
FROM unnest($1::uuid[], $2::uuid[], $3::bool[]) AS asked (conversion_id, click_id, is_over)
LEFT JOIN LATERAL (SELECT * FROM click WHERE id = asked.click_id LIMIT 1) AS click ON true
LEFT JOIN LATERAL (
    SELECT imported_click.id, imported_click.subs FROM conversion AS sale
    JOIN imported_click ON imported_click.advertiser_id = sale.advertiser_id AND foreign_id = foreign_click
    WHERE sale.conversion_id = asked.conversion_id AND imported_click.id = asked.click_id LIMIT 1
) AS imported ON true
WHERE conversion.conversion_id = asked.conversion_id AND (click.id IS NOT NULL OR imported.id IS NOT NULL OR is_over)
"""


class Place(NamedTuple):
    """How far a round has come, by receipt."""

    received_at: datetime = EPOCH
    conversion_id: UUID = NO_CLICK


@dataclass(slots=True)
class Places:
    """Where each of the jobs that look at everything goes on. A restart begins anew."""

    waiting: UUID = intakes.NIL
    parked: Place = field(default_factory=Place)
    unseen: Place = field(default_factory=Place)
    unpriced: UUID = NO_CLICK


class Worked(NamedTuple):
    """What a batch came to; `more`: there may be more to do at once."""

    done: int
    more: bool


Job = Callable[[Connection, Places, int], Awaitable[Worked]]  # at a time, ms since 1970


async def run(settings: AggregatorSettings) -> None:
    """Work until cancelled. Postgres being away is waited for."""
    while True:
        opening = connected(
            settings.database_url, command_timeout_s=limits.TRANSACTION_S, application_name="clickdam-behind"
        )
        try:
            async with opening as db:
                await db.execute(_SESSION)
                await _work_for_ever(db)
        except DatabaseAway as error:
            log.warning("behind_waits_for_database", error=type(error).__name__)
        await asyncio.sleep(limits.DATABASE_RETRY_MAX_S)


async def _work_for_ever(db: Connection) -> None:
    places = Places()
    while True:
        began = time.monotonic()
        more = await work_once(db, places, time.time_ns() // 1_000_000)
        took_s = time.monotonic() - began
        await asyncio.sleep(max(0 if more else limits.BEHIND_EVERY_S, took_s * (1 / limits.BEHIND_SHARE - 1)))


async def work_once(db: Connection, places: Places, now_ms: int) -> bool:
    """One batch of each job; is there more to do at once? A job that fails keeps no other from its work. Raises one of
    DatabaseAway."""
    more = False
    for name, job in JOBS.items():
        try:
            async with db.transaction():
                if await db.fetchval(_LOCK, name):
                    worked = await job(db, places, now_ms)
                    more |= worked.more
                    _DONE.labels(name).inc(worked.done)
        except DatabaseAway:
            raise
        except Exception as error:
            _FAILED.labels(name).inc()
            log.exception("behind_failed", job=name, error=type(error).__name__)
    return more


async def apply_waiting(db: Connection, places: Places, _: int) -> Worked:
    """Changes whose order was made while they were written down."""
    overdue, places.waiting = await intakes.overdue(db, limits.BEHIND_BATCH, places.waiting)
    return Worked(await settle_waiting(db, overdue), places.waiting != intakes.NIL)


async def match_parked(db: Connection, places: Places, _: int) -> Worked:
    """Conversions that are nobody's yet, whose click or customer has become known: as if they came now."""
    found = await db.fetch(_PARKED, *places.parked, limits.BEHIND_BATCH)
    known = [row["conversion_id"] for row in found if row["is_known"]]
    if known:
        await _give(db, known)
    places.parked = _next(found)
    return Worked(len(known), len(found) == limits.BEHIND_BATCH)


async def reprice(db: Connection, places: Places, _: int) -> Worked:
    """Conversions that waited for a rate."""
    found = await rates.waiting(db, limits.BEHIND_BATCH, places.unpriced)
    await change.reprice(db, found)
    places.unpriced = found[-1] if len(found) == limits.BEHIND_BATCH else NO_CLICK
    return Worked(len(found), len(found) == limits.BEHIND_BATCH)


async def approve_overdue(db: Connection, _: Places, now_ms: int) -> Worked:
    """Conversions that nobody has objected to for as many days after their receipt as their offer says; only those that
    wait for nothing but that."""
    found = await db.fetch(_OVERDUE, _AWAITED, at(now_ms), limits.BEHIND_BATCH)
    await change.approve(db, [row["conversion_id"] for row in found], change.AUTO, "its time to be looked at is over")
    return Worked(len(found), len(found) == limits.BEHIND_BATCH)


async def see_clicks(db: Connection, places: Places, _: int) -> Worked:
    """What conversions have from their clicks: country, device, source, the partner's own id and its sub ids. What is
    complete without its click will never have one."""
    through = await db.fetchval("SELECT complete_through FROM complete_through")
    through_ms = to_ms(through) if through else 0
    found = await db.fetch(_UNSEEN, *places.unseen, limits.BEHIND_BATCH)
    if not found:
        places.unseen = Place()
        return Worked(0, more=False)
    asked = [
        (row["conversion_id"], row["click_id"], row["click_id"] is None or uuid_ms(row["click_id"]) < through_ms)
        for row in found
    ]
    seen = await db.execute(_SEE, *zip(*asked, strict=True))
    places.unseen = _next(found)
    return Worked(int(seen.rpartition(" ")[2]), len(found) == limits.BEHIND_BATCH)


JOBS: dict[str, Job] = {
    "waiting": apply_waiting,
    "parked": match_parked,
    "unpriced": reprice,
    "overdue": approve_overdue,
    "unseen": see_clicks,
}


def _next(found: list[asyncpg.Record]) -> Place:
    """Where the round goes on; from the beginning after its last batch."""
    if len(found) < limits.BEHIND_BATCH:
        return Place()
    return Place(found[-1]["received_at"], found[-1]["conversion_id"])


async def _give(db: Connection, ids: list[UUID]) -> None:
    """Attribute parked conversions and settle them. Customers are locked before conversions."""
    events = [_event(state) for state in (await rows.read(db, ids)).values()]
    owners = await read_owners(db, events)
    owned = await bind_customers(db, [(event, attribute(event, owners)) for event in events], owners)
    given = {event.conversion_id: owner for event, owner in owned if owner.reason != Held.UNKNOWN_CLICK}
    await change.give(db, given, "it is known whose it is")


def _event(state: State) -> Conversion:
    """As much of what was sent as tells whose it is."""
    return Conversion(
        v=1, intake_id=state.intake_id, conversion_id=state.conversion_id, click_uuid=NO_CLICK, click_class=0,
        link_id=0, offer_id=0, partner_id=0, advertiser_id=state.advertiser_id, event=state.event,
        event_at_ms=state.event_at_ms, currency=state.sale_currency, door=state.door,
        customer_id=state.customer_id or "", coupon_code=state.coupon_code or "",
        foreign_click=state.foreign_click or "",
    )  # fmt: skip
