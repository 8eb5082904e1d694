"""The edge's supervisor: it owns the sockets, keeps one worker per slot alive and shows all of them as one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import structlog
from pydantic import SecretStr

from deploy.run.admin import Worker, admin_site
from deploy.run.children import CannotStart, Kept, spawn, stop_together
from schemas import limits
from schemas.settings import PREFIX, AggregatorSettings, ApiSettings, EdgeSettings
from tracker.log.on_journal import close_abandoned
from tracker.log.on_kafka import drain_abandoned
from tracker.log.spool import is_journal

log = structlog.get_logger()

# -P: a folder named `deploy` or `schemas` where the operator stands must not be taken for ours
CLICKDAM = (sys.executable, "-P", "-m", "deploy.run.cli")
LOOK_EVERY_S = 0.05
WORKERS_STOP_S = limits.EXIT_S - 2.0


async def supervise(settings: EdgeSettings, sockets: list[socket.socket]) -> None:
    """Run a worker on each socket until SIGTERM or SIGINT. Raises CannotStart."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    _make_folder(settings)
    # the paths of unix sockets are short, so this folder is not under the operator's
    with tempfile.TemporaryDirectory(prefix="clickdam-") as folder:
        workers = [_worker(settings, slot, one, Path(folder)) for slot, one in enumerate(sockets)]
        closing, admin = (
            _closing_abandoned(settings, len(sockets)),
            admin_site(settings.host, settings.admin_port, workers),
        )
        async with closing, admin:
            await _keep(workers, stopping)
            await _stop(workers)


@contextlib.asynccontextmanager
async def _closing_abandoned(settings: EdgeSettings, workers: int) -> AsyncIterator[None]:
    """What was killed in slots that no worker has any more is closed: in a journal before anything else, in Kafka as
    soon as it is there."""
    if not settings.is_kafka:
        await close_abandoned(settings.journal_folder, settings.edge_name, workers)
        yield
        return
    draining = asyncio.create_task(drain_abandoned(settings, workers))
    try:
        yield
    finally:
        draining.cancel()
        await asyncio.gather(draining, return_exceptions=True)


def _make_folder(settings: EdgeSettings) -> None:
    """Refuse at once what every worker would die of."""
    folder, variable = settings.journal_folder, f"LOG_URL={settings.log_url!r}"
    if settings.is_kafka:
        folder, variable = settings.spool_folder, f"SPOOL_FOLDER={str(settings.spool_folder)!r}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise CannotStart(f"{PREFIX}{variable}: cannot write there: {why}") from None
    if settings.is_kafka and is_journal(folder):
        raise CannotStart(f"{PREFIX}{variable}: is a journal, and would be sent to Kafka and removed")


def _worker(settings: EdgeSettings, slot: int, listening: socket.socket, folder: Path) -> Worker:
    admin = folder / f"{slot}.sock"
    command = [*CLICKDAM, "edge-worker", "--slot", str(slot), "--fd", str(listening.fileno()), "--admin", str(admin)]

    def start() -> subprocess.Popen[bytes]:
        admin.unlink(missing_ok=True)
        return spawn(command, env=os.environ | as_environment(settings), fds=[listening.fileno()])

    return Worker(slot, listening, admin, Kept(f"worker {slot}", start))


def as_environment(settings: EdgeSettings | AggregatorSettings | ApiSettings) -> dict[str, str]:
    """The same settings for a child process, flags included."""
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    return {PREFIX + name.upper(): _plain(value) for name, value in values.items() if value is not None}


def _plain(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


async def _keep(workers: list[Worker], stopping: asyncio.Event) -> None:
    while not stopping.is_set():
        for worker in workers:
            worker.kept.keep()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), LOOK_EVERY_S)


async def _stop(workers: list[Worker]) -> None:
    for worker in workers:
        worker.socket.close()  # else connections would queue here that no worker will take
    running = [worker.kept.process for worker in workers if worker.kept.process is not None]
    await asyncio.to_thread(stop_together, running, signal.SIGTERM, WORKERS_STOP_S)
    log.info("edge_stopped", workers=len(running))
