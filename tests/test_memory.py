"""What the C library does with the memory of large bodies."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Bodies at once, as a thread has them: page faults a body, after the first round.
PROGRAM = """
import resource, sys, threading
from fulgate.drivers.phases import RECEIVE, keep_memory

def faults():
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt

def run():
    for turn in range(20):
        if turn == 1:
            before = faults()
        bodies = [bytes(bytearray(RECEIVE)) for _ in range(8)]
        del bodies
    print((faults() - before) / (19 * 8))

if sys.argv[1] == "keep":
    keep_memory()
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the faults of a thread are Linux's to tell")
def test_large_bodies_are_not_mapped_anew() -> None:
    def faults(how: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], stdout=subprocess.PIPE, check=True
        )
        return float(done.stdout)

    kept = faults("keep")
    assert kept < 2  # of 24 pages
    assert kept <= faults("as it is")
