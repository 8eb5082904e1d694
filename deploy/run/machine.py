"""What `clickdam up` runs, how to reach it, and what it tells others about it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil

from deploy.run.children import Kept, free_port
from deploy.run.folder import Remembered
from schemas.settings import PREFIX


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options of the command."""

    data: Path
    host: str
    edge_port: int
    api_port: int
    shop_port: int
    workers: int
    aggregators: int
    kafka: bool
    demo: bool


@dataclass(frozen=True, slots=True)
class Doors:
    """The listening sockets, all open before anything starts."""

    edge: list[socket.socket]
    api: socket.socket
    shop: socket.socket | None

    def __iter__(self) -> Iterator[socket.socket]:
        yield from self.edge
        yield self.api
        if self.shop is not None:
            yield self.shop


@dataclass(slots=True)
class Machine:
    """All that runs, and how to reach it."""

    data: Path
    wanted: Wanted
    doors: Doors
    memory: Remembered
    edge_url: str
    api_url: str
    stopping: Callable[[], bool]
    redis_url: str = ""
    database_url: str = ""
    kafka_url: str = ""
    admin_ports: dict[str, int] = field(default_factory=dict)
    kept: dict[str, Kept] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.admin_ports = {name: free_port() for name in ("edge", *self.aggregators)}

    @property
    def aggregators(self) -> list[str]:
        """Their names: `aggregator`, `aggregator.2` and so on."""
        return ["aggregator", *(f"aggregator.{n}" for n in range(2, self.wanted.aggregators + 1))]

    @property
    def log_url(self) -> str:
        return chosen("LOG_URL", self.kafka_url or f"journal://{self.data / 'journal'}")

    @property
    def log(self) -> dict[str, str]:
        """The settings that say where the log is; a Kafka of our own wants no credentials."""
        return {"log_url": self.log_url} | ({"kafka_security": "plaintext"} if self.kafka_url else {})

    @property
    def metrics_urls(self) -> dict[str, str]:
        host = reachable(self.wanted.host)
        return {name: f"http://{host}:{port}/metrics" for name, port in self.admin_ports.items()}

    @property
    def link_url(self) -> str:
        return f"{self.edge_url}/c/{self.memory.demo.code}" if self.memory.demo else ""


def describe(machine: Machine) -> dict[str, Any]:
    """What `clickdam.json` says."""
    demo = machine.memory.demo
    return {
        "edge_url": machine.edge_url,
        "api_url": machine.api_url,
        "redis_url": machine.redis_url,
        "database_url": machine.database_url,
        "log_url": machine.log_url,
        "admin_key": machine.memory.admin_key,
        "processes": pids(machine.kept),
        "metrics_urls": machine.metrics_urls,
        "demo": {"link_url": machine.link_url, **msgspec.structs.asdict(demo)} if demo else None,
    }


def pids(kept: Mapping[str, Kept]) -> dict[str, list[int]]:
    """Name of a process -> pids; empty while it is down."""
    names = ("edge", "aggregator", "api", "valkey", "postgres", "kafka", "demo-shop")
    found = {name: [kept[one].pid for one in kept if one.partition(".")[0] == name] for name in names}
    edge = kept["edge"].pid if "edge" in kept else None
    plain = {name: [pid for pid in of if pid is not None] for name, of in found.items()}
    return {**plain, "worker": _workers(edge)}


def _workers(edge: int | None) -> list[int]:
    try:
        return [one.pid for one in psutil.Process(edge).children() if _is_worker(one)] if edge else []
    except psutil.Error:
        return []


def _is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):  # dead, and not yet started again
        return "edge-worker" in process.cmdline()
    return False


def chosen(name: str, own: str) -> str:
    """The operator's variable CLICKDAM_<name>, else our own value."""
    return os.environ.get(PREFIX + name) or own


def reachable(host: str) -> str:
    """The host part of a URL on this machine for an address that is listened on."""
    named = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{named}]" if ":" in named else named
