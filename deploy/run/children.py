"""Child processes that die with this one, and the orphans that one leaves behind when it could not."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import IO

import psutil
import structlog

log = structlog.get_logger()

YOUNG_S = 10.0  # a child that dies younger than this is started again later each time
RESTART_FIRST_S = 0.1
RESTART_LAST_S = 5.0
KILLED_S = 5.0  # the kernel needs a moment to take a killed process apart
_PR_SET_PDEATHSIG = 1
# Linux hands out 32768-60999 to outgoing connections: a server that restarts there may find its port in use
_FREE_PORTS = range(15_000, 32_000)
# loaded before any fork: a child between fork and exec must not import
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class CannotStart(RuntimeError):
    """Why something does not start: one line that an operator can act on."""


def spawn(
    command: Sequence[str | Path],
    *,
    death_signal: signal.Signals = signal.SIGTERM,
    user: pwd.struct_passwd | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    fds: Sequence[int] = (),
    output: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own (Ctrl-C reaches only us) that gets `death_signal` when this process dies.

    `fds` are inherited, `output` takes stdout and stderr. Call it from a thread that lives as long as the process:
    Linux sends the signal at the end of the thread. Elsewhere than on Linux orphans are left to `end_all`.
    """
    return subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd=cwd,
        env=env,
        pass_fds=fds,
        start_new_session=True,
        user=user and user.pw_uid,
        group=user and user.pw_gid,
        extra_groups=[] if user else None,
        preexec_fn=_dies_with(os.getpid(), death_signal),  # noqa: PLW1509 - it only makes two system calls
    )


def _dies_with(parent: int, death_signal: signal.Signals) -> Callable[[], None]:
    def ask_the_kernel() -> None:
        # runs after the change of user, which would clear it
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    return ask_the_kernel


def stop(process: subprocess.Popen[bytes], ask: signal.Signals, wait_s: float) -> int:
    """Ask a child to end, kill it when it has not ended after `wait_s`. Returns its exit code."""
    if process.poll() is None:
        process.send_signal(ask)
    try:
        return process.wait(wait_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def stop_together(processes: Sequence[subprocess.Popen[bytes]], ask: signal.Signals, wait_s: float) -> None:
    """Ask all of them to end, then give them `wait_s` together."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(ask)
    deadline = time.monotonic() + wait_s
    for process in processes:
        stop(process, ask, max(0.0, deadline - time.monotonic()))


@dataclass(slots=True)
class Kept:
    """A child that is started again when it has died."""

    name: str
    start: Callable[[], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    _young_deaths: int = 0
    _started: float = 0.0
    _retry_at: float = 0.0

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process and self.process.poll() is None else None

    def begin(self) -> None:
        """Start it. Raises CannotStart."""
        self._started = time.monotonic()
        self.starts += 1
        self.process = self.start()

    def keep(self) -> None:
        """Start it if it does not run; to be called all the time."""
        if self.process is not None and self.process.poll() is not None:
            self._bury(self.process)
        if self.process is None and time.monotonic() >= self._retry_at:
            self._begin_again()

    def _begin_again(self) -> None:
        try:
            self.begin()
        except CannotStart as error:
            log.error("start_failed", name=self.name, reason=str(error))
            self._back_off()

    def _bury(self, process: subprocess.Popen[bytes]) -> None:
        log.warning("child_died", name=self.name, pid=process.pid, code=process.returncode)
        self.process = None
        self._back_off()

    def _back_off(self) -> None:
        old = time.monotonic() - self._started >= YOUNG_S
        self._young_deaths = 0 if old else self._young_deaths + 1
        wait_s = 0.0 if old else min(RESTART_LAST_S, RESTART_FIRST_S * 2 ** (self._young_deaths - 1))
        self._retry_at = time.monotonic() + wait_s


def working_in(folder: Path, program: str) -> list[psutil.Process]:
    """The processes of a program whose working directory is this folder: ours, whoever started them."""
    return [process for process in psutil.process_iter() if _works_in(process, folder, program)]


def _works_in(process: psutil.Process, folder: Path, program: str) -> bool:
    try:
        return process.name().startswith(program) and Path(process.cwd()) == folder.resolve()
    except (psutil.Error, OSError):
        return False


def with_variable(variable: str, value: str) -> list[psutil.Process]:
    """The other Clickdam processes that were started with this variable."""
    return [process for process in psutil.process_iter() if _has_variable(process, variable, value)]


def _has_variable(process: psutil.Process, variable: str, value: str) -> bool:
    try:
        # the variable alone would also find a shell that somebody started from one of ours
        ours = process.pid != os.getpid() and "deploy.run.cli" in process.cmdline()
        return ours and process.environ().get(variable) == value
    except (psutil.Error, OSError):
        return False


def end_all(processes: Iterable[psutil.Process], ask: signal.Signals, wait_s: float) -> None:
    """Ask processes that are not our children to end; kill what is left after `wait_s`."""
    left = list(processes)
    _signal_all(left, ask)
    if not wait_until(lambda: all(map(is_gone, left)), wait_s):
        _signal_all(left, signal.SIGKILL)
        wait_until(lambda: all(map(is_gone, left)), KILLED_S)


def _signal_all(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def is_gone(process: psutil.Process) -> bool:
    """Whether it has ended."""
    try:
        # a zombie holds nothing any more; when its new parent takes note of it is not ours to wait for
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now, outside the range of outgoing connections. Raises OSError for a host that
    is none of this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        port = SystemRandom().choice(_FREE_PORTS)
        with socket.socket(family) as probe:
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port


def wait_until(ready: Callable[[], bool], timeout_s: float, every_s: float = 0.02) -> bool:
    """Whether it became true in time."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True
