"""A thread that runs the application, and what is counted of it."""

from __future__ import annotations

import os
import threading
from time import perf_counter
from typing import Protocol

from fulgate.drivers.lead import Sample
from fulgate.drivers.wire import Wire
from fulgate.exchange import Exchange

__all__ = ["Cell", "Score", "Worker"]


class Cell(Protocol):
    """Where a thread keeps what it runs and has run. `now` is of time.monotonic()."""

    @property
    def number(self) -> int: ...  # of the request that runs
    def begin(self, now: float) -> None: ...
    def tell(self, exchange: Exchange, number: int) -> None: ...
    def end(self, exchange: Exchange, now: float) -> None: ...
    def open(self, now: float) -> None: ...  # as `begin`, of what may last: a WebSocket
    def note(self, exchange: Exchange, lasted: float) -> None: ...  # that it has failed
    def add(self, exchange: Exchange, now: float, began: float) -> None: ...  # only count it


class Score(Protocol):
    """Where a driver keeps what it does: the process's place on a scoreboard."""

    def thread(self) -> Cell | None: ...
    def connected(self, connections: int) -> None: ...  # tell how many there are, at once
    def ahead(self) -> bool: ...  # has another process clearly fewer of them?
    def tell(
        self,
        connections: int,
        queued: int,
        accepted: int,
        refused: int,
        dropped: int,
        queue_most: int = 0,
        queue_full: int = 0,
    ) -> None: ...


class Worker:
    """A thread that runs the application."""

    def __init__(self) -> None:
        self.parked = threading.Lock()  # released by whoever has something for it
        self.parked.acquire()
        self.exchange: Exchange | None = None  # what it runs; and for which connection,
        self.connection: Wire | None = None  # set before that
        self.seen: Exchange | None = None  # the control thread's: the exchange at the last tick
        self.cell: Cell | None = None
        self.told: Exchange | None = None  # the control thread's: what it has told the cell of
        self.slow: Exchange | None = None  # the control thread's: what it has told to be slow
        self.late: Exchange | None = None  # and what had more than its time
        self.began = 0.0  # when what it runs began
        self.requests = 0
        self.polled = 0.0  # seconds in the poll, but for the one that goes on,
        self.polls_since = 0.0  # since then, of perf_counter; 0 if none does
        self.thread: threading.Thread | None = None
        self._schedstat = -1

    @property
    def ident(self) -> int | None:
        return self.thread.ident if self.thread else None

    def tell(self, exchange: Exchange) -> None:
        """Have the cell say which request runs, once; by the control thread."""
        cell = self.cell
        if cell is None or self.told is exchange:
            return
        self.told = exchange
        number = cell.number
        # Not over when we looked: so the number was this one's.
        if self.exchange is exchange and not exchange.ended and not exchange.aborted:
            cell.tell(exchange, number)

    def sample(self) -> Sample | None:
        """Give the thread's counters, or None where the kernel does not tell."""
        try:
            if self._schedstat < 0 and self.thread is not None:
                path = f"/proc/self/task/{self.thread.native_id}/schedstat"
                self._schedstat = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            cpu, queued, _ = os.pread(self._schedstat, 128, 0).split()
        except (OSError, ValueError):
            return None
        now, polls_since = perf_counter(), self.polls_since
        polled = self.polled + (now - polls_since if polls_since else 0.0)
        return Sample(now, int(cpu) / 1e9, int(queued) / 1e9, polled, self.requests)

    def close(self) -> None:
        if self._schedstat >= 0:
            os.close(self._schedstat)
            self._schedstat = -1
