"""How much of each cap is used, as far as this edge knows."""

from __future__ import annotations


class CapTotals:
    """Clicks by (cap, beginning of its period in s): the greater of what Redis said and what was counted here."""

    def __init__(self) -> None:
        self._totals: dict[tuple[int, int], int] = {}

    def total(self, cap_id: int, begins_s: int) -> int:
        return self._totals.get((cap_id, begins_s), 0)
