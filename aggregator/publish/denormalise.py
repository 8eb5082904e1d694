"""Rows of Postgres as the configs that lie in Redis: what a click needs, and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from aggregator.db.connect import Database, Row
from schemas import links, redis_keys

Kind = Literal["programme", "advertiser", "partner", "offer", "link"]
Entry = tuple[str, links.Config]

# In the order in which a click needs them: a link is of no use before its offer is there.
SELECT: dict[Kind, str] = {
    "programme": "SELECT id, version, timezone, currency, fallback_url FROM programme",
    "advertiser": "SELECT id, version, status, encode(token_sha256, 'hex') AS token FROM advertiser",
    "partner": "SELECT id, version, name, status FROM partner",
    "offer": "SELECT id, version, advertiser_id, name, status, destination_url, currency FROM offer",
    "link": "SELECT id, version, code, offer_id, partner_id, status FROM link",
}


async def current(db: Database, kind: Kind, ids: Iterable[int], epoch: int) -> dict[str, links.Config]:
    """The configs of these rows as they are now, by Redis key."""
    rows = await db.fetch(f"{SELECT[kind]} WHERE id = ANY($1::int[])", list(ids))
    return dict(entry(kind, row, epoch) for row in rows)


def entry(kind: Kind, row: Row, epoch: int) -> Entry:
    """The Redis key and the config of one row; its version is (epoch, row version)."""
    return _ENTRY[kind](row, (epoch, row["version"]))


def _programme(row: Row, v: links.Version) -> Entry:
    return redis_keys.PROGRAMME, links.Programme(
        v=v, timezone=row["timezone"], currency=row["currency"], fallback_url=row["fallback_url"]
    )


def _advertiser(row: Row, v: links.Version) -> Entry:
    return redis_keys.advertiser(row["token"]), links.Advertiser(v=v, id=row["id"], status=row["status"])


def _partner(row: Row, v: links.Version) -> Entry:
    return redis_keys.partner(row["id"]), links.Partner(v=v, id=row["id"], name=row["name"], status=row["status"])


def _offer(row: Row, v: links.Version) -> Entry:
    return redis_keys.offer(row["id"]), links.Offer(
        v=v,
        id=row["id"],
        advertiser_id=row["advertiser_id"],
        name=row["name"],
        status=row["status"],
        destination_url=row["destination_url"],
        currency=row["currency"],
    )


def _link(row: Row, v: links.Version) -> Entry:
    return redis_keys.link(row["code"]), links.Link(
        v=v,
        id=row["id"],
        code=row["code"],
        offer_id=row["offer_id"],
        partner_id=row["partner_id"],
        status=row["status"],
    )


_ENTRY: dict[Kind, Callable[[Row, links.Version], Entry]] = {
    "programme": _programme,
    "advertiser": _advertiser,
    "partner": _partner,
    "offer": _offer,
    "link": _link,
}
