"""What processes have cost so far, their children and those of them that have ended included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import psutil


def cpu_s(roots: Iterable[int]) -> float:
    """Seconds of CPU of these processes and everything under them, to the 10 ms that Linux counts in. A process that
    has ended and was waited for is in its parent's figure; of two roots none may be under the other."""
    return sum(_of_tree(psutil.Process(root)) for root in roots)


def _of_tree(root: psutil.Process) -> float:
    spent = 0.0
    for process in (root, *root.children(recursive=True)):
        try:
            spent += sum(process.cpu_times()[:4])  # its own and its ended children's, in user and system mode
        except psutil.NoSuchProcess:
            continue
    return spent


def cpu_us_each(before: Mapping[str, float], after: Mapping[str, float], count: int) -> dict[str, float]:
    """Microseconds for each of `count`, by the names that the seconds of CPU are given by."""
    return {name: (after[name] - then) / max(count, 1) * 1e6 for name, then in before.items()}
