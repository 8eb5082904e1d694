"""Whom an offer or a landing is for: pure functions of what is known of a click, the targeting, and the clock."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

from schemas.links import Asked, Hours, Targeting
from schemas.outcomes import Reason

_OFF: dict[Asked, Reason] = {
    "country": Reason.OFF_TARGET_COUNTRY,
    "device": Reason.OFF_TARGET_DEVICE,
    "os": Reason.OFF_TARGET_OS,
    "browser": Reason.OFF_TARGET_BROWSER,
    "language": Reason.OFF_TARGET_LANGUAGE,
}


def off_target(targeting: Targeting, seen: Mapping[Asked, str], timezone: str, at_ms: int) -> Reason:
    """Why a click is not meant, Reason.NONE if it is. `seen` in lower case, empty where unknown: what is unknown is
    never included and never excluded. `hours` are those of `timezone`'s clock."""
    for asked, wanted in targeting.include.items():
        if seen[asked] not in wanted:
            return _OFF[asked]
    for asked, unwanted in targeting.exclude.items():
        if seen[asked] in unwanted:
            return _OFF[asked]
    return Reason.NONE if _is_open(targeting.hours, timezone, at_ms) else Reason.OFF_HOURS


def _is_open(hours: tuple[Hours, ...], timezone: str, at_ms: int) -> bool:
    if not hours:
        return True
    day, minute = _on_the_clock(timezone, at_ms // 60_000)
    return any(day in part.days and part.since <= minute < part.until for part in hours)


@lru_cache(maxsize=1_024)
def _on_the_clock(timezone: str, minutes: int) -> tuple[int, int]:
    """ISO day of the week and minutes since midnight on the zone's clocks, of a time in minutes since 1970."""
    local = datetime.fromtimestamp(minutes * 60, UTC).astimezone(ZoneInfo(timezone))
    return local.isoweekday(), local.hour * 60 + local.minute
