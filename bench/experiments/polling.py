"""Leader and followers, or every thread polls? usage: python bench/experiments/polling.py

Runs `fulgate serve` as it is, and with a driver in which each thread polls for itself, takes one
event, serves it, and arms the connection again (EPOLLONESHOT): what a pool of threads on a shared
poller usually does. All else, protocol, gateway and connections, is the same code. Prints a table.

As `polling.py --serve SETTINGS...` it is that other server.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

BENCH = Path(__file__).parents[1]
sys.path.insert(0, str(BENCH))

from install import prepare  # noqa: E402
from loads import load_command  # noqa: E402
from machine import busy_seconds, cpu_seconds, this_machine  # noqa: E402
from peers import PEERS, PYTHON, Peer  # noqa: E402
from running import Running  # noqa: E402
from workloads import WORKLOADS  # noqa: E402

THREADS = (8, 64)
WORK = ("hello", "wait", "compute")


def serve_naively() -> None:
    """Become `fulgate`, with the other driver in the place of its own."""
    from fulgate import cli
    from fulgate.drivers import poller as pollers
    from fulgate.drivers import threads
    from fulgate.drivers.poller import READ, EpollPoller
    from fulgate.drivers.worker import Worker

    importlib.import_module("fulgate.serve")  # `fulgate.serve` is the function of that name

    class OneShot(EpollPoller):
        """Tells of a descriptor once, to one thread, until it is armed again."""

        def __init__(self) -> None:
            self.masks: dict[int, int] = {}
            super().__init__()

        def register(self, fd: int, mask: int) -> None:
            if mask == READ:  # a listening socket; a connection is watched for its end too
                super().register(fd, mask)
            else:
                self.masks[fd] = mask
                super().register(fd, mask | select.EPOLLONESHOT)

        def modify(self, fd: int, mask: int) -> None:
            self.masks[fd] = mask
            super().modify(fd, mask | select.EPOLLONESHOT)

        def unregister(self, fd: int) -> None:
            self.masks.pop(fd, None)
            super().unregister(fd)

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            return self._epoll.poll(timeout, 1)

        def arm(self, fd: int) -> None:
            mask = self.masks.get(fd)
            if mask is not None:
                with contextlib.suppress(OSError):  # another thread has closed it
                    super().modify(fd, mask | select.EPOLLONESHOT)

    poller = OneShot()

    class Naive(threads.Threads):
        def start(self) -> None:
            self._leader = Worker()  # nobody: so that the control thread does not poll too
            super().start()

        def _follow(self, me: Worker) -> None:
            events = poller.poll(-1)
            self._handle(events)
            with contextlib.suppress(IndexError):
                while True:  # several, when connections were accepted that have sent already
                    self._run(me, self.pending.popleft())
            for fd, _ in events:
                poller.arm(fd)

    setattr(pollers, "make", lambda _: poller)  # noqa: B010
    setattr(sys.modules["fulgate.serve"], "Threads", Naive)  # noqa: B010
    cli.main()


def naive(peer: Peer) -> Peer:
    """Give a peer that starts Fulgate with the other driver."""

    def command(path: Path) -> list[str]:
        serve = peer.command(path)
        return [str(PYTHON), __file__, "--serve", *serve[serve.index("serve") :]]

    return replace(peer, command=command)


def threaded(count: int) -> Peer:
    return replace(
        PEERS["fulgate"],
        command=lambda path: [*PEERS["fulgate"].command(path), "--threads", str(count)],
    )


def measure(peer: Peer, name: str, pinned: bool, seconds: float) -> str:
    """Give requests a second, the server's CPU time a request, and the longest latency."""
    core = max(os.sched_getaffinity(0)) if pinned else None
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        with Running(peer, Path(folder) / "sock", core) as server:
            before = cpu_seconds(server.process.pid)
            command = load_command(peer, WORKLOADS[name], server.path, seconds)
            if not pinned:
                command = [part for part in command if not part.startswith("--cpu=")]
            done = subprocess.run(command, stdout=subprocess.PIPE)
            cpu = cpu_seconds(server.process.pid) - before
    seen = json.loads(done.stdout)
    longest = max(seen["max_us"], seen["oldest_unanswered_us"]) / 1000
    cost = cpu * 1e6 / max(seen["requests_all"], 1)
    return f"{seen['rps']:,.0f} · {cost:,.0f} · {longest:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    chosen = parser.parse_args()
    if failed := prepare([PEERS["fulgate"]]):
        raise SystemExit(next(iter(failed.values())))
    began, busy = time.monotonic(), busy_seconds()
    print(f"{this_machine()}. Requests a second · CPU µs a request · longest latency in ms.\n")
    print("| server | " + " | ".join(f"{w}, {p}" for p in ("pinned", "not") for w in WORK) + " |")
    print("|---" + "|--:" * len(WORK) * 2 + "|")
    servers = [("one thread", threaded(1))]
    for count in THREADS:
        servers.append((f"leader, {count} threads", threaded(count)))
        servers.append((f"each polls, {count} threads", naive(threaded(count))))
    for title, peer in servers:
        cells = [
            measure(peer, name, pinned, chosen.seconds) for pinned in (True, False) for name in WORK
        ]
        print(f"| {title} | " + " | ".join(cells) + " |", flush=True)
    ours = sum(os.times()[:4])
    foreign = (busy_seconds() - busy - ours) / (time.monotonic() - began) / (os.cpu_count() or 1)
    print(f"\nOther processes had {max(foreign, 0):.0%} of the machine meanwhile.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        del sys.argv[1]
        serve_naively()
    else:
        main()
