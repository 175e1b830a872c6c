"""The load generator of `fulgate bench`: runs a plan in processes of its own, and adds up.

The loop never runs in the process that shows its progress: drawing would be taken for latency.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from fulgate.client.bench_figures import Counts
from fulgate.client.bench_load import Load
from fulgate.client.bench_plan import Plan
from fulgate.protocols.fastcgi_client import FastCGIClient, Params

__all__ = ["bench", "wire"]

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
FAILED: Final = "the load generator failed"
EVERY: Final = 4  # ticks between two reports of progress


def wire(params: Params, body: bytes, keep: bool) -> bytes:
    """Put a whole request into the bytes that go onto the wire. Raises as `FastCGIClient.begin`."""
    request, out = FastCGIClient().begin(params, keep=keep)
    return b"".join([*out, *request.send(body), *request.end()])


class _Reports:
    """The reports of one process, as they come out of its pipe: a line of JSON each."""

    def __init__(self, plan: Plan) -> None:
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            _run(plan, writing)
        os.close(writing)
        self.fd = reading
        self.counts: Counts | None = None
        self.answered = self.errors = 0
        self._rest = b""

    def read(self) -> bool:
        """Take what has come; False at the end."""
        data = os.read(self.fd, 1 << 20)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            found = json.loads(line)
            if isinstance(found, list):
                self.answered, self.errors = found
            else:
                self.counts = Counts.of(found)
        return bool(data)

    def close(self) -> None:
        os.close(self.fd)
        os.waitpid(self.pid, 0)


def bench(plan: Plan, processes: int, tell: Callable[[int, int], object]) -> Counts:
    """Run a plan in `processes` processes, each of which takes a share of it.

    `tell` gets the answers and the errors so far, several times a second. SIGINT and SIGTERM end
    it with what was seen so far; a second one at once.
    """
    reports: list[_Reports] = []
    with _stopped_by_signals(reports), selectors.DefaultSelector() as selector:
        # A signal in between would find a process that is not listed yet, or has no handler.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        for number in range(processes):
            reports.append(_Reports(plan.share(number, processes)))
            selector.register(reports[-1].fd, selectors.EVENT_READ, reports[-1])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            while selector.get_map():
                for key, _ in selector.select():
                    if not key.data.read():
                        selector.unregister(key.fd)
                tell(sum(r.answered for r in reports), sum(r.errors for r in reports))
        finally:
            for report in reports:
                report.close()
    total = Counts()
    for report in reports:
        total.merge(report.counts or Counts(fatal=FAILED))
    return total


@contextmanager
def _stopped_by_signals(reports: list[_Reports]) -> Iterator[None]:
    told = False

    def stop(number: int, frame: object) -> None:
        nonlocal told
        for report in reports:
            os.kill(report.pid, signal.SIGKILL if told else signal.SIGTERM)
        told = True

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(plan: Plan, fd: int) -> None:
    """Be the process that generates the load. Does not return."""
    status = 1
    try:
        ticks = 0

        def tell(answered: int, errors: int) -> None:
            nonlocal ticks
            ticks += 1
            if ticks % EVERY == 0:
                _write(fd, [answered, errors])

        load = Load(plan, tell)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes
        signal.signal(signal.SIGTERM, lambda number, frame: load.stop())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        gc.disable()  # nothing here makes cycles, and a collection would be taken for latency
        _write(fd, load.run().as_dict())
        status = 0
    except BrokenPipeError:
        pass  # nobody waits for the figures any more
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _write(fd: int, report: Any) -> None:
    data = json.dumps(report).encode() + b"\n"
    while data:
        data = data[os.write(fd, data) :]
