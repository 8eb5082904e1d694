"""What is known of an order, and what follows from it. Pure.

What senders and people say is gathered as facts that only accumulate: amounts that add up, the smallest remaining
amount, the words that were said. Status and money are worked out from the facts alone, so that it does not matter in
which order they came. (What does matter: which of several first posts that differ came first, and who takes the last
place under a cap.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from uuid import UUID

import orjson
from msgspec import Struct
from msgspec.structs import replace

from aggregator.conversions.attribution import PIXEL, REJECTED, Owner, Owners, attribute
from aggregator.conversions.rates import Rates, day_of
from aggregator.conversions.terms import Offer, price
from schemas.click_id import uuid_ms
from schemas.events import Conversion
from schemas.limits import AMOUNT_MINOR_MAX
from schemas.money import EXPONENT
from schemas.outcomes import Held, NoChange, Result, Status

NO_CURRENCY = "XXX"  # ISO 4217 for none: until it is known whose the order is
_NEGATIVE = frozenset({Status.REJECTED, Status.REVERSED})
LIFTED = "lifted"  # a person approved it, whatever held it
DISMISSED = "dismissed"  # a person rejected what a page said; what its server says of the order is another matter
_CHARGEBACKS = frozenset({"chargeback", "charge_back"})

# What a person may say of a conversion of which status. A sender may say anything: what it says is a fact, and an
# approval that a rejection has overtaken comes to `reversed`.
BY_HAND: Mapping[Status, frozenset[Status]] = {
    Status.APPROVED: frozenset({Status.PENDING}),
    Status.REJECTED: frozenset({Status.PENDING, Status.APPROVED}),
    Status.REVERSED: frozenset({Status.PENDING, Status.APPROVED}),
}


class State(Struct, frozen=True, kw_only=True, gc=False):
    """A conversion's row. Amounts in minor units, times in ms since 1970.

    Facts: `base_minor` as of `base_intake_id`, in `sale_currency`; `increments_minor`, `refunds_minor`,
    `remaining_minor`; `held` is why it would wait, or never earn, by whose it is and by its offer, `doubt` by its
    amount; `said` are words: a status that the sender stated, `lifted`. What follows from them: `status`, `reason`,
    `sale_amount_minor` (what is left), `payout_minor` in `currency` and `revenue_minor` in `revenue_currency`, what it
    pays while it is approved.
    """

    conversion_id: UUID
    intake_id: UUID
    click_id: UUID | None
    link_id: int
    offer_id: int
    partner_id: int
    advertiser_id: int
    event: str
    order_id: str | None
    event_at_ms: int
    received_at_ms: int
    click_class: int
    door: str
    original_status: str
    customer_id: str | None
    coupon_code: str | None
    foreign_click: str | None
    adv: str | None  # JSON
    base_minor: int | None
    base_intake_id: UUID | None
    sale_currency: str
    payout_override_minor: int | None
    revenue_stated_minor: int | None
    held: str
    doubt: str
    increments_minor: int = 0
    refunds_minor: int = 0
    remaining_minor: int | None = None
    said: frozenset[str] = frozenset()
    status: Status = Status.PENDING
    reason: str = ""
    sale_amount_minor: int | None = None
    payout_minor: int | None = None
    currency: str = NO_CURRENCY
    revenue_minor: int | None = None
    revenue_currency: str | None = None

    @property
    def booked_payout_minor(self) -> int:
        """What the ledger has to have of it."""
        return (self.payout_minor or 0) if self.status is Status.APPROVED else 0

    @property
    def booked_revenue_minor(self) -> int:
        return (self.revenue_minor or 0) if self.status is Status.APPROVED else 0

    @property
    def gross_minor(self) -> int | None:
        """The amount before refunds; None where none was stated."""
        if self.base_minor is None and not self.increments_minor:
            return None
        return (self.base_minor or 0) + self.increments_minor

    @property
    def is_refunded(self) -> bool:
        """All of it."""
        if self.gross_minor is None:
            return self.remaining_minor == 0
        return self.gross_minor > 0 and self.sale_amount_minor == 0

    @property
    def is_chargeback(self) -> bool:
        return self.original_status.lower() in _CHARGEBACKS


class Known(NamedTuple):
    """What statuses and money are worked out by: whose an order is, by which terms, at which rates."""

    owners: Owners
    rates: Rates

    def offer(self, offer_id: int) -> Offer | None:
        return self.owners.offers.get(offer_id)

    def owner(self, event: Conversion) -> Owner:
        return attribute(event, self.owners)


class Applied(NamedTuple):
    """What became of an order by one event. `changed`: its status or money; `step` is to be remembered as counted;
    `repeats`: the event is one more conversion of the same order."""

    state: State | None
    result: Result
    reason: str = ""
    changed: bool = False
    step: str | None = None
    repeats: bool = False


def is_post(event: Conversion) -> bool:
    """Does it report an order? Else it changes one, and never makes one."""
    return event.status not in _NEGATIVE and event.refund_minor is None and event.remaining_minor is None


def step_of(event: Conversion) -> str | None:
    """What an event is counted as, once for each order."""
    if not event.event_id:
        return None
    return event.event_id if is_post(event) else f"refund:{event.event_id}"


def apply(state: State | None, event: Conversion, known: Known, *, seen: bool = False) -> Applied:
    """What becomes of an order, None for one that is not known. `seen`: the event's step was counted before."""
    if state is None:
        if not is_post(event):
            return Applied(None, Result.WAITING)
        made = _made(event, known)
        return Applied(settled(made, known), Result.ACCEPTED, changed=True, step=_counted(event, made, known))
    if event.advertiser_id != state.advertiser_id:
        return Applied(state, Result.REJECTED, Held.NOT_YOUR_CLICK)
    if is_post(event):
        return _posted_again(state, event, known, seen=seen)
    return _changed(state, event, known, seen=seen)


def lifted(state: State, known: Known, *, by_person: bool) -> State:
    """Approved by a person, whatever held it, or because it has waited long enough."""
    return settled(replace(state, said=state.said | {LIFTED if by_person else Status.APPROVED}), known)


def stated(state: State, status: Status, known: Known) -> State:
    """Rejected or reversed by a person."""
    word = DISMISSED if status is Status.REJECTED and _is_pages(state) else status
    return settled(replace(state, said=state.said | {word}), known)


def _is_pages(state: State) -> bool:
    """Has only a page told of it, and no person approved of that?"""
    return state.door == PIXEL and LIFTED not in state.said


def refunded(state: State, refund_minor: int | None, remaining_minor: int | None) -> State:
    """With an amount given back, and at most what is said to remain; before anything follows from it."""
    said = [minor for minor in (state.remaining_minor, remaining_minor) if minor is not None]
    refunds_minor = min(state.refunds_minor + (refund_minor or 0), 2 * AMOUNT_MINOR_MAX)  # more than any gross amount
    return replace(state, refunds_minor=refunds_minor, remaining_minor=min(said, default=None))


def repriced(state: State, known: Known) -> State:
    """Once more, because there is a rate now."""
    return settled(replace(state, held="") if state.held == Held.NO_RATE else state, known)


def over_cap(state: State, status: Status, known: Known) -> State:
    """Not approved (`status`: pending, or rejected), because a cap has no room for it."""
    said = state.said - {LIFTED} | ({Status.REJECTED} if status is Status.REJECTED else frozenset())
    return settled(replace(state, held=Held.OVER_CAP, said=said), known)


def owned(state: State, owner: Owner, known: Known) -> State:
    """A parked conversion whose owner became known."""
    offer = known.offer(owner.offer_id)
    currency = offer.currency if offer and state.sale_currency == NO_CURRENCY else state.sale_currency
    made = replace(
        state, click_id=owner.click_uuid, click_class=owner.click_class, link_id=owner.link_id,
        offer_id=owner.offer_id, partner_id=owner.partner_id, held=_held(owner, offer, state.sale_currency),
        sale_currency=currency,
    )  # fmt: skip
    return settled(made, known)


def settled(state: State, known: Known, since: State | None = None) -> State:
    """With the status and the money that follow from the facts. What was approved is not looked at again for what its
    offer allows by now, unless its amount has changed `since`; then a person who lifted it has not seen that one."""
    offer = known.offer(state.offer_id)
    net_minor = _net(state)
    paid = price(
        offer, state.partner_id, state.event, uuid_ms(state.click_id) if state.click_id else state.event_at_ms,
        net_minor, "" if state.sale_currency == NO_CURRENCY else state.sale_currency, day_of(state.event_at_ms),
        known.rates, override_minor=state.payout_override_minor, stated_revenue_minor=state.revenue_stated_minor,
    )  # fmt: skip
    state = replace(
        state, sale_amount_minor=net_minor, payout_minor=paid.payout_minor,
        currency=paid.currency or state.sale_currency, revenue_minor=paid.revenue_minor,
        revenue_currency=paid.revenue_currency,
    )  # fmt: skip
    stands = state.status in (Status.APPROVED, Status.REVERSED) and state.payout_minor is not None
    stands = stands and (since is None or since.gross_minor == state.gross_minor)
    unclear = "" if stands else paid.reason or _above_bound(state, offer, known)
    if since is not None and (state.doubt or unclear) and _raises(since, state):
        state = replace(state, said=state.said - {LIFTED})
    status, reason = _status(state, unclear)
    return replace(state, status=status, reason=reason)


def _raises(before: State, after: State) -> bool:
    """Is it of more than it was, by what its sender says?"""
    was = before.gross_minor, before.payout_override_minor, before.revenue_stated_minor
    now = after.gross_minor, after.payout_override_minor, after.revenue_stated_minor
    return any((more or 0) > (less or 0) for less, more in zip(was, now, strict=True))


def _above_bound(state: State, offer: Offer | None, known: Known) -> str:
    """Is it more than its offer's orders come to? A door can tell only where it knows the offer, and its currency."""
    if offer is None or offer.amount_max_minor is None or state.gross_minor is None:
        return ""
    day = day_of(state.event_at_ms)
    worth = known.rates.convert(state.gross_minor, state.sale_currency, offer.currency, day)
    return Held.ABOVE_BOUND if worth is not None and worth > offer.amount_max_minor else ""


def _status(state: State, unclear: str) -> tuple[Status, str]:
    if state.held in REJECTED:
        return Status.REJECTED, state.held
    hold = _hold(state, unclear)
    taken_back = Status.REVERSED in state.said or state.is_refunded
    is_rejected = not state.said.isdisjoint((Status.REJECTED, DISMISSED))
    if not hold:
        return (Status.REVERSED if taken_back or is_rejected else Status.APPROVED), ""
    if is_rejected:
        return Status.REJECTED, state.held if state.held == Held.OVER_CAP else Held.SAID_REJECTED
    if taken_back:
        return Status.REJECTED, Held.REVERSED_BEFORE_APPROVAL
    return Status.PENDING, hold


def _hold(state: State, unclear: str) -> str:
    """Why it waits; what the sender itself, or time, can lift comes last. That a page said so hides nothing: its
    advertiser may approve that, but not what is in doubt besides."""
    if LIFTED in state.said and state.payout_minor is not None:
        return ""
    soft = "" if Status.APPROVED in state.said else _awaited(state)
    hard = "" if state.held == Held.DEFAULT else state.held
    page = Held.PIXEL if PIXEL in (state.door, state.doubt) else ""
    doubt = "" if state.doubt == PIXEL else state.doubt
    return hard or doubt or unclear or page or soft


def _awaited(state: State) -> str:
    return Held.SAID_PENDING if Status.PENDING in state.said else state.held if state.held == Held.DEFAULT else ""


def _net(state: State) -> int | None:
    gross_minor = state.gross_minor
    if gross_minor is None:
        return None
    net_minor = max(0, gross_minor - state.refunds_minor)
    return net_minor if state.remaining_minor is None else min(net_minor, state.remaining_minor)


def _made(event: Conversion, known: Known) -> State:
    """A new order, before anything follows from it."""
    owner = known.owner(event)
    offer = known.offer(owner.offer_id)
    made = State(
        conversion_id=event.conversion_id, intake_id=event.intake_id, click_id=owner.click_uuid,
        link_id=owner.link_id, offer_id=owner.offer_id, partner_id=owner.partner_id,
        advertiser_id=event.advertiser_id, event=event.event, order_id=event.order_id or None,
        event_at_ms=event.event_at_ms, received_at_ms=uuid_ms(event.intake_id), click_class=owner.click_class,
        door=event.door, original_status=event.original_status, customer_id=event.customer_id or None,
        coupon_code=event.coupon_code or None, foreign_click=event.foreign_click or None, adv=_json(event.adv),
        sale_currency=event.currency or (offer.currency if offer else "") or NO_CURRENCY,
        held=_held(owner, offer, event.currency),
        base_minor=None, base_intake_id=None, payout_override_minor=None, revenue_stated_minor=None, doubt="",
        said=frozenset({event.status} if event.status else ()),
    )  # fmt: skip
    return _added(made, event) if _adds(event, made, known) else _based(made, event)


def _json(adv: Mapping[str, str]) -> str | None:
    return orjson.dumps(adv).decode() if adv else None


def _held(owner: Owner, offer: Offer | None, currency: str) -> str:
    """Where no currency was said, amounts are hundredths of the offer's: what has none has to be looked at."""
    if offer and currency in ("", NO_CURRENCY) and EXPONENT.get(offer.currency, 2) != 2:
        return owner.reason or Held.AMBIGUOUS_AMOUNT
    return owner.reason or (Held.DEFAULT if offer and offer.default_status == "pending" else "")


def _based(state: State, event: Conversion) -> State:
    """With this event's amounts."""
    return replace(
        state, base_minor=event.amount_minor, base_intake_id=event.intake_id, doubt=event.reason,
        payout_override_minor=event.payout_minor, revenue_stated_minor=event.revenue_minor,
    )  # fmt: skip


def _added(state: State, event: Conversion, *, as_base: bool = False) -> State:
    """With this event's amounts added, in whatever order they come."""
    added = replace(
        state, doubt=max(state.doubt, event.reason),
        payout_override_minor=_sum(state.payout_override_minor, event.payout_minor),
        revenue_stated_minor=_sum(state.revenue_stated_minor, event.revenue_minor),
    )  # fmt: skip
    if as_base:
        return replace(added, base_minor=event.amount_minor, base_intake_id=event.intake_id)
    return replace(added, increments_minor=_sum(state.increments_minor, event.amount_minor) or 0)


def _sum(one: int | None, other: int | None) -> int | None:
    """At most what any order is worth, in whatever order they come: more would fit no column."""
    return one if other is None else min((one or 0) + other, AMOUNT_MINOR_MAX)


def _policy(state: State, known: Known) -> str:
    offer = known.offer(state.offer_id)
    return offer.duplicates if offer else "ignore"


def _adds(event: Conversion, state: State, known: Known) -> bool:
    """Is it an increment?"""
    return bool(event.event_id) and event.door != PIXEL and _policy(state, known) == "increment"


def _counted(event: Conversion, state: State, known: Known) -> str | None:
    """The step that a post is, where its order counts them."""
    counts = event.door != PIXEL and _policy(state, known) in ("increment", "record_repeat")
    return step_of(event) if counts else None


def _posted_again(state: State, event: Conversion, known: Known, *, seen: bool) -> Applied:
    """A further post of an order: an approval, what the advertiser's policy makes of it, or a duplicate. What its
    server says takes the place of what a page said; what a person has approved of a page, no page changes."""
    is_pages = _is_pages(state)
    if event.door != PIXEL and is_pages:
        after = _taken_over(state, event, known)
        return _outcome(state, after, known, event, _counted(event, state, known))
    if not is_pages and PIXEL in (event.door, state.door):
        return Applied(state, Result.DUPLICATE)
    after = _with_words(state, event)
    policy = _policy(state, known)
    approves = event.status == Status.APPROVED and state.status is Status.PENDING
    if policy == "record_repeat" and event.door != PIXEL and not seen and not approves:
        return Applied(state, Result.ACCEPTED, step=step_of(event), repeats=True)
    if policy == "update" and (state.base_intake_id is None or event.intake_id > state.base_intake_id):
        after = _based(after, event)
    if policy == "increment" and event.door != PIXEL and not seen and (event.event_id or state.base_intake_id is None):
        after = _added(after, event, as_base=not event.event_id)
    if after is not state and _differs(state, event) and event.amount_minor is not None:
        return Applied(state, Result.REJECTED, NoChange.CURRENCY_DIFFERS)
    return _outcome(state, after, known, event, _counted(event, state, known))


def _changed(state: State, event: Conversion, known: Known, *, seen: bool) -> Applied:
    """A status, a refund, what remains."""
    if event.refund_minor is not None and not event.event_id and event.remaining_minor is None:
        return Applied(state, Result.REJECTED, NoChange.EVENT_ID_MISSING)
    if _differs(state, event) and not (event.refund_minor is None and event.remaining_minor is None):
        return Applied(state, Result.REJECTED, NoChange.CURRENCY_DIFFERS)
    counts = event.refund_minor is not None and bool(event.event_id) and not seen
    after = refunded(_with_words(state, event), event.refund_minor if counts else None, event.remaining_minor)
    return _outcome(state, after, known, event, step_of(event) if counts else None)


def _with_words(state: State, event: Conversion) -> State:
    """With the status it states; that it is pending is no news of an order."""
    if event.status not in (Status.APPROVED, *_NEGATIVE) or event.status in state.said:
        return state
    return replace(state, said=state.said | {event.status}, original_status=event.original_status)


def _differs(state: State, event: Conversion) -> bool:
    """Is it in another currency than its order?"""
    return event.currency not in ("", state.sale_currency) and state.sale_currency != NO_CURRENCY


def _outcome(state: State, after: State, known: Known, event: Conversion, step: str | None) -> Applied:
    if after == state:
        return Applied(state, Result.DUPLICATE, step=step)
    after = settled(after, known, state)
    if _worth(after) == _worth(state):
        return Applied(after, Result.DUPLICATE, NoChange.NOT_ALLOWED if event.status else "", step=step)
    return Applied(after, Result.CHANGED, changed=True, step=step)


def _worth(state: State) -> tuple[object, ...]:
    return (
        state.status, state.reason, state.sale_amount_minor, state.payout_minor, state.revenue_minor,
        state.click_id, state.partner_id,
    )  # fmt: skip


def _taken_over(state: State, event: Conversion, known: Known) -> State:
    """What the order is by its server's post; what became of it since stays."""
    made = _made(event, known)
    return replace(
        made, conversion_id=state.conversion_id, refunds_minor=state.refunds_minor,
        remaining_minor=state.remaining_minor, said=state.said - {Status.PENDING, DISMISSED} | made.said,
    )  # fmt: skip
