"""Who is measured, and what we want to be of whom. Names are those of `--only`, and the beginnings of link codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

System = Literal["raw", "bare", "journal", "kafka", "nginx"]
Figure = Literal["rate_s", "p99_ms"]


@dataclass(frozen=True, slots=True)
class Contender:
    """A system as it is measured: all of it on core 0, but for a Kafka broker, which is on `broker_core`. It is asked
    for redirects, or told of `conversions` in each request."""

    name: str
    system: System
    what: str
    broker_core: int = 1
    conversions: int = 0


@dataclass(frozen=True, slots=True)
class Goal:
    """What `name`'s figure is to be of `over`'s: at least, or for a p99 at most, `goal`; never beyond `floor`."""

    name: str
    over: str
    connections: int
    goal: float
    floor: float
    figure: Figure = "rate_s"


CEILING, BARE = "raw", "bare"
CONTENDERS = (
    Contender(CEILING, "raw", "fixed 302 of a uvloop protocol without a parser: what the load generator can see"),
    Contender(BARE, "bare", "fixed 302 of a bare aiohttp.web.Application on uvloop"),
    Contender("journal", "journal", "durable redirect, journal"),
    Contender("kafka", "kafka", "durable redirect, Kafka, its broker on core 1"),
    Contender("kafka0", "kafka", "durable redirect, Kafka, its broker on core 0 too", broker_core=0),
    Contender("postbacks", "journal", "durable conversion by GET /postback, journal", conversions=1),
    Contender(
        "batches", "journal", "durable conversions by POST /v1/conversions, 100 in each, journal", conversions=100
    ),
    Contender("nginx", "nginx", "nginx + Lua + Redis GET and INCR, volatile"),
)
GOALS = (
    Goal("journal", BARE, 64, 2.2, 1.5),
    Goal("journal", BARE, 256, 3.4, 2.2),
    Goal("kafka", BARE, 64, 1.4, 1.0),
    Goal("kafka", BARE, 256, 2.6, 1.8),
    Goal("kafka0", BARE, 64, 1.1, 0.8),
    Goal("kafka0", BARE, 256, 2.3, 1.5),
    *(
        Goal(name, BARE, connections, 1.0, 1.8, "p99_ms")
        for name in ("journal", "kafka", "kafka0")
        for connections in (64, 256)
    ),
    Goal("journal", "nginx", 64, 1.5, 1.0),
    Goal("journal", "nginx", 256, 1.5, 1.0),
    *(Goal("postbacks", "journal", connections, 0.8, 0.0) for connections in (64, 256)),
    *(Goal("batches", "journal", connections, 1.0, 0.0) for connections in (64, 256)),
)
