"""`clickdam export FOLDER`: everything that an operator has typed in, a file for each kind."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from aggregator.api import sheets
from aggregator.api.exports import EXPORTS
from deploy.run.children import CannotStart
from deploy.run.http import Place, fetching

_PIECE_BYTES = 1 << 18


def run(folder: Path, place: Place, form: sheets.Format, console: Console, *, safe: bool) -> None:
    """Write every export into a folder, which is made. Raises CannotStart; a file that is there is whole."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        columns = TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn()
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            for what in EXPORTS:
                path = folder / f"{what}.{form}"
                _write(what, path, place, form, progress, safe=safe)
                if not console.is_terminal:
                    console.print(
                        f"{path}: {path.stat().st_size:,} bytes", markup=False, highlight=False, soft_wrap=True
                    )
    except OSError as error:
        raise CannotStart(f"cannot write to {folder}: {error}") from None


def _write(what: str, path: Path, place: Place, form: sheets.Format, progress: Progress, *, safe: bool) -> None:
    accepted = next(kind for kind, one in sheets.CONTENT_TYPES.items() if one == form)
    half = path.with_name(f".{path.name}.half")
    shown = progress.add_task(what, total=None)
    url = f"{place.api_url}/v1/export/{what}{'?safe=1' if safe else ''}"
    with fetching(url, place.key, accepted) as answer, half.open("wb") as file:
        while piece := answer.read(_PIECE_BYTES):
            file.write(piece)
            progress.advance(shown, len(piece))
    shutil.move(half, path)
