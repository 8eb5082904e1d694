"""Times as Postgres takes them, from the milliseconds since 1970 that events carry, and as the API answers them."""

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LATEST_MS = 253_402_300_799_999  # the last millisecond of the year 9999
QUARTER_MS = 900_000  # Kathmandu is 05:45 ahead: every time zone's day begins with a quarter hour


def at(ms: int) -> datetime:
    return EPOCH + timedelta(milliseconds=ms)


def to_ms(instant: datetime) -> int:
    return (instant - EPOCH) // timedelta(milliseconds=1)


def rfc3339(instant: datetime, timespec: str = "milliseconds") -> str:
    return instant.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def quarter(ms: int) -> int:
    """The beginning of the quarter hour that a time lies in, both in milliseconds."""
    return ms - ms % QUARTER_MS
