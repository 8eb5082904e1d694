"""How far reports are complete, and which version their rows have: so that an answer is remembered for long only where
any change would be seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from aggregator.db.connect import Database, Pool, acquire
from schemas import limits
from schemas.errors import Refused
from schemas.two_tier import SecondTierAway, TwoTier

# Before this, whoever changed or booked something has finished. Each change says when its transaction began, so those
# that still write hold it back, however long they take; none takes longer than $1 seconds to begin writing but who
# settles days.
FINISHED = """
least(clock_timestamp() - make_interval(secs => $1),
      (SELECT min(xact_start) FROM pg_stat_activity
       WHERE datname = current_database() AND pid <> pg_backend_pid()
         AND (backend_xid IS NOT NULL OR application_name = 'clickdam-settled')))
"""
_STATE = f"""
SELECT (SELECT complete_through FROM complete_through) AS complete_through,
       nullif(through, '-infinity') AS settled_through, nullif(days_through, '-infinity') AS days_through,
       {FINISHED} AS booked_through, timezone, currency,
       EXISTS (SELECT FROM offer_terms WHERE model = 'cpc') AS pays_clicks
FROM settling CROSS JOIN programme
"""  # noqa: S608 - our own names
# The newest time names all changes up to it only when none that began before may still be under way. $2 and $3: the
# range.
_VERSION = """
SELECT changed_at, settled_at, corrected_at,
       NOT is_stale AND coalesce(greatest(changed_at, settled_at, corrected_at) < {finished}, true) AS is_sure
FROM (SELECT (SELECT max(changed_at) FROM conversion {owner}) AS changed_at,
             (SELECT max(settled_at) FROM settled_quarter WHERE quarter >= $2 AND quarter < $3) AS settled_at,
             (SELECT max(settled_at) FROM settled_version WHERE day = ANY (ARRAY(
                 SELECT day FROM settled_day WHERE starts_at < $3 AND ends_at > $2))) AS corrected_at,
             EXISTS (SELECT FROM stale_quarter WHERE quarter >= $2 AND quarter < $3) AS is_stale) AS newest
"""


@dataclass(frozen=True, slots=True)
class State:
    """`complete_through`: all that edges received before it is in the figures; None while an edge that may have more is
    not heard of, or none ever was. `settled_through`: so are uniques and details; None while none is settled.
    `days_through`: the days before it are. `booked_through`: nothing will be booked in the ledger as of a time before
    it. `timezone` and `currency` are the programme's. `pays_clicks`: terms of an offer do."""

    complete_through: datetime | None
    settled_through: datetime | None
    days_through: datetime | None
    booked_through: datetime
    timezone: str
    currency: str
    pays_clicks: bool


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows an answer is made of: a partner's or all, and of what time; `ends` is not in it. `booked`: of the
    ledger, whose time is that of the booking."""

    partner_id: int | None
    starts: datetime
    ends: datetime
    booked: bool = False


class _Seen(NamedTuple):
    """What was read, and until when it may be used."""

    until_s: float
    found: State | str


async def read_state(db: Database) -> State:
    row = await db.fetchrow(_STATE, limits.TRANSACTION_S)
    assert row is not None
    return State(**row)


async def read_version(db: Database, rows: Rows) -> str:
    """What changes with any of these rows, as long as their quarter hours are settled: conversions say themselves when
    they changed, whatever time they are of; clicks do when their quarter hour is settled anew, days when they have a
    further version. Empty while a change may be under way that would not show."""
    args: list[Any] = [limits.TRANSACTION_S, rows.starts, rows.ends]
    owner = ""
    if rows.partner_id is not None:
        owner = "WHERE partner_id = $4"
        args.append(rows.partner_id)
    row = await db.fetchrow(_VERSION.format(finished=FINISHED, owner=owner), *args)
    assert row is not None
    return f"{row['changed_at']} {row['settled_at']} {row['corrected_at']}" if row["is_sure"] else ""


class Versions:
    """State and versions as they were at most `limits.STATE_S` ago, read once however many ask."""

    def __init__(self, connections: Pool, clock: Callable[[], float] = time.monotonic) -> None:
        self._connections = connections
        self._clock = clock
        self._tier: TwoTier[Rows | None, _Seen] = TwoTier(
            self._fetch,
            entries_max=limits.VERSIONS_MAX,
            life_s=lambda seen: seen.until_s - clock(),
            keys_max=1,
            fetches_max=limits.MADE_AT_ONCE_MAX,
            waiting_max=limits.ANSWERS_WAITING_MAX,
            clock=clock,
        )

    async def state(self) -> State:
        """Raises Refused("unavailable")."""
        found = await self._find(None)
        assert isinstance(found, State)
        return found

    def forget_state(self) -> None:
        """The programme has changed: read it again when it is asked for next."""
        self._tier.void(None)

    async def version(self, rows: Rows) -> str | None:
        """The version of rows whose whole time is settled; None where an answer made of them may be given for
        `limits.REPORT_OPEN_S` only. Raises Refused("unavailable")."""
        state = await self.state()
        through = [state.complete_through, state.settled_through]
        if rows.booked:
            through.append(state.booked_through)
        if any(one is None or one < rows.ends for one in through):
            return None
        return str(await self._find(rows)) or None

    async def _find(self, key: Rows | None) -> State | str:
        try:
            seen = await self._tier.get(key)
        except SecondTierAway as away:
            if away.__cause__ is not None:
                raise away.__cause__ from None
            seen = None
        if seen is None or seen.until_s <= self._clock():
            raise Refused("unavailable", "this cannot be answered now, please repeat the request")
        return seen.found

    async def _fetch(self, keys: list[Rows | None]) -> dict[Rows | None, _Seen | None]:
        (key,) = keys
        async with acquire(self._connections) as db:
            found = await read_state(db) if key is None else await read_version(db, key)
        return {key: _Seen(self._clock() + limits.STATE_S, found)}
