"""`clickdam up`: everything on one machine, started in the order it depends on and stopped in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import structlog

from aggregator.db.connect import DatabaseAway
from aggregator.db.migrate import migrate
from deploy.run import children, folder, kafka, servers
from deploy.run.backlog import behind, held
from deploy.run.children import CannotStart, Kept, end_all, spawn, stop_together, wait_until
from deploy.run.database import ask
from deploy.run.folder import Demo, Remembered
from deploy.run.http import answers
from deploy.run.keys import OPERATOR, create
from deploy.run.listening import listen, port_of
from deploy.run.logs import log_json_lines, silence_kafka
from deploy.run.machine import Doors, Machine, Wanted, chosen, describe, reachable
from deploy.run.programme import seed
from deploy.run.screen import show
from deploy.run.supervise import CLICKDAM, as_environment
from deploy.run.topics import ensure_topics
from schemas import journal
from schemas.settings import PREFIX, AggregatorSettings, ApiSettings, EdgeSettings, LogSettings, TopicSettings, load

log = structlog.get_logger()

OWNER = PREFIX + "UP_FOLDER"  # marks our processes, so that the next start knows the orphans of this folder
LOOK_EVERY_S = 0.1
DESCRIBE_EVERY_S = 0.4
READY_S = 60.0
# the whole stop stays under 15 s even when each of them has to be killed
EDGE_STOP_S = 3.5
DRAIN_S = 3.0
REST_STOP_S = 2.0
KAFKA_STOP_S = 1.5
POSTGRES_STOP_S = 2.0
VALKEY_STOP_S = 1.0


def run(wanted: Wanted) -> None:
    """Start everything, keep it running until SIGTERM or Ctrl-C, stop it. Raises CannotStart or BadSettings."""
    log_json_lines("up", logging.WARNING)
    if wanted.kafka:
        kafka.java()  # may fetch for minutes: Ctrl-C still ends us at once
    stopping = _stop_signals()
    with folder.locked(wanted.data) as data:
        end_all(children.with_variable(OWNER, str(data)), signal.SIGTERM, servers.ORPHAN_STOP_S)
        memory = folder.remembered(data, wants_demo=wanted.demo)
        _check_log(wanted, memory, data)
        doors = _open_doors(wanted, memory)
        urls = _url(wanted, doors.edge[0]), _url(wanted, doors.api)
        machine = Machine(data, wanted, doors, memory, *urls, stopping)
        try:
            for step in START:
                if not stopping():
                    step(machine)
            if not stopping():
                _show(machine)
            _watch(machine)
        finally:
            _stop(machine)


def _stop_signals() -> Callable[[], bool]:
    """Whether somebody has asked us to stop; asking twice changes nothing."""
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: asked.append(number))
    return lambda: bool(asked)


def _check_log(wanted: Wanted, memory: Remembered, data: Path) -> None:
    """A folder stays with the kind of log that it began with: nobody would read what waits in the other."""
    if wanted.kafka and chosen("LOG_URL", ""):
        raise CannotStart(f"--kafka is a log of our own, and {PREFIX}LOG_URL names another: leave one of them out")
    if wanted.kafka and not memory.has_kafka and journal.slots(data / "journal"):
        raise CannotStart(f"the log of {data} is a journal, and events may wait in it: --kafka needs a new --data")


def _open_doors(wanted: Wanted, memory: Remembered) -> Doors:
    edge = listen(wanted.host, wanted.edge_port, wanted.workers)
    api = listen(wanted.host, wanted.api_port)[0]
    # the demo offer leads to the port of the day it was seeded
    shop_port = int(memory.demo.shop_url.rpartition(":")[2]) if memory.demo else wanted.shop_port
    shop = listen("127.0.0.1", shop_port)[0] if memory.wants_demo else None
    return Doors(edge, api, shop)


def _url(wanted: Wanted, listening: socket.socket) -> str:
    return f"http://{reachable(wanted.host)}:{port_of(listening)}"


def _start_valkey(machine: Machine) -> None:
    """A Valkey of our own, where no variable names another."""
    machine.redis_url = chosen("REDIS_URL", "") or _keep_server(machine, "valkey", servers.start_valkey).url


def _start_log(machine: Machine) -> None:
    """A Kafka of our own, where the folder has one or is new and wanted one; and the topics of any Kafka."""
    if (machine.memory.has_kafka or machine.wanted.kafka) and not chosen("LOG_URL", ""):
        server = kafka.start_kafka(machine.data / "kafka")
        machine.kept["kafka"] = Kept("kafka", lambda: kafka.launch_again(server).process, server.process)
        machine.kafka_url = server.url
        _remember(machine, has_kafka=True)
    # one broker has one copy, and one aggregator few partitions
    small = {"kafka_replication": 1, "kafka_min_insync": 1, "kafka_partitions": chosen("KAFKA_PARTITIONS", "4")}
    settings = load(TopicSettings, **machine.log, **(small if machine.kafka_url else {}))
    if settings.is_kafka:
        silence_kafka()
        asyncio.run(ensure_topics(settings))


def _start_postgres(machine: Machine) -> None:
    machine.database_url = chosen("DATABASE_URL", "") or _keep_server(machine, "postgres", servers.start_postgres).url


def _keep_server(machine: Machine, name: str, start: Callable[[Path, int], servers.Server]) -> servers.Server:
    server = start(machine.data / name, 0)
    again = partial(start, machine.data / name, server.port)
    machine.kept[name] = Kept(name, lambda: again().process, server.process)
    return server


def _migrate(machine: Machine) -> None:
    ask(migrate(machine.database_url))
    if not machine.memory.admin_key:
        _remember(machine, admin_key=ask(create(machine.database_url, OPERATOR)))


def _start_edge(machine: Machine) -> None:
    """Before Postgres, which it does not know: both take about a second to come up."""
    settings = load(
        EdgeSettings,
        host=machine.wanted.host,
        **machine.log,
        spool_folder=chosen("SPOOL_FOLDER", str(machine.data / "spool")),
        redis_url=machine.redis_url,
        click_keys=chosen("CLICK_KEYS", machine.memory.click_keys),
        visitor_key=chosen("VISITOR_KEY", machine.memory.visitor_key),
        workers=machine.wanted.workers,
        admin_port=machine.admin_ports["edge"],
    )
    _keep(machine, "edge", machine.doors.edge, as_environment(settings))


def _start_behind(machine: Machine) -> None:
    """Aggregators and API."""
    urls = {"host": machine.wanted.host, "redis_url": machine.redis_url, "database_url": machine.database_url}
    for name in machine.aggregators:
        aggregator = load(AggregatorSettings, **machine.log, admin_port=machine.admin_ports[name], **urls)
        _keep(machine, name, [], as_environment(aggregator))
    keys = chosen("CLICK_KEYS", machine.memory.click_keys)
    api = load(ApiSettings, public_url=chosen("PUBLIC_URL", machine.edge_url), click_keys=keys, **urls)
    _keep(machine, "api", [machine.doors.api], as_environment(api))


def _keep(
    machine: Machine,
    name: str,
    sockets: Sequence[socket.socket],
    settings: dict[str, str],
    arguments: Sequence[str] = (),
) -> None:
    """Start one of our own processes on its sockets, and again whenever it dies."""
    fds = [one.fileno() for one in sockets]
    command = [*CLICKDAM, name.partition(".")[0], *arguments, *(f"--fd={fd}" for fd in fds)]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
    env = inherited | settings | {OWNER: str(machine.data)}

    def start() -> subprocess.Popen[bytes]:
        with folder.appending(machine.data / "logs" / f"{name}.log") as output:
            return spawn(command, env=env, fds=fds, output=output)

    machine.kept[name] = Kept(name, start)
    machine.kept[name].begin()


def _wait_ready(machine: Machine) -> None:
    urls = {name: machine.metrics_urls[name].replace("/metrics", "/ready") for name in machine.aggregators} | {
        "edge": f"{machine.edge_url}/ready",
        "api": f"{machine.api_url}/live",
    }
    for name, url in urls.items():
        kept = machine.kept[name]
        settled = wait_until(partial(_settled, machine, kept, url), READY_S)
        if not machine.stopping() and (not settled or kept.pid is None):
            why = folder.last_line(machine.data / "logs" / f"{name}.log")
            raise CannotStart(f"{name} did not start: {why}")


def _settled(machine: Machine, kept: Kept, url: str) -> bool:
    return machine.stopping() or kept.pid is None or answers(url)


def _seed(machine: Machine) -> None:
    if not machine.memory.wants_demo or machine.doors.shop is None:
        return
    if machine.memory.demo is None:
        shop_url = f"http://127.0.0.1:{port_of(machine.doors.shop)}"
        seeded = seed(machine.api_url, machine.memory.admin_key, machine.database_url, shop_url)
        _remember(machine, demo=seeded)
    demo: Demo = msgspec.convert(machine.memory.demo, Demo)
    token = {"CLICKDAM_DEMO_TOKEN": demo.advertiser_token}
    _keep(machine, "demo-shop", [machine.doors.shop], token, [f"--edge-url={machine.edge_url}"])


def _remember(machine: Machine, **changed: object) -> None:
    machine.memory = msgspec.structs.replace(machine.memory, **changed)
    folder.remember(machine.data, machine.memory)


START: tuple[Callable[[Machine], None], ...] = (
    _start_valkey,
    _start_log,
    _start_edge,
    _start_postgres,
    _migrate,
    _start_behind,
    _wait_ready,
    _seed,
)


def _show(machine: Machine) -> None:
    folder.describe(machine.data, describe(machine))
    shop = machine.memory.demo.shop_url if machine.memory.demo else "none"
    places = {
        "edge": f"{machine.edge_url}  (workers: {machine.wanted.workers})",
        "api": machine.api_url,
        "demo shop": shop,
        "log": machine.log_url,
        "metrics": "  ".join(machine.metrics_urls.values()),
        "data": f"{machine.data}  (logs in logs/)",
        "reports": f"clickdam report --data {machine.data}",
        "for programs": f"{machine.data / folder.DESCRIPTION}  (urls, keys and pids)",
    }
    show(places, machine.link_url, machine.edge_url, machine.api_url, machine.memory.demo)


def _watch(machine: Machine) -> None:
    """Start again what dies, and keep the description true, until we are asked to stop."""
    told, look_again = describe(machine), 0.0
    while not machine.stopping():
        for kept in machine.kept.values():
            kept.keep()
        if time.monotonic() >= look_again:
            now, look_again = describe(machine), time.monotonic() + DESCRIBE_EVERY_S
            if now != told:
                told = now
                folder.describe(machine.data, told)
        time.sleep(LOOK_EVERY_S)


def _stop(machine: Machine) -> None:
    """The edge first, then what it wrote is applied, then the rest; in bounded time whatever is frozen."""
    for one in machine.doors:
        one.close()
    _stop_kept(machine, ["edge"], signal.SIGTERM, EDGE_STOP_S)
    _drain(machine)
    _stop_kept(machine, [*machine.aggregators, "api", "demo-shop"], signal.SIGTERM, REST_STOP_S)
    _stop_kept(machine, ["kafka"], signal.SIGTERM, KAFKA_STOP_S)
    _stop_kept(machine, ["postgres"], signal.SIGINT, POSTGRES_STOP_S)
    _stop_kept(machine, ["valkey"], signal.SIGTERM, VALKEY_STOP_S)
    end_all(children.with_variable(OWNER, str(machine.data)), signal.SIGKILL, 0.5)
    if (machine.data / folder.DESCRIPTION).exists():  # a start that failed has nothing to tell programs
        folder.describe(machine.data, describe(machine))


def _stop_kept(machine: Machine, names: Sequence[str], ask: signal.Signals, wait_s: float) -> None:
    running = [machine.kept[name].process for name in names if name in machine.kept]
    stop_together([process for process in running if process is not None], ask, wait_s)


def _drain(machine: Machine) -> None:
    """Let the aggregator apply what the edge has written; what stays behind is applied after the next start."""
    if not any(name in machine.kept and machine.kept[name].pid for name in machine.aggregators):
        return
    with contextlib.suppress(*DatabaseAway, CannotStart, journal.Unreadable):
        asyncio.run(_drained(load(LogSettings, **machine.log), machine.database_url))


async def _drained(log: LogSettings, database_url: str) -> None:
    async with asyncio.timeout(DRAIN_S):
        there = await held(log)  # nobody writes any more
        while await behind(there, database_url):
            await asyncio.sleep(LOOK_EVERY_S)
