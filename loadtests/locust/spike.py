"""What arrives when is in the plan (loadtests/spikes/plan.py); what an arrival does, and what must hold, is here.

SPIKE=plan.json HEARD=heard.json TOLD=told locust --headless -f spike.py
"""

from __future__ import annotations

import heapq
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import msgspec
from gevent.event import Event
from locust import FastHttpUser, LoadTestShape, events, task

from loadtests.percentiles import percentile
from loadtests.spikes.plan import Heard, Script, Stage, Took

CLICKS_MS = 99, 250.0  # a percentile and its most
THRESHOLDS_MS = {"buy": (99, 500.0), "read": (95, 2_000.0)}
SAMPLED = 200  # of so many click ids one is told
BUYERS_OF_A_DAY = 0.05
ANSWER_S = 20.0
CLICK_ID = re.compile(r"[?&]click_id=([\w-]+)")

script = msgspec.json.decode(Path(os.environ["SPIKE"]).read_bytes(), type=Script)
told = Path(os.environ["TOLD"]).open("w", buffering=1)  # noqa: SIM115 - as long as the process
counts: Counter[str] = Counter()
took_ms: dict[str, list[float]] = {stage.name: [] for stage in script.stages}
began, over = Event(), Event()
began_s = 0.0


def _arrivals() -> Iterator[tuple[float, str, int, Stage]]:
    """All stages' arrivals by time, each with its number in its stage."""

    def of(stage: Stage) -> Iterator[tuple[float, str, int, Stage]]:
        return ((stage.start_s + at_s, stage.name, n, stage) for n, at_s in enumerate(stage.arrivals_s()))

    return heapq.merge(*map(of, script.stages))


planned = list(_arrivals())
arrivals = iter(planned)


class AllAtOnce(LoadTestShape):
    """Connections enough for the busiest stages; they wait for arrivals."""

    def tick(self) -> tuple[int, int] | None:
        connections = sum(heapq.nlargest(2, {stage.connections for stage in script.stages}))
        return None if over.is_set() else (connections, connections)


def begin(user_count: int, **_: Any) -> None:
    global began_s  # noqa: PLW0603
    if not began.is_set():
        began_s = time.monotonic()
        print("began", file=told)  # whoever freezes a broker counts from here
        began.set()


class Connection(FastHttpUser):
    """Takes the next arrival, waits until it is due, does it: who comes late because all were busy has waited, and
    that is counted."""

    host = script.edge_url
    default_headers = script.headers
    network_timeout = connection_timeout = ANSWER_S
    max_retries = 0  # a repeated click would be two
    bought: str | None = None

    @task
    def arrive(self) -> None:
        began.wait()
        arrival = next(arrivals, None)
        if arrival is None:
            over.wait()  # and the shape ends us
            return
        at_s, _, number, stage = arrival
        due_s = began_s + at_s
        gevent.sleep(max(0.0, due_s - time.monotonic()))
        getattr(self, stage.kind)(due_s, stage, number)
        counts["done"] += 1
        if counts["done"] == len(planned):
            over.set()

    def warm(self, due_s: float, stage: Stage, _: int) -> str | None:
        return self.click(f"{script.warm_code}{random.randrange(script.warm_links)}", due_s, stage)

    def hot(self, due_s: float, stage: Stage, _: int) -> None:
        self.click(f"{script.warm_code}0", due_s, stage)

    def cold(self, due_s: float, stage: Stage, number: int) -> None:
        self.click(f"{script.cold_code}{number % script.cold_links}", due_s, stage)

    def buy(self, due_s: float, stage: Stage, number: int) -> None:
        self.bought = self.bought or self.warm(due_s, stage, number)
        if self.bought:
            self.order(self.bought, due_s, stage, number)

    def day(self, due_s: float, stage: Stage, number: int) -> None:
        click_id = self.warm(due_s, stage, number)
        if click_id and random.random() < BUYERS_OF_A_DAY:
            self.order(click_id, time.monotonic(), stage, number)

    def read(self, due_s: float, stage: Stage, number: int) -> None:
        key = script.partner_keys[number % len(script.partner_keys)]
        status, _ = self.ask("GET", script.api_url + script.report, due_s, stage, headers=_bearer(key))
        note("reports", status == 200, f"report {status}", stage)

    def click(self, code: str, due_s: float, stage: Stage) -> str | None:
        status, location = self.ask("GET", f"/c/{code}?sub1=locust&source_id=spike", due_s, stage)
        found = CLICK_ID.search(location)
        note("answered", status == 302 and found is not None, f"click {status} {location[:80]}", stage)
        if found and random.random() * SAMPLED < 1:
            print(f"id {found[1]}", file=told)
        return found[1] if found else None

    def order(self, click_id: str, due_s: float, stage: Stage, number: int) -> None:
        said = {"click_id": click_id, "order_id": f"{script.run}-{stage.name}-{number}"}
        body = said | {"amount_minor": 4990, "currency": "EUR"}
        status, _ = self.ask("POST", "/v1/conversions", due_s, stage, json=body, headers=_bearer(script.token))
        note("accepted", status in (200, 202), f"conversion {status}", stage)

    def ask(self, method: str, path: str, due_s: float, stage: Stage, **request: Any) -> tuple[int, str]:
        """Status (0: no answer) and Location. What is measured begins when the arrival was due."""
        asking = self.client.request(
            method, path, name=stage.name, catch_response=True, allow_redirects=False, **request
        )
        with asking as answer:
            took_ms[stage.name].append((time.monotonic() - due_s) * 1e3)
            answer.request_meta["response_time"] = took_ms[stage.name][-1]
            return answer.status_code, (answer.headers or {}).get("Location", "")


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def note(what: str, is_right: bool, complaint: str, stage: Stage) -> None:
    counts[what if is_right else "wrong"] += 1
    if not is_right:
        print(f"wrong {complaint} in {stage.name}", file=told)


def judge(environment: Any, **_: Any) -> None:
    """Say what was heard, and end with 1 where a threshold was crossed."""
    found = heard()
    Path(os.environ["HEARD"]).write_bytes(msgspec.json.encode(found))
    environment.process_exit_code = int(bool(found.crossed))


def heard() -> Heard:
    stages = {name: Took(len(took), percentile(took, 50), percentile(took, 99)) for name, took in took_ms.items()}
    dropped = len(planned) - counts["done"]
    crossed = [*filter(None, map(crossed_by, script.stages))]
    crossed += [what for what, number in (("wrong == 0", counts["wrong"]), ("dropped == 0", dropped)) if number]
    return Heard(counts["answered"], counts["accepted"], counts["reports"], counts["wrong"], dropped, crossed, stages)


def crossed_by(stage: Stage) -> str:
    """The threshold that a stage has crossed, if it has."""
    percent, most_ms = THRESHOLDS_MS.get(stage.kind, CLICKS_MS)
    is_held = percentile(took_ms[stage.name], percent) < most_ms
    return "" if is_held else f"{stage.name} p{percent} < {most_ms:.0f} ms"


events.spawning_complete.add_listener(begin)  # type: ignore[no-untyped-call]
events.quitting.add_listener(judge)  # type: ignore[no-untyped-call]
