"""One measurement: a server under load, directly or behind nginx."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from machine import busy_seconds, cpu_seconds, rss_bytes
from nginx import nginx, what_failed, wrk, wrk_figures
from peers import BUILD, Peer
from running import NotServing, Running
from workloads import Workload


@dataclass
class Figures:
    """One measurement. Times in microseconds; `cpu_us` is the server's CPU time a request.

    `paths` tells of each path by itself, where a workload has several (direct only).
    """

    rps: float
    cpu_us: float
    p50_us: float
    p99_us: float
    max_us: float
    rss_mb: float
    errors: int
    never_served: int | None  # connections without one answer; None: cannot be told
    load_share: float  # of a core, by the load generator
    foreign_share: float  # of the machine, by processes that are not ours
    first_error: str = ""
    idle_open: int = 0  # idle connections that the server kept
    paths: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _wait(process: subprocess.Popen[str]) -> tuple[str, float]:
    """Give what a process printed and its CPU time in seconds."""
    assert process.stdout
    with process.stdout:
        output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return output, usage.ru_utime + usage.ru_stime


class _Account:
    """CPU time over the span of a measurement: of the server, and of all others."""

    def __init__(self, server: int, *ours: int) -> None:
        self.server, self.ours = server, ours
        self.at, self.busy = time.monotonic(), busy_seconds()
        self.server_cpu, self.ours_cpu = cpu_seconds(server), sum(map(cpu_seconds, ours))

    def close(self, load_cpu: float) -> tuple[float, float]:
        """Give the server's CPU seconds, and the share of the machine that foreigners had."""
        wall = time.monotonic() - self.at
        server = cpu_seconds(self.server) - self.server_cpu
        ours = sum(map(cpu_seconds, self.ours)) - self.ours_cpu
        foreign = busy_seconds() - self.busy - server - ours - load_cpu
        return server, max(foreign, 0.0) / wall / (os.cpu_count() or 1)


def load_command(
    peer: Peer, workload: Workload, path: Path, seconds: float, warmup: float = 0.5
) -> list[str]:
    """Give the command line of the load generator, which runs on the first core."""
    options = {
        "cpu": min(os.sched_getaffinity(0)), "warmup": warmup, "seconds": seconds,
        "connections": workload.connections, "path": workload.path, "body": workload.body,
        "idle": workload.idle, "silent": workload.silent, "churn": workload.churn,
    }  # fmt: skip
    command = [str(BUILD / "load"), "--json"]
    command += [f"--{name}={value}" for name, value in options.items()]
    command += [f"--mix={share}={path}" for path, share in workload.mix.items()]
    command += [f"--aside={count}={path}" for path, count in workload.aside.items()]
    command += [f"--param={name}={value}" for name, value in peer.params.items()]
    keep = workload.keep and peer.keeps
    return [*command, *([] if keep else ["--close"]), f"unix:{path}"]


def check_answers(workload: Workload, size: float, count: float) -> None:
    """Raise NotServing when what came is not what was asked for."""
    # wrk rounds the bytes of a run to three figures, so its answers may seem a little short.
    if count and size < workload.answer * 0.98:
        raise NotServing(f"answers of {size:,.0f} bytes instead of {workload.answer:,}")


def direct(peer: Peer, workload: Workload, seconds: float) -> Figures:
    """Load a peer at its socket: the server alone on the last core, the load on the first."""
    core = max(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        with Running(peer, Path(folder) / "sock", core) as server:
            account = _Account(server.process.pid)
            command = load_command(peer, workload, server.path, seconds)
            load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            output, load_cpu = _wait(load)
            server.check()
            server_cpu, foreign = account.close(load_cpu)
            rss = rss_bytes(server.process.pid)
    seen = json.loads(output)
    check_answers(workload, seen["answer_bytes"], seen["requests"])
    return Figures(
        rps=seen["rps"],
        cpu_us=server_cpu * 1e6 / max(seen["requests_all"], 1),
        p50_us=seen["p50_us"],
        p99_us=seen["p99_us"],
        max_us=max(seen["max_us"], seen["oldest_unanswered_us"]),
        rss_mb=rss / 1e6,
        errors=seen["errors"],
        never_served=seen["never_served"],
        load_share=seen["load_cpu_share"],
        foreign_share=foreign,
        first_error=seen["first_error"],
        idle_open=seen["idle_open"],
        paths={
            one["path"]: {name: one[name] for name in ("rps", "p50_us", "p99_us", "max_us")}
            for one in seen["paths"]
            if len(seen["paths"]) > 1
        },
    )


def through_nginx(peer: Peer, workload: Workload, seconds: float) -> Figures:
    """Load a peer by wrk through one nginx worker; nothing is pinned."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        with (
            Running(peer, folder / "sock") as server,
            nginx(folder, server.path, peer, workload) as (pid, port),
        ):
            began = time.monotonic()
            account = _Account(server.process.pid, pid)
            output, load_cpu = _wait(wrk(folder, port, workload, seconds))
            wall = time.monotonic() - began
            server.check()
            server_cpu, foreign = account.close(load_cpu)
            rss = rss_bytes(server.process.pid)
            wrong = what_failed(folder, output)
    seen = wrk_figures(output)
    check_answers(workload, seen["bytes"] / max(seen["requests"], 1), seen["requests"])
    return Figures(
        rps=seen["rps"],
        cpu_us=server_cpu * 1e6 / max(seen["requests"], 1),
        p50_us=seen["p50_us"],
        p99_us=seen["p99_us"],
        max_us=seen["max_us"],
        rss_mb=rss / 1e6,
        errors=int(seen["errors"]),
        first_error=wrong if seen["errors"] else "",
        never_served=None,
        load_share=load_cpu / wall,
        foreign_share=foreign,
    )


WAYS = {"direct": direct, "nginx": through_nginx}
