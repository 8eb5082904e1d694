"""What an offer pays and brings in, from when on: terms that have begun stay, so nothing that was earned changes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import msgspec
from aiohttp import web

from aggregator.api import rows
from aggregator.api.calling import Api, Id, answer, parameters, path_id, read_body
from aggregator.api.dates import Instant, to_ms
from aggregator.api.writing import changing, respond
from aggregator.conversions.periods import Difference, last_month, what_if
from aggregator.conversions.terms import Terms, read_tiers
from aggregator.db.connect import Database, acquire
from aggregator.db.instants import rfc3339
from aggregator.reports.asked import read_time
from schemas import limits, money
from schemas.errors import Refused

_PERCENT = re.compile(r"\d{1,3}(\.\d{1,6})?", re.ASCII)
_INSTANT = """to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""
# As they are shown. The first terms of an offer have no beginning.
_SHOWN = f"""
jsonb_strip_nulls(jsonb_build_object('model', model, 'amount_minor', amount_minor,
                                     'percent', trim_scale(percent)::text, 'currency', offer_terms.currency,
                                     'tiers', tiers, 'marginal', CASE WHEN tiers IS NOT NULL THEN marginal END))
|| jsonb_build_object('valid_from', {_INSTANT.format(column="nullif(valid_from, '-infinity')")})
"""
_WHOLE = f"""
jsonb_strip_nulls(jsonb_build_object('side', side, 'partner_id', offer_terms.partner_id, 'event', event)) || {_SHOWN}
"""
# The payout for everybody and every event, which an offer is shown with and imported with.
GENERAL = "side = 'payout' AND num_nulls(offer_terms.partner_id, event) = 2"
IN_FORCE = f"""
(SELECT {_SHOWN} FROM offer_terms WHERE offer_id = offer.id AND valid_from <= now() AND {GENERAL}
 ORDER BY valid_from DESC LIMIT 1) AS payout
"""  # noqa: S608
# The same as a partner is paid, where it has terms of its own; and what other events pay it.
_NEWEST_FOR_PARTNER = """
(SELECT * FROM (SELECT DISTINCT ON (partner_id, event) * FROM offer_terms AS held
                WHERE offer_id = offer.id AND valid_from <= now() AND side = 'payout'
                  AND coalesce(partner_id = partner.id, true)
                ORDER BY partner_id, event, valid_from DESC) AS newest WHERE model <> 'none') AS offer_terms
"""
IN_FORCE_FOR_PARTNER = f"""
(SELECT {_SHOWN} FROM {_NEWEST_FOR_PARTNER} WHERE event IS NULL ORDER BY partner_id NULLS LAST LIMIT 1) AS payout,
coalesce((SELECT jsonb_object_agg(event, terms) FROM (
    SELECT DISTINCT ON (event) event, {_SHOWN} AS terms FROM {_NEWEST_FOR_PARTNER}
    WHERE event IS NOT NULL ORDER BY event, partner_id NULLS LAST) AS by_event), '{{}}') AS event_payouts
"""  # noqa: S608
_LISTED = f"""
SELECT {_WHOLE} AS terms,
       valid_from <= now() AND lead(valid_from, 1, 'infinity') OVER (
           PARTITION BY side, offer_terms.partner_id, event ORDER BY valid_from) > now() AS in_force
FROM offer_terms WHERE offer_id = $1 ORDER BY side, offer_terms.partner_id NULLS FIRST, event NULLS FIRST, valid_from
"""  # noqa: S608
# terms that have not begun may still be other ones
_ADD = f"""
INSERT INTO offer_terms (offer_id, model, amount_minor, percent, currency, valid_from, side, partner_id, event, tiers,
                         marginal)
SELECT id, $2, $3, $4, coalesce($5, offer.currency), coalesce($6::timestamptz, '-infinity'), $7, $8, $9, $10, $11
FROM offer WHERE id = $1
ON CONFLICT (offer_id, side, partner_id, event, valid_from) DO UPDATE
    SET model = excluded.model, amount_minor = excluded.amount_minor, percent = excluded.percent,
        currency = excluded.currency, tiers = excluded.tiers, marginal = excluded.marginal
RETURNING {_WHOLE}
"""  # noqa: S608

Amount = Annotated[int, msgspec.Meta(ge=0, le=limits.AMOUNT_MINOR_MAX)]
ClickAmount = Annotated[int, msgspec.Meta(ge=0, le=limits.CLICK_AMOUNT_MINOR_MAX)]
# a conversion's event, which has a name that a door takes
Event = Annotated[
    str, msgspec.Meta(min_length=1, max_length=limits.EVENT_NAME_MAX, pattern=r"\A[^\x00-\x1f\x7f-\x9f]*\Z")
]


class Cpa(msgspec.Struct, tag_field="model", tag="cpa", forbid_unknown_fields=True):
    """A fixed amount for each conversion."""

    amount_minor: Amount
    currency: str


class Cpl(Cpa, tag="cpl"):
    """The same for a lead."""


class Cpc(msgspec.Struct, tag_field="model", tag="cpc", forbid_unknown_fields=True):
    """A fixed amount for each unique, valid click."""

    amount_minor: ClickAmount
    currency: str


class Cps(msgspec.Struct, tag_field="model", tag="cps", forbid_unknown_fields=True):
    """A share of each sale; `percent` is a decimal string."""

    percent: str
    currency: str


Payout = Cpa | Cpc | Cpl | Cps  # told apart by their model


class AmountTier(msgspec.Struct, forbid_unknown_fields=True, rename={"since": "from"}):
    """From the month's conversion with this number on."""

    since: Annotated[int, msgspec.Meta(ge=2, le=limits.CAP_MAX)]
    amount_minor: Amount


class PercentTier(msgspec.Struct, forbid_unknown_fields=True, rename={"since": "from"}):
    since: Annotated[int, msgspec.Meta(ge=2, le=limits.CAP_MAX)]
    percent: str


class _Whole(msgspec.Struct, kw_only=True):
    """Whom terms are for, and from when on."""

    side: Literal["payout", "revenue"] = "payout"
    partner_id: Id | None = None
    event: Event | None = None
    marginal: bool = True
    valid_from: Instant | None = None


Tiers = Annotated[list[AmountTier], msgspec.Meta(min_length=1, max_length=limits.TIERS_MAX)]
PercentTiers = Annotated[list[PercentTier], msgspec.Meta(min_length=1, max_length=limits.TIERS_MAX)]


class CpaFrom(_Whole, kw_only=True, tag_field="model", tag="cpa", forbid_unknown_fields=True):
    amount_minor: Amount
    currency: str
    tiers: Tiers | None = None


class CplFrom(CpaFrom, kw_only=True, tag="cpl"):
    pass


class CpcFrom(_Whole, kw_only=True, tag_field="model", tag="cpc", forbid_unknown_fields=True):
    amount_minor: ClickAmount
    currency: str
    tiers: None = None


class CpsFrom(_Whole, kw_only=True, tag_field="model", tag="cps", forbid_unknown_fields=True):
    percent: str
    currency: str
    tiers: PercentTiers | None = None


class NoneFrom(_Whole, kw_only=True, tag_field="model", tag="none", forbid_unknown_fields=True):
    """The end of a partner's or an event's own terms: what is less special counts again."""

    tiers: None = None


WholeTerms = CpaFrom | CpcFrom | CplFrom | CpsFrom | NoneFrom
TERMS: Any = WholeTerms


async def post(api: Api, request: web.Request) -> web.Response:
    """`POST /v1/offers/{id}/terms {model, amount_minor | percent, currency, side?, partner_id?, event?, tiers?,
    marginal?, valid_from?}`, `If-Match` -> the terms. The model `none` ends those of a partner or an event.

    They hold from now on, or from a later time; the same time once more replaces what has not begun. With
    `?dry_run=1&from&to` nothing is written: what they would have changed in that time, last month where none is said.
    """
    offer_id = path_id(request, "offer")
    asked = parameters(request, ("dry_run", "from", "to"))
    body: WholeTerms = await read_body(request, TERMS)
    _check(body)
    if asked:
        return await _tried(api, offer_id, body, asked)
    async with changing(api, request) as change:
        offer = await rows.one(change.db, "offer", offer_id, locked=True)
        rows.check_version(request, offer["version"])
        added = await _add(change.db, offer_id, body, await _begins(change.db, body))
        await rows.touch(change, "offer", offer_id)
        await change.record("change_terms", f"offer:{offer_id}", after=added)
        change.answers(added, 201, offer["version"] + 1)
    return await respond(api, change)


async def listed(api: Api, request: web.Request) -> web.Response:
    """`GET /v1/offers/{id}/terms` -> `{data}`: payouts, then revenue; for all, then by partner and event; the oldest
    first. `in_force` says which hold now."""
    offer_id = path_id(request, "offer")
    async with acquire(api.pool) as db:
        offer = await rows.one(db, "offer", offer_id)
        found = await db.fetch(_LISTED, offer_id)
    data = [row["terms"] | {"in_force": row["in_force"]} for row in found]
    return answer({"data": data}, version=offer["version"])


async def add_first(db: Database, offer_id: int, payout: Payout) -> None:
    """The terms of a new offer, which have no beginning."""
    await _add(db, offer_id, payout, None)


def columns_of(payout: Payout | WholeTerms) -> dict[str, Any]:
    """The columns of what terms pay."""
    percent = getattr(payout, "percent", None)
    return {
        "model": payout.__struct_config__.tag,
        "amount_minor": getattr(payout, "amount_minor", None),
        "percent": None if percent is None else Decimal(percent),
        "currency": getattr(payout, "currency", None),
    }


def check_currency(code: str | None, field: str = "currency") -> None:
    """Raises Refused naming the field for what is no currency; None is none."""
    if code is not None and code not in money.EXPONENT:
        raise Refused("bad_value", "currency must be an ISO 4217 code, such as EUR", field)


def check_payout(payout: Payout | WholeTerms, within: str = "") -> None:
    """Raises Refused for an unknown currency, a percent out of range; `within` comes before the names of its fields."""
    check_currency(getattr(payout, "currency", None), f"{within}currency")
    if isinstance(payout, Cps | CpsFrom):
        _check_percent(payout.percent, f"{within}percent")


def shown_difference(one: Difference) -> dict[str, Any]:
    """A difference as it is answered."""
    return {
        "offer_id": one.offer_id,
        "partner_id": one.partner_id,
        "period": one.period or None,
        "currency": one.currency,
        "conversions": one.conversions,
        "was_minor": one.was_minor,
        "will_be_minor": one.will_be_minor,
        "difference_minor": one.difference_minor,
    }


def _check(body: WholeTerms) -> None:
    """Raises Refused naming the field."""
    check_payout(body)
    if isinstance(body, NoneFrom) and body.partner_id is None and body.event is None:
        raise Refused(
            "bad_value", "only terms of a partner or an event end: what is less special counts again", "model"
        )
    if isinstance(body, CpcFrom) and body.event is not None:
        raise Refused("bad_value", "a click is for no event", "event")
    if body.side == "revenue" and body.tiers is not None:
        raise Refused("bad_value", "tiers are of what partners are paid, not of revenue", "tiers")
    if body.tiers is None and not body.marginal:
        raise Refused("bad_value", "only tiers are marginal or not", "marginal")
    for number, tier in enumerate(body.tiers or ()):
        if isinstance(tier, PercentTier):
            _check_percent(tier.percent, f"tiers[{number}].percent")
    _check_rising(body.tiers or ())


def _check_rising(tiers: Sequence[AmountTier | PercentTier]) -> None:
    numbers = [tier.since for tier in tiers]
    if numbers != sorted(set(numbers)):
        raise Refused("bad_value", "each tier begins after the one before", "tiers")


def _check_percent(text: str, field: str) -> None:
    if not (_PERCENT.fullmatch(text) and 0 < Decimal(text) <= 100):
        raise Refused(
            "bad_value", "percent must be a decimal string above 0 and at most 100, with at most 6 decimals", field
        )


async def _tried(api: Api, offer_id: int, body: WholeTerms, asked: dict[str, str]) -> web.Response:
    """What terms would have changed."""
    if asked.get("dry_run") != "1":
        raise Refused("bad_value", "from and to are of a dry run: dry_run is 1", "dry_run")
    if isinstance(body, CpcFrom):
        raise Refused("bad_value", "a dry run is of what sales pay: what clicks pay is not among it", "model")
    columns = columns_of(body)
    proposed = Terms(
        valid_from_ms=float("-inf"),
        model=columns["model"],
        amount_minor=columns["amount_minor"],
        percent=columns["percent"],
        currency=columns["currency"] or "",
        side=body.side,
        partner_id=body.partner_id,
        event=body.event,
        tiers=read_tiers(_tiers(body)),
        marginal=body.marginal,
    )
    async with acquire(api.pool) as db, db.transaction(isolation="repeatable_read", readonly=True):
        await rows.one(db, "offer", offer_id)
        since, until = await read_span(db, asked)
        found = await what_if(db, offer_id, proposed, since, until)
    told = {"from": rfc3339(since), "to": rfc3339(until), "side": body.side}
    return answer({"dry_run": True, **told, "data": [shown_difference(one) for one in found]})


async def read_span(db: Database, asked: dict[str, str]) -> tuple[datetime, datetime]:
    """The time from `from` on, before `to`, both days or times; the last month that is over where neither is said.
    Raises Refused."""
    row = await db.fetchrow("SELECT timezone, clock_timestamp() AS now FROM programme")
    assert row is not None
    zone = ZoneInfo(row["timezone"])
    if "from" not in asked and "to" not in asked:
        return last_month(row["now"], zone)
    for name in ("from", "to"):
        if name not in asked:
            raise Refused("missing_field", f"{name} is missing", name)
    since, until = read_time("from", asked["from"], zone), read_time("to", asked["to"], zone)
    if until <= since:
        raise Refused("bad_value", "to must be after from, and is not itself included", "to")
    return since, until


async def _begins(db: Database, body: WholeTerms) -> datetime:
    """When new terms begin, by the clock of Postgres. Raises Refused for a time that has passed."""
    now: datetime = await db.fetchval("SELECT clock_timestamp()")
    if body.valid_from is None:
        return now
    begins = to_ms("valid_from", body.valid_from)
    if begins <= now:
        raise Refused("bad_value", "valid_from must lie ahead: what was earned stays as it is", "valid_from")
    return begins


def _tiers(body: WholeTerms) -> list[dict[str, Any]] | None:
    return None if body.tiers is None else msgspec.to_builtins(body.tiers)


async def _add(db: Database, offer_id: int, payout: Payout | WholeTerms, begins: datetime | None) -> dict[str, Any]:
    whole = (
        (payout.side, payout.partner_id, payout.event, _tiers(payout), payout.marginal)
        if isinstance(payout, _Whole)
        else ("payout", None, None, None, True)
    )
    added: dict[str, Any] = await db.fetchval(_ADD, offer_id, *columns_of(payout).values(), begins, *whole)
    if await db.fetchval("SELECT count(*) FROM offer_terms WHERE offer_id = $1", offer_id) > limits.TERMS_PER_OFFER_MAX:
        raise Refused("conflict", f"an offer has at most {limits.TERMS_PER_OFFER_MAX} terms")
    return added
