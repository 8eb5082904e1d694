"""Settle conversions inside the consumer's transaction: each intake once, each order once, each with its payout."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from uuid import UUID

from aggregator.conversions import intakes, rows
from aggregator.conversions.attribution import PIXEL, Owners, bind_customers, read_owners
from aggregator.conversions.fold import CAPS, SENDER, Order, fold
from aggregator.conversions.intakes import Outcome
from aggregator.conversions.rates import Rates, day_of, read_rates
from aggregator.conversions.record import Move, over_caps, record
from aggregator.conversions.rows import Change
from aggregator.conversions.states import NO_CURRENCY, Known, State, is_post, over_cap, step_of
from aggregator.conversions.terms import read_offers
from aggregator.db.connect import Database
from schemas import limits
from schemas.events import Conversion, Intake
from schemas.outcomes import Result, Status

Intakes = dict[UUID, Conversion | Intake]
Orders = dict[UUID, Order]


async def settle(db: Database, of: Sequence[Conversion | Intake], shard: int) -> int:
    """Apply intakes, each once, and answer how many conversions that made.

    1 read what is there, alone with what may have two names  2 bind customers  3 decide  4 write the intakes down
    5 insert new orders  6 lock what is there and changes, and decide again  7 what waited for the new  8 repeats
    9 caps  10 write what changed: conversions, ledger, rollups  11 correct what was written down of the intakes

    A bounded number of statements, whatever the batch holds. Locks are taken in the same order by everybody, sorted
    within: names, customers, intakes, new conversions, those that are there, caps, rollups.
    """
    fresh = await intakes.unseen(db, of) if of else {}  # 1
    if not fresh:
        return 0
    there = await _read(db, _conversions(fresh))
    there |= await _read_alone(db, [one for one in _posts(fresh) if one.former_id and _id(one, there) not in there])
    known = await know(db, _posts(fresh), there.values())
    await _bind(db, _firsts(fresh, there), known)  # 2
    orders = await _decide(db, fresh, there, known)  # 3
    guessed = _outcomes(fresh, orders)
    if lost := fresh.keys() - await intakes.claim(db, fresh, guessed):  # 4
        fresh = {intake_id: one for intake_id, one in fresh.items() if intake_id not in lost}
        orders = await _decide(db, fresh, there, known)
    new = await _insert(db, orders)  # 5
    known = await _lock(db, orders, new, known)  # 6
    fresh |= await _apply_waiting(db, orders, new, known)  # 7
    repeats = await _repeat(db, orders, known)  # 8
    await _hold_to_caps(db, orders, known)  # 9
    await _write(db, orders, shard)  # 10
    final = _outcomes(fresh, orders)
    await intakes.correct(db, {uuid: one for uuid, one in final.items() if guessed.get(uuid) != one}, fresh)  # 11
    return len(new) + repeats


async def settle_waiting(db: Database, overdue: Collection[UUID], shard: int = -1) -> int:
    """Apply changes whose order came while they were being written down, so that neither has seen the other. How many
    there were. `overdue` are their orders."""
    if not overdue:
        return 0
    there = await _read(db, await intakes.waiting(db, overdue))
    await rows.lock(db, there)
    waiting: Intakes = {one.intake_id: one for one in await intakes.waiting(db, overdue)}
    known = await know(db, [], there.values())
    orders = await _decide(db, waiting, there, known)
    known = await _lock(db, orders, set(), known)
    await _hold_to_caps(db, orders, known)
    await _write(db, orders, shard)
    await intakes.correct(db, _outcomes(waiting, orders), waiting)
    return len(waiting)


async def know(db: Database, posts: Sequence[Conversion], states: Collection[State]) -> Known:
    """What is needed to say what becomes of these, at most a dozen statements."""
    owners = await read_owners(db, posts) if posts else Owners({}, {}, {}, {}, set())
    return await _know_more(db, Known(owners, Rates()), posts, states)


async def _know_more(db: Database, known: Known, posts: Iterable[Conversion], states: Collection[State]) -> Known:
    """With the offers and the rates that the money of these follows from."""
    await _know_offers(db, known.owners, states)
    said = [
        *((one.currency, one.event_at_ms) for one in posts),
        *((one.sale_currency, one.event_at_ms) for one in states),
    ]
    currencies = {currency for offer in known.owners.offers.values() for currency in offer.currencies}
    currencies |= {currency for currency, _ in said}
    rates = await read_rates(db, currencies - {"", NO_CURRENCY}, {day_of(at_ms) for _, at_ms in said})
    return known._replace(rates=Rates({**known.rates.stored, **rates.stored}))


async def _know_offers(db: Database, owners: Owners, states: Iterable[State]) -> None:
    missing = {state.offer_id for state in states} - owners.offers.keys() - {0}
    if missing:
        owners.offers |= await read_offers(db, missing)


def _conversions(fresh: Intakes) -> list[Conversion]:
    return [one for one in fresh.values() if isinstance(one, Conversion)]


def _posts(fresh: Intakes) -> list[Conversion]:
    return [one for one in _conversions(fresh) if is_post(one)]


def _id(event: Conversion, there: Collection[UUID]) -> UUID:
    """What its order is called: by its other name near a change of its offer's scope, where it is there by that."""
    former = event.former_id
    return former if former and former in there and event.conversion_id not in there else event.conversion_id


def _ids(events: Sequence[Conversion], there: Collection[UUID]) -> dict[UUID, UUID]:
    """The same of several, by intake: what the first of them calls an order is its name for all."""
    named = set(there)
    for event in events:
        if is_post(event):
            named.add(_id(event, named))
    return {event.intake_id: _id(event, named) for event in events}


def _firsts(fresh: Intakes, there: Mapping[UUID, State]) -> list[Conversion]:
    """What servers say first of orders: those that are not there, or that only a page has told of."""
    ids = _ids(_conversions(fresh), there)
    first: dict[UUID, Conversion] = {}
    for event in _posts(fresh):
        if event.door != PIXEL:
            first.setdefault(ids[event.intake_id], event)
    return [event for uuid, event in first.items() if uuid not in there or there[uuid].door == PIXEL]


async def _read_alone(db: Database, events: Sequence[Conversion]) -> dict[UUID, State]:
    """Which of these orders, whose offer's scope has changed, are there after all, once nobody else can be about to
    insert one by its other name."""
    if not events:
        return {}
    await rows.keep_names(db, (name for event in events for name in (event.conversion_id, event.former_id) if name))
    return await _read(db, events)


async def _read(db: Database, events: Iterable[Conversion]) -> dict[UUID, State]:
    ids = {uuid for event in events for uuid in (event.conversion_id, event.former_id) if uuid}
    return await rows.read(db, ids) if ids else {}


async def _bind(db: Database, events: Sequence[Conversion], known: Known) -> None:
    owned = [(event, known.owner(event)) for event in events if event.customer_id]
    if owned:
        await bind_customers(db, owned, known.owners)


async def _decide(db: Database, fresh: Intakes, there: Mapping[UUID, State], known: Known) -> Orders:
    ids = _ids(_conversions(fresh), there)
    events: dict[UUID, list[Conversion]] = {}
    for event in _conversions(fresh):
        events.setdefault(ids[event.intake_id], []).append(event)
    counted = await _counted(db, events, there)
    orders: Orders = {}
    async for uuid in _paced(db, events):
        orders[uuid] = fold(uuid, there.get(uuid), events[uuid], known, counted.get(uuid, ()))
    return orders


async def _paced(db: Database, ids: Iterable[UUID]) -> AsyncIterator[UUID]:
    """These, with a word to Postgres now and then: else who waits for this transaction takes us for frozen, and ends
    it."""
    for n, uuid in enumerate(ids, 1):
        yield uuid
        if n % limits.FOLDED_AT_ONCE == 0:
            await db.execute("SELECT")


async def _counted(
    db: Database, events: Mapping[UUID, Iterable[Conversion]], there: Collection[UUID]
) -> dict[UUID, set[str]]:
    """The steps of these events that were counted, by order."""
    asked = {(uuid, step) for uuid in events if uuid in there for one in events[uuid] if (step := step_of(one))}
    counted: dict[UUID, set[str]] = {}
    for uuid, step in await rows.read_steps(db, asked):
        counted.setdefault(uuid, set()).add(step)
    return counted


def _outcomes(fresh: Intakes, orders: Orders) -> dict[UUID, Outcome]:
    """What came of each intake."""
    outcomes = {intake_id: one for order in orders.values() for intake_id, one in order.outcomes.items()}
    for one in fresh.values():
        if isinstance(one, Intake):
            outcomes[one.intake_id] = Outcome(None, Result(one.result), one.reason)
    return outcomes


async def _insert(db: Database, orders: Orders) -> set[UUID]:
    """Those of the new orders that nobody else was about to insert."""
    new = {uuid: order.after for uuid, order in orders.items() if order.before is None and order.after is not None}
    inserted = await rows.insert(db, new.values())
    for uuid in inserted:
        orders[uuid].written = new[uuid]
    return inserted


async def _lock(db: Database, orders: Orders, new: Collection[UUID], known: Known) -> Known:
    """Decide again, now that nobody else can change them, what becomes of orders that are there; with what is known of
    them by then, for some may not have been there before."""
    ids = {
        uuid for uuid, order in orders.items()
        if order.changes_what_is_there or (order.is_new and uuid not in new)
    }  # fmt: skip
    if not ids:
        return known
    there = await rows.lock(db, ids)
    known = await _know_more(db, known, (), there.values())
    counted = await _counted(db, {uuid: orders[uuid].events for uuid in ids}, there)
    async for uuid in _paced(db, ids):
        orders[uuid] = fold(uuid, there.get(uuid), orders[uuid].events, known, counted.get(uuid, ()))
    return known


async def _apply_waiting(db: Database, orders: Orders, new: Collection[UUID], known: Known) -> Intakes:
    """What waited for orders that are there now."""
    waiting = await intakes.waiting(db, new)
    for event in waiting:
        orders[event.conversion_id].events.append(event)
    async for uuid in _paced(db, {event.conversion_id for event in waiting}):
        written = orders[uuid].written
        orders[uuid] = fold(uuid, None, orders[uuid].events, known)
        orders[uuid].written = written
    return {event.intake_id: event for event in waiting}


async def _repeat(db: Database, orders: Orders, known: Known) -> int:
    """Make the further conversions of orders that are there; how many. Who makes one has locked its order."""
    made = {
        event.conversion_id: (order, fold(event.conversion_id, None, [event], known))
        for order in orders.values() for event in order.repeats
    }  # fmt: skip
    new = await rows.insert(db, [repeat.after for _, repeat in made.values() if repeat.after])
    for uuid, (order, repeat) in made.items():
        if uuid in new:
            repeat.written = repeat.after
            orders[uuid] = repeat
            order.outcomes |= repeat.outcomes
        else:
            order.outcomes |= {intake_id: Outcome(uuid, Result.DUPLICATE) for intake_id in repeat.outcomes}
    return len(new)


async def _hold_to_caps(db: Database, orders: Orders, known: Known) -> None:
    """What a cap has no room for is not approved; what would raise an approved one is refused."""
    moves = [(order.before, order.after) for order in orders.values() if order.after is not None]
    for uuid, status in (await over_caps(db, moves)).items():
        order = orders[uuid]
        assert order.after is not None
        if order.before is not None and order.before.status is Status.APPROVED:
            orders[uuid] = fold(uuid, order.before, order.events, known, order.counted, no_more=True)
        else:
            held = over_cap(order.after, status, known)
            if order.before is not None or order.changes:
                order.changes.append(Change(order.after, held, CAPS, held.reason))
            order.after = held


async def _write(db: Database, orders: Orders, shard: int) -> None:
    moved = [order for order in orders.values() if order.after is not None and order.after != order.before]
    await rows.update(db, [order.after for order in moved if order.after and order.after != order.written])
    await rows.add_steps(db, [step for order in orders.values() for step in order.steps])
    moves = [Move(order.before, order.after, SENDER) for order in moved if order.after]
    await record(db, moves, [change for order in orders.values() for change in order.changes], shard)
