"""Run again what was rejected: read and judged as its advertiser is set up now, under the ids and at the time of its
first receipt, so that an order is named by the scope that held then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple
from uuid import UUID

import msgspec
import orjson

from aggregator.conversions.settle import settle
from aggregator.db.connect import Database, Row
from schemas import limits
from schemas.click_id import ClickId, ClickKeys, uuid_ms
from schemas.conversions.dialects import DIALECTS, OWN
from schemas.conversions.judging import judge
from schemas.conversions.posted import Posted
from schemas.conversions.reading import MASK, posted_form, posted_json, read_click, read_form
from schemas.errors import Refused
from schemas.events import Conversion
from schemas.links import Advertiser, Offer
from schemas.outcomes import ClickClass, Result

_CUT = "…"  # the end of what was too long to be kept whole
_SHARD = -1  # of rollups that no consumer writes
# How advertisers and offers are set up now, by id.
Configs = Callable[[Literal["advertiser", "offer"], Iterable[int]], Awaitable[Mapping[int, Any]]]

_REJECTED = """
SELECT intake_id, advertiser_id, door, dialect, raw FROM conversion_intake
WHERE result = 'rejected' AND intake_id > $1 AND intake_id < $2
  AND advertiser_id = coalesce($3, advertiser_id) AND reason = coalesce($4, reason)
ORDER BY intake_id LIMIT $5 FOR UPDATE
"""
_FORGET = "DELETE FROM conversion_intake WHERE intake_id = ANY ($1::uuid[])"
_REMEMBER = "UPDATE conversion_intake SET rerun_at = now() WHERE intake_id = ANY ($1::uuid[])"
_REFUSE = """
UPDATE conversion_intake SET rerun_at = now(), reason = refused.reason
FROM unnest($1::uuid[], $2::text[]) AS refused (intake_id, reason)
WHERE conversion_intake.intake_id = refused.intake_id
"""
_RESULTS = "SELECT result, reason FROM conversion_intake WHERE intake_id = ANY ($1::uuid[])"


class Range(NamedTuple):
    """Which intakes: received after one and before another; of an advertiser, refused for a reason, if said."""

    after: UUID
    before: UUID
    advertiser_id: int | None = None
    reason: str | None = None


class Kept(NamedTuple):
    """An intake as it was kept when it was rejected; `dialect` is the one it was read in."""

    intake_id: UUID
    advertiser_id: int
    door: str
    dialect: str
    raw: str


class Rerun(NamedTuple):
    """What came of it: how many by `results`, those rejected again by `reasons`; `last` is where the next run goes on,
    None where none is left."""

    results: Mapping[str, int]
    reasons: Mapping[str, int]
    last: UUID | None


class _Read(NamedTuple):
    """What an intake says, in which words; `refused` why it cannot be read."""

    kept: Kept
    sender: Advertiser
    posted: Posted | None = None
    click: ClickId | None = None
    refused: str = ""


async def rerun(db: Database, wanted: Range, configs: Configs, keys: ClickKeys | None) -> Rerun:
    """Run again up to `limits.RERUN_INTAKES_MAX` intakes; belongs into a transaction. What is settled is no longer
    rejected, so a second run does nothing to it. Without `keys` none that names a click of ours can be judged."""
    found = await db.fetch(_REJECTED, *wanted, limits.RERUN_INTAKES_MAX)
    kept = [_kept(row) for row in found]
    advertisers = await configs("advertiser", {one.advertiser_id for one in kept})
    read = [_read(one, advertisers[one.advertiser_id], keys) for one in kept]
    offers = await configs("offer", {one.click.offer_id for one in read if one.click})
    judged = [_judge(one, offers) for one in read]
    await _settle(db, [one for one in judged if isinstance(one, Conversion)])
    refused = [one for one in judged if not isinstance(one, Conversion)]
    await db.execute(_REFUSE, [intake_id for intake_id, _ in refused], [reason for _, reason in refused])
    return await _outcome(db, kept)


async def _settle(db: Database, events: Sequence[Conversion]) -> None:
    """Each is taken in anew, as if it had just come, but for its id."""
    if events:
        ids = [event.intake_id for event in events]
        await db.execute(_FORGET, ids)
        await settle(db, events, _SHARD)
        await db.execute(_REMEMBER, ids)


async def _outcome(db: Database, kept: Sequence[Kept]) -> Rerun:
    rows = await db.fetch(_RESULTS, [one.intake_id for one in kept])
    reasons = Counter(row["reason"] for row in rows if row["result"] == Result.REJECTED)
    is_whole = len(kept) < limits.RERUN_INTAKES_MAX
    return Rerun(Counter(row["result"] for row in rows), reasons, None if is_whole else kept[-1].intake_id)


def _kept(row: Row) -> Kept:
    return Kept(row["intake_id"], row["advertiser_id"], row["door"] or "", row["dialect"] or "", row["raw"] or "")


def _read(kept: Kept, advertiser: Advertiser, keys: ClickKeys | None) -> _Read:
    """What was sent, in the first of the words that it may be in which name a click of ours."""
    read = [_read_in(dialect, kept, advertiser, keys) for dialect in _dialects(kept, advertiser)]
    return next((one for one in read if one.click), read[0])


def _dialects(kept: Kept, advertiser: Advertiser) -> tuple[str, ...]:
    """Pages and JSON speak in our own words. An advertiser speaks in its own dialect; where it has none, in that of the
    path it posted to, which is the one it was read in, unless that was its own dialect then."""
    if kept.door != "postback":
        return (OWN,)
    if advertiser.dialect != OWN:
        return (advertiser.dialect,)
    return tuple(dict.fromkeys((kept.dialect or OWN, OWN)))


def _read_in(dialect: str, kept: Kept, advertiser: Advertiser, keys: ClickKeys | None) -> _Read:
    sender = msgspec.structs.replace(advertiser, dialect=dialect)
    try:
        posted = _posted(kept, sender)
        click = _click(posted.click_id, keys)
        if click and click.click_class is ClickClass.TEST:
            raise Refused("click_never_earns", "the click was a test", "click_id")
    except Refused as refusal:
        return _Read(kept, sender, refused=refusal.code)
    return _Read(kept, sender, posted, click)


def _posted(kept: Kept, sender: Advertiser) -> Posted:
    """Raises Refused, also for what was not kept as it was sent: without its order id it would be another order."""
    if kept.raw.endswith(_CUT):
        raise Refused("bad_parameters", "this was too long to be kept whole")
    posted = _said(kept, sender)
    if MASK in msgspec.structs.astuple(posted):
        raise Refused("bad_parameters", "some of this looked like a secret and was not kept")
    return posted


def _said(kept: Kept, sender: Advertiser) -> Posted:
    if kept.door == "pixel":
        return posted_form(read_form(kept.raw), DIALECTS[OWN], {})
    if kept.door == "postback":
        return posted_form(read_form(kept.raw), DIALECTS[sender.dialect], sender.status_map)
    try:
        return posted_json(orjson.loads(kept.raw))
    except orjson.JSONDecodeError:
        raise Refused("bad_parameters", "this is no JSON") from None


def _click(text: str, keys: ClickKeys | None) -> ClickId | None:
    if text and keys is None:
        raise Refused("unknown_key", "the keys of click ids are not known here", "click_id")
    return read_click(keys, text) if text and keys else None


def _judge(read: _Read, offers: Mapping[int, Offer]) -> Conversion | tuple[UUID, str]:
    """The event, or why it is rejected again."""
    kept, click = read.kept, read.click
    if read.posted is None:
        return kept.intake_id, read.refused
    try:
        return judge(
            read.posted, click, offers.get(click.offer_id) if click else None, read.sender, kept.intake_id.bytes,
            uuid_ms(kept.intake_id), door=kept.door, raw=kept.raw,
        )  # fmt: skip
    except Refused as refusal:
        return kept.intake_id, refusal.code
