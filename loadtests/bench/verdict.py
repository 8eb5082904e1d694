"""What the runs come to: medians, ratios to others of the same round, and everything that is wrong. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from loadtests.bench.contenders import BARE, CEILING, GOALS, Figure, Goal


@dataclass(frozen=True, slots=True)
class Run:
    """A timed run. `busy` is the share of cores 0 and 1 that was not idle."""

    name: str
    connections: int
    round: int
    rate_s: float
    p50_ms: float
    p99_ms: float
    busy: tuple[float, float]


@dataclass(slots=True)
class Asked:
    """All that was ever asked of a contender, warm-up and all: answers that were heard, and requests that were sent at
    most, a connection being cut off with one under way. `complaints` are answers that were wrong."""

    answered: int = 0
    sent: int = 0
    ids: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Line:
    """A contender at a number of connections, over all rounds. `of_bare`: the median of rate by bare rate, round by
    round."""

    name: str
    connections: int
    rate_s: float
    rate_min_s: float
    rate_max_s: float
    p50_ms: float
    p99_ms: float
    of_bare: float
    p99_of_bare: float
    busy: tuple[float, float]

    def near(self, ceiling: Line | None) -> bool:
        """Whether the load generator, and not the contender, may have been the limit."""
        return ceiling is not None and self.name != CEILING and self.rate_s > 0.85 * ceiling.rate_s


@dataclass(frozen=True, slots=True)
class Met:
    """A goal and what was measured."""

    goal: Goal
    measured: float

    @property
    def verdict(self) -> str:
        sign = -1 if self.goal.figure == "p99_ms" else 1  # of a p99, less is better
        if sign * self.measured < sign * self.goal.floor:
            return "beyond the floor"
        return "under the goal" if sign * self.measured < sign * self.goal.goal else "met"


def ratio(runs: Sequence[Run], name: str, over: str, connections: int, figure: Figure) -> float | None:
    """The median of the ratios within each round; None where one of them has no runs."""
    figures = {(run.name, run.round): getattr(run, figure) for run in runs if run.connections == connections}
    rounds = {number for of, number in figures if of == name} & {number for of, number in figures if of == over}
    return median(figures[name, number] / figures[over, number] for number in rounds) if rounds else None


def lines(runs: Sequence[Run]) -> list[Line]:
    """One for each contender and number of connections, in the order in which they first ran."""
    return [_line(runs, *of) for of in dict.fromkeys((run.name, run.connections) for run in runs)]


def _line(runs: Sequence[Run], name: str, connections: int) -> Line:
    own = [run for run in runs if (run.name, run.connections) == (name, connections)]
    rates = [run.rate_s for run in own]
    return Line(
        name, connections, median(rates), min(rates), max(rates),
        median(run.p50_ms for run in own), median(run.p99_ms for run in own),
        ratio(runs, name, BARE, connections, "rate_s") or 0.0, ratio(runs, name, BARE, connections, "p99_ms") or 0.0,
        (median(run.busy[0] for run in own), median(run.busy[1] for run in own)),
    )  # fmt: skip


def goals(runs: Sequence[Run]) -> list[Met]:
    """Those whose both sides were measured."""
    found = ((goal, ratio(runs, goal.name, goal.over, goal.connections, goal.figure)) for goal in GOALS)
    return [Met(goal, measured) for goal, measured in found if measured is not None]


def wrong(asked: Mapping[str, Asked], rows: Mapping[str, int], durable: set[str], ids_found: int) -> list[str]:
    """A line for everything that must not be; `rows` are those in Postgres, `durable` who has to have them."""
    found = [f"{name}: {complaint}" for name, of in asked.items() for complaint in of.complaints]
    found += [f"{name}: not one click was answered" for name, of in asked.items() if not of.answered]
    for name in sorted(durable):
        of, there = asked[name], rows.get(name, 0)
        if there < of.answered:
            found.append(f"{name}: {of.answered - there:,} of {of.answered:,} answered clicks are not a row: lost")
        if there > of.sent:
            found.append(f"{name}: {there:,} rows for {of.sent:,} clicks that were sent at most: counted twice")
    ids = [one for name in durable for one in asked[name].ids]
    if len(set(ids)) < len(ids) or ids_found < len(ids):
        found.append(f"of {len(ids):,} sampled click ids {len(set(ids)):,} differ and {ids_found:,} are a row")
    return found
