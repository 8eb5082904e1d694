"""Percentiles of what was measured, for everybody in here: the nearest rank, so each is a value that did occur."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil


def percentile(values: Iterable[float], percent: float) -> float:
    """The least of the values that `percent` of them do not exceed; 0.0 of none."""
    ordered = sorted(values)
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)] if ordered else 0.0


def distribution(took_s: Iterable[float]) -> str:
    """As one line, in ms."""
    ordered = sorted(took_s)
    at = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    return ", ".join(f"{name} {percentile(ordered, percent) * 1e3:.1f}" for name, percent in at.items()) + " ms"
