"""What does multiplexing cost where it is not used? usage: python bench/experiments/multiplex.py

Runs `fulgate serve` with it, without it, and once more without it, side by side. They are asked
for hello over kept-alive connections, one after the other, in another order each round, and are
started anew every ten rounds; the server's CPU time a request is what the kernel counts, in
nanoseconds. The second one without it says how much of a difference is noise. Prints a table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles

BENCH = Path(__file__).parents[1]
sys.path.insert(0, str(BENCH))

from install import prepare  # noqa: E402
from loads import load_command  # noqa: E402
from machine import this_machine, tree  # noqa: E402
from peers import PEERS, Peer  # noqa: E402
from running import Running  # noqa: E402
from workloads import WORKLOADS  # noqa: E402

WITHOUT = "--no-multiplex"
OF_A_PROCESS = 10  # rounds; two processes of one program differ, too, by where things come to lie
SERVERS = {"with": (), "without": (WITHOUT,), "without, again": (WITHOUT,)}


def serving(peer: Peer, *options: str) -> Peer:
    return replace(peer, command=lambda path: [*peer.command(path), *options])


def cpu_nanoseconds(root: int) -> int:
    """Give the CPU time of a process tree and its threads (Documentation/scheduler/sched-stats)."""
    files = [file for pid in tree(root) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(file.read_text().split()[0]) for file in files)


def cost(server: Running, workload: str, seconds: float) -> float:
    """Load a server, and give its CPU time a request in µs."""
    before = cpu_nanoseconds(server.process.pid)
    command = load_command(server.peer, WORKLOADS[workload], server.path, seconds, 0.0)
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    spent = cpu_nanoseconds(server.process.pid) - before
    requests: int = json.loads(done.stdout)["requests_all"]
    return spent / 1000 / max(requests, 1)


def rounds(peer: Peer, workload: str, count: int, seconds: float) -> dict[str, list[float]]:
    """Give the costs of each server, round by round."""
    found: dict[str, list[float]] = {name: [] for name in SERVERS}
    for _ in range(0, count, OF_A_PROCESS):
        measure(peer, workload, seconds, found)
    return found


def measure(peer: Peer, workload: str, seconds: float, found: dict[str, list[float]]) -> None:
    """Start the servers, in any order, and add some rounds of them to what is found."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        servers = {
            name: stack.enter_context(Running(serving(peer, *SERVERS[name]), folder / f"{at}.sock"))
            for at, name in enumerate(random.sample(list(SERVERS), len(SERVERS)))
        }
        for server in servers.values():
            cost(server, workload, seconds)  # what is imported, and made, once
        for _ in range(OF_A_PROCESS):
            for name in random.sample(list(servers), len(servers)):
                found[name].append(cost(servers[name], workload, seconds))


def spread(values: list[float]) -> str:
    low, _, high = quantiles(values)
    return f"{median(values):.3f} ({low:.3f} to {high:.3f})"


def sure(values: list[float]) -> str:
    """Give between which values the median of all rounds there could be lies, at 95 %."""
    ordered = sorted(values)
    half = 0.98 * len(values) ** 0.5  # of a binomial distribution
    low, high = (ordered[round(len(values) / 2 + at)] for at in (-half, half - 1))
    return f"{low:.3f} to {high:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--peer", default="fulgate-compiled", choices=["fulgate", "fulgate-compiled"]
    )
    parser.add_argument("--workload", default="hello")
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=0.15, help="of each measurement")
    chosen = parser.parse_args()
    peer = PEERS[chosen.peer]
    if failed := prepare([peer]):
        raise SystemExit(next(iter(failed.values())))
    found = rounds(peer, chosen.workload, chosen.rounds, chosen.seconds)
    print(f"{this_machine()}. {chosen.peer}, {chosen.workload}, {chosen.rounds} rounds.")
    print(
        "Medians, between which values the middle half lies, and 95 % confidence of the median.\n"
    )
    print("| multiplexing | CPU µs a request | over that without, in the same round | surely |")
    print("|---|--:|--:|--:|")
    for name, costs in found.items():
        ratios = [a / b for a, b in zip(costs, found["without"], strict=True)]
        beside = f"{spread(ratios)} | {sure(ratios)}" if name != "without" else " | "
        print(f"| {name} | {spread(costs)} | {beside} |")


if __name__ == "__main__":
    main()
