"""The events of the log: what an edge writes and an aggregator reads, one JSON object each.

`events.schema.json` is the same for other consumers of the stream; a test holds it against this file.
Version 1. A field may be added; a field is never renamed, removed or given another meaning without a new version.
"""

from typing import Any, Literal
from uuid import UUID

import msgspec
import orjson

VERSION: Literal[1] = 1


class Click(msgspec.Struct, tag_field="kind", tag="click", kw_only=True, frozen=True, omit_defaults=True):
    """One recorded GET on a tracking link. `id` is a UUIDv7, its time the edge's receipt."""

    v: Literal[1]
    id: UUID
    link_id: int
    offer_id: int
    partner_id: int
    click_class: int
    reason: str = ""
    country: str = ""
    device: str = ""
    os: str = ""
    browser: str = ""
    visitor: str = ""  # keyed hash, 16 hex digits; the key changes with the programme's day
    ip: str = ""  # truncated to /24 or /48
    referer: str = ""  # host only
    source_id: str = ""
    click_ref: str = ""
    subs: dict[str, str] = {}  # those of sub1..sub10, ad click ids, creative_id, uid, coupon_code, qr that were present


class Conversion(msgspec.Struct, tag_field="kind", tag="conversion", kw_only=True, frozen=True, omit_defaults=True):
    """One authenticated, well-formed intake at a conversion door. `intake_id` (UUIDv7) names this receipt,
    `conversion_id` the order."""

    v: Literal[1]
    intake_id: UUID
    conversion_id: UUID
    click_uuid: UUID
    click_class: int
    link_id: int
    offer_id: int
    partner_id: int
    advertiser_id: int
    event: str
    order_id: str = ""
    event_at_ms: int  # the sender's event_time, else the receipt
    amount_minor: int | None = None
    currency: str
    reason: str = ""  # why it is pending, as far as the edge can tell


class Beat(msgspec.Struct, tag_field="kind", tag="beat", kw_only=True, frozen=True, omit_defaults=True):
    """The watermark of one edge, one a second: all its events received before `complete_to_ms` are in the log at or
    before the offsets `acked` ([source, partition, offset]), the first an edge writes (`open`) and its last (`closed`)
    too. `counters` are absolute for this incarnation:
    {hour (UTC, 2026-11-23T01): {outcome: count}}."""

    v: Literal[1]
    edge: str
    incarnation: str
    state: Literal["open", "beat", "closed"]
    at_ms: int
    complete_to_ms: int
    acked: list[tuple[str, int, int]] = []
    counters: dict[str, dict[str, int]] = {}


class Probe(msgspec.Struct, tag_field="kind", tag="probe", kw_only=True, frozen=True):
    """An edge asks whether a partition takes records again. Means nothing to who reads it."""

    v: Literal[1]
    edge: str
    at_ms: int


Event = Click | Conversion | Beat | Probe
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def decode(line: bytes) -> Event:
    """One event. Raises msgspec.DecodeError (ValidationError is one) for what is not an event of a known version."""
    return _decoder.decode(line)


def encode(event: Event) -> bytes:
    """One event as a line of the log, without the line's end."""
    return orjson.dumps(msgspec.to_builtins(event))


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of an event."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Event)}
