"""The past of the demo programme: two weeks of other partners' clicks and sales, written down by what the aggregator
writes with, so that rollups, ledger and intakes are what they would be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, time, timedelta
from hashlib import blake2b
from random import Random
from typing import Literal, NamedTuple
from uuid import UUID

from msgspec.structs import replace

from aggregator.conversions.settle import settle
from aggregator.db import partitions
from aggregator.db.connect import Connection, connected
from aggregator.db.instants import at, to_ms
from aggregator.flush.click_rows import COLUMNS, row_of, sorted_once
from aggregator.flush.rollup import count, roll_up
from schemas import limits
from schemas.click_id import uuid7_bytes, uuid_ms
from schemas.conversions.names import conversion_id
from schemas.events import Click, Conversion
from schemas.outcomes import ClickClass, Reason

DAYS, CLICKS = 14, 5_000
ROBOTS = 0.04
CURRENCY = "EUR"
_DAY_MS, _HOUR_MS = 86_400_000, 3_600_000
_GOING_ON_MS = 4 * _DAY_MS  # a sale that is told of late, or changed, was made so long before the end
_SHARD = -1  # of no partition of the log
_VISITORS = 400  # of a partner on a day
_BY_HOUR = (3, 2, 1, 1, 1, 2, 4, 7, 9, 10, 10, 11, 12, 11, 10, 10, 11, 12, 14, 16, 17, 15, 10, 6)
_BY_WEEKDAY = (9, 9, 10, 10, 11, 14, 13)
_COUNTRIES, _BY_COUNTRY = ("DE", "AT", "CH", "FR", "NL", "GB"), (50, 14, 12, 10, 8, 6)
_DEVICES = (
    ("phone", "iOS", "Safari"), ("phone", "Android", "Chrome"), ("desktop", "Windows", "Chrome"),
    ("desktop", "Windows", "Firefox"), ("desktop", "Mac OS X", "Safari"), ("tablet", "iPadOS", "Safari"),
)  # fmt: skip
_BY_DEVICE = (26, 28, 22, 10, 9, 5)
_SOURCES, _CAMPAIGNS = ("article", "newsletter", "sidebar"), ("autumn", "rain-sale", "gifts", "evergreen")
_NETWORKS = ("192.0.2.0", "198.51.100.0", "203.0.113.0")


class Past(NamedTuple):
    """A link and how much of the traffic it had. For a sale the advertiser owes `revenue_minor`, or so many percent."""

    link_id: int
    offer_id: int
    partner_id: int
    weight: int
    revenue_minor: int = 0
    revenue_percent: int = 0


class Kind(NamedTuple):
    """So many sales: what the advertiser says of each, whether days after it was made, and what it says later."""

    number: int
    status: Literal["approved", "pending"]
    is_late: bool = False
    then: Literal["", "reversed", "rejected"] = ""


KINDS = (  # those that go on for days first
    Kind(15, "approved", is_late=True),
    Kind(12, "approved", then="reversed"),
    Kind(6, "pending", then="rejected"),
    Kind(99, "approved"),
    Kind(18, "pending"),
)


async def fill(database_url: str, advertiser_id: int, links: Sequence[Past]) -> None:
    """Write the last `DAYS` whole days (UTC), all of it or nothing; the same again for the same links on the same day.
    Raises what the database raises."""
    async with connected(
        database_url, command_timeout_s=limits.TRANSACTION_S, application_name="clickdam-history"
    ) as db:
        await db.reset_type_codec("jsonb", schema="pg_catalog")  # COPY is binary, which the codec is not
        today = await partitions.today(db)
        await partitions.ensure(db, [today - timedelta(days=n) for n in range(1, DAYS + 1)])
        rng = Random(links[0].link_id)  # noqa: S311 - a seeding that was cut short is begun again with other links
        ends_ms = to_ms(datetime.combine(today, time(), UTC))
        clicks = clicked(rng, links, ends_ms)
        sold, changed = sales(rng, clicks, links, advertiser_id, ends_ms)
        async with db.transaction():
            await write(db, clicks)
            await settle(db, sold, _SHARD)
            await settle(db, changed, _SHARD)


async def write(db: Connection, clicks: Iterable[Click]) -> None:
    """Clicks that nobody has, and what they add to the rollups."""
    rows = sorted_once(map(row_of, clicks))
    await db.copy_records_to_table("click", columns=list(COLUMNS), records=rows)
    await roll_up(db, count(rows), _SHARD)


def clicked(rng: Random, links: Sequence[Past], ends_ms: int) -> list[Click]:
    """Clicks of the days before a midnight (ms since 1970), more in the evening and at weekends."""
    days = [ends_ms - n * _DAY_MS for n in range(1, DAYS + 1)]
    by_day = [_BY_WEEKDAY[at(day_ms).weekday()] for day_ms in days]
    return [
        _click(rng, link, day_ms, day_ms + hour * _HOUR_MS + rng.randrange(_HOUR_MS))
        for link, day_ms, hour in zip(
            rng.choices(links, [link.weight for link in links], k=CLICKS),
            rng.choices(days, by_day, k=CLICKS),
            rng.choices(range(24), _BY_HOUR, k=CLICKS),
            strict=True,
        )
    ]


def _click(rng: Random, link: Past, day_ms: int, at_ms: int) -> Click:
    is_robot = rng.random() < ROBOTS
    device, os, browser = rng.choices(_DEVICES, _BY_DEVICE)[0]
    visitor = f"{link.partner_id} {day_ms} {rng.randrange(_VISITORS)}"
    return Click(
        v=1, id=_uuid7(rng, at_ms), link_id=link.link_id, offer_id=link.offer_id, partner_id=link.partner_id,
        click_class=ClickClass.FLAGGED if is_robot else ClickClass.NORMAL,
        reason=Reason.KNOWN_BOT if is_robot else Reason.NONE,
        country=rng.choices(_COUNTRIES, _BY_COUNTRY)[0], device=device, os=os, browser=browser,
        visitor=blake2b(visitor.encode(), digest_size=8).hexdigest(), ip=rng.choice(_NETWORKS),
        referer=f"partner-{link.partner_id}.example", source_id=rng.choice(_SOURCES),
        subs={"sub1": rng.choice(_CAMPAIGNS), "sub2": f"position-{rng.randint(1, 5)}"},
    )  # fmt: skip


def sales(
    rng: Random, clicks: Sequence[Click], links: Iterable[Past], advertiser_id: int, ends_ms: int
) -> tuple[list[Conversion], list[Conversion]]:
    """The sales that followed from some of these clicks, and what was said of some of them days later."""
    by_id = {link.link_id: link for link in links}
    sold, changed = list[Conversion](), list[Conversion]()
    for number, (click, kind) in enumerate(_converting(rng, clicks, ends_ms), 1_001):
        made_ms = min(ends_ms - 1_000, uuid_ms(click.id) + int(rng.expovariate(1 / _HOUR_MS)) + 60_000)
        late_ms = rng.randrange(_DAY_MS, 2 * _DAY_MS) if kind.is_late else 500
        sale = _sale(rng, click, by_id[click.link_id], advertiser_id, f"order-{number}", made_ms, made_ms + late_ms)
        sold.append(replace(sale, status=kind.status))
        if kind.then:
            told_ms = made_ms + rng.randrange(_DAY_MS, 2 * _DAY_MS)
            changed.append(replace(sale, intake_id=_uuid7(rng, told_ms), status=kind.then, amount_minor=None))
    return sold, changed


def _converting(rng: Random, clicks: Iterable[Click], ends_ms: int) -> list[tuple[Click, Kind]]:
    """The clicks that convert, the first first, and how."""
    valid = [click for click in clicks if click.click_class == ClickClass.NORMAL]
    old = [click for click in valid if uuid_ms(click.id) < ends_ms - _GOING_ON_MS]
    kinds = [kind for kind in KINDS for _ in range(kind.number)]
    chosen = rng.sample(old, sum(kind.is_late or bool(kind.then) for kind in kinds))
    taken = {click.id for click in chosen}
    chosen += rng.sample([click for click in valid if click.id not in taken], len(kinds) - len(chosen))
    return sorted(zip(chosen, kinds, strict=True), key=lambda one: one[0].id)


def _sale(
    rng: Random, click: Click, link: Past, advertiser_id: int, order_id: str, made_ms: int, told_ms: int
) -> Conversion:
    amount_minor = rng.randrange(2_490, 18_990, 10)
    return Conversion(
        v=1, intake_id=_uuid7(rng, told_ms), click_uuid=click.id, click_class=click.click_class,
        conversion_id=conversion_id("advertiser", advertiser_id, link.offer_id, "sale", order_id, click.id),
        link_id=link.link_id, offer_id=link.offer_id, partner_id=link.partner_id, advertiser_id=advertiser_id,
        event="sale", order_id=order_id, event_at_ms=made_ms, amount_minor=amount_minor, currency=CURRENCY,
        revenue_minor=link.revenue_minor or amount_minor * link.revenue_percent // 100, door="postback",
    )  # fmt: skip


def _uuid7(rng: Random, at_ms: int) -> UUID:
    return UUID(bytes=uuid7_bytes(at_ms, rng.randbytes(10)))
