"""What becomes of a click: named steps, in order, no I/O. A `put_*` adds what is known, a `drop_*` may end it.

Two things follow a click's last step, whatever it was: its id is minted with its class, and its event is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from schemas.click_id import ClickKey, mint_packed, pack
from schemas.links import Asked, Block, Domain, Link, Offer, Partner, Programme
from schemas.outcomes import ClickClass, Reason
from tracker import click_event, deep_links, macros, params, visitor
from tracker.caps import CapPeriod, CapTotals, concerning
from tracker.rotation import choose
from tracker.targeting import off_target
from tracker.uuids import uuid7
from tracker.visitor import Agent, Place


class Target(msgspec.Struct, frozen=True):
    """Where a request leads: its link (none where an offer and a partner were named instead), offer and partner, and
    the domain of ours it came by; None where there is none. `steps` are those that can have something to do for it;
    `packed` and `written` are its ids as they are part of a click id and of an event, 0 where there is none. Clicks on
    a test link lead where all do, and are counted nowhere."""

    programme: Programme
    link: Link | None = None
    offer: Offer | None = None
    partner: Partner | None = None
    domain: Domain | None = None
    steps: tuple[Step, ...] = ()
    link_id: int = 0
    partner_id: int = 0
    packed: bytes = b""
    written: str = ""
    is_test: bool = False

    def __post_init__(self) -> None:
        link_id, offer_id, partner_id = (of.id if of else 0 for of in (self.link, self.offer, self.partner))
        is_test = self.link is not None and self.link.test
        for name, value in {
            "link_id": 0 if is_test else link_id,
            "partner_id": 0 if is_test else partner_id,
            "is_test": is_test,
            "packed": pack(link_id, offer_id, partner_id),
            "written": click_event.written_ids(link_id, offer_id, partner_id),
        }.items():
            msgspec.structs.force_setattr(self, name, value)
        steps = tuple(step for step in STEPS if _concerned(step, self))
        msgspec.structs.force_setattr(self, "steps", steps)


class Click(msgspec.Struct):
    """A request on a tracking link on its way through the steps. `host` is that of its Host header; an `uncounted`
    one is answered like any, and leaves no trace."""

    at_ms: int
    ip: str
    user_agent: str
    referer: str
    query: str
    host: str = ""
    languages: str = ""
    uncounted: bool = False
    params: dict[str, str] = {}
    click_class: ClickClass = ClickClass.NORMAL
    reason: Reason = Reason.NONE
    visitor: str = ""
    place: Place = Place()
    agent: Agent = Agent()
    destination: str | None = None
    deep_link: bool = False
    caps: tuple[CapPeriod, ...] = ()


class Decision(msgspec.Struct, frozen=True):
    """How to answer: a redirect to `location` (with the event to record, unless it is uncounted, and the link and the
    partner it then counts for, 0 where it does not), or a refusal."""

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
_CONCERNS: dict[Step, Callable[[Target], object]] = {}


def concerns(which: Callable[[Target], object]) -> Callable[[Step], Step]:
    """Of most targets most steps have nothing to say: a step runs only for the targets that it concerns."""

    def of(step: Step) -> Step:
        _CONCERNS[step] = which
        return step

    return of


def _concerned(step: Step, target: Target) -> bool:
    return step not in _CONCERNS or bool(_CONCERNS[step](target))


def put_params(click: Click, target: Target, known: Known) -> None:
    """Sub ids and the like, unless the door has read them already."""
    if not click.query:
        return
    click.params = click.params or params.read(click.query)
    if params.says_yes(click.params, "no_track"):
        click.uncounted = True


def put_visitor(click: Click, target: Target, known: Known) -> None:
    click.visitor = visitor.visitor_hash(
        known.secret, click.at_ms, target.programme.timezone, click.ip, click.user_agent
    )


def put_device(click: Click, target: Target, known: Known) -> None:
    click.agent = visitor.read_agent(click.user_agent)


def put_place(click: Click, target: Target, known: Known) -> None:
    click.place = visitor.read_place(click.ip)


@concerns(lambda to: to.offer is None or to.partner is None)
def drop_unknown_link(click: Click, target: Target, known: Known) -> None:
    click.reason = Reason.UNKNOWN_LINK


@concerns(lambda to: to.partner and to.partner.status != "active")
def drop_blocked_partner(click: Click, target: Target, known: Known) -> None:
    click.reason = Reason.PARTNER_BLOCKED


@concerns(lambda to: any(of.status != "active" for of in (to.link, to.offer) if of))
def drop_paused(click: Click, target: Target, known: Known) -> None:
    is_links = target.link and target.link.status != "active"
    click.reason = Reason.LINK_PAUSED if is_links else Reason.OFFER_PAUSED


@concerns(lambda to: any(of.starts_ms for of in (to.link, to.offer) if of))
def drop_not_started(click: Click, target: Target, known: Known) -> None:
    for of in (target.link, target.offer):
        if of and of.starts_ms and click.at_ms < of.starts_ms:
            click.reason = Reason.NOT_STARTED


@concerns(lambda to: any(of.ends_ms for of in (to.link, to.offer) if of))
def drop_expired(click: Click, target: Target, known: Known) -> None:
    for of in (target.link, target.offer):
        if of and of.ends_ms and click.at_ms >= of.ends_ms:
            click.reason = Reason.EXPIRED


@concerns(lambda to: to.offer and to.partner and to.offer.access != "open" and to.offer.id not in to.partner.offers)
def drop_not_approved(click: Click, target: Target, known: Known) -> None:
    click.reason = Reason.NOT_APPROVED


@concerns(lambda to: to.partner and (to.partner.blocks or to.programme.blocks))
def drop_blocked(click: Click, target: Target, known: Known) -> None:
    """Traffic that is not wanted: of this partner on this offer, or of a source_id or sub1."""
    offer, partner, everybody = target.offer, target.partner, target.programme.blocks
    if not (offer and partner):
        return
    source, sub1 = click.params.get("source_id", ""), click.params.get("sub1", "")
    for offer_id in (0, offer.id):
        if (offer_id, "partner", "") in partner.blocks:
            click.reason = Reason.PARTNER_BLOCKED
        asked: tuple[Block, ...] = ((offer_id, "source_id", source), (offer_id, "sub1", sub1))
        if any(block in partner.blocks or block in everybody for block in asked):
            click.reason = Reason.BLOCKED_SOURCE


@concerns(lambda to: to.offer and to.offer.targeting)
def drop_off_target(click: Click, target: Target, known: Known) -> None:
    if target.offer and target.offer.targeting:
        click.reason = off_target(target.offer.targeting, _seen(click), _timezone(target), click.at_ms)


def _seen(click: Click) -> dict[Asked, str]:
    return {
        "country": click.place.country.lower(),
        "device": click.agent.device,
        "os": click.agent.os.lower(),
        "browser": click.agent.browser.lower(),
        "language": visitor.language(click.languages),
    }


def _timezone(target: Target) -> str:
    return (target.offer and target.offer.timezone) or target.programme.timezone


def put_destination(click: Click, target: Target, known: Known) -> None:
    if target.offer:
        click.destination = (target.link and target.link.destination_url) or target.offer.destination_url


@concerns(lambda to: to.offer and to.offer.landings and not (to.link and to.link.destination_url))
def put_landing(click: Click, target: Target, known: Known) -> None:
    """One of the offer's landings that are meant for this click, its share of visitors to each; else the destination
    stands, as it does where the link has its own."""
    landings = target.offer.landings if target.offer else ()
    seen, timezone = _seen(click), _timezone(target)
    meant = [
        landing
        for landing in landings
        if landing.targeting is None or not off_target(landing.targeting, seen, timezone, click.at_ms)
    ]
    if meant:
        click.destination = choose(meant, click.visitor)


@concerns(lambda to: to.offer and to.offer.deep_link_hosts)
def put_deep_link(click: Click, target: Target, known: Known) -> None:
    """The page the link itself asks for, where its offer allows that host; else the destination stands."""
    asked = deep_links.asked(click.params, click.destination or "")
    hosts = target.offer.deep_link_hosts if target.offer else ()
    if asked and deep_links.allowed(asked, hosts, {click.host, *target.programme.domains}):
        click.destination, click.deep_link = asked, True


def put_bot_verdict(click: Click, target: Target, known: Known) -> None:
    """A robot is flagged and kept, never hidden: it is redirected like anybody."""
    if not click.user_agent:
        click.click_class, click.reason = ClickClass.FLAGGED, Reason.NO_USER_AGENT
    elif click.agent.robot or params.says_yes(click.params, "bot"):
        click.click_class, click.reason = ClickClass.FLAGGED, Reason.KNOWN_BOT


@concerns(lambda to: to.offer and to.partner and (to.offer.caps or to.partner.caps) and not to.is_test)
def drop_over_cap(click: Click, target: Target, known: Known) -> None:
    """Where a cap is reached, what it says happens, and one that stops goes before one that lets pass; else the click
    counts against all that concern it. Only ordinary clicks are counted, so only they are looked at."""
    offer, partner = target.offer, target.partner
    if not (offer and partner) or click.click_class is not ClickClass.NORMAL:
        return
    asked = concerning(offer, partner, target.programme.timezone, click.at_ms)
    reached = {cap.over_cap for cap, of in asked if known.caps.total(of) >= cap.clicks}
    if not reached:
        click.caps = tuple(of for _, of in asked)
        return
    click.reason = Reason.OVER_CAP
    if "fallback" in reached:
        click.destination = None
    else:
        click.click_class = ClickClass.OVER_CAP


STEPS: tuple[Step, ...] = (
    put_params,
    put_visitor,
    put_device,
    put_place,
    drop_unknown_link,
    drop_blocked_partner,
    drop_paused,
    drop_not_started,
    drop_expired,
    drop_not_approved,
    drop_blocked,
    drop_off_target,
    put_destination,
    put_landing,
    put_deep_link,
    put_bot_verdict,
    drop_over_cap,
)


def decide(click: Click, target: Target, key: ClickKey, known: Known) -> Decision:
    """Judge the click and say how to answer it. `key` signs its id. Raises ValueError for more parameters than the
    limit."""
    judge(click, target, known)
    return Decision(click.reason) if click.destination is None else redirects([click], [target], key)[0]


def judge(click: Click, target: Target, known: Known) -> None:
    """Run the steps; the first `drop_*` that fires ends the click with its reason and the nearest fallback, if any."""
    for step in target.steps:
        step(click, target, known)
        if click.reason and click.destination is None:
            click.click_class, click.destination, click.deep_link = ClickClass.FALLBACK, _fallback(target), False
            return


def _fallback(target: Target) -> str | None:
    places = (target.link, target.offer, target.domain, target.programme)
    return next((place.fallback_url for place in places if place and place.fallback_url), None)


def redirects(clicks: Sequence[Click], targets: Sequence[Target], key: ClickKey) -> list[Decision]:
    """How to answer clicks that were judged and have a destination. Stage by stage, not click by click: a stage's code
    then stays in the processor's caches, which makes it an eighth cheaper."""
    uuids = [uuid7(click.at_ms) for click in clicks]
    classes = [_class(click, to) for click, to in zip(clicks, targets, strict=True)]
    ids = [mint_packed(key, uuid, to.packed, of) for (uuid, _), to, of in zip(uuids, targets, classes, strict=True)]
    locations = [_location(click, to, click_id) for click, to, click_id in zip(clicks, targets, ids, strict=True)]
    parts = [_parts(click, to) for click, to in zip(clicks, targets, strict=True)]
    events = [
        None if click.uncounted else click_event.line(text, of, click.reason, click.visitor, part)
        for (_, text), of, click, part in zip(uuids, classes, clicks, parts, strict=True)
    ]
    return [
        Decision(click.reason, location, event, to.link_id, 0 if of is ClickClass.TEST else to.partner_id)
        for click, location, event, to, of in zip(clicks, locations, events, targets, classes, strict=True)
    ]


def _location(click: Click, target: Target, click_id: str) -> str:
    """The destination, filled. A fallback says only what was written into it."""
    url = click.destination or ""
    if target.offer is None or click.click_class is ClickClass.FALLBACK:
        return macros.fill(macros.compiled(url, ""), click, target, click_id)
    parameter = target.offer.click_id_parameter
    template = (
        macros.compile_url(macros.without_parameter(url, parameter), parameter)
        if click.deep_link
        else macros.compiled(url, parameter)
    )
    filled = macros.fill(template, click, target, click_id)
    return macros.pass_on(filled, click.query) if target.offer.pass_parameters else filled


def _class(click: Click, target: Target) -> ClickClass:
    """What the click is worth, wherever it leads."""
    if click.uncounted:
        return ClickClass.UNCOUNTED
    return ClickClass.TEST if target.is_test else click.click_class


def _parts(click: Click, target: Target) -> str:
    """What there is to write of a click beside its own fields."""
    said = click_event.written_params(click.params) if click.params else ""
    return target.written + click.agent.written + click.place.written + macros.referer_written(click.referer) + said
