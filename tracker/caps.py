"""How much of each cap is used, as far as this edge knows: never more than was counted anywhere, so that no cap stops
traffic too early; how much less it may be is said in docs/caps.md.

What was counted here is sent to Redis in numbered batches, which count once however often they arrive. An edge adds to
what it knows what the others have added since it heard last, instead of taking over the total: so it forgets nothing
when Redis is lost or goes back.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from itertools import islice

from schemas import limits, redis_keys
from schemas.links import Cap, Offer, Partner
from schemas.periods import begins_s

CapPeriod = tuple[int, int]  # a cap's id, and the beginning of the period in s


def concerning(offer: Offer, partner: Partner, programme_timezone: str, at_ms: int) -> list[tuple[Cap, CapPeriod]]:
    """The caps that a click on `offer` by `partner` counts against, each with its present period: of the calendar of
    the offer's zone; a cap on all that a partner does has the programme's."""
    timezone = offer.timezone or programme_timezone
    found = [(cap, (cap.id, begins_s(cap.period, timezone, at_ms))) for cap in offer.caps]
    for cap in partner.caps:
        if cap.offer_id == offer.id:
            found.append((cap, (cap.id, begins_s(cap.period, timezone, at_ms))))
        elif not cap.offer_id:
            found.append((cap, (cap.id, begins_s(cap.period, programme_timezone, at_ms))))
    return found


# KEYS: the last batch of this edge that was counted; caps. ARGV: the batch's number, time to live, clicks by cap.
# Answers two numbers for each cap: what all edges have counted, what Postgres has settled.
COUNT = """
local new = tonumber(ARGV[1]) > tonumber(redis.call('GET', KEYS[1]) or '0')
redis.call('SET', KEYS[1], new and ARGV[1] or redis.call('GET', KEYS[1]), 'EX', ARGV[2])
local totals = {}
for i = 2, #KEYS do
    if new then redis.call('HINCRBY', KEYS[i], 'counted', ARGV[i + 1]) end
    redis.call('EXPIRE', KEYS[i], ARGV[2])
    local use = redis.call('HMGET', KEYS[i], 'counted', 'settled')
    totals[2 * i - 3], totals[2 * i - 2] = tonumber(use[1] or '0'), tonumber(use[2] or '0')
end
return totals
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """Clicks by cap and period, to be sent until there is an answer."""

    edge: str
    number: int
    clicks: dict[CapPeriod, int]

    @property
    def keys(self) -> list[str]:
        return [redis_keys.cap_batch(self.edge), *(redis_keys.cap(*of) for of in self.clicks)]

    @property
    def arguments(self) -> list[int]:
        return [self.number, limits.COUNTER_TTL_S, *self.clicks.values()]


@dataclass(slots=True)
class _Use:
    """`counted` by us, and by others as far as we heard; `heard`, the latest count of Redis, is less than that after
    Redis was lost. `settled` may hold clicks of either that Redis has not, so it is not added to but compared."""

    counted: int = 0
    heard: int = 0
    settled: int = 0


class CapTotals:
    """Clicks by cap and period. At most `limits.CAPS_HELD_MAX`, those not used for longest forgotten first; what is
    forgotten is heard again."""

    def __init__(self) -> None:
        self._edge = secrets.token_hex(8)
        self._young: dict[CapPeriod, _Use] = {}
        self._old: dict[CapPeriod, _Use] = {}
        self._unsent: dict[CapPeriod, int] = {}
        self._batch: Batch | None = None
        self._batches = 0

    def total(self, of: CapPeriod) -> int:
        use = self._young.get(of) or self._renewed(of)
        return max(use.counted, use.settled) if use else 0

    def count(self, of: CapPeriod) -> None:
        """One more click, to be sent with a batch."""
        self._use(of).counted += 1
        self._unsent[of] = self._unsent.get(of, 0) + 1

    def batch(self) -> Batch | None:
        """What to send now: the batch that has no answer yet, else what was counted since."""
        if self._batch is None and self._unsent:
            self._batches += 1
            taken = dict(islice(self._unsent.items(), limits.CAPS_SENT_MAX))
            for of in taken:
                del self._unsent[of]
            self._batch = Batch(self._edge, self._batches, taken)
        return self._batch

    def answered(self, totals: list[int]) -> None:
        """What COUNT answered to the batch."""
        assert self._batch is not None
        batch, self._batch = self._batch, None
        for (of, sent), counted, settled in zip(batch.clicks.items(), totals[::2], totals[1::2], strict=True):
            use = self._use(of)
            use.counted += max(0, counted - use.heard - sent)
            use.heard = counted
            use.settled = max(use.settled, settled)

    def _use(self, of: CapPeriod) -> _Use:
        use = self._young.get(of) or self._renewed(of)
        if use is None:
            use = self._young[of] = _Use()
        return use

    def _renewed(self, of: CapPeriod) -> _Use | None:
        """Two generations: what is used moves to the young one; when that is half of all, the old one is forgotten."""
        if len(self._young) >= limits.CAPS_HELD_MAX // 2:
            self._young, self._old = {}, self._young
        use = self._old.pop(of, None)
        if use is not None:
            self._young[of] = use
        return use
