"""Promise P4 by hand: a broker frozen for minutes at full load, memory sampled. `python -m loadtests.frozen_broker`"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import psutil
import uvloop

from deploy.run import servers
from loadtests.faults.broken import Broken, broken
from loadtests.faults.ridden import outcomes
from loadtests.faults.traffic import complete_now, verdict, visited
from loadtests.percentiles import percentile

SAMPLE_S = 5.0


async def freeze(folder: Path, minutes: float, connections: int) -> bool:
    """Print the RSS of the edge's workers all along, and what came of it. Answers whether all was exact."""
    postgres, valkey = servers.start_postgres(folder / "postgres"), servers.start_valkey(folder / "valkey")
    try:
        async with broken(folder, postgres.url, valkey.url) as of:
            return await _freeze(of, minutes, connections)
    finally:
        servers.stop_valkey(valkey)
        servers.stop_postgres(postgres)


async def _freeze(of: Broken, minutes: float, connections: int) -> bool:
    async with visited(of.house, connections=connections, pause_s=0.0) as heard:
        await _sample(of, "before", 10)
        await of.freeze()
        await _sample(of, "frozen", minutes * 60)
        await of.thaw()
        await _sample(of, "after", 10)
    complete_s = await complete_now(of.house, within_s=600)
    _show(of, "complete")
    print(
        f"complete {complete_s:.1f} s after the last answer; {dict(heard.statuses)}; {dict(await outcomes(of.house))}"
    )
    print(f"p99 of all {len(heard.took):,} clicks {percentile(heard.between(0), 99) * 1e3:.0f} ms")
    return (await verdict(of.house, heard)).exact


async def _sample(of: Broken, when: str, for_s: float) -> None:
    for _ in range(max(1, int(for_s / SAMPLE_S))):
        await asyncio.sleep(SAMPLE_S)
        _show(of, when)


def _show(of: Broken, when: str) -> None:
    rss = [psutil.Process(pid).memory_info().rss / 2**20 for pid in of.house.worker_pids()]
    spooled = sum(path.stat().st_size for path in of.house.spool.rglob("*") if path.is_file()) / 2**20
    print(f"{when}: worker RSS {', '.join(f'{mb:.0f} MB' for mb in rss)}, spool {spooled:.0f} MB", flush=True)


def main() -> int:
    """Returns 1 if anything answered is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--connections", type=int, default=64)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clickdam-frozen-") as folder:
        Path(folder).chmod(0o711)
        return 0 if uvloop.run(freeze(Path(folder), asked.minutes, asked.connections)) else 1


if __name__ == "__main__":
    sys.exit(main())
