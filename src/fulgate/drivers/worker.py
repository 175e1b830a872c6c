"""A thread that runs the application, and what is counted of it."""

from __future__ import annotations

import os
import threading
from time import perf_counter

from fulgate.drivers.lead import Sample
from fulgate.drivers.wire import Task

__all__ = ["Worker"]


class Worker:
    """A thread that runs the application."""

    def __init__(self) -> None:
        self.parked = threading.Lock()  # released by whoever has something for it
        self.parked.acquire()
        self.task: Task | None = None
        self.seen: Task | None = None  # the control thread's: the task at the last tick
        self.requests = 0
        self.polled = 0.0  # seconds in the poll
        self.thread: threading.Thread | None = None
        self._schedstat = -1

    @property
    def ident(self) -> int | None:
        return self.thread.ident if self.thread else None

    def sample(self) -> Sample | None:
        """Give the thread's counters, or None where the kernel does not tell."""
        try:
            if self._schedstat < 0 and self.thread is not None:
                path = f"/proc/self/task/{self.thread.native_id}/schedstat"
                self._schedstat = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            cpu, queued, _ = os.pread(self._schedstat, 128, 0).split()
        except (OSError, ValueError):
            return None
        return Sample(perf_counter(), int(cpu) / 1e9, int(queued) / 1e9, self.polled, self.requests)

    def close(self) -> None:
        if self._schedstat >= 0:
            os.close(self._schedstat)
            self._schedstat = -1
