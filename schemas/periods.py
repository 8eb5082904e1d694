"""When the period of a cap that a click falls into began: the edge and the settler must agree on it to the second."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from schemas.links import Period

_QUARTER_MS = 900_000  # no zone's hour or midnight falls inside a quarter hour


def begins_s(period: Period, timezone: str, at_ms: int) -> int:
    """The beginning, in s since 1970, of the hour, day, ISO week (from Monday) or month of the zone's calendar that
    `at_ms` lies in; 0 for `total`. A day of a clock change has 23 or 25 hours, an hour that is repeated is two."""
    return 0 if period == "total" else _begins_s(period, timezone, at_ms // _QUARTER_MS)


@lru_cache(maxsize=16_384)
def _begins_s(period: Period, timezone: str, quarter: int) -> int:
    local = datetime.fromtimestamp(quarter * _QUARTER_MS // 1000, UTC).astimezone(ZoneInfo(timezone))
    if period == "hour":
        return int(local.replace(minute=0, second=0).timestamp())  # keeps `fold`, which tells repeated hours apart
    midnight = local.replace(hour=0, minute=0, second=0, fold=0)
    if period == "week":
        midnight -= timedelta(days=midnight.isoweekday() - 1)
    elif period == "month":
        midnight = midnight.replace(day=1)
    return int(midnight.timestamp())
