"""Measure Fulgate and its peers side by side. usage: python bench/run.py --help

Needs cc and taskset; nginx and wrk too for the part through nginx. Makes bench/.venv for the
peers, compiles into bench/.build, writes bench/results/latest.md and latest.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from loads import WAYS, WORKLOADS, Figures, direct, through_nginx
from machine import busy_seconds, first_line, this_machine
from peers import BENCH, PEERS, PYTHON, ROOT, Peer, prepare
from report import DISTURBED, Run, markdown, put_into, write

DEFAULT_PEERS = ["fulgate", "fulgate-1", "flup", "floor"]


def names(known: dict[str, object], text: str) -> list[str]:
    chosen = text.split(",")
    for name in chosen:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name}: not one of {', '.join(known)}")
    return chosen


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--peers", type=lambda text: names(dict(PEERS), text), default=DEFAULT_PEERS)
    add("--ways", type=lambda text: names(dict(WAYS), text), default=list(WAYS))
    add("--workloads", type=lambda text: names(dict(WORKLOADS), text), default=list(WORKLOADS))
    add("--connections", type=int, default=32)
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=3.0, help="of each measurement")
    add("--quiet", type=float, default=15.0, help="seconds to wait for a quiet machine at most")
    add("--repeats", type=int, default=2, help="of a measurement that others disturbed, at most")
    add("--docs", type=Path, help="page whose figures are to be replaced by this run's")
    add("--results", type=Path, default=BENCH / "results", help="folder to write to")
    return parser.parse_args()


def wait_for_quiet(most: float) -> None:
    """Wait until other processes leave the machine alone, for at most `most` seconds."""
    until = time.monotonic() + most
    while time.monotonic() < until:
        busy = busy_seconds()
        time.sleep(0.5)
        if (busy_seconds() - busy) / 0.5 / (os.cpu_count() or 1) < DISTURBED:
            return


def measured(chosen: argparse.Namespace, way: str, workload: str, peer: Peer) -> Figures:
    """Measure; again when others disturbed it. Gives the measurement that was disturbed least."""
    measure = {"direct": direct, "nginx": through_nginx}[way]
    tries: list[Figures] = []
    while not tries or (tries[-1].foreign_share > DISTURBED and len(tries) <= chosen.repeats):
        wait_for_quiet(chosen.quiet)
        tries.append(measure(peer, WORKLOADS[workload], chosen.connections, chosen.seconds))
    return min(tries, key=lambda one: one.foreign_share)


def versions(peers: list[Peer]) -> dict[str, str]:
    init = (ROOT / "src" / "fulgate" / "__init__.py").read_text()
    found = {
        "fulgate": init.partition('__version__ = "')[2].partition('"')[0],
        "Python": first_line(str(PYTHON), "-V").removeprefix("Python "),
    }
    commit = first_line("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    if commit and "fatal" not in commit:
        changed = first_line("git", "-C", str(ROOT), "status", "--porcelain", "src")
        found["fulgate"] += f" ({commit}{' and changes' if changed else ''})"
    for peer in peers:
        if peer.requirement:
            found[peer.name] = peer.requirement.partition("==")[2]
    path = os.environ["PATH"] + ":/usr/sbin"
    if program := shutil.which("nginx", path=path):
        found["nginx"] = first_line(program, "-v").rpartition("/")[2]
    if shutil.which("wrk"):
        found["wrk"] = first_line("wrk", "-v").split()[1]
    found["cc"] = first_line("cc", "-dumpfullversion")
    return found


def missing(ways: list[str]) -> list[str]:
    needed = ["cc", "taskset", *(["nginx", "wrk"] if "nginx" in ways else [])]
    path = os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin"
    return [program for program in needed if not shutil.which(program, path=path)]


def main() -> int:
    chosen = options()
    lacking = missing(chosen.ways)
    if lacking:
        print(f"not installed: {', '.join(lacking)}", file=sys.stderr)
        return 2
    if len(os.sched_getaffinity(0)) < 2:
        print("the benchmark needs two cores: one for the server, one for the load",
              file=sys.stderr)  # fmt: skip
        return 2
    failed = prepare([PEERS[name] for name in chosen.peers])
    peers = [PEERS[name] for name in chosen.peers if name not in failed]
    run = Run(
        this_machine(), versions(peers), chosen.connections, chosen.seconds, chosen.rounds, failed
    )
    for turn in range(chosen.rounds):
        for way in chosen.ways:
            for workload in chosen.workloads:
                for peer in peers if turn % 2 == 0 else reversed(peers):
                    figures = measured(chosen, way, workload, peer)
                    run.add(way, workload, peer.name, figures)
                    print(
                        f"{turn + 1}/{chosen.rounds} {way} {workload} {peer.name}: "
                        f"{figures.rps:,.0f}/s, {figures.cpu_us:.1f} µs, "
                        f"others {figures.foreign_share:.0%}",
                        file=sys.stderr,
                    )
    write(run, chosen.results)
    if chosen.docs:
        put_into(run, chosen.docs)
    print(markdown(run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
