"""A Valkey and a PostgreSQL in a folder of their own, both thrown away at the end."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deploy.run import servers


@contextmanager
def redis_and_postgres(what: str) -> Iterator[tuple[Path, servers.Server, servers.Server]]:
    """The folder is named for `what` they are for. Raises CannotStart."""
    folder = Path(tempfile.mkdtemp(prefix=f"clickdam-{what}-"))
    folder.chmod(0o711)  # as root, Postgres runs as another user and must get through
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        valkey = servers.start_valkey(folder / "valkey")
        stack.callback(servers.stop_valkey, valkey)
        postgres = servers.start_postgres(folder / "postgres")
        stack.callback(servers.stop_postgres, postgres)
        yield folder, valkey, postgres
