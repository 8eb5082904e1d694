"""Any sequence of what senders and people can say of orders comes to what a plain reading of the rules comes to, in
whatever order it arrives; and the ledger balances. The oracle here shares no code with what it judges."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from aggregator.conversions import change, ledger
from aggregator.conversions.intakes import overdue
from aggregator.conversions.settle import settle, settle_waiting
from aggregator.db.connect import Connection, connect
from loadtests.faults.drift import ledger_wrong, order_rollup_rows_wrong
from loadtests.faults.journals import conversion, uuid7
from schemas.events import Conversion

POLICIES = ("ignore", "update", "increment", "record_repeat")
# An advertiser for each policy, with an offer that approves by itself and one that does not: 7.5 % to the partner, 12 %
# to the programme. Offer ids are 2 * the policy's place + 1, and one more where conversions are looked at first.
_PROGRAMME = """
WITH advertisers AS (
    INSERT INTO advertiser (name, token_sha256, duplicates)
    SELECT policy, policy::bytea, policy FROM unnest($1::text[]) WITH ORDINALITY AS p (policy, n) ORDER BY n
    RETURNING id
), offers AS (
    INSERT INTO offer (advertiser_id, name, destination_url, currency, default_status)
    SELECT id, status, 'https://shop.example', 'EUR', status
    FROM advertisers, unnest('{approved,pending}'::text[]) AS status ORDER BY id, status RETURNING id
)
INSERT INTO offer_terms (offer_id, side, model, percent, currency)
SELECT id, side, 'cps', percent, 'EUR' FROM offers, (VALUES ('payout', 7.5), ('revenue', 12)) AS terms (side, percent)
"""


_STATUSES = {"post": "", "chargeback": "reversed"}  # as an edge says them; else the word itself
_BY_HAND: dict[str, Callable[..., Awaitable[Sequence[change.Changed]]]] = {
    "approved": change.approve,
    "rejected": change.reject,
    "reversed": change.reverse,
    "chargeback": partial(change.reverse, kind="chargeback"),
}


@dataclass(frozen=True)
class Said:
    """One thing that is said of an order: by its sender, or (`by_hand`) by a person. `server` for what does not come
    from a page."""

    what: str  # post, approved, pending, rejected, reversed, chargeback, refund, remaining
    amount: int | None = None
    name: str = ""  # the sender's, of an increment or a refund
    server: bool = True
    by_hand: bool = False
    intake: UUID = field(default_factory=uuid7)

    def __str__(self) -> str:
        who = "person" if self.by_hand else "server" if self.server else "page"
        return f"{who} {self.what} {self.amount} {self.name} {self.intake.hex[8:16]}"

    @property
    def is_post(self) -> bool:
        return self.what in ("post", "approved", "pending") and not self.by_hand


@dataclass(frozen=True)
class Result:
    """What an order, its repeats included, has come to."""

    status: str
    left: int | None
    repeats: tuple[int, ...]
    payout: int
    revenue: int


# The oracle. --------------------------------------------------------------------------------------------------------


def share(amount: int, thousandths: int) -> int:
    """HALF_UP."""
    return (amount * thousandths * 2 + 1000) // 2000


def expected(policy: str, looked_at: bool, said: Sequence[Said]) -> Result | None:
    """What these come to, in the order in which they came; None where there is no order."""
    once = list({one.intake: one for one in said}.values())
    posts = [one for one in once if one.is_post]
    if not posts:
        return None
    hand_approved = any(one.by_hand and one.what == "approved" for one in once)
    counted = of_server(once)
    base, increments, repeats = amounts(policy, of_pages(once), counted)
    gross = None if base is None and not increments else (base or 0) + increments
    refunds = {one.name: one.amount or 0 for one in reversed(once) if one.what == "refund"}
    remaining = [one.amount for one in once if one.what == "remaining" and one.amount is not None]
    left = None if gross is None else min([max(0, gross - sum(refunds.values())), *remaining])
    words = {one.what for one in once if not one.by_hand}
    first = (counted or posts)[0]
    waits = (looked_at or first.what == "pending") and "approved" not in words
    held = left is None or (not hand_approved and (waits or not counted))
    first_of_server = once.index(counted[0]) if counted else 0
    rejected = any(
        one.what == "rejected" and (not one.by_hand or once.index(one) >= first_of_server) for one in once
    )  # what a person rejected of a page is not what its server tells of later
    gone = (
        any(one.what in ("reversed", "chargeback") for one in once)
        or (left == 0 and gross != 0)
        or (left is None and 0 in remaining)
    )
    taken_back, stands = ("rejected", "pending") if held else ("reversed", "approved")
    status = taken_back if rejected or gone else stands
    paid = ([left] if status == "approved" and left else []) + ([] if looked_at else repeats)
    return Result(
        status, left, tuple(sorted(repeats)), sum(share(one, 75) for one in paid), sum(share(one, 120) for one in paid)
    )


def of_server(once: Sequence[Said]) -> list[Said]:
    """The server's posts; none where a person approved what a page had said before."""
    for one in once:
        if one.by_hand and one.what == "approved":
            return []
        if one.is_post and one.server:
            break
    return [one for one in once if one.is_post and one.server]


def of_pages(once: Sequence[Said]) -> list[Said]:
    """The pages' posts, up to when a person approved one."""
    approved = next((n for n, one in enumerate(once) if one.by_hand and one.what == "approved"), None)
    return [one for one in once[:approved] if one.is_post and not one.server]


def amounts(policy: str, pages: Sequence[Said], counted: Sequence[Said]) -> tuple[int | None, int, list[int]]:
    """The base, what was added to it, and the amounts of repeats."""
    if not counted:
        first = max(pages, key=lambda one: one.intake) if policy == "update" else pages[0]
        return first.amount, 0, []
    if policy == "update":
        return max(counted, key=lambda one: one.intake).amount, 0, []
    if policy == "increment":
        plain = [one.amount for one in counted if not one.name]
        named = {one.name: one.amount or 0 for one in reversed(counted) if one.name}
        return plain[0] if plain else None, sum(named.values()), []
    if policy == "record_repeat":
        names = {counted[0].name} - {""}
        repeats = []
        for one in counted[1:]:
            if one.name not in names:
                repeats.append(one.amount or 0)
            names |= {one.name} - {""}
        return counted[0].amount, 0, repeats
    return counted[0].amount, 0, []


# What is tried. -----------------------------------------------------------------------------------------------------

AMOUNT = st.integers(0, 40).map(lambda n: n * 333)


@st.composite
def saids(draw: st.DrawFn, policy: str, *, by_hand: bool, alike: bool) -> list[Said]:
    """What is said of one order. With `alike`, first posts that would differ by who comes first do not differ."""
    all_same = {server: draw(AMOUNT) for server in (True, False)}
    first_word = draw(st.sampled_from(("post", "pending"))) if policy != "record_repeat" else "post"

    def post() -> st.SearchStrategy[Said]:
        server = st.sampled_from((True, True, True, False))
        return st.builds(_post, server, AMOUNT, st.sampled_from(("", "", "a", "b")), st.booleans())

    def _post(server: bool, amount: int, name: str, approves: bool) -> Said:
        name = name if server and policy in ("increment", "record_repeat") else ""
        if alike and policy != "update" and not (name and policy == "increment"):
            amount = all_same[server]
        if name:
            amount = all_same[True] + ord(name) * (policy == "increment")
        word = "approved" if approves and server and policy != "record_repeat" else first_word if server else "post"
        return Said(word, amount, name, server)

    others = [
        *[st.builds(Said, st.sampled_from(("rejected", "reversed", "chargeback")))] * 2,
        st.sampled_from((("a", 999), ("b", 333), ("c", 6000))).map(lambda one: Said("refund", one[1], one[0])),
        st.builds(Said, st.just("remaining"), AMOUNT),
    ]  # fmt: skip
    if by_hand:
        hand = ("approved", "rejected", "reversed", "chargeback")
        others += [st.builds(Said, st.sampled_from(hand), by_hand=st.just(True))] * 2
    some = draw(st.lists(st.one_of(post(), post(), *others), min_size=1, max_size=7))
    sent = [one for one in some if not one.by_hand]
    again = draw(st.lists(st.tuples(st.sampled_from(sent), st.booleans()), max_size=3)) if sent else []
    copies = [replace(one, intake=uuid7()) if retried else one for one, retried in again]
    return draw(st.permutations([*some, *copies]))


@dataclass
class Order:
    policy: str
    looked_at: bool
    said: list[Said]
    order_id: str = field(default_factory=lambda: str(uuid4()))
    conversion_id: UUID = field(default_factory=uuid4)

    @property
    def offer_id(self) -> int:
        return POLICIES.index(self.policy) * 2 + 1 + self.looked_at

    def told(self, said: Sequence[Said]) -> str:
        return f"{self.policy}, looked at {self.looked_at}: " + "; ".join(map(str, said))

    def event(self, one: Said) -> Conversion:
        fields: dict[str, Any] = {"amount_minor": None}
        if one.what == "refund":
            fields["refund_minor"] = one.amount
        elif one.what == "remaining":
            fields["remaining_minor"] = one.amount
        else:
            fields |= {"status": _STATUSES.get(one.what, one.what), "amount_minor": one.amount}
            fields |= {"original_status": one.what}
        return conversion(
            intake_id=one.intake, conversion_id=self.conversion_id, order_id=self.order_id, event_id=one.name,
            advertiser_id=POLICIES.index(self.policy) + 1, offer_id=self.offer_id, partner_id=7 if one.server else 8,
            door="postback" if one.server else "pixel", reason="" if one.server else "pixel", **fields,
        )  # fmt: skip


def orders(*, by_hand: bool, alike: bool) -> st.SearchStrategy[list[Order]]:
    def of(policy: str) -> st.SearchStrategy[Order]:
        return st.builds(Order, st.just(policy), st.booleans(), saids(policy, by_hand=by_hand, alike=alike))

    return st.tuples(*(of(policy) for policy in POLICIES * 2)).map(list)


@pytest.fixture(scope="module")
async def db(shared_database_url: str) -> AsyncIterator[Connection]:
    connection = await connect(shared_database_url, command_timeout_s=30)
    await connection.execute("SELECT setval('advertiser_id_seq', 1, false), setval('offer_id_seq', 1, false)")
    await connection.execute(_PROGRAMME, POLICIES)
    yield connection
    await connection.close()


async def found(db: Connection, order: Order) -> Result | None:
    rows = await db.fetch("SELECT * FROM conversion WHERE order_id = $1", order.order_id)
    main = next((row for row in rows if row["conversion_id"] == order.conversion_id), None)
    if main is None:
        assert not rows
        return None
    repeats = sorted(row["sale_amount_minor"] for row in rows if row is not main)
    return Result(
        main["status"], main["sale_amount_minor"], tuple(repeats), sum(row["booked_payout_minor"] for row in rows),
        sum(row["booked_revenue_minor"] for row in rows),
    )  # fmt: skip


async def say(db: Connection, order: Order, one: Said) -> bool:
    """Whether it was allowed."""
    async with db.transaction():
        if not one.by_hand:
            await settle(db, [order.event(one)], shard=0)
            return True
        changed = await _BY_HAND[one.what](db, [order.conversion_id], "admin:1", "looked at")
        return bool(changed) and changed[0].refused is None


# A failure is told as it was found: to shrink it would take Postgres for minutes.
TRIED = settings(
    max_examples=12, deadline=None, phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck)
)


@TRIED
@given(orders(by_hand=True, alike=False))
async def test_what_is_said_one_after_the_other_comes_to_what_the_rules_say(
    db: Connection, shared_database_url: str, of: list[Order]
) -> None:
    for order in of:
        heard: list[Said] = []
        for one in order.said:
            if await say(db, order, one):
                heard.append(one)
            assert await found(db, order) == expected(order.policy, order.looked_at, heard), order.told(heard)
    assert await ledger.check(db) == []
    assert await order_rollup_rows_wrong(shared_database_url) == 0


def anew(order: Order, dice: random.Random) -> Order:
    """The same order as another one, said in another order; which intake is the later stays."""
    before = sorted({one.intake for one in order.said})
    now = dict(zip(before, sorted(uuid7() for _ in before), strict=True))
    said = [replace(one, intake=now[one.intake]) for one in order.said]
    return Order(order.policy, order.looked_at, dice.sample(said, len(said)))


def batches(events: Sequence[Conversion], dice: random.Random) -> list[Sequence[Conversion]]:
    cuts = [0, *sorted(dice.randrange(len(events) + 1) for _ in range(4)), len(events)]
    return [events[since:until] for since, until in pairwise(cuts)]


def mixed(of: Sequence[Order], dice: random.Random) -> list[Conversion]:
    """The events of all orders; those of each in their order."""
    waiting = [[order.event(one) for one in order.said] for order in of]
    turns = [n for n, events in enumerate(waiting) for _ in events]
    dice.shuffle(turns)
    return [waiting[n].pop(0) for n in turns]


@TRIED
@given(orders(by_hand=False, alike=True), st.randoms(use_true_random=False))
async def test_it_does_not_matter_in_which_order_it_arrives(
    db: Connection, shared_database_url: str, of: list[Order], dice: random.Random
) -> None:
    others = [anew(order, dice) for order in of]
    for batch in batches(mixed([*of, *others], dice), dice):
        async with db.transaction():
            await settle(db, batch, shard=dice.randrange(3))
    assert (await overdue(db, 1_000))[0] == set()
    for order, other in zip(of, others, strict=True):
        come_to = await found(db, order)
        assert come_to == expected(order.policy, order.looked_at, order.said), order.told(order.said)
        assert come_to == await found(db, other), f"{order.told(order.said)} / {other.told(other.said)}"
    assert await ledger.check(db) == []
    assert await order_rollup_rows_wrong(shared_database_url) == 0
    assert await ledger_wrong(shared_database_url) == 0


async def settle_some(database_url: str, of: Sequence[Conversion], shard: int) -> None:
    """One aggregator, that is given its events in a disorder of its own."""
    dice = random.Random(shard)
    connection = await connect(database_url, command_timeout_s=30)
    for batch in batches(dice.sample(of, len(of)), dice):
        async with connection.transaction():
            await settle(connection, batch, shard)
    await connection.close()


@settings(TRIED, max_examples=4)
@given(st.lists(orders(by_hand=False, alike=True), min_size=4, max_size=4), st.randoms(use_true_random=False))
async def test_four_aggregators_at_once_neither_deadlock_nor_lose_anything(
    db: Connection, shared_database_url: str, some: list[list[Order]], dice: random.Random
) -> None:
    """Each event reaches several of them, and some events of an order reach only one."""
    of = [order for orders in some for order in orders]
    events = mixed(of, dice)
    shares = [[one for one in events if dice.random() < 0.6] for _ in range(3)]
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for shard, share_of in enumerate([*shares, events]):
            group.create_task(settle_some(shared_database_url, share_of, shard))
    async with db.transaction():
        await settle_waiting(db, (await overdue(db, 1_000))[0])
    for order in of:
        assert await found(db, order) == expected(order.policy, order.looked_at, order.said), order.told(order.said)
    assert await ledger.check(db) == []
    assert await order_rollup_rows_wrong(shared_database_url) == 0
