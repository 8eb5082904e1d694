"""Many seeds, one after another, each on a fresh Clickdam with kills: `python -m loadtests.seeds --seeds 20`."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from loadtests.replay import Result, Wanted, run
from loadtests.system import clickdam_up

WITH_KILLS = Wanted(links=1_000, kill_aggregator=5, kill_worker=2)
HEAD = (
    "seed",
    "clicks answered",
    "cut off",
    "rows",
    "extra rows",
    "conversions",
    "payout expected",
    "payout found",
    "kills (aggregator, worker)",
    "seconds",
    "ok",
)


KAFKA = ("--kafka", "--aggregators", "2")  # four partitions


def replay_seed(wanted: Wanted, *options: str) -> tuple[Result, float]:
    """One replay on a Clickdam of its own with two edge workers, and how long all of it took in seconds."""
    began = time.monotonic()
    with clickdam_up(2, *options) as data:
        result = run(data, wanted)
    return result, time.monotonic() - began


def row(result: Result, took_s: float) -> list[str]:
    answered = sum(click_id is not None for click_id in result.heard.settled.values())
    by_id = result.by_id
    figures = [answered, len(result.heard.cut_off), by_id.rows if by_id else 0, by_id.extra if by_id else 0]
    money = [f"{minor / 100:,.2f}" for minor in (result.expected.payout, by_id.payout if by_id else 0)]
    kills = ", ".join(str(times) for times in result.kills.values())
    verdict = "yes" if result.ok else f"NO: {result.differences[0]}"
    counted = [f"{n:,}" for n in (*figures, result.reported.conversions)]
    return [str(result.wanted.seed), *counted, *money, kills, f"{took_s:.0f}", verdict]


def main() -> int:
    """Print a Markdown table, a line as soon as a seed is done. Returns 1 if any seed found a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--kafka", action="store_true", help="four partitions and two aggregators, not a journal")
    asked = parser.parse_args()
    print("|", " | ".join(HEAD), "|")
    print("|", " | ".join("---" for _ in HEAD), "|", flush=True)
    exact = True
    for seed in range(asked.first, asked.first + asked.seeds):
        result, took_s = replay_seed(replace(WITH_KILLS, seed=seed), *(KAFKA if asked.kafka else ()))
        print("|", " | ".join(row(result, took_s)), "|", flush=True)
        exact = exact and result.ok
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
