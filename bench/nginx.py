"""One nginx worker in front of a server, and wrk in front of nginx."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peers import SEARCH, Peer
from workloads import Workload

# No answer and no body goes through a file: the disk is not to be measured.
CONFIGURATION = """
daemon off; worker_processes 1; worker_rlimit_nofile 8192; {user}
pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; client_max_body_size 0;
  client_body_buffer_size 128k;
  client_body_temp_path {folder}/t1; fastcgi_temp_path {folder}/t2; proxy_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  fastcgi_max_temp_file_size 0; proxy_max_temp_file_size 0; uwsgi_max_temp_file_size 0;
  fastcgi_buffers 8 16k; proxy_buffers 8 16k; uwsgi_buffers 8 16k;
  upstream app {{ server unix:{path}; {keepalive} }}
  server {{ listen 127.0.0.1:{port} backlog=2048; location / {{ {location} }} }}
}}
"""
LOCATIONS = {
    "fastcgi": "include /etc/nginx/fastcgi_params; fastcgi_pass app; fastcgi_keep_conn {keep};",
    "uwsgi": "include /etc/nginx/uwsgi_params; uwsgi_pass app;",
    "scgi": "include /etc/nginx/scgi_params; scgi_pass app;",
    "http": "proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Host $http_host;"
    ' proxy_set_header Connection "{connection}";',
}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def configuration(folder: Path, path: Path, port: int, peer: Peer, workload: Workload) -> str:
    kept = f"keepalive {workload.connections}; keepalive_requests 1000000000;"
    location = LOCATIONS[peer.speaks].format(
        keep="on" if workload.keep else "off", connection="" if workload.keep else "close"
    )
    location += "".join(f" fastcgi_param {n} {value};" for n, value in peer.params.items())
    return CONFIGURATION.format(
        folder=folder, path=path, port=port, location=location,
        keepalive=kept if workload.keep else "", user="" if os.getuid() else "user root;",
    )  # fmt: skip


@contextmanager
def nginx(folder: Path, path: Path, peer: Peer, workload: Workload) -> Iterator[tuple[int, int]]:
    """Run one nginx worker in front of a socket; give its process id and port."""
    port = _free_port()
    file = folder / "nginx.conf"
    file.write_text(configuration(folder, path, port, peer, workload))
    program = shutil.which("nginx", path=SEARCH)
    assert program
    process = subprocess.Popen([program, "-c", file, "-e", folder / "error.log"])
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


def wrk(folder: Path, port: int, workload: Workload, seconds: float) -> subprocess.Popen[str]:
    """Start wrk; it measures for whole seconds."""
    command = ["wrk", "-t1", f"-c{workload.connections}", f"-d{max(round(seconds), 1)}s"]
    command += ["--latency"]
    if workload.body:
        script = folder / "request.lua"
        script.write_text(
            f'wrk.method = "POST"\nwrk.body = string.rep("x", {workload.body})\n'
            'wrk.headers["Content-Type"] = "application/octet-stream"\n'
        )
        command += ["--script", str(script)]
    url = f"http://127.0.0.1:{port}{workload.path}"
    return subprocess.Popen([*command, url], stdout=subprocess.PIPE, text=True)


_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 6e7}


def _time(text: str) -> float:
    """Give microseconds for wrk's "1.23ms"."""
    found = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    assert found, text
    return float(found[1]) * _UNITS[found[2]]


def _size(text: str) -> float:
    """Give bytes for wrk's "1.23MB"."""
    found = re.fullmatch(r"([\d.]+)([KMG]?)B", text)
    assert found, text
    return float(found[1]) * _SIZES[found[2]]


def what_failed(folder: Path, output: str) -> str:
    """Give the first error that nginx noted, else what wrk says of errors."""
    log = folder / "error.log"
    for line in log.read_text(errors="replace").splitlines() if log.exists() else ():
        if found := re.search(
            r"\[(?:error|crit|alert)\] \S+ (?:\*\d+ )?(.*?)(?:, client:|$)", line
        ):
            return found[1]
    return "; ".join(line.strip() for line in re.findall(r"Socket errors:.*|Non-2xx.*", output))


def wrk_figures(output: str) -> dict[str, float]:
    """Read what wrk printed."""

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
        "bytes": _size(find(r"requests in \S+, (\S+) read")),
        "rps": float(find(r"Requests/sec:\s+([\d.]+)")),
        "p50_us": _time(find(r"\n\s+50%\s+(\S+)")),
        "p99_us": _time(find(r"\n\s+99%\s+(\S+)")),
        "max_us": _time(find(r"Latency\s+\S+\s+\S+\s+(\S+)")),
        "errors": float(errors),
    }
