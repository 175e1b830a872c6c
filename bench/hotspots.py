"""Show where `fulgate serve` spends its time on a workload. usage: python bench/hotspots.py --help

By default with cProfile, which counts calls (per request) and inflates the cost of small ones;
--sample asks py-spy instead, which costs little and tells times as they are; --syscalls counts
system calls with strace. With --compiled it is the compiled build that is looked into, by the
names of its C functions, while they hold the GIL: system calls are not among its samples.
"""

from __future__ import annotations

import argparse
import json
import os
import pstats
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from install import prepare
from loads import load_command
from peers import BENCH, COMPILED_PYTHON, PEERS, PYTHON, VENV, Peer
from running import Running
from workloads import WORKLOADS


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--workload", choices=list(WORKLOADS), default="hello")
    add("--connections", type=int, default=32)
    add("--seconds", type=float, default=3.0)
    add("--threads", type=int, default=8, help="of the server")
    add("--lines", type=int, default=40, help="of the output")
    add("--sort", choices=["tottime", "cumtime", "ncalls"], default="tottime")
    add("--sample", action="store_true", help="with py-spy")
    add("--syscalls", action="store_true", help="with strace")
    add("--compiled", action="store_true", help="the compiled build; with --sample or --syscalls")
    chosen = parser.parse_args()
    if chosen.compiled and not (chosen.sample or chosen.syscalls):
        parser.error("cProfile does not see compiled functions: add --sample or --syscalls")
    return chosen


def peer_of(chosen: argparse.Namespace) -> Peer:
    return PEERS["fulgate-compiled" if chosen.compiled else "fulgate"]


def load(chosen: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Load the server on its socket; give what the load generator saw."""
    workload = replace(WORKLOADS[chosen.workload], connections=chosen.connections)
    command = load_command(peer_of(chosen), workload, path, chosen.seconds, warmup=0)
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def served(chosen: argparse.Namespace, before: list[str], path: Path) -> Running:
    """Give `fulgate serve`, not yet started, with `before` in place of the module's name."""
    last = max(os.sched_getaffinity(0))

    def command(at: Path) -> list[str]:
        serve = ["serve", "work:app", "--bind", f"unix:{at}", "--threads", str(chosen.threads)]
        return [*before, *serve]

    peer: Peer = replace(peer_of(chosen), command=command)
    return Running(peer, path, last)


def python_of(chosen: argparse.Namespace) -> str:
    return str(COMPILED_PYTHON if chosen.compiled else PYTHON)


def shortened(name: str) -> str:
    for folder in (str(BENCH.parent) + "/src/", str(BENCH) + "/", sys.base_prefix):
        name = name.replace(folder, "")
    return name[-60:]


def by_calls(chosen: argparse.Namespace, folder: Path) -> None:
    out = folder / "profile"
    with served(chosen, [str(PYTHON), str(BENCH / "profiled.py"), str(out)], folder / "s") as run:
        requests = load(chosen, run.path)["requests_all"]
    if not out.exists():
        raise RuntimeError("no profile was written:\n" + run.log.read_text()[-2000:])
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, object]]
    stats = vars(pstats.Stats(str(out)))["stats"]
    order = {"ncalls": 0, "tottime": 1, "cumtime": 2}[chosen.sort]
    print(f"{requests} requests; per request:\n  calls  own µs  all µs")
    rows = sorted(stats.items(), key=lambda item: item[1][1:4][order], reverse=True)
    for (file, line, function), (_, count, own, total, _) in rows[: chosen.lines]:
        place = f"{shortened(file)}:{line} " if line else ""
        print(
            f"{count / requests:7.2f} {own * 1e6 / requests:7.2f} {total * 1e6 / requests:7.2f}  "
            f"{place}{function}"
        )
    calls = sum(value[1] for value in stats.values())
    print(f"{calls / requests:7.2f} calls in all")


def by_samples(chosen: argparse.Namespace, folder: Path) -> None:
    spy = VENV / "bin" / "py-spy"
    if not spy.exists():
        subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", "py-spy"], check=True)
    out = folder / "samples"
    with served(chosen, [python_of(chosen), "-m", "fulgate"], folder / "s") as run:
        record = subprocess.Popen(
            [spy, "record", "--pid", str(run.process.pid), "--format", "raw", "--output", out,
             "--rate", "500", "--duration", str(max(1, int(chosen.seconds))),
             *(["--native", "--gil"] if chosen.compiled else ["--nonblocking"])],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        seen = load(chosen, run.path)
        record.wait(30)
    own: Counter[str] = Counter()
    everywhere: Counter[str] = Counter()
    for text in out.read_text().splitlines():
        stack, _, count = text.rpartition(" ")
        frames = stack.split(";")
        own[frames[-1]] += int(count)
        everywhere.update(dict.fromkeys(frames, int(count)))
    total = sum(own.values())
    print(f"{seen['rps']:,.0f} requests/s; {total} samples\n  own %  all %")
    for frame, samples in own.most_common(chosen.lines):
        short = re.sub(r"\(\w+__mypyc\..*\)", "(compiled)", frame)
        print(f"{100 * samples / total:7.1f} {100 * everywhere[frame] / total:6.1f}  {short}")


def by_system_calls(chosen: argparse.Namespace, folder: Path) -> None:
    if not shutil.which("strace"):
        raise SystemExit("not installed: strace")
    out = folder / "calls"
    with served(chosen, [python_of(chosen), "-m", "fulgate"], folder / "s") as run:
        strace = subprocess.Popen(
            ["strace", "-f", "-q", "-c", "-o", out, "-p", str(run.process.pid)]
        )
        time.sleep(0.5)
        requests = load(chosen, run.path)["requests_all"]
        strace.terminate()
        strace.wait(10)
    print(f"{requests} requests, while strace slowed them down\n")
    print(out.read_text())
    for text in out.read_text().splitlines():
        fields = text.split()
        if fields and fields[-1] == "total":
            print(f"{int(fields[3]) / requests:.2f} system calls a request")


def main() -> None:
    chosen = options()
    if failed := prepare([peer_of(chosen)]):
        raise SystemExit(next(iter(failed.values())))
    kind = by_samples if chosen.sample else by_system_calls if chosen.syscalls else by_calls
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        kind(chosen, Path(folder))


if __name__ == "__main__":
    main()
