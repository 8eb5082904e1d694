"""Riding out a fault under load: normal, broken, whole again; what it came to is a row of one table."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from loadtests.faults.house import House
from loadtests.faults.traffic import Heard, Verdict, complete_now, rows_of, verdict, visited, watched
from loadtests.percentiles import percentile

BEFORE_S = 1.5
AFTER_S = 2.0  # of nothing but normal answers, then it is normal
BACK_S = 10.0  # promise P6
LOST = ("lost", "late")
HEAD = (
    "fault",
    "clicks",
    "answers",
    "spooled",
    "lost + late",
    "p99 before",
    "p99 meanwhile",
    "normal after",
    "verdict",
)
rows: list[tuple[str, ...]] = []
Act = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Ridden:
    """What visitors saw of a fault, and what Postgres held afterwards. `back_s`: from the end of the fault to the last
    answer that was not normal."""

    fault: str
    heard: Heard
    outcomes: Counter[str]
    p99_before_s: float
    p99_s: float
    back_s: float
    complete_s: float
    found: Verdict

    @property
    def lost(self) -> int:
        return sum(self.outcomes[outcome] for outcome in LOST)

    def row(self, normal: str = "") -> tuple[str, ...]:
        answers = ", ".join(f"{status}: {n:,}" for status, n in sorted(self.heard.statuses.items()))
        figures = f"{self.outcomes['spooled']:,}", f"{self.lost:,}"
        times = [f"{ms * 1e3:.0f} ms" for ms in (self.p99_before_s, self.p99_s)]
        right = "exact" if self.found.exact else f"{self.found.missing:,} missing, drift {self.found.drift}"
        back = normal or f"{self.back_s:.1f} s"
        return (self.fault, f"{self.found.answered:,}", answers, *figures, *times, back, right)


async def ride_out(
    house: House, fault: str, begin: Act, end: Act, for_s: float, *, connections: int = 8, pause_s: float = 0.02
) -> Ridden:
    """Break something for `for_s` while visitors click, mend it, wait until all is normal and complete; judge."""
    before, known = await outcomes(house), await rows_of(house)
    async with watched(house) as shown:
        async with visited(house, connections=connections, pause_s=pause_s) as heard:
            await asyncio.sleep(BEFORE_S)
            began = time.monotonic()
            await begin()
            await asyncio.sleep(for_s)
            await end()
            ended = time.monotonic()
            back_s = await normal_again(heard, ended)
        complete_s = await complete_now(house)
        counted = await outcomes(house) - before
        found = await verdict(house, heard, shown, known=known)
    times = percentile(heard.between(0, began), 99), percentile(heard.between(began, ended + back_s), 99)
    ridden = Ridden(fault, heard, counted, *times, back_s, complete_s, found)
    rows.append(ridden.row())
    print(" | ".join(ridden.row()), f"| complete after {complete_s:.1f} s")
    return ridden


def note(fault: str, heard: Heard, found: Verdict, outcomes: Mapping[str, int] | None = None, said: str = "") -> None:
    """A row for a fault that was not ridden out in one piece; `said` in the place of when it was normal."""
    counted = Counter(outcomes or {})
    p99_meanwhile_s = percentile(heard.between(0), 99)
    rows.append(Ridden(fault, heard, counted, 0.0, p99_meanwhile_s, 0.0, 0.0, found).row(said))
    print(" | ".join(rows[-1]))


async def normal_again(heard: Heard, since: float) -> float:
    """Wait until buyers have heard nothing but 200 for AFTER_S, at most twice BACK_S. Answers the seconds from `since`
    to the last other answer."""
    while time.monotonic() < since + 2 * BACK_S:
        await asyncio.sleep(0.1)
        last = max((at for at, status in heard.receipts if at >= since and status != 200), default=since)
        if time.monotonic() - last >= AFTER_S and any(at > last for at, _ in heard.receipts):
            return last - since
    return 2 * BACK_S


async def outcomes(house: House) -> Counter[str]:
    """The edge's outcomes up to now, of all its workers."""
    found: Counter[str] = Counter()
    for name, value in (await house.metrics()).items():
        if name.startswith("clickdam_edge_outcomes_total"):
            found[name.split('outcome="')[1].partition('"')[0]] += int(value)
    return found


def holds(ridden: Ridden, p99_max_s: float) -> None:
    """No 5xx on warm links, nothing missing by id but what was counted, no drift, quick, and normal in time."""
    assert set(ridden.heard.statuses) <= {302, 0}
    assert ridden.found.missing <= ridden.lost
    assert ridden.found.extra <= ridden.heard.statuses[0]
    assert ridden.found.missing_orders == ridden.found.drift == ridden.found.broken_promises == 0
    assert ridden.p99_s < p99_max_s
    assert ridden.back_s < BACK_S
