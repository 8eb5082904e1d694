"""What a segment of an offer's clicks is expected to bring, however few of them there were.

Figures of a small segment say little by themselves: 1 conversion of 3 clicks is not a rate of a third. Its rate is
drawn towards that of the whole offer, the more the fewer clicks it has, as far as segments of its kind differ at all:
the global empirical Bayes estimator of Marshall, "Mapping disease and mortality rates using empirical Bayes
estimators", Applied Statistics 40 (1991), 283-294 (the posterior mean of a gamma prior, fitted by moments, and Poisson
counts; a click may convert more than once). With n clicks and k conversions in each of J segments:

    m = sum k / sum n                              the offer's rate
    A = sum n (k/n - m)^2 / sum n  -  m J / sum n  how much segments differ beyond chance (0 where they do not)
    w = A / (A + m / n)                            how much the segment's own figures count
    rate = m + w (k/n - m)
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from aggregator.db.connect import Database
from aggregator.db.instants import rfc3339
from aggregator.db.partitions import day_bounds
from schemas import limits

PER_CLICKS = 1_000
_DIMENSIONS = ("partner_id", "country", "device")
# $1 the offer, $2 since when, $3 the first id of that day, $4 the segment; a segment is known by its values as text
_COUNTED = """
WITH clicked AS (
    SELECT {rolled_up} AS segment, sum(clicks - invalid_clicks)::float AS clicks
    FROM click_rollup WHERE offer_id = $1 AND quarter >= $2 GROUP BY 1 HAVING sum(clicks - invalid_clicks) > 0
), converted AS (
    SELECT {of_click} AS segment, count(*)::float AS conversions
    FROM conversion JOIN click ON click.id = conversion.click_id
    WHERE conversion.offer_id = $1 AND conversion.status = 'approved' AND click.id >= $3 GROUP BY 1
), segments AS (
    SELECT segment, clicks, coalesce(conversions, 0) AS conversions FROM clicked LEFT JOIN converted USING (segment)
)
SELECT count(*) AS segments, coalesce(sum(clicks), 0) AS clicks, coalesce(sum(conversions), 0) AS conversions,
       coalesce(sum(conversions * conversions / clicks), 0) AS squares,
       coalesce(sum(clicks) FILTER (WHERE segment = $4::text[]), 0) AS own_clicks,
       coalesce(sum(conversions) FILTER (WHERE segment = $4::text[]), 0) AS own_conversions
FROM segments
"""
_PAID = """
SELECT offer.currency, (SELECT avg(payout_minor)::float FROM conversion
                        WHERE offer_id = $1 AND status = 'approved' AND click_id >= $2
                          AND conversion.currency = offer.currency) AS payout
FROM offer WHERE id = $1
"""


@dataclass(frozen=True, slots=True)
class Segment:
    """Of an offer's clicks those of a partner, country and device; None for any."""

    offer_id: int
    partner_id: int | None = None
    country: str | None = None
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Counted:
    """Valid clicks and approved conversions of a segment, of its offer, the offer's number of such segments, and the
    sum over them of conversions squared by clicks."""

    own_clicks: float
    own_conversions: float
    clicks: float
    conversions: float
    segments: int
    squares: float


def expected_rate(counted: Counted) -> tuple[float, float]:
    """Conversions per click to expect of a segment, and the weight (0 to 1) of its own figures in that."""
    if not counted.clicks or not counted.conversions:
        return 0.0, 0.0
    mean = counted.conversions / counted.clicks
    spread = counted.squares / counted.clicks - mean * mean
    beyond_chance = max(0.0, spread - mean * counted.segments / counted.clicks)
    if not beyond_chance or not counted.own_clicks:
        return mean, 0.0
    weight = beyond_chance / (beyond_chance + mean / counted.own_clicks)
    return mean + weight * (counted.own_conversions / counted.own_clicks - mean), weight


async def score(db: Database, segment: Segment, today: date) -> dict[str, Any]:
    """The answer of `GET /v1/offers/{id}/score`, out of the clicks of the last 28 days and what they have brought.

    `payout` is in minor units, by what the offer has paid for a conversion on average; None before it has paid any.
    """
    since = today - timedelta(days=limits.SCORE_DAYS)
    first_id, _ = day_bounds(since)
    async with db.transaction(isolation="repeatable_read", readonly=True):
        complete_through = await db.fetchval("SELECT complete_through FROM complete_through")
        counted = await _count(db, segment, since)
        paid = await db.fetchrow(_PAID, segment.offer_id, first_id)
    assert paid is not None
    rate, weight = expected_rate(counted)
    conversions = rate * PER_CLICKS
    return {
        "offer_id": segment.offer_id,
        "partner_id": segment.partner_id,
        "country": segment.country,
        "device": segment.device,
        "per_clicks": PER_CLICKS,
        "conversions": round(conversions, 3),
        "payout": None if paid["payout"] is None else round(conversions * paid["payout"]),
        "currency": paid["currency"],
        "weight": round(weight, 4),
        "counted_clicks": int(counted.own_clicks),
        "counted_conversions": int(counted.own_conversions),
        "from": since.isoformat(),
        "complete_through": complete_through and rfc3339(complete_through),
    }


async def _count(db: Database, segment: Segment, since: date) -> Counted:
    asked = [name for name in _DIMENSIONS if getattr(segment, name) is not None]
    sql = _COUNTED.format(rolled_up=_as_text("{}", asked), of_click=_as_text("coalesce(click.{}::text, '')", asked))
    begins = datetime.combine(since, time(), UTC)
    row = await db.fetchrow(
        sql, segment.offer_id, begins, day_bounds(since)[0], [str(getattr(segment, name)) for name in asked]
    )
    assert row is not None
    return Counted(**row)


def _as_text(form: str, columns: list[str]) -> str:
    return f"ARRAY[{', '.join(form.format(name) for name in columns)}]::text[]"
