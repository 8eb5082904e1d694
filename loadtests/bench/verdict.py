"""What the runs come to: medians, ratios to others of the same round, and everything that is wrong. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from loadtests.bench.contenders import BARE, CEILING, GOALS, Figure, Goal
from loadtests.bench.wrk import Heard


@dataclass(frozen=True, slots=True)
class Run:
    """A timed run; `mixed`: of 20 requests one was no click. `rate_s` is of all answers, and `cpu_us` for each of them:
    of all processes of the system, the broker included. `busy` is the share of cores 0 and 1 that was not idle."""

    name: str
    connections: int
    mixed: bool
    round: int
    rate_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    busy: tuple[float, float]


@dataclass(slots=True)
class Asked:
    """All clicks ever made on a contender, or conversions told to it, warm-up and all: how many were answered at least,
    and sent at most, a connection being cut off with one under way. `complaints` are answers that were wrong."""

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
    mixed: bool
    rate_s: float
    rate_min_s: float
    rate_max_s: float
    p50_ms: float
    p99_ms: float
    of_bare: float
    p99_of_bare: float
    cpu_us: float
    busy: tuple[float, float]

    def near(self, ceiling: Line | None) -> bool:
        """Whether the load generator, and not the contender, may have been the limit."""
        return ceiling is not None and self.name != CEILING and self.rate_s > 0.85 * ceiling.rate_s


@dataclass(frozen=True, slots=True)
class Met:
    """A goal and what was measured."""

    goal: Goal
    mixed: bool
    measured: float

    @property
    def verdict(self) -> str:
        sign = -1 if self.goal.figure == "p99_ms" else 1  # of a p99, less is better
        if sign * self.measured < sign * self.goal.floor:
            return "beyond the floor"
        return "under the goal" if sign * self.measured < sign * self.goal.goal else "met"


def note(asked: Asked, heard: Heard, connections: int, size_bytes: int, other_bytes: int = 0, *, each: int = 1) -> None:
    """Add a run to what was asked, `each` of a request, and complain of its answers: of those that were looked at, and
    of the size of all, `size_bytes` being that of a click's, `other_bytes` that of another's."""
    asked.answered += (heard.answered - heard.others) * each
    asked.sent += (heard.answered - heard.others + connections) * each
    asked.ids += heard.ids.split()
    for what, number in (
        ("not a redirect with a click id, or a receipt", heard.wrong), ("4xx or 5xx", heard.refused),
        ("broken connections", heard.broken),
    ):  # fmt: skip
        if number:
            asked.complaints.append(f"{number:,} of {heard.answered:,} answers: {what}")
    size = (heard.answered - heard.others) * size_bytes + heard.others * other_bytes
    # those cut off may have been heard in part, and may have been others that were counted when they were sent
    least = size - min(heard.others, connections) * max(0, other_bytes - size_bytes)
    most = size + connections * max(size_bytes, other_bytes)
    if not least <= heard.size_bytes <= most:
        asked.complaints.append(f"{heard.answered:,} answers came to {heard.size_bytes:,} bytes, not to {size:,}")


def ratio(
    runs: Sequence[Run], name: str, over: str, connections: int, figure: Figure, *, mixed: bool = False
) -> float | None:
    """The median of the ratios within each round; None where one of them has no runs."""
    alike = [run for run in runs if (run.connections, run.mixed) == (connections, mixed)]
    figures = {(run.name, run.round): getattr(run, figure) for run in alike}
    rounds = {number for of, number in figures if of == name} & {number for of, number in figures if of == over}
    return median(figures[name, number] / figures[over, number] for number in rounds) if rounds else None


def lines(runs: Sequence[Run]) -> list[Line]:
    """One for each contender, number of connections, and mixed or not, in the order in which they first ran."""
    return [_line(runs, *of) for of in dict.fromkeys((run.name, run.connections, run.mixed) for run in runs)]


def _line(runs: Sequence[Run], name: str, connections: int, mixed: bool) -> Line:
    own = [run for run in runs if (run.name, run.connections, run.mixed) == (name, connections, mixed)]
    rates = [run.rate_s for run in own]
    return Line(
        name, connections, mixed, median(rates), min(rates), max(rates),
        median(run.p50_ms for run in own), median(run.p99_ms for run in own),
        ratio(runs, name, BARE, connections, "rate_s", mixed=mixed) or 0.0,
        ratio(runs, name, BARE, connections, "p99_ms", mixed=mixed) or 0.0,
        median(run.cpu_us for run in own), (median(run.busy[0] for run in own), median(run.busy[1] for run in own)),
    )  # fmt: skip


def goals(runs: Sequence[Run]) -> list[Met]:
    """Those whose both sides were measured; mixed runs have the same."""
    found = (
        (goal, mixed, ratio(runs, goal.name, goal.over, goal.connections, goal.figure, mixed=mixed))
        for mixed in (False, True)
        for goal in GOALS
    )
    return [Met(goal, mixed, measured) for goal, mixed, measured in found if measured is not None]


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
