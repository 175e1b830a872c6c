"""One measurement: a server under load, directly or behind nginx."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import busy_seconds, cpu_seconds, rss_bytes
from peers import BUILD, Peer, Running


@dataclass(frozen=True)
class Workload:
    """What is asked for. `keep`: does the web server keep its connections alive?"""

    name: str
    text: str
    path: str = "/"
    body: int = 0
    keep: bool = True


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("hello", "12 bytes, kept-alive connections"),
        Workload("hello-close", "12 bytes, a new connection for each request", keep=False),
    )
}


@dataclass
class Figures:
    """One measurement. Times in microseconds; `cpu_us` is the server's CPU time a request."""

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

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _wait(process: subprocess.Popen[str]) -> tuple[str, float]:
    """Give what a process printed and its CPU time in seconds."""
    assert process.stdout
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


def direct(peer: Peer, workload: Workload, connections: int, seconds: float) -> Figures:
    """Load a peer at its socket: the server alone on the last core, the load on the first."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder) / "sock"
        with Running(peer, path, cores[-1]) as server:
            command = [
                str(BUILD / "load"), "--json", "--cpu", str(cores[0]), "--warmup", "0.5",
                "--connections", str(connections), "--seconds", str(seconds),
                "--path", workload.path, "--body", str(workload.body),
                *([] if workload.keep else ["--close"]), f"unix:{path}",
            ]  # fmt: skip
            account = _Account(server.process.pid)
            load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            output, load_cpu = _wait(load)
            server_cpu, foreign = account.close(load_cpu)
            rss = rss_bytes(server.process.pid)
    seen = json.loads(output)
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
    )


NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; {user}
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; client_max_body_size 0;
  client_body_temp_path {folder}/t1; fastcgi_temp_path {folder}/t2; proxy_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  upstream app {{ server unix:{path}; {keepalive} }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ include /etc/nginx/fastcgi_params; fastcgi_pass app; fastcgi_keep_conn {keep}; }}
  }}
}}
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def nginx(folder: Path, path: Path, connections: int, keep: bool) -> Iterator[tuple[int, int]]:
    """Run one nginx worker in front of a socket; give its process id and port."""
    port = _free_port()
    kept = f"keepalive {connections}; keepalive_requests 1000000000;" if keep else ""
    configuration = folder / "nginx.conf"
    configuration.write_text(
        NGINX.format(
            folder=folder, path=path, port=port, keepalive=kept, keep="on" if keep else "off",
            user="" if os.getuid() else "user root;",
        )
    )  # fmt: skip
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
    assert program
    process = subprocess.Popen([program, "-c", configuration, "-e", folder / "error.log"])
    try:
        until = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.02)
        yield process.pid, port
    finally:
        process.terminate()
        process.wait(10)


_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 6e7}


def _time(text: str) -> float:
    """Give microseconds for wrk's "1.23ms"."""
    found = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    assert found, text
    return float(found[1]) * _UNITS[found[2]]


def _wrk_figures(output: str) -> dict[str, float]:
    def find(pattern: str) -> str:
        found = re.search(pattern, output)
        assert found, output
        return found[1]

    errors = sum(
        int(count)
        for line in re.findall(r"Socket errors:.*|Non-2xx.*", output)
        for count in re.findall(r"\d+(?=,|$)", line)
    )
    return {
        "requests": float(find(r"(\d+) requests in")),
        "rps": float(find(r"Requests/sec:\s+([\d.]+)")),
        "p50_us": _time(find(r"\n\s+50%\s+(\S+)")),
        "p99_us": _time(find(r"\n\s+99%\s+(\S+)")),
        "max_us": _time(find(r"Latency\s+\S+\s+\S+\s+(\S+)")),
        "errors": float(errors),
    }


def _wrk(port: int, path: str, connections: int, seconds: float) -> tuple[str, float]:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}s", "--latency"]
    url = f"http://127.0.0.1:{port}{path}"
    return _wait(subprocess.Popen([*command, url], stdout=subprocess.PIPE, text=True))


def through_nginx(peer: Peer, workload: Workload, connections: int, seconds: float) -> Figures:
    """Load a peer by wrk through one nginx worker; nothing is pinned."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        path = folder / "sock"
        with (
            Running(peer, path) as server,
            nginx(folder, path, connections, workload.keep) as (pid, port),
        ):
            began = time.monotonic()
            account = _Account(server.process.pid, pid)
            output, load_cpu = _wrk(port, workload.path, connections, seconds)
            wall = time.monotonic() - began
            server_cpu, foreign = account.close(load_cpu)
            rss = rss_bytes(server.process.pid)
    seen = _wrk_figures(output)
    return Figures(
        rps=seen["rps"],
        cpu_us=server_cpu * 1e6 / max(seen["requests"], 1),
        p50_us=seen["p50_us"],
        p99_us=seen["p99_us"],
        max_us=seen["max_us"],
        rss_mb=rss / 1e6,
        errors=int(seen["errors"]),
        never_served=None,
        load_share=load_cpu / wall,
        foreign_share=foreign,
    )


WAYS = {"direct": direct, "nginx": through_nginx}
