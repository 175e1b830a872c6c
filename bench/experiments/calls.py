"""Count the system calls of a request, without slowing it. usage: calls.py WORKLOAD PEER ...

By `perf stat` on the kernel's tracepoints, where `strace -c` makes each call take a hundred times
as long, so that nothing is ready when it is looked for. Through nginx, whose calls are shown too.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from install import prepare
from machine import tree
from nginx import nginx, wrk, wrk_figures
from peers import PEERS, Peer
from running import Running
from workloads import WORKLOADS, Workload

SECONDS = 2.0
CALLS = [
    "accept4", "connect", "socket", "close", "shutdown", "getsockname", "getsockopt", "ioctl",
    "read", "recvfrom", "pread64", "write", "writev", "sendto", "sendmsg",
    "epoll_wait", "epoll_ctl", "poll", "futex", "madvise", "mprotect", "mmap", "munmap",
]  # fmt: skip
EVENTS = [f"syscalls:sys_enter_{name}" for name in CALLS] + ["context-switches", "page-faults"]


def watch(pid: int, out: Path) -> subprocess.Popen[bytes]:
    pids = ",".join(map(str, tree(pid)))
    command = ["perf", "stat", "-x", ";", "-o", str(out), "-e", ",".join(EVENTS), "-p", pids]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def counted(out: Path, requests: float) -> str:
    """Give what there was at least of one in fifty requests."""
    found = []
    for line in out.read_text().splitlines():
        fields = line.split(";")
        if len(fields) > 2 and fields[0].isdigit() and int(fields[0]) / requests >= 0.02:
            name = fields[2].removeprefix("syscalls:sys_enter_")
            found.append(f"{name} {int(fields[0]) / requests:.2f}")
    return ", ".join(found)


def measure(peer: Peer, workload: Workload, folder: Path) -> None:
    with (
        Running(peer, folder / "sock") as server,
        nginx(folder, server.path, peer, workload) as (pid, port),
    ):
        outs = [folder / "server.calls", folder / "nginx.calls"]
        watching = [
            watch(one, out) for one, out in zip((server.process.pid, pid), outs, strict=True)
        ]
        time.sleep(0.5)
        output, _ = wrk(folder, port, workload, SECONDS).communicate()
        for one in watching:
            one.send_signal(signal.SIGINT)
            one.wait(20)
        requests = wrk_figures(output)["requests"]
        print(f"{workload.name}, {peer.name}: {counted(outs[0], requests)}")
        print(f"{workload.name}, {peer.name}, nginx: {counted(outs[1], requests)}", flush=True)


def main() -> None:
    workload = WORKLOADS[sys.argv[1]]
    peers = [PEERS[name] for name in sys.argv[2:]]
    if failed := prepare(peers):
        raise SystemExit(next(iter(failed.values())))
    for peer in peers:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            measure(peer, workload, Path(folder))


if __name__ == "__main__":
    main()
