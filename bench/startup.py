"""What a server costs before and beside its load: start, memory, system calls."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from loads import load_command
from machine import rss_bytes, tree
from peers import APPS, PYTHON, Peer
from running import Running
from workloads import WORKLOADS

STARTS = 3


@dataclass
class Startup:
    """`start_ms`: from exec to the first answer, without the application's import; median.

    `syscalls`: system calls of a hello request on one kept-alive connection, by strace.
    """

    start_ms: float
    rss_mb: float
    syscalls: float | None


def import_ms() -> float:
    """Give how long the application's import takes, once its own imports are there."""
    code = (
        "import time; t = time.perf_counter(); import work; print(1000 * (time.perf_counter() - t))"
    )
    times = []
    for _ in range(STARTS):
        done = subprocess.run([PYTHON, "-c", code], cwd=APPS, stdout=subprocess.PIPE, check=True)
        times.append(float(done.stdout))
    return statistics.median(times)


def traced(pid: int) -> bool:
    """Tell whether all threads of a process are traced."""
    threads = list(Path(f"/proc/{pid}/task").glob("*/status"))
    return not any("TracerPid:\t0\n" in status.read_text() for status in threads)


def settled(root: int) -> list[int]:
    """Give a process tree once no more processes come: PHP-FPM starts all of its own at first."""
    before: list[int] = []
    while (found := tree(root)) != before:
        before = found
        time.sleep(0.3)
    return found


def system_calls(peer: Peer, server: Running, seconds: float) -> float | None:
    """Count the system calls of a hello request with `strace -c`, which slows the server much."""
    if not shutil.which("strace") or "direct" not in peer.ways:
        return None
    out = server.path.with_suffix(".calls")
    attach = [part for pid in settled(server.process.pid) for part in ("-p", str(pid))]
    strace = subprocess.Popen(
        ["strace", "-f", "-q", "-c", "-o", out, *attach],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + 5
        while not all(map(traced, tree(server.process.pid))) and time.monotonic() < until:
            time.sleep(0.02)
        hello = replace(WORKLOADS["hello"], connections=1)
        command = load_command(peer, hello, server.path, seconds, warmup=0)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    finally:
        strace.send_signal(signal.SIGINT)
        strace.wait(20)
    requests: int = json.loads(done.stdout)["requests_all"]
    total = [line.split() for line in out.read_text().splitlines() if line.endswith(" total")]
    return int(total[0][3]) / requests if total and requests else None


def startup(peer: Peer, seconds: float = 1.0) -> Startup:
    """Start a server a few times. Raises NotServing."""
    core = max(os.sched_getaffinity(0))
    times, rss, calls = [], [], None
    for turn in range(STARTS):
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            with Running(peer, Path(folder) / "sock", core) as server:
                times.append(server.started * 1000)
                rss.append(rss_bytes(server.process.pid) / 1e6)
                if turn == STARTS - 1:
                    calls = system_calls(peer, server, seconds)
    python = peer.paths is None
    return Startup(
        statistics.median(times) - (import_ms() if python else 0.0), statistics.median(rss), calls
    )
