"""The edge's clock: times never go backwards within an incarnation."""

import secrets
import time
from collections.abc import Callable

from schemas.limits import CLOCK_AHEAD_MAX_S

_AHEAD_MAX_MS = int(CLOCK_AHEAD_MAX_S * 1000)


def wall_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class EdgeClock:
    """Monotonic wall time of one incarnation."""

    def __init__(self, wall: Callable[[], int] = wall_ms) -> None:
        self._wall = wall
        self._last_ms = 0
        self.on_jump: Callable[[int], None] = lambda now_ms: None
        self.incarnation = _new_incarnation()

    def continue_from(self, persisted_ms: int) -> None:
        """Start no earlier than the latest time an earlier process wrote, unless that lies so far ahead that the
        clock which made it was broken."""
        if persisted_ms <= self._wall() + _AHEAD_MAX_MS:
            self._last_ms = max(self._last_ms, persisted_ms)

    def now_ms(self) -> int:
        """The time now, never less than before; after a jump back of more than a minute a new incarnation begins, and
        `on_jump` hears of it before anything gets the new time."""
        now = self._wall()
        if now > self._last_ms:
            self._last_ms = now
        elif self._last_ms - now > _AHEAD_MAX_MS:
            self._last_ms = now
            self.incarnation = _new_incarnation()
            self.on_jump(now)
        return self._last_ms


def _new_incarnation() -> str:
    return secrets.token_hex(8)
