"""Settled days: what they came to when they were settled, and what corrected them later."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

from aggregator.db.connect import Database, Row
from aggregator.reports.asked import Scope
from aggregator.reports.figures import CLICKED, CONVERTED, HIDDEN, MONEY
from aggregator.reports.lists import DAY_FILTERS, Given, Rule, Wanted, of_days, read_span, rules_of

_STORED = tuple(name for name in CLICKED if name != "duplicate_clicks") + CONVERTED
# A line is a total of a version, beside what it was in the version before; zeros, where there was none. Who is not
# shown a figure is not told either that it changed.
_LINES = """
(SELECT line.day, line.version, settled_at, line.partner_id, line.offer_id, line.currency, {now}, {was}
 FROM settled_total AS line JOIN settled_version AS told ON (told.day, told.version) = (line.day, line.version)
 LEFT JOIN LATERAL (
     SELECT * FROM settled_total AS earlier WHERE earlier.version < line.version AND
         (earlier.day, earlier.partner_id, earlier.offer_id, earlier.currency)
         = (line.day, line.partner_id, line.offer_id, line.currency) ORDER BY earlier.version DESC LIMIT 1
 ) AS before ON true
 WHERE ({visible}) <> ({visible_before})) AS settled
"""
_BETWEEN = "day = ANY (ARRAY(SELECT day FROM settled_day WHERE {}))"
_CORRECTED = """
SELECT day FROM settled_day WHERE starts_at < $2 AND ends_at > $1 AND EXISTS (
    SELECT FROM {lines} WHERE settled.day = settled_day.day AND settled.version > 1 {owned}) ORDER BY day
"""
_OF_ADVERTISER = "AND offer_id = ANY (ARRAY(SELECT id FROM offer WHERE advertiser_id = $3))"


def figures_of(role: str) -> tuple[str, ...]:
    """What a role is shown of a day."""
    return tuple(name for name in _STORED if name not in HIDDEN[role])


def read_days(given: Given, scope: Sequence[Rule], zone: ZoneInfo, role: str) -> Wanted:
    """The lines of days that begin in a time, by day, partner, offer, currency, version. Raises Refused."""
    starts, ends = read_span(given, zone)
    spans = (("starts_at >= {}", starts), ("starts_at < {}", ends))
    span = [(_BETWEEN.format(rule), value) for rule, value in spans if value is not None]
    near, each = rules_of(DAY_FILTERS, given)
    return of_days(_lines(role), given, (*scope, *near, *span), each)


def shown(row: Row, role: str) -> dict[str, Any]:
    """A line as it is answered: what it came to since, and in a correction what it was `before`."""
    figures = figures_of(role)
    return {
        "day": row["day"].isoformat(),
        "version": row["version"],
        "settled_at": row["settled_at"],
        "partner_id": row["partner_id"],
        "offer_id": row["offer_id"],
        "currency": row["currency"] or None,
        **{name: int(row[name]) for name in figures},
        "before": {name: int(row[f"before_{name}"]) for name in figures} if row["version"] > 1 else None,
    }


async def corrected(db: Database, scope: Scope, starts: datetime, ends: datetime) -> list[date]:
    """The settled days of a time of which something was corrected that may be seen."""
    args: list[Any] = [starts, ends]
    lines, owned = "settled_version AS settled", ""
    if scope.partner_id is not None:
        lines, owned = _lines("partner"), "AND partner_id = $3"
        args.append(scope.partner_id)
    elif scope.advertiser_id is not None:
        lines, owned = _lines("advertiser"), _OF_ADVERTISER
        args.append(scope.advertiser_id)
    return [row["day"] for row in await db.fetch(_CORRECTED.format(lines=lines, owned=owned), *args)]


@cache
def _lines(role: str) -> str:
    visible = figures_of(role)
    return _LINES.format(
        now=", ".join(f"line.{_column(name)} AS {name}" for name in _STORED),
        was=", ".join(f"coalesce(before.{_column(name)}, 0) AS before_{name}" for name in _STORED),
        visible=", ".join(f"line.{_column(name)}" for name in visible),
        visible_before=", ".join(f"coalesce(before.{_column(name)}, 0)" for name in visible),
    )


def _column(name: str) -> str:
    return f"{name}_minor" if name in MONEY else name
