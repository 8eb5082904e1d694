"""Rows of Postgres as the configs that lie in Redis: what a click needs, and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, Literal

import msgspec
import structlog

from aggregator.db.connect import Database, Row
from aggregator.publish import metrics
from schemas import links, redis_keys

Kind = Literal["programme", "advertiser", "partner", "offer", "reference", "link", "replaced_token"]

log = structlog.get_logger()

_CAPS = """
coalesce((SELECT jsonb_agg(jsonb_build_object('id', id, 'period', period, 'clicks', amount, 'over_cap', over_cap,
                                              'offer_id', coalesce(offer_id, 0)) ORDER BY id)
          FROM cap WHERE kind = 'clicks' AND {scope}), '[]') AS caps
"""
_BLOCKS = """
coalesce((SELECT jsonb_agg(jsonb_build_array(coalesce(offer_id, 0), field, value) ORDER BY id)
          FROM block WHERE {scope}), '[]') AS blocks
"""
_DOMAINS = """
coalesce((SELECT jsonb_object_agg(host, jsonb_build_object('own_links', own_links, 'fallback_url', fallback_url,
                                                           'archived', status = 'archived'))
          FROM domain WHERE status = 'active' OR own_links), '{}') AS domains
"""
_OFFERS = """
ARRAY(SELECT offer_id FROM approval WHERE partner_id = partner.id AND approval.status = 'approved' ORDER BY 1) AS offers
"""
_HOST = "CASE WHEN own_links THEN host END AS host"
_COLUMNS: dict[Kind, tuple[str, ...]] = {
    "programme": ("timezone", "currency", "fallback_url", _DOMAINS, _BLOCKS.format(scope="partner_id IS NULL")),
    "advertiser": (
        "status", "encode(token_sha256, 'hex') AS token", "dialect", "decimal_separator", "status_map", "networks",
        "signing_key", "signature_required", "postbacks_per_minute", "pixel_key", "pixel_origins",
        "foreign_clicks_until",
    ),
    "replaced_token": ("'archived' AS status", "encode(token_sha256, 'hex') AS token", "advertiser_id AS target_id"),
    "partner": (
        "name", "status", _OFFERS,
        _BLOCKS.format(scope="partner_id = partner.id"), _CAPS.format(scope="partner_id = partner.id"),
    ),
    "offer": (
        "advertiser_id", "name", "status", "destination_url", "currency", "access", "fallback_url",
        "click_id_parameter", "deep_link_hosts", "pass_parameters", "starts_at", "ends_at", "timezone", "targeting",
        "landings", "scopes", "amount_max_minor", "payout_override_max_minor",
        _CAPS.format(scope="partner_id IS NULL AND offer_id = offer.id"),
    ),
    "reference": ("kind", "name", "target_id"),
    "link": (
        "code", _HOST, "offer_id", "partner_id", "link.status", "destination_url", "link.fallback_url", "starts_at",
        "ends_at", "link.test",
    ),
}  # fmt: skip
_FROM: dict[Kind, str] = {"link": "link LEFT JOIN domain ON domain.id = domain_id"}
_TIMES = (
    ("starts_at", "starts_ms"), ("ends_at", "ends_ms"), ("foreign_clicks_until", "foreign_clicks_until_ms")
)  # fmt: skip
# In the order in which a click needs them: a link is of no use before its offer is there.
SELECT: dict[Kind, str] = {
    kind: f"SELECT {kind}.id, {kind}.version, {', '.join(columns)} FROM {_FROM.get(kind, kind)}"  # noqa: S608
    for kind, columns in _COLUMNS.items()
}


async def current(db: Database, kind: Kind, ids: Iterable[int], epoch: int) -> dict[str, links.Config]:
    """The configs of these rows as they are now, by Redis key."""
    rows = await db.fetch(f"{SELECT[kind]} WHERE {kind}.id = ANY($1::int[])", list(ids))
    return entries(kind, rows, epoch)


def entries(kind: Kind, rows: Iterable[Row], epoch: int) -> dict[str, links.Config]:
    """The configs of rows by Redis key; the version of each is (epoch, row version).

    A row that is no config, because a later version of us or somebody's hand wrote it, is told about and left out:
    what was published of it before stays, and all others go on.
    """
    made: dict[str, links.Config] = {}
    for row in rows:
        try:
            made |= {key: msgspec.convert(_fields(row, epoch), config) for key, config in _ENTRIES[kind](row)}
        except msgspec.ValidationError as error:
            metrics.UNREADABLE_ROWS.inc()
            log.error("row_unreadable", kind=kind, id=row["id"], error=str(error))
    return made


def _fields(row: Row, epoch: int) -> dict[str, Any]:
    """A row as its config names it; columns that a config has not are ignored."""
    fields: dict[str, Any] = {**row, "v": (epoch, row["version"])}
    for column, field in _TIMES:
        if column in fields:
            fields[field] = _ms(fields[column])
    if "target_id" in fields:
        fields["id"] = fields["target_id"]
    return fields


def _ms(at: datetime | None) -> int | None:
    return None if at is None else round(at.timestamp() * 1000)


def _reference_key(row: Row) -> str:
    named = redis_keys.offer_reference if row["kind"] == "offer" else redis_keys.partner_reference
    return named(row["name"])


def _advertiser_entries(row: Row) -> Iterator[tuple[str, type[links.Config]]]:
    yield redis_keys.advertiser(row["token"]), links.Advertiser
    yield redis_keys.advertiser_by_id(row["id"]), links.Advertiser
    if row["pixel_key"] is not None:
        yield redis_keys.pixel(row["pixel_key"]), links.Reference


# The keys that a row is published under, and as what.
_ENTRIES: dict[Kind, Callable[[Row], Iterable[tuple[str, type[links.Config]]]]] = {
    "programme": lambda _: [(redis_keys.PROGRAMME, links.Programme)],
    "advertiser": _advertiser_entries,
    "replaced_token": lambda row: [(redis_keys.advertiser(row["token"]), links.Advertiser)],
    "partner": lambda row: [(redis_keys.partner(row["id"]), links.Partner)],
    "offer": lambda row: [(redis_keys.offer(row["id"]), links.Offer)],
    "reference": lambda row: [(_reference_key(row), links.Reference)],
    "link": lambda row: [(redis_keys.link(row["code"], row["host"] or ""), links.Link)],
}
