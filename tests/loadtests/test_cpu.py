"""CPU seconds of real processes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from loadtests.cpu import cpu_s, cpu_us_each

BURNT_S = 0.3
LEAST_S = 0.25  # the system counts in steps
BURN = f"import sys, time\nwhile time.process_time() < {BURNT_S}: pass\n"
BURN_IN_A_CHILD = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}], check=True)\n"
WAIT = "print('burnt', flush=True)\nsys.stdin.read()"


@contextmanager
def burnt(program: str) -> Iterator[int]:
    """The pid of one that has done it and is still there."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program + WAIT], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"burnt\n"
        yield process.pid


@pytest.mark.parametrize("program", [BURN, BURN_IN_A_CHILD], ids=["itself", "a child that has ended"])
def test_cpu_of_a_process_is_its_own_and_that_of_its_ended_children(program: str) -> None:
    with burnt(program) as pid:
        assert LEAST_S <= cpu_s([pid]) < 30


def test_cpu_of_children_that_live_is_in_their_roots() -> None:
    before = cpu_s([os.getpid()])
    with burnt(BURN):
        assert cpu_s([os.getpid()]) - before >= LEAST_S


def test_cpu_is_told_for_each_of_what_was_done() -> None:
    assert cpu_us_each({"edge": 1.0, "redis": 2.0}, {"edge": 1.5, "redis": 2.0}, 1_000) == {"edge": 500.0, "redis": 0.0}
