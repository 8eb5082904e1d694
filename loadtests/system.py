"""A Clickdam of its own for a test: `clickdam up` as a child process with free ports in a folder thrown away."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

START_S = 60.0
STOP_S = 30.0


class DidNotStart(Exception):
    """`clickdam up` ended or was not there in time; with the end of what it said."""


@contextlib.contextmanager
def clickdam_up(workers: int, *options: str) -> Iterator[Path]:
    """Start it, with further options of the command; give its data folder (with `clickdam.json`), stop it. Raises
    DidNotStart."""
    root = Path(tempfile.mkdtemp(prefix="clickdam-replay-"))
    root.chmod(0o711)  # as root, Postgres runs as another user and must get through
    up = _start(root, workers, options)
    try:
        _wait_until_up(up, root)
        yield root / "data"
    finally:
        _stop(up)
        shutil.rmtree(root, ignore_errors=True)


def _start(root: Path, workers: int, options: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "deploy.run.cli", "up", "--no-demo", "--data", str(root / "data")]
    command += ["--edge-port", "0", "--api-port", "0", "--workers", str(workers), *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLICKDAM_")}
    with (root / "out").open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)


def _wait_until_up(up: subprocess.Popen[bytes], root: Path) -> None:
    deadline = time.monotonic() + START_S
    while not _is_up(root / "data" / "clickdam.json"):
        if up.poll() is not None or time.monotonic() > deadline:
            raise DidNotStart((root / "out").read_text(errors="replace")[-3_000:])
        time.sleep(0.05)


def _is_up(config: Path) -> bool:
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        return "edge_url" in json.loads(config.read_text())
    return False


def _stop(up: subprocess.Popen[bytes]) -> None:
    up.send_signal(signal.SIGINT)
    try:
        up.wait(STOP_S)
    except subprocess.TimeoutExpired:
        up.kill()
        up.wait()
