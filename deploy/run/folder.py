"""The data folder of `clickdam up`: its lock, what it remembers, what it tells others."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import orjson
from filelock import FileLock, Timeout

from deploy.run.children import CannotStart

LOG_BYTES_MAX = 10_000_000  # a child's log starts again beyond this
DESCRIPTION = "clickdam.json"


class Demo(msgspec.Struct, frozen=True, kw_only=True):
    """The seeded demo programme."""

    code: str
    partner_key: str
    advertiser_token: str
    shop_url: str


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """What a data folder keeps to itself between two starts, secrets first of all."""

    click_keys: str
    visitor_key: str
    wants_demo: bool
    has_kafka: bool = False
    admin_key: str = ""
    demo: Demo | None = None


@contextlib.contextmanager
def locked(data: Path) -> Iterator[Path]:
    """The data folder for us alone, made if it is missing. Raises CannotStart."""
    try:
        _make(data)
        lock = FileLock(data / "lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise CannotStart(f"another `clickdam up` runs on {data}: stop it, or choose another folder (--data)") from None
    except OSError as error:
        raise CannotStart(f"cannot use {data}: {error.strerror} ({error.filename})") from None
    try:
        yield data.resolve()
    finally:
        lock.release()


def _make(data: Path) -> None:
    if not data.exists():
        data.mkdir(parents=True)
        data.chmod(0o711 if os.geteuid() == 0 else 0o700)  # root's Postgres is another user and has to pass through
    for name in ("journal", "kafka", "logs", "spool", "valkey"):
        (data / name).mkdir(mode=0o700, exist_ok=True)


def remembered(data: Path, *, wants_demo: bool) -> Remembered:
    """What this folder remembers; the secrets of a new one are generated. Raises CannotStart."""
    path = data / "secrets.json"
    if path.exists():
        try:
            return msgspec.json.decode(path.read_bytes(), type=Remembered)
        except (OSError, msgspec.DecodeError) as error:
            raise CannotStart(f"cannot read {path}: {error}") from None
    fresh = Remembered(
        click_keys=f"1:{secrets.token_hex(32)}", visitor_key=secrets.token_hex(16), wants_demo=wants_demo
    )
    remember(data, fresh)
    return fresh


def remember(data: Path, what: Remembered) -> None:
    write_private(data / "secrets.json", msgspec.json.encode(what).decode())


def describe(data: Path, description: dict[str, Any]) -> None:
    """Tell other programs where everything is."""
    write_private(data / DESCRIPTION, orjson.dumps(description, option=orjson.OPT_INDENT_2).decode() + "\n")


def description(data: Path) -> dict[str, Any]:
    """What a running `clickdam up` has told. Raises CannotStart."""
    try:
        found: dict[str, Any] = orjson.loads((data / DESCRIPTION).read_bytes())
    except OSError:
        raise CannotStart(f"no `clickdam up` has run on {data} (--data names another folder)") from None
    except ValueError as error:
        raise CannotStart(f"cannot read {data / DESCRIPTION}: {error}") from None
    return found


def write_private(path: Path, text: str) -> None:
    """Replace a file as a whole; nobody but its owner reads it."""
    half = path.with_name(f".{path.name}.half")
    half.unlink(missing_ok=True)
    with open(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    half.rename(path)


def appending(log: Path) -> IO[bytes]:
    """A child's log, open for what comes next."""
    long = log.exists() and log.stat().st_size > LOG_BYTES_MAX
    return open(log, "wb" if long else "ab")


def last_line(log: Path) -> str:
    """The line that most likely says why a child has ended."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines[-20:] if "FATAL" in line or "rror" in line or line.startswith("clickdam:")]
    return (told or lines or ["its log is empty"])[-1].strip()
