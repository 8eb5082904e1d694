"""The events of the log: what an edge writes and an aggregator reads, one JSON object each.

`events.schema.json` is the same for other consumers of the stream; a test holds it against this file.
Version 1. A field may be added; a field is never renamed, removed or given another meaning without a new version.
"""

from typing import Any, Literal
from uuid import UUID

import msgspec

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


NO_CLICK = UUID(int=0)


class Conversion(msgspec.Struct, tag_field="kind", tag="conversion", kw_only=True, frozen=True, omit_defaults=True):
    """One authenticated, well-formed intake at a conversion door. `intake_id` (UUIDv7) names this receipt,
    `conversion_id` the order; `former_id` is its other name where its offer's scope changed near its click. Without a
    click of ours (`NO_CLICK`) link, offer and partner are 0, and a coupon, a customer or `foreign_click` says whose it
    is; `currency` may then be empty: amounts are hundredths of the offer's."""

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
    former_id: UUID | None = None
    door: str = ""  # postback, json, pixel
    dialect: str = ""
    raw: str = ""  # what was sent, secrets removed
    status: str = ""  # what the sender says it is, in our words; as it was said: `original_status`
    original_status: str = ""
    event_id: str = ""  # the sender's own name of an increment or a partial refund
    refund_minor: int | None = None
    remaining_minor: int | None = None  # what is left of the amount
    revenue_minor: int | None = None  # what the advertiser says that it owes
    payout_minor: int | None = None  # instead of what the terms say
    customer_id: str = ""
    coupon_code: str = ""
    foreign_click: str = ""  # a click id that is not ours
    adv: dict[str, str] = {}  # adv1..adv10


class Intake(msgspec.Struct, tag_field="kind", tag="intake", kw_only=True, frozen=True, omit_defaults=True):
    """An authenticated intake that is no conversion: rejected for `reason`, or of a test. Kept to be found, and to be
    run again; the click is the one it proved, if it did."""

    v: Literal[1]
    intake_id: UUID
    advertiser_id: int
    result: Literal["rejected", "test"]
    reason: str = ""
    door: str = ""
    dialect: str = ""
    raw: str = ""
    order_id: str = ""
    click_uuid: UUID = NO_CLICK
    click_class: int = 0
    link_id: int = 0
    offer_id: int = 0
    partner_id: int = 0


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


Event = Click | Conversion | Intake | Beat | Probe
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def decode(line: bytes) -> Event:
    """One event. Raises msgspec.DecodeError (ValidationError is one) for what is not an event of a known version."""
    return _decoder.decode(line)


def encode(event: Event) -> bytes:
    """One event as a line of the log, without the line's end."""
    return msgspec.json.encode(event)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of an event."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Event)}
