"""Root runs the tests in many containers; a newcomer is a plain user."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.run.children import wait_until

START_S = 30.0
PACKAGES = Path(sysconfig.get_path("purelib"))
SOURCES = Path(__file__).parents[2]
OURS = ("schemas", "tracker", "aggregator", "deploy", "loadtests")


def somebody() -> dict[str, int]:
    """Whom to run as: an unprivileged user when we are root, ourselves when we are plain already."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid}


def may(test: str, path: Path) -> bool:
    drop: dict[str, Any] = somebody()
    return subprocess.run(["test", test, path], check=False, **drop, **without_groups()).returncode == 0


def without_groups() -> dict[str, Any]:
    return {"extra_groups": []} if os.geteuid() == 0 else {}


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="clickdam-tests-"))
    folder.chmod(0o755)
    (folder / "home").mkdir()
    if os.geteuid() == 0:
        shutil.chown(folder / "home", "nobody")
    yield folder / "home"
    shutil.rmtree(folder)


def readable(folder: Path, home: Path) -> Path:
    """The folder itself, or a copy where a plain user cannot read it: a checkout below /root, say."""
    if may("-r", folder):
        return folder
    copy = home.parent / "copy" / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture
def python(home: Path) -> tuple[Path, dict[str, str]]:
    """An interpreter that the user may run, and what it needs to find its libraries and ours."""
    places = [readable(PACKAGES, home), *(readable(SOURCES / name, home) for name in OURS)]
    search = dict.fromkeys(str(place) if place == places[0] else str(place.parent) for place in places)
    path = {"PYTHONPATH": ":".join(search), "PYTHONDONTWRITEBYTECODE": "1"}
    found = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    if may("-x", found):
        return found, path
    copy = home.parent / "python"
    leave_out = shutil.ignore_patterns("test", "site-packages", "config-*", "__pycache__", "pkgconfig", "idlelib")
    shutil.copytree(found.parents[1] / "lib", copy / "lib", symlinks=True, ignore=leave_out)
    (copy / "bin").mkdir()
    shutil.copy(found, copy / "bin")
    return copy / "bin" / found.name, path | {"LD_LIBRARY_PATH": str(copy / "lib")}


def test_a_plain_user_runs_everything_in_a_home_of_its_own(home: Path, python: tuple[Path, dict[str, str]]) -> None:
    program, path = python
    user = somebody()
    ports = ["--edge-port", "0", "--api-port", "0", "--shop-port", "0"]
    with (home.parent / "log").open("w+") as log:
        process = subprocess.Popen(
            [program, "-P", "-m", "deploy.run.cli", "up", *ports],
            cwd=home,
            env={"HOME": str(home), "PATH": os.environ["PATH"], **path},
            stdout=log,
            stderr=log,
            **user,
            **without_groups(),
        )
        told = home / "clickdam-data" / "clickdam.json"
        assert wait_until(lambda: told.exists() or process.poll() is not None, START_S)
        assert process.poll() is None, (home.parent / "log").read_text()
        assert json.loads(told.read_text())["demo"]["code"] == "demo"
        assert told.stat().st_uid == user.get("user", os.geteuid())
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0
