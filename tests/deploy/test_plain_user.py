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

import pytest

from deploy.run.children import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as a plain user already")
START_S = 30.0
PACKAGES = Path(sysconfig.get_path("purelib"))
SOURCES = Path(__file__).parents[2]


def may(test: str, path: Path) -> bool:
    nobody = pwd.getpwnam("nobody")
    ids = {"user": nobody.pw_uid, "group": nobody.pw_gid}
    return subprocess.run(["test", test, path], extra_groups=[], check=False, **ids).returncode == 0  # type: ignore[call-overload]


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="clickdam-tests-"))
    folder.chmod(0o755)
    (folder / "home").mkdir()
    shutil.chown(folder / "home", "nobody")
    yield folder / "home"
    shutil.rmtree(folder)


@pytest.fixture
def python(home: Path) -> tuple[Path, dict[str, str]]:
    """An interpreter that the user may run, and what it needs to find its libraries and ours."""
    if not (may("-r", PACKAGES / "typer") and may("-r", SOURCES / "deploy")):
        pytest.skip("a plain user cannot read this checkout")
    path = {"PYTHONPATH": f"{PACKAGES}:{SOURCES}", "PYTHONDONTWRITEBYTECODE": "1"}
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
    nobody = pwd.getpwnam("nobody")
    ports = ["--edge-port", "0", "--api-port", "0", "--shop-port", "0"]
    with (home.parent / "log").open("w+") as log:
        process = subprocess.Popen(
            [program, "-P", "-m", "deploy.run.cli", "up", *ports],
            user=nobody.pw_uid,
            group=nobody.pw_gid,
            extra_groups=[],
            cwd=home,
            env={"HOME": str(home), "PATH": os.environ["PATH"], **path},
            stdout=log,
            stderr=log,
        )
        told = home / "clickdam-data" / "clickdam.json"
        assert wait_until(lambda: told.exists() or process.poll() is not None, START_S)
        assert process.poll() is None, (home.parent / "log").read_text()
        assert json.loads(told.read_text())["demo"]["code"] == "demo"
        assert told.stat().st_uid == nobody.pw_uid
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0
