"""What becomes of a click: named steps, in order, no I/O. A `put_*` adds what is known, a `drop_*` may end it.

Two things follow a click's last step, whatever it was: its id is minted with its class, and its event is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import orjson

from schemas import events
from schemas.click_id import ClickKey, mint, uuid7_bytes
from schemas.limits import QUERY_PARAMS_MAX, VALUE_MAX
from schemas.links import Link, Offer, Partner, Programme
from schemas.outcomes import ClickClass, Reason
from tracker import visitor
from tracker.caps import CapTotals
from tracker.macros import expand

SUBS = frozenset(f"sub{n}" for n in range(1, 11))
AD_CLICK_IDS = frozenset("gclid gbraid wbraid fbclid msclkid ttclid li_fat_id twclid".split())


@dataclass(frozen=True, slots=True)
class Target:
    """Where a code leads: its link with the offer and partner it refers to; None where there is none."""

    programme: Programme
    link: Link | None = None
    offer: Offer | None = None
    partner: Partner | None = None


@dataclass(slots=True)
class Click:
    """A request on a tracking link on its way through the steps."""

    at_ms: int
    ip: str
    user_agent: str
    referer: str
    query: str
    head: bool = False
    params: dict[str, str] = field(default_factory=dict)
    click_class: ClickClass = ClickClass.NORMAL
    reason: Reason = Reason.NONE
    visitor: str = ""
    network: str = ""
    country: str = ""
    device: str = ""
    os: str = ""
    browser: str = ""
    robot: bool = False
    destination: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """How to answer: a redirect to `location` (with the event to record, unless it is uncounted), or a refusal."""

    reason: Reason
    location: str | None = None
    event: bytes | None = None
    link_id: int = 0
    partner_id: int = 0


@dataclass(frozen=True, slots=True)
class Known:
    """What an edge knows beside the configs: the key of the visitors' hashes, how much of each cap is used."""

    secret: bytes
    caps: CapTotals = field(default_factory=CapTotals)


Step = Callable[[Click, Target, Known], None]


def put_params(click: Click, target: Target, known: Known) -> None:
    """Sub ids and the like; names in any case, the first of a repeated one, values as they came."""
    pairs = parse_qsl(click.query, keep_blank_values=True, errors="replace", max_num_fields=QUERY_PARAMS_MAX)
    for name, value in reversed(pairs):
        click.params[name.lower()] = value.replace("\0", "")[:VALUE_MAX]


def put_visitor(click: Click, target: Target, known: Known) -> None:
    click.network = visitor.network(click.ip)
    click.visitor = visitor.visitor_hash(
        known.secret, click.at_ms, target.programme.timezone, click.ip, click.user_agent
    )


def put_device(click: Click, target: Target, known: Known) -> None:
    agent = visitor.read_agent(click.user_agent)
    click.device, click.os, click.browser, click.robot = agent.device, agent.os, agent.browser, agent.robot


def put_country(click: Click, target: Target, known: Known) -> None:
    click.country = visitor.country(click.ip)


def drop_unknown_link(click: Click, target: Target, known: Known) -> None:
    if target.link is None or target.offer is None or target.partner is None:
        click.reason = Reason.UNKNOWN_LINK


def drop_blocked_partner(click: Click, target: Target, known: Known) -> None:
    if target.partner and target.partner.status != "active":
        click.reason = Reason.PARTNER_BLOCKED


def drop_paused(click: Click, target: Target, known: Known) -> None:
    if target.link and target.link.status != "active":
        click.reason = Reason.LINK_PAUSED
    elif target.offer and target.offer.status != "active":
        click.reason = Reason.OFFER_PAUSED


def put_destination(click: Click, target: Target, known: Known) -> None:
    if target.offer:
        click.destination = target.offer.destination_url


def put_bot_verdict(click: Click, target: Target, known: Known) -> None:
    """A robot is flagged and kept, never hidden: it is redirected like anybody."""
    if not click.user_agent:
        click.click_class, click.reason = ClickClass.FLAGGED, Reason.NO_USER_AGENT
    elif click.robot:
        click.click_class, click.reason = ClickClass.FLAGGED, Reason.KNOWN_BOT


STEPS: tuple[Step, ...] = (
    put_params,
    put_visitor,
    put_device,
    put_country,
    drop_unknown_link,
    drop_blocked_partner,
    drop_paused,
    put_destination,
    put_bot_verdict,
)


def decide(click: Click, target: Target, key: ClickKey, known: Known, steps: Iterable[Step] = STEPS) -> Decision:
    """Run the steps; the first `drop_*` that fires ends the click with its reason and the programme's fallback.

    `key` signs the id. Raises ValueError for more parameters than the limit."""
    for step in steps:
        step(click, target, known)
        if click.reason and click.destination is None:
            click.click_class, click.destination = ClickClass.FALLBACK, target.programme.fallback_url
            break
    if click.destination is None:
        return Decision(click.reason)
    return _redirect(click, target, key)


def _redirect(click: Click, target: Target, key: ClickKey) -> Decision:
    uuid = uuid7_bytes(click.at_ms, os.urandom(10))
    link_id = target.link.id if target.link else 0
    offer_id = target.offer.id if target.offer else 0
    partner_id = target.partner.id if target.partner else 0
    click_class = ClickClass.UNCOUNTED if click.head else click.click_class
    click_id = mint(key, uuid, link_id, offer_id, partner_id, click_class)
    location = expand(click.destination or "", _macro_values(click, target, click_id))
    if click.head:
        return Decision(click.reason, location)
    event = _event(click, UUID(bytes=uuid), link_id, offer_id, partner_id)
    return Decision(click.reason, location, event, link_id, partner_id)


def _macro_values(click: Click, target: Target, click_id: str) -> dict[str, str]:
    known = {
        "click_id": click_id,
        "country": click.country,
        "device": click.device,
        "os": click.os,
        "browser": click.browser,
        "ip": click.network,
        "timestamp": str(click.at_ms // 1000),
    }
    if target.offer and target.partner:
        known |= {
            "offer_id": str(target.offer.id),
            "offer_name": target.offer.name,
            "affiliate_id": str(target.partner.id),
            "affiliate_name": target.partner.name,
            "advertiser_id": str(target.offer.advertiser_id),
        }
    for name in click.params.keys() & (SUBS | {"source_id", "click_ref"}):
        known[name] = click.params[name]
    return known


def _event(click: Click, uuid: UUID, link_id: int, offer_id: int, partner_id: int) -> bytes:
    """The event as a line of the log: built as a plain dict, because this runs for every click (a test holds it
    against `schemas.events.Click`)."""
    params = click.params
    fields = {
        "kind": "click",
        "v": events.VERSION,
        "id": uuid,
        "link_id": link_id,
        "offer_id": offer_id,
        "partner_id": partner_id,
        "click_class": int(click.click_class),
    }
    optional = {
        "reason": click.reason,
        "country": click.country,
        "device": click.device,
        "os": click.os,
        "browser": click.browser,
        "visitor": click.visitor,
        "ip": click.network,
        "referer": _host(click.referer),
        "source_id": params.get("source_id", ""),
        "click_ref": params.get("click_ref", ""),
        "subs": {name: params[name] for name in params.keys() & (SUBS | AD_CLICK_IDS)},
    }
    return orjson.dumps(fields | {name: value for name, value in optional.items() if value})


def _host(referer: str) -> str:
    """The host alone: a path may name a person."""
    try:
        return (urlsplit(referer).hostname or "")[:VALUE_MAX]
    except ValueError:
        return ""
