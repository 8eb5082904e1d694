"""When, where and of what version something was measured; every JSON begins with it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def circumstances(began: datetime | None = None) -> dict[str, Any]:
    """Of a measurement that began then, or now."""
    return {
        "date": began or datetime.now(UTC), "commit": commit(),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
    }  # fmt: skip


def commit() -> str:
    """Of the checkout that this runs from, with `-dirty` where it was changed; empty outside of one."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    if shutil.which("git") is None:
        return ""
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
