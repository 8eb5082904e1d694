"""What the rows of an import name: offers and partners, by their ids here or by those they had elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, Protocol

from aggregator.api.references import held_names
from aggregator.db.connect import Database
from schemas.errors import Refused


class Names(Protocol):
    """A row that names an offer and a partner."""

    offer_id: int | None
    offer_external_id: str | None
    partner_id: int | None
    partner_external_id: str | None


class Known(NamedTuple):
    """The ids of offers and partners by the names they had elsewhere; the advertisers of offers, and the partners, that
    are there."""

    offers: Mapping[str, int]
    partners: Mapping[str, int]
    advertisers: Mapping[int, int]
    partner_ids: Collection[int]


class Owner(NamedTuple):
    advertiser_id: int
    offer_id: int
    partner_id: int


async def read_known(db: Database, rows: Iterable[Names]) -> Known:
    """What these rows name, as far as it is there; four statements."""
    rows = list(rows)
    offers = await held_names(db, "offer", {row.offer_external_id for row in rows if row.offer_external_id})
    partners = await held_names(db, "partner", {row.partner_external_id for row in rows if row.partner_external_id})
    offer_ids = {*offers.values(), *(row.offer_id for row in rows if row.offer_id)}
    partner_ids = {*partners.values(), *(row.partner_id for row in rows if row.partner_id)}
    advertisers = await db.fetch("SELECT id, advertiser_id FROM offer WHERE id = ANY ($1::int[])", list(offer_ids))
    there = await db.fetch("SELECT id FROM partner WHERE id = ANY ($1::int[])", list(partner_ids))
    return Known(
        offers, partners, {row["id"]: row["advertiser_id"] for row in advertisers}, {row["id"] for row in there}
    )


def owner_of(row: Names, known: Known, missing: Refused) -> Owner:
    """Raises Refused naming the field, `missing` where a row names none."""
    offer_id = _id("offer", row.offer_external_id, row.offer_id, known.offers, known.advertisers, missing)
    partner_id = _id("partner", row.partner_external_id, row.partner_id, known.partners, known.partner_ids, missing)
    return Owner(known.advertisers[offer_id], offer_id, partner_id)


def _id(
    kind: str, name: str | None, own_id: int | None, names: Mapping[str, int], ids: Collection[int], missing: Refused
) -> int:
    """A name from elsewhere wins over an id, which may be that of another Clickdam."""
    if name is not None and name not in names:
        raise Refused("bad_value", f"there is no {kind} {name}", f"{kind}_external_id")
    found = names[name] if name is not None else own_id
    if found is None:
        raise missing
    if found not in ids:
        raise Refused("bad_value", f"there is no {kind} {found}", f"{kind}_id")
    return found
