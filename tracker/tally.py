"""What happened here, counted: by the event's hour for the watermarks, in total for the metrics."""

from collections import defaultdict
from datetime import UTC, datetime

HOUR_MS = 3_600_000
_HOURS_KEPT = 3  # an event's outcome is known within seconds of its hour


class Tally:
    """Absolute counts of this incarnation by outcome."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = defaultdict(int)
        self._hours: dict[int, dict[str, int]] = {}

    def count(self, outcome: str, at_ms: int, n: int = 1) -> None:
        self.totals[outcome] += n
        self.note(outcome, at_ms, n)

    def note(self, outcome: str, at_ms: int, n: int) -> None:
        """Count by the hour alone what is no outcome of its own: what an event that had one came to later."""
        hour = self._hours.get(at_ms // HOUR_MS)
        if hour is None:
            hour = self._hours[at_ms // HOUR_MS] = defaultdict(int)
        hour[outcome] += n

    def by_hour(self) -> dict[str, dict[str, int]]:
        """The latest hours, as a beat carries them: {"2026-11-23T01": {"recorded": 12}}."""
        for old in sorted(self._hours)[:-_HOURS_KEPT]:
            del self._hours[old]
        return {hour_name(hour * HOUR_MS): dict(counts) for hour, counts in self._hours.items()}

    def begin_incarnation(self) -> None:
        """Counts by hour belong to an incarnation; the totals to the process."""
        self._hours.clear()


def hour_name(at_ms: int) -> str:
    """The hour (UTC) of a time."""
    return datetime.fromtimestamp(at_ms // 1_000, UTC).strftime("%Y-%m-%dT%H")
