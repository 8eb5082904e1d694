"""A spike as data: how many of what arrive when. Both k6 and locust read it as JSON and decide nothing themselves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings

from loadtests.faults.edges import BROWSER
from loadtests.programme import Programme
from loadtests.spikes.system import WARM_LINKS, Running

Kind = Literal["warm", "hot", "cold", "buy", "day", "read"]
READERS = 20  # at once
WAIT_MAX_S = 0.25  # of an arrival: where all wait longer, the generator comes late or makes more
HEADERS = {
    "User-Agent": BROWSER,
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Language": "de-DE,de;q=0.9,en;q=0.7",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Referer": "https://blog.example.org/best-tents?page=2",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "cross-site",
    "Upgrade-Insecure-Requests": "1",
}


class Sizes(BaseSettings):
    """The variables of `make spike-k6` and `make spike-locust`, each by its name in capitals."""

    resting_per_s: Annotated[int, Field(gt=0)]  # the spike must be within the capacity of the cores that there are
    spike_times: Annotated[int, Field(gt=1)] = 10
    stretch: Annotated[float, Field(ge=0.2)] = 1.0  # of every stage's time; k6 has no stage under a second
    cold_links: Annotated[int, Field(gt=0)] = 4_000
    readers_per_s: Annotated[int, Field(gt=0)] = (
        4  # of reports during the spike; a partner's key may call 600 times a minute
    )
    workers: Annotated[int, Field(gt=0)] = 1
    log: Literal["journal", "kafka"] = "journal"
    freeze_broker_s: Annotated[float, Field(ge=0)] = 0.0  # in the middle of the spike

    @model_validator(mode="after")
    def _has_a_broker(self) -> Self:
        if self.freeze_broker_s and self.log != "kafka":
            raise ValueError("freeze_broker_s needs log=kafka: a journal has no broker")
        return self


@dataclass(frozen=True, slots=True)
class Stage:
    """Arrivals a second, from `from_per_s` evenly to `to_per_s`: what each does is its `kind`."""

    name: str
    kind: Kind
    start_s: float
    for_s: float
    from_per_s: float
    to_per_s: float
    connections: int

    @property
    def end_s(self) -> float:
        return self.start_s + self.for_s

    def arrivals_s(self) -> Iterator[float]:
        """When each is due, in seconds from the stage's start."""
        first, grows = self.from_per_s, (self.to_per_s - self.from_per_s) / self.for_s
        for n in itertools.count():
            # n = first * t + grows * t^2 / 2, solved for t; of a falling rate the root may not exist any more
            under = first * first + 2 * grows * n
            due_s = 2 * n / (first + math.sqrt(under)) if under >= 0 else math.inf
            if due_s >= self.for_s:
                return
            yield due_s


@dataclass(frozen=True, slots=True)
class Script:
    """All that a generator has to know. `run` begins every code and every order id; codes end in a number from 0."""

    edge_url: str
    api_url: str
    run: str
    token: str
    partner_keys: tuple[str, ...]
    warm_code: str
    warm_links: int
    cold_code: str
    cold_links: int
    report: str
    headers: dict[str, str]
    stages: list[Stage]


@dataclass(frozen=True, slots=True)
class Took:
    """Of one stage: how many answers, and how long after their arrival was due (ms)."""

    count: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Heard:
    """What a generator says at its end: clicks answered with a click id, conversions accepted, reports read, answers
    that were wrong, arrivals it had no connection for, thresholds of its script that were crossed."""

    answered: int
    accepted: int
    reports: int
    wrong: int
    dropped: int
    crossed: list[str]
    stages: dict[str, Took]


def stages(of: Sizes) -> list[Stage]:
    """In the order of their start: rest, spike with readers, rest, ramp, one hot link, cold links, a storm of
    conversions, a mixed day. On the eve of the spike a generator may make ready, so it is no rest."""
    rest, spike = of.resting_per_s, of.resting_per_s * of.spike_times
    one_after_another: list[tuple[str, Kind, float, float, float]] = [
        ("warm_up", "warm", 5, rest, rest),
        ("rest", "warm", 20, rest, rest),
        ("eve", "warm", 5, rest, rest),
        ("spike", "warm", 20, spike, spike),
        ("rest_again", "warm", 10, rest, rest),
        ("ramp", "warm", 15, rest, spike / 2),
        ("hot_link", "hot", 10, spike / 3, spike / 3),
        ("cold_links", "cold", 10, of.cold_links / 10 / of.stretch, of.cold_links / 10 / of.stretch),
        ("conversion_storm", "buy", 10, rest, rest),
        ("day_begins", "day", 10, rest / 4, rest * 3),
        ("day_ends", "day", 10, rest * 3, rest / 4),
    ]
    found, start_s = [], 0.0
    for name, kind, for_s, first, last in one_after_another:
        found.append(Stage(name, kind, start_s, for_s * of.stretch, first, last, connections(max(first, last))))
        start_s += for_s * of.stretch
    during = named(found, "spike")
    per_s = of.readers_per_s
    readers = Stage("readers", "read", during.start_s, during.for_s, per_s, per_s, READERS)
    return sorted([*found, readers], key=lambda stage: stage.start_s)


def named(of: list[Stage], name: str) -> Stage:
    return next(stage for stage in of if stage.name == name)


def connections(per_s: float) -> int:
    """As many as clicks are under way if each takes WAIT_MAX_S."""
    return math.ceil(per_s * WAIT_MAX_S)


def report(now: datetime) -> str:
    """A partner's report by link for the days around `now`, as a path with its query."""
    days = f"from={now.date() - timedelta(days=1)}&to={now.date() + timedelta(days=1)}"
    return f"/v1/reports?{days}&timezone=UTC&group_by=link&metrics=clicks,conversions,payout&limit=100"


def script(running: Running, programme: Programme, run: str, cold_links: int, of: list[Stage]) -> Script:
    """What happens in a programme whose codes are `<run>-<n>` and, cold, `<run>-cold-<n>`."""
    return Script(
        running.edge_url, running.api_url, run, programme.token, programme.partner_keys, f"{run}-", WARM_LINKS,
        f"{run}-cold-", cold_links, report(datetime.now(UTC)), HEADERS, of,
    )  # fmt: skip
