"""Weeks of clicks and conversions, straight into Postgres, for reports to be asked of.

python -m loadtests.history --database-url postgresql://... --clicks 10000000 --conversions 200000

The database is migrated (`clickdam migrate`) and has no clicks. Clicks go in by COPY, their rollups and all of the
conversions - intakes, ledger and rollups - by what the aggregator writes with, and then every quarter hour is settled.
The days end with the last midnight (UTC). The same seed on the same day writes the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from itertools import accumulate
from random import Random
from uuid import UUID

import uvloop
from msgspec.structs import replace
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from aggregator.conversions import behind
from aggregator.conversions.settle import settle
from aggregator.db import partitions
from aggregator.db.connect import Connection, connected
from aggregator.db.instants import to_ms
from aggregator.settled.quarters import settle_once
from deploy.run.history import write
from schemas.click_id import uuid7_bytes, uuid_ms
from schemas.conversions.names import conversion_id
from schemas.events import Click, Conversion
from schemas.outcomes import ClickClass, Reason

AT_ONCE = 20_000  # clicks of a transaction
LINKS_PER_PARTNER, OFFERS, ADVERTISERS = 3, 50, 10
ZIPF = 0.8  # of the partners: the first of a thousand has one click in thirty
ROBOTS = 0.04
VISITORS = 2_000  # of a link on a day
STATEMENT_S = 600.0
_DAY_MS, _HOUR_MS = 86_400_000, 3_600_000
_COUNTRIES, _BY_COUNTRY = ("DE", "US", "FR", "GB", "PL", "IT", "ES", "BR"), (30, 25, 12, 10, 8, 6, 5, 4)
_DEVICES = (("phone", "iOS", "Safari"), ("phone", "Android", "Chrome"), ("desktop", "Windows", "Firefox"))
# what is said of a sale first, and later
_STATUSES = (("approved", ""), ("pending", ""), ("approved", "reversed"), ("pending", "rejected"))
_BY_STATUS = (84, 9, 4, 3)
_PROGRAMME = f"""
INSERT INTO advertiser (name, token_sha256)
SELECT 'Advertiser ' || n, ('history ' || n)::bytea FROM generate_series(1, {ADVERTISERS}) AS n;
INSERT INTO offer (advertiser_id, name, destination_url, currency)
SELECT 1 + (n - 1) % {ADVERTISERS}, 'Offer ' || n, 'https://shop.example/?click_id={{click_id}}', 'EUR'
FROM generate_series(1, {OFFERS}) AS n;
INSERT INTO offer_terms (offer_id, side, model, amount_minor, percent, currency)
SELECT n, side, model, CASE model WHEN 'cpa' THEN amount_minor END, CASE model WHEN 'cps' THEN percent END, 'EUR'
FROM generate_series(1, {OFFERS}) AS n, LATERAL (SELECT CASE n % 2 WHEN 0 THEN 'cpa' ELSE 'cps' END AS model) AS paid,
    (VALUES ('payout', 1200, 8), ('revenue', 1500, 10)) AS sides (side, amount_minor, percent);
"""  # noqa: S608
_PARTNERS = "INSERT INTO partner (name) SELECT 'Partner ' || n FROM generate_series(1, $1) AS n"
_LINKS = f"""
INSERT INTO link (code, offer_id, partner_id)
SELECT 'h' || n, 1 + n % {OFFERS}, 1 + n % $1 FROM generate_series(0, $1 * {LINKS_PER_PARTNER} - 1) AS n
"""  # noqa: S608
# An edge that was heard of until then: reports of what lies before are complete.
_WATERMARK = """
WITH edge AS (INSERT INTO edge (incarnation, name) VALUES ('history', 'history') RETURNING incarnation)
INSERT INTO edge_beat (incarnation, at, complete_to, acked) SELECT incarnation, $1, $1, '[]' FROM edge
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How much of what; `partners` share the clicks very unevenly."""

    clicks: int
    conversions: int
    days: int = 30
    partners: int = 1_000
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Piece:
    """Clicks that are written at once: of this time (ms since 1970), so many, and so many sales of them."""

    number: int
    starts_ms: int
    ends_ms: int
    clicks: int
    sales: int


def pieces(wanted: Wanted, ends_ms: int) -> Iterator[Piece]:
    """All of the time, evenly, none across a midnight."""
    by_day = max(1, -(-wanted.clicks // (AT_ONCE * wanted.days)))
    count, span_ms = wanted.days * by_day, _DAY_MS // by_day
    for number in range(count):
        clicks, sales = (
            total * (number + 1) // count - total * number // count for total in (wanted.clicks, wanted.conversions)
        )
        starts_ms = ends_ms - (wanted.days - number // by_day) * _DAY_MS + number % by_day * span_ms
        yield Piece(number, starts_ms, starts_ms + span_ms, clicks, sales)


def clicked(rng: Random, wanted: Wanted, piece: Piece, popularity: Sequence[float]) -> list[Click]:
    """The clicks of a piece; `popularity` of links adds up."""
    links = rng.choices(range(len(popularity)), cum_weights=popularity, k=piece.clicks)
    return [_click(rng, wanted, link, rng.randrange(piece.starts_ms, piece.ends_ms)) for link in links]


def _click(rng: Random, wanted: Wanted, link: int, at_ms: int) -> Click:
    is_robot = rng.random() < ROBOTS
    device, os, browser = rng.choice(_DEVICES)
    return Click(
        v=1, id=_uuid7(rng, at_ms), link_id=link + 1, offer_id=1 + link % OFFERS, partner_id=1 + link % wanted.partners,
        click_class=ClickClass.FLAGGED if is_robot else ClickClass.NORMAL,
        reason=Reason.KNOWN_BOT if is_robot else Reason.NONE, country=rng.choices(_COUNTRIES, _BY_COUNTRY)[0],
        device=device, os=os, browser=browser, ip="192.0.2.0",
        visitor=f"{at_ms // _DAY_MS:06x}{link:06x}{rng.randrange(VISITORS):04x}",  # another hash each day
        source_id=f"site-{rng.randrange(20)}",
        subs={"sub1": f"campaign-{rng.randrange(40)}", "sub2": f"position-{rng.randrange(10)}"},
    )  # fmt: skip


def sold(rng: Random, clicks: Sequence[Click], piece: Piece, ends_ms: int) -> tuple[list[Conversion], list[Conversion]]:
    """The sales that follow from some of these clicks, and what is said of some of them later."""
    valid = [click for click in clicks if click.click_class == ClickClass.NORMAL]
    chosen = rng.sample(valid, min(piece.sales, len(valid)))
    sales, changes = list[Conversion](), list[Conversion]()
    for n, click in enumerate(chosen):
        first, later = rng.choices(_STATUSES, _BY_STATUS)[0]
        sale = _sale(rng, click, f"order-{piece.number}-{n}", ends_ms)
        sales.append(replace(sale, status=first))
        if later:
            changes.append(replace(sale, intake_id=_uuid7(rng, ends_ms - 1), status=later, amount_minor=None))
    return sales, changes


def _sale(rng: Random, click: Click, order_id: str, ends_ms: int) -> Conversion:
    made_ms = min(ends_ms - 1, uuid_ms(click.id) + rng.randrange(60_000, 6 * _HOUR_MS))
    advertiser_id = 1 + (click.offer_id - 1) % ADVERTISERS
    return Conversion(
        v=1, intake_id=_uuid7(rng, made_ms), click_uuid=click.id, click_class=click.click_class,
        conversion_id=conversion_id("advertiser", advertiser_id, click.offer_id, "sale", order_id, click.id),
        link_id=click.link_id, offer_id=click.offer_id, partner_id=click.partner_id, advertiser_id=advertiser_id,
        event="sale", order_id=order_id, event_at_ms=made_ms, amount_minor=rng.randrange(990, 29_990, 10),
        currency="EUR", door="postback",
    )  # fmt: skip


def _uuid7(rng: Random, at_ms: int) -> UUID:
    return UUID(bytes=uuid7_bytes(at_ms, rng.randbytes(10)))


async def fill(database_url: str, wanted: Wanted, progress: Progress) -> datetime:
    """Write it all and let Postgres look at it; when it ends. Raises ValueError for a database that has clicks."""
    async with connected(database_url, command_timeout_s=STATEMENT_S, application_name="clickdam-history") as db:
        if await db.fetchval("SELECT EXISTS (SELECT FROM click)"):
            raise ValueError("this database has clicks")
        await db.reset_type_codec("jsonb", schema="pg_catalog")  # COPY is binary, which the codec is not
        today = await partitions.today(db)
        ends = datetime.combine(today, time(), UTC)
        await partitions.ensure(db, [today - timedelta(days=n) for n in range(1, wanted.days + 1)])
        await _make_programme(db, wanted)
        await db.execute(_WATERMARK, ends)
        await _write(db, wanted, to_ms(ends), progress)
        await db.execute("VACUUM ANALYZE")
        await _settle(db, wanted, to_ms(ends), progress)
        await db.execute("VACUUM ANALYZE")
    return ends


async def _make_programme(db: Connection, wanted: Wanted) -> None:
    await db.execute(_PROGRAMME)
    await db.execute(_PARTNERS, wanted.partners)
    await db.execute(_LINKS, wanted.partners)


async def _write(db: Connection, wanted: Wanted, ends_ms: int, progress: Progress) -> None:
    task = progress.add_task("clicks and sales", total=wanted.clicks)
    links = range(wanted.partners * LINKS_PER_PARTNER)
    popularity = [*accumulate((1 + link % wanted.partners) ** -ZIPF for link in links)]
    for piece in pieces(wanted, ends_ms):
        rng = Random(f"{wanted.seed} {piece.number}")
        clicks = clicked(rng, wanted, piece, popularity)
        async with db.transaction():
            await write(db, clicks)
            for events in sold(rng, clicks, piece, ends_ms):
                await settle(db, events, shard=-1)
        progress.advance(task, piece.clicks)


async def _settle(db: Connection, wanted: Wanted, ends_ms: int, progress: Progress) -> None:
    """What aggregators do behind: what conversions have of their clicks, uniques and details."""
    task, places = progress.add_task("clicks seen of sales", total=wanted.conversions), behind.Places()
    while (seen := await behind.see_clicks(db, places, 0)).more:
        progress.advance(task, seen.done)
    progress.update(task, completed=wanted.conversions)
    quarters = progress.add_task("quarter hours settled", total=wanted.days * 96)
    while await settle_once(db, ends_ms):
        progress.advance(quarters)


def main() -> int:
    """Returns 1 for a database that has clicks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database-url", required=True, metavar="URL")
    parser.add_argument("--clicks", type=int, default=200_000)
    parser.add_argument("--conversions", type=int, default=4_000)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--partners", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    wanted = Wanted(asked.clicks, asked.conversions, asked.days, asked.partners, asked.seed)
    try:
        with Progress(*COLUMNS) as progress:
            uvloop.run(fill(asked.database_url, wanted, progress))
    except ValueError as error:
        print(f"{error}; it has to be empty", file=sys.stderr)
        return 1
    return 0


COLUMNS = (
    TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
