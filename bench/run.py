"""Measure Fulgate and its peers side by side. usage: python bench/run.py --help

Needs cc; nginx and wrk too for the part through nginx, strace for system calls. Makes virtual
environments for the peers in bench/.venv and bench/.venv-compiled, compiles into bench/.build,
writes bench/results/latest.md, latest.json and latest.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from found import Cell, Run
from install import base_python, prepare
from loads import WAYS, Figures
from machine import busy_seconds, first_line, this_machine
from peers import BENCH, COMPILED_PYTHON, PEERS, PYTHON, ROOT, SEARCH, Peer, php_fpm
from report import DISTURBED, markdown, put_into, write
from running import NotServing
from startup import startup
from workloads import WORKLOADS, Workload

QUICK_PEERS = [
    "fulgate", "fulgate-64", "fulgate-compiled", "fulgate-compiled-64", "flup", "uwsgi-fastcgi",
    "uwsgi", "granian", "libfcgi", "floor",
]  # fmt: skip
QUICK_WORKLOADS = ["hello", "64k", "upload", "wait"]
MOST_ROUNDS = ("hello", "hello-256")  # the others have one round less


def names(known: dict[str, object], text: str) -> list[str]:
    chosen = text.split(",")
    for name in chosen:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name}: not one of {', '.join(known)}")
    return chosen


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="the most telling part, in about three minutes")
    add("--peers", type=lambda text: names(dict(PEERS), text), help="names, with commas between")
    add("--ways", type=lambda text: names(dict(WAYS), text), default=list(WAYS))
    add("--workloads", type=lambda text: names(dict(WORKLOADS), text))
    add("--rounds", type=int, help="3; 1 with --quick")
    add("--seconds", type=float, help="of a measurement at least: 1.4; 1 with --quick")
    add("--no-startup", dest="startup", action="store_false", help="no start, RSS, system calls")
    add("--quiet", type=float, help="seconds to wait for a quiet machine at most: 3; 0.5 if quick")
    add("--repeats", type=int, help="of a disturbed measurement at most: 1; 0 with --quick")
    add("--docs", type=Path, help="page whose figures are to be replaced by this run's")
    add("--results", type=Path, default=BENCH / "results", help="folder to write to")
    chosen = parser.parse_args(arguments)
    chosen.grouped = chosen.peers is None  # else who names the peers has them all
    quick = chosen.quick
    chosen.peers = chosen.peers or (QUICK_PEERS if quick else list(PEERS))
    chosen.workloads = chosen.workloads or (QUICK_WORKLOADS if quick else list(WORKLOADS))
    chosen.rounds = chosen.rounds or (1 if quick else 3)
    chosen.seconds = chosen.seconds or (1.0 if quick else 1.4)
    chosen.quiet = (0.5 if quick else 3.0) if chosen.quiet is None else chosen.quiet
    chosen.repeats = (0 if quick else 1) if chosen.repeats is None else chosen.repeats
    return chosen


def takes_part(peer: Peer, way: str, workload: Workload, grouped: bool) -> bool:
    if way not in workload.only or not peer.does(way, workload.paths):
        return False
    return not grouped or workload.peers == "all" or workload.peers in peer.groups


def plan(chosen: argparse.Namespace, turn: int, peers: list[Peer]) -> list[Cell]:
    """Give what is measured in a round: the servers side by side, their order turned each time."""
    cells = []
    for workload in (WORKLOADS[name] for name in chosen.workloads):
        if turn and turn == chosen.rounds - 1 and workload.name not in MOST_ROUNDS:
            continue
        for way in chosen.ways:
            for peer in peers if turn % 2 == 0 else reversed(peers):
                if takes_part(peer, way, workload, chosen.grouped):
                    cells.append((way, workload.name, peer.name))
    return cells


def wait_for_quiet(most: float) -> None:
    """Wait until other processes leave the machine alone, for at most `most` seconds."""
    until = time.monotonic() + most
    while time.monotonic() < until:
        busy = busy_seconds()
        time.sleep(0.25)
        if (busy_seconds() - busy) / 0.25 / (os.cpu_count() or 1) < DISTURBED:
            return


def measured(chosen: argparse.Namespace, cell: Cell) -> Figures:
    """Measure; again when others disturbed it. Gives the measurement that was disturbed least.

    Raises NotServing.
    """
    way, name, peer = cell
    workload = WORKLOADS[name]
    seconds = max(chosen.seconds, min(workload.seconds, 2 * chosen.seconds))  # wrk rounds it
    tries: list[Figures] = []
    while not tries or (tries[-1].foreign_share > DISTURBED and len(tries) <= chosen.repeats):
        wait_for_quiet(chosen.quiet)
        tries.append(WAYS[way](PEERS[peer], workload, seconds))
    return min(tries, key=lambda one: one.foreign_share)


def pip_versions() -> dict[str, str]:
    done = subprocess.run([PYTHON, "-m", "pip", "list", "--format=json"], stdout=subprocess.PIPE)
    listed = json.loads(done.stdout or "[]")
    return {one["name"].lower().replace("_", "-"): one["version"] for one in listed}


def described(python: Path) -> str:
    """Say where an interpreter comes from, since how it was built makes a part of its speed."""
    if python.parent == Path("/usr/bin"):
        return "the distribution's"
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    optimized = "--enable-optimizations" in arguments
    return f"built {'with' if optimized else 'without'} --enable-optimizations"


def versions(peers: list[Peer]) -> dict[str, str]:
    init = (ROOT / "src" / "fulgate" / "__init__.py").read_text()
    found = {
        "fulgate": init.partition('__version__ = "')[2].partition('"')[0],
        "Python": f"{platform.python_version()} ({described(base_python())})",
    }
    commit = first_line("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    if commit and "fatal" not in commit:
        changed = first_line("git", "-C", str(ROOT), "status", "--porcelain", "src")
        found["fulgate"] += f" ({commit}{' and changes' if changed else ''})"
    if any("compiled" in peer.groups for peer in peers):
        found["fulgate-compiled"] = first_line(str(COMPILED_PYTHON), "-m", "fulgate", "--version")
    installed = pip_versions()
    for requirement in dict.fromkeys(name for peer in peers for name in peer.requirements):
        name = requirement.partition("=")[0].rstrip(">")
        found[name] = installed.get(name, "unknown")
    if program := shutil.which("nginx", path=SEARCH):
        found["nginx"] = first_line(program, "-v").rpartition("/")[2]
    if shutil.which("wrk"):
        found["wrk"] = first_line("wrk", "-v").split()[1]
    found["cc"] = first_line("cc", "-dumpfullversion")
    used = {peer.program for peer in peers}
    if "php-fpm" in used:
        found["PHP"] = first_line(php_fpm(), "-n", "-v").split()[1]
    if "go" in used:
        found["Go"] = first_line("go", "version").split()[2]
    return found


def missing(ways: list[str]) -> list[str]:
    needed = ["cc", *(["nginx", "wrk"] if "nginx" in ways else [])]
    return [program for program in needed if not shutil.which(program, path=SEARCH)]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure_startups(run: Run, peers: list[Peer]) -> None:
    """Start each peer by itself; who does not start takes part in nothing else."""
    for peer in peers:
        try:
            there = run.startups[peer.name] = startup(peer)
        except NotServing as error:
            run.add_failed(peer.name, str(error))
            say(f"{peer.name}: FAILED: {error}")
        else:
            say(f"{peer.name}: start {there.start_ms:.0f} ms, RSS {there.rss_mb:.1f} MB")


def measure_rounds(chosen: argparse.Namespace, run: Run, peers: list[Peer]) -> None:
    for turn in range(chosen.rounds):
        cells = plan(chosen, turn, [peer for peer in peers if peer.name not in run.failed])
        for number, cell in enumerate(cells):
            what = f"{turn + 1}/{chosen.rounds} {number + 1}/{len(cells)} {' '.join(cell)}"
            try:
                figures = measured(chosen, cell)
            except (NotServing, OSError, AssertionError, ValueError) as error:
                run.add_broken(cell, str(error) or type(error).__name__)
                say(f"{what}: FAILED: {error}")
                continue
            run.add(cell, figures)
            say(
                f"{what}: {figures.rps:,.0f}/s, {figures.cpu_us:.1f} µs, p99 {figures.p99_us:,.0f} "
                f"µs, errors {figures.errors}, others {figures.foreign_share:.0%}"
            )


def main() -> int:
    chosen = options()
    lacking = missing(chosen.ways)
    if lacking:
        say(f"not installed: {', '.join(lacking)}")
        return 2
    if len(os.sched_getaffinity(0)) < 2:
        say("the benchmark needs two cores: one for the server, one for the load")
        return 2
    began = time.monotonic()
    failed = prepare([PEERS[name] for name in chosen.peers])
    peers = [PEERS[name] for name in chosen.peers if name not in failed]
    run = Run(this_machine(), versions(peers), chosen.seconds, chosen.rounds)
    for name, reason in failed.items():
        run.add_failed(name, reason)
        say(f"{name}: NOT MEASURED: {reason}")
    try:
        if chosen.startup:
            measure_startups(run, peers)
        measure_rounds(chosen, run, peers)
    except KeyboardInterrupt:
        say("interrupted: this is what was measured until now")
        chosen.docs = None
    write(run, chosen.results)
    if chosen.docs:
        put_into(run, chosen.docs, chosen.results)
    print(markdown(run))
    say(f"{(time.monotonic() - began) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
