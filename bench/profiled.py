"""Run `fulgate` with every thread under cProfile. usage: profiled.py OUT serve APP ...

Writes the sum of all threads' profiles to OUT when the server has ended.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import threading

from fulgate.cli import main

profiles: list[cProfile.Profile] = []
run_unprofiled = threading.Thread.run


def run(thread: threading.Thread) -> None:
    profile = cProfile.Profile()
    profiles.append(profile)
    profile.enable()
    try:
        run_unprofiled(thread)
    finally:
        profile.disable()


if __name__ == "__main__":
    out = sys.argv.pop(1)
    setattr(threading.Thread, "run", run)  # noqa: B010
    try:
        main()
    finally:
        if not profiles:
            raise SystemExit("no thread was started, so there is no profile")
        total = pstats.Stats(profiles[0])
        for one in profiles[1:]:
            total.add(one)
        total.dump_stats(out)
