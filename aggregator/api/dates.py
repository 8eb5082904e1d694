"""When an offer or a link runs: from `starts_at` on, until before `ends_at`, for ever where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec

from aggregator.db.connect import Row
from aggregator.reports.asked import EARLIEST, LATEST
from schemas.errors import Refused

Instant = Annotated[datetime, msgspec.Meta(tz=True)]


def read_dates(values: dict[str, Any]) -> dict[str, Any]:
    """The same with its times to the millisecond, which is how exact edges are. Raises Refused."""
    return values | {name: to_ms(name, at) for name, at in values.items() if isinstance(at, datetime)}


def to_ms(name: str, at: datetime) -> datetime:
    """A time to the millisecond. Raises Refused for one that is far away."""
    if not EARLIEST <= at <= LATEST:
        raise Refused("bad_value", f"{name} must lie between {EARLIEST.year} and {LATEST.year}", name)
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def check_order(row: Row | Mapping[str, Any]) -> None:
    """Raises Refused for a row that would end before it starts."""
    if row["starts_at"] and row["ends_at"] and row["ends_at"] <= row["starts_at"]:
        raise Refused("bad_value", "ends_at must be after starts_at", "ends_at")
