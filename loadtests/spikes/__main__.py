"""`python -m loadtests.spikes k6` or `locust`: what `make spike-k6` and `make spike-locust` run."""

from __future__ import annotations

import argparse
import sys

from pydantic import ValidationError

from loadtests.spikes.run import COMMANDS, BrokenOff, main
from loadtests.system import DidNotStart

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m loadtests.spikes", description=__doc__)
    parser.add_argument("tool", choices=COMMANDS, help="who makes the load; its sizes: docs/load-tests.md")
    try:
        sys.exit(main(parser.parse_args().tool))
    except (BrokenOff, DidNotStart, ValidationError) as reason:
        sys.exit(str(reason))
