"""What a spike comes to: what it was asked to hold, and everything that it did not. No I/O."""

from __future__ import annotations

from loadtests.spikes.plan import Heard
from loadtests.spikes.recorded import Recorded

GOAL, FLOOR = 3.0, 5.0  # p99 during the spike / p99 at rest


def ratio(heard: Heard) -> float:
    """The p99 of the spike by that at rest."""
    return heard.stages["spike"].p99_ms / heard.stages["rest"].p99_ms


def wrong(heard: Heard, recorded: Recorded, *, frozen: bool) -> list[str]:
    """A line for each thing that must not be. While a broker is frozen no ratio is promised."""
    found = {
        "answers were wrong": heard.wrong,
        "arrivals found no connection": heard.dropped,
        "answered clicks are lost": max(0, heard.answered - recorded.clicks),
        "rows are of no answered click": max(0, recorded.clicks - heard.answered),
        "accepted conversions are lost": max(0, heard.accepted - recorded.conversions),
        "conversions are of no receipt": max(0, recorded.conversions - heard.accepted),
        "clicks are missing in the rollup, or too many": abs(recorded.clicks - recorded.rolled_up),
        "sampled click ids are no row": recorded.samples - recorded.sampled,
    }
    lines = [f"{number:,} {what}" for what, number in found.items() if number]
    lines += ["no click was answered"] if not heard.answered else []
    lines += ["no conversion was accepted"] if not heard.accepted else []
    lines += [f"threshold crossed: {threshold}" for threshold in heard.crossed]
    if not frozen and ratio(heard) > FLOOR:
        lines.append(f"p99 during the spike is {ratio(heard):.1f} times that at rest, beyond {FLOOR:.0f}")
    return lines


def goal(heard: Heard) -> str:
    """The goal in words."""
    found = ratio(heard)
    met = "met" if found <= GOAL else "not met, within the floor" if found <= FLOOR else "beyond the floor"
    return f"{found:.2f} (goal {GOAL:.0f}, floor {FLOOR:.0f}): {met}"
