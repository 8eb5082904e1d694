"""`clickdam drain`: send what edges that are gone have left in their spool, and close them."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from deploy.run.children import CannotStart
from schemas import journal
from schemas.settings import LogSettings
from tracker.log.on_kafka import drain_slot, left_in
from tracker.log.recorder import LogFailed
from tracker.log.spool import is_journal


async def drain(settings: LogSettings, folder: Path, console: Console) -> bool:
    """Send every slot of a spool's folder, say what became of each; answers whether nothing is left. Raises CannotStart
    for a folder that is no spool."""
    if not journal.slots(folder):
        raise CannotStart(f"{folder} is no spool: there is no folder edge-0 in it")
    if is_journal(folder):
        raise CannotStart(f"{folder} is a journal and no spool: an aggregator reads it")
    slots = left_in(folder)
    if not slots:
        console.print(f"nothing is left in {folder}", markup=False, highlight=False, soft_wrap=True)
    return all([await _drain(settings, folder, slot, console) for slot in slots])


async def _drain(settings: LogSettings, folder: Path, slot: int, console: Console) -> bool:
    name = journal.slot_folder(folder, slot).name
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        shown = progress.add_task(name, total=_size_bytes(folder, slot))
        try:
            whole = await drain_slot(settings, folder, slot, lambda size_bytes: progress.advance(shown, size_bytes))
            said = "sent, and its edge closed" if whole else "Kafka refused some events as too large: they stay there"
        except journal.SlotTaken:
            whole, said = False, "its edge lives and sends it by itself: left alone"
        except (journal.Unreadable, LogFailed, OSError) as error:
            whole, said = False, f"not sent: {error}"
    console.print(f"{name}: {said}", markup=False, highlight=False, soft_wrap=True)
    return whole


def _size_bytes(folder: Path, slot: int) -> int:
    return sum(map(journal.size_bytes, journal.segments(journal.slot_folder(folder, slot))))
