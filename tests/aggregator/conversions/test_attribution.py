"""Whose a conversion is: click, coupon, customer, or a click of another tracker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aggregator.conversions.attribution import (
    Coupon,
    Customer,
    ImportedClick,
    Owner,
    Owners,
    attribute,
    bind_customers,
    read_owners,
)
from aggregator.conversions.terms import Offer
from aggregator.db.connect import Connection, connect
from aggregator.db.instants import at
from loadtests.faults.journals import conversion, uuid7
from schemas.events import NO_CLICK, Conversion
from schemas.outcomes import ClickClass

CLICK_MS = 1_790_000_000_000
DAY_MS = 86_400_000
CLICK = uuid7(CLICK_MS)
FOREIGN = uuid7(CLICK_MS)
CODE, CUSTOMER = (1, "SAVE10"), (1, "c-1")
COUPON = Coupon(offer_id=1, partner_id=5, starts_at=at(CLICK_MS), ends_at=at(CLICK_MS + 10 * DAY_MS))
WON = Customer(7, 1, 9, uuid7(CLICK_MS), 0, at(CLICK_MS))


def offer(**fields: Any) -> Offer:
    return Offer(**({"advertiser_id": 1, "terms": ()} | fields))


def event(after_ms: int = DAY_MS, **fields: Any) -> Conversion:
    """A sale a day after its click: partner 1's, unless something else is said."""
    return conversion(**({"click_uuid": CLICK, "event_at_ms": CLICK_MS + after_ms} | fields))


def bare(after_ms: int = DAY_MS, **fields: Any) -> Conversion:
    """A sale without a click of ours."""
    nobody = {"click_uuid": NO_CLICK, "link_id": 0, "offer_id": 0, "partner_id": 0}
    return event(after_ms, **nobody | fields)


def owners(known: Offer | None = None, **fields: Any) -> Owners:
    nothing: dict[str, Any] = {"coupons": {}, "customers": {}, "clicks": {}, "converted": set()}
    return Owners(offers={1: known or offer()}, **nothing | fields)


def told(owner: Owner) -> tuple[int, str]:
    return owner.partner_id, owner.reason


WINDOW = [
    (-60_001, {}, "before_click"),
    (-60_000, {}, ""),
    (0, {}, ""),
    (30 * DAY_MS, {}, ""),
    (30 * DAY_MS + 1, {}, "after_window"),
    (DAY_MS, {"click_window_days": 1}, ""),
    (DAY_MS + 1, {"click_window_days": 1}, "after_window"),
    (4_999, {"min_conversion_s": 5}, "too_early"),
    (5_000, {"min_conversion_s": 5}, ""),
    (-1, {"min_conversion_s": 5}, "too_early"),
]


@pytest.mark.parametrize(("after_ms", "of_offer", "reason"), WINDOW)
def test_a_clicks_first_conversion_has_to_come_in_its_window(after_ms: int, of_offer: Any, reason: str) -> None:
    known = owners(offer(**of_offer))
    assert told(attribute(event(after_ms), known)) == (1, reason)
    click = ImportedClick(FOREIGN, 3, 1, 4, at(CLICK_MS))
    known.clicks[1, "abc"] = click
    assert told(attribute(bare(after_ms, foreign_click="abc"), known)) == (4, reason)
    known.converted |= {CLICK, FOREIGN}
    later = "before_click" if reason == "before_click" else ""
    assert told(attribute(event(after_ms), known)) == (1, later)
    assert told(attribute(bare(after_ms, foreign_click="abc"), known)) == (4, later)


@pytest.mark.parametrize(
    ("of_event", "reason"),
    [
        ({"click_class": ClickClass.FLAGGED}, "flagged_click"),
        ({"click_class": ClickClass.OVER_CAP}, "over_cap_click"),
        ({"click_class": ClickClass.FALLBACK}, "click_never_earns"),
        ({"click_class": ClickClass.TEST}, "click_never_earns"),
        ({"click_class": ClickClass.UNCOUNTED}, "click_never_earns"),
        ({"advertiser_id": 2}, "not_your_click"),
        ({"offer_id": 99, "event_at_ms": CLICK_MS + 300 * DAY_MS}, ""),  # no such offer: what it pays cannot be told
    ],
)
def test_a_click_says_by_itself_what_it_is_worth(of_event: Any, reason: str) -> None:
    owner = attribute(event(**of_event), owners())
    assert owner.reason == reason
    assert (owner.click_uuid, owner.click_ms, owner.link_id) == (CLICK, CLICK_MS, 1)
    assert owner.rejected == (reason in ("click_never_earns", "not_your_click"))


COUPONS = [
    ("save10", 0, 5, ""),
    ("SAVE10", 10 * DAY_MS - 1, 5, ""),
    ("Save10", -1, 5, "coupon_not_valid"),
    ("SAVE10", 10 * DAY_MS, 5, "coupon_not_valid"),
    ("SAVE11", 0, 0, "unknown_coupon"),
]


@pytest.mark.parametrize(("code", "after_ms", "partner_id", "reason"), COUPONS)
def test_a_coupon_says_whose_a_sale_without_a_click_is(code: str, after_ms: int, partner_id: int, reason: str) -> None:
    owner = attribute(bare(after_ms, coupon_code=code), owners(coupons={CODE: COUPON}))
    assert told(owner) == (partner_id, reason)
    assert (owner.click_uuid, owner.click_ms, owner.link_id) == (None, None, 0)


def test_a_coupon_without_dates_always_holds() -> None:
    known = owners(coupons={CODE: Coupon(1, 5, None, None)})
    for after_ms in (-CLICK_MS, 900 * DAY_MS):
        assert told(attribute(bare(after_ms, coupon_code="save10"), known)) == (5, "")


PRECEDENCE = [
    ("click", {}, "save10", (1, "")),
    ("coupon", {}, "save10", (5, "")),
    ("coupon", {}, "nobody", (1, "")),
    ("coupon", {"event_at_ms": CLICK_MS + 20 * DAY_MS}, "save10", (1, "")),
    ("click", {"click_class": ClickClass.FALLBACK}, "save10", (5, "")),
    ("click", {"click_class": ClickClass.FLAGGED}, "save10", (1, "flagged_click")),
    ("click", {"event_at_ms": CLICK_MS + 40 * DAY_MS}, "save10", (1, "after_window")),
    ("coupon", {"event_at_ms": CLICK_MS + 40 * DAY_MS}, "save10", (5, "coupon_not_valid")),
]


@pytest.mark.parametrize(("attribution", "of_event", "code", "expected"), PRECEDENCE)
def test_click_or_coupon_goes_first_as_the_advertiser_wants_it(
    attribution: Any, of_event: Any, code: str, expected: tuple[int, str]
) -> None:
    """What cannot earn leaves it to the other; where neither can, the first one's reason stands."""
    known = owners(offer(attribution=attribution), coupons={CODE: COUPON})
    assert told(attribute(event(**of_event, coupon_code=code), known)) == expected


def test_a_bound_customer_goes_before_click_and_coupon() -> None:
    known = owners(offer(attribution="coupon"), coupons={CODE: COUPON}, customers={CUSTOMER: WON})
    sale = event(coupon_code="save10", customer_id="c-1")
    owner = attribute(sale, known)
    assert (told(owner), owner.click_uuid, owner.click_ms) == ((9, ""), WON.click_id, CLICK_MS)
    assert told(attribute(event(-1, coupon_code="save10", customer_id="c-1"), known)) == (1, "")  # sold before
    assert told(attribute(event(customer_id="c-2"), known)) == (1, "")


def test_a_customer_that_comes_by_another_click_of_its_partner_has_come_by_that_one() -> None:
    known = owners(customers={CUSTOMER: WON})
    assert attribute(event(partner_id=9, customer_id="c-1"), known).click_uuid == CLICK
    late = event(40 * DAY_MS, partner_id=9, customer_id="c-1")
    assert attribute(late, known).click_uuid == WON.click_id


@pytest.mark.parametrize(
    ("months", "after_days", "expected"),
    [(None, 5_000, (9, "")), (1, 29, (9, "")), (1, 30, (9, "after_duration")), (12, 364, (9, ""))],
)
def test_a_customer_is_its_partners_for_so_many_months(
    months: int | None, after_days: int, expected: tuple[int, str]
) -> None:
    """The sale that won it was on the 21st of September."""
    known = owners(offer(max_duration_months=months), customers={CUSTOMER: WON})
    assert told(attribute(bare(after_days * DAY_MS, customer_id="c-1"), known)) == expected
    if expected[1]:
        clicked = event(click_uuid=uuid7(CLICK_MS + 31 * DAY_MS), event_at_ms=CLICK_MS + 32 * DAY_MS, customer_id="c-1")
        assert told(attribute(clicked, known)) == (1, "")


def test_a_customer_won_by_a_flagged_click_stays_one_to_look_at() -> None:
    known = owners(customers={CUSTOMER: WON._replace(click_class=ClickClass.FLAGGED)})
    assert told(attribute(bare(customer_id="c-1"), known)) == (9, "flagged_click")


def test_what_nobody_is_known_for_is_parked_until_somebody_is() -> None:
    known = owners(coupons={CODE: COUPON})
    assert attribute(bare(foreign_click="abc"), known) == Owner(reason="unknown_click")
    assert attribute(bare(customer_id="c-1"), known) == Owner(reason="unknown_click")
    assert attribute(bare(foreign_click="abc", coupon_code="nobody"), known) == Owner(reason="unknown_click")
    assert told(attribute(bare(foreign_click="abc", coupon_code="save10"), known)) == (5, "")
    assert told(attribute(event(40 * DAY_MS, customer_id="c-1"), known)) == (1, "after_window")


# ------------------------------------------------------------------------------------------------ with a database

_PROGRAMME = """
INSERT INTO advertiser (name, token_sha256) VALUES ('a', '1'), ('b', '2');
INSERT INTO partner (name) SELECT 'p' || n FROM generate_series(1, 9) AS n;
INSERT INTO offer (advertiser_id, name, destination_url, currency) VALUES
    (1, 'o', 'https://shop.example', 'EUR'), (2, 'p', 'https://shop.example', 'EUR'),
    (1, 'q', 'https://shop.example', 'EUR');
"""


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Connection]:
    """Two advertisers; offers 1 and 3 are the first one's."""
    connection = await connect(database_url, command_timeout_s=10)
    await connection.execute(_PROGRAMME)
    yield connection
    await connection.close()


async def owner_of(db: Connection, sale: Conversion) -> Owner:
    return attribute(sale, await read_owners(db, [sale]))


async def test_what_is_known_is_read_by_advertiser_and_only_asked_for_where_it_matters(db: Connection) -> None:
    await db.execute(
        "INSERT INTO coupon (code, advertiser_id, offer_id, partner_id) VALUES ('SAVE10', 1, 3, 5), ('SAVE10', 2, 2, 6)"
    )
    await db.execute("INSERT INTO imported_click VALUES (1, 'abc', $1, 3, 1, 4, $2, NULL)", FOREIGN, at(CLICK_MS))
    sales = {
        5: bare(coupon_code="save10"), 6: bare(coupon_code="save10", advertiser_id=2),
        4: bare(foreign_click="abc"), 0: bare(foreign_click="abc", advertiser_id=2), 1: event(),
    }  # fmt: skip
    known = await read_owners(db, list(sales.values()))
    assert {attribute(sale, known).partner_id: sale for sale in sales.values()} == sales
    assert set(known.offers) == {1, 2, 3}
    sent: list[str] = []
    with db.query_logger(lambda record: sent.append(record.query)):
        await read_owners(db, [event() for _ in range(500)])
    await asyncio.sleep(0)
    assert len(sent) == 2  # offers and their terms


async def test_a_click_that_has_a_conversion_is_found_only_outside_its_window(db: Connection) -> None:
    insert = """
    INSERT INTO conversion (conversion_id, intake_id, click_id, link_id, offer_id, partner_id, advertiser_id, event,
                            event_at, received_at, status, sale_currency, currency, booked_payout_minor)
    SELECT gen_random_uuid(), gen_random_uuid(), $1, 1, 1, 1, 1, 'sale', now(), now(), $2, 'EUR', 'EUR', 0
    """
    for status, reason in (("rejected", "after_window"), ("reversed", "after_window"), ("pending", "")):
        await db.execute(insert, CLICK, status)
        assert told(await owner_of(db, event(40 * DAY_MS))) == (1, reason)
    assert (await read_owners(db, [event()])).converted == set()


async def bind(db: Connection, *sales: Conversion) -> list[int]:
    """Bind in a transaction of its own; the partners it left the sales with."""
    async with db.transaction():
        known = await read_owners(db, sales)
        return [
            owner.partner_id for _, owner in await bind_customers(db, [(s, attribute(s, known)) for s in sales], known)
        ]


async def test_a_customer_is_the_first_partners_also_within_a_batch_and_across_offers(db: Connection) -> None:
    first, second = event(customer_id="c-1", partner_id=3), event(customer_id="c-1", partner_id=4)
    assert await bind(db, first, second) == [3, 3]
    assert await bind(db, event(customer_id="c-1", partner_id=4, offer_id=3)) == [3]
    assert await bind(db, event(customer_id="c-1", partner_id=4, advertiser_id=2, offer_id=2)) == [4]
    row = await db.fetchrow("SELECT * FROM customer WHERE advertiser_id = 1")
    assert (row["partner_id"], row["click_id"], row["bound_at"]) == (3, CLICK, at(CLICK_MS + DAY_MS))
    assert told(await owner_of(db, bare(300 * DAY_MS, customer_id="c-1"))) == (3, "")


async def test_what_cannot_earn_binds_nobody(db: Connection) -> None:
    sales = [
        event(40 * DAY_MS, customer_id="c-1"), event(customer_id="c-1", click_class=ClickClass.FALLBACK),
        bare(customer_id="c-1"), bare(customer_id="c-1", coupon_code="nobody"), event(),
    ]  # fmt: skip
    await bind(db, *sales)
    assert await db.fetchval("SELECT count(*) FROM customer") == 0


async def test_a_customer_that_is_nobodys_any_more_may_be_won_again(db: Connection) -> None:
    await db.execute("UPDATE offer SET max_duration_months = 2")
    assert await bind(db, event(customer_id="c-1", partner_id=3)) == [3]
    at_ms = CLICK_MS + 100 * DAY_MS
    again = event(click_uuid=uuid7(at_ms), event_at_ms=at_ms + 1, customer_id="c-1", partner_id=4)
    assert await bind(db, again) == [4]
    assert told(await owner_of(db, bare(120 * DAY_MS, customer_id="c-1"))) == (4, "")
    assert await db.fetchval("SELECT bound_at FROM customer") == at(at_ms + 1)


async def test_aggregators_side_by_side_bind_a_customer_to_one_partner(db: Connection, database_url: str) -> None:
    others = [await connect(database_url, command_timeout_s=10) for _ in range(4)]
    names = [f"c-{n}" for n in range(60)]

    async def bind_all(partner_id: int, other: Connection) -> dict[str, int]:
        ordered = names[::-1] if partner_id % 2 else names
        found = await bind(other, *(event(customer_id=name, partner_id=partner_id) for name in ordered))
        return dict(zip(ordered, found, strict=True))

    told_to = await asyncio.gather(*(bind_all(n, other) for n, other in enumerate(others, 1)))
    for other in others:
        await other.close()
    stored = {row["customer_id"]: row["partner_id"] for row in await db.fetch("SELECT * FROM customer")}
    assert all(told == stored for told in told_to)
