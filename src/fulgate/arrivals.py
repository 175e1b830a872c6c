"""The signals that end a server or have it open its logs anew, for a main thread that waits."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from types import FrameType, TracebackType
from typing import Self

__all__ = ["Arrivals"]


class Arrivals:
    """Handles signals while it is entered, which only the main thread may. Raises ValueError else.

    Those of `stop` are there for `next`; SIGUSR1 and SIGHUP call `reopen`, if it is given, in the
    main thread. SIGHUP does not where a terminal is standard input, which has ended then.

    `on_stop`, where it is set, is called in the handler, by a main thread that does not wait.
    """

    on_stop: Callable[[], object] | None = None

    def __init__(self, stop: Iterable[int], reopen: Callable[[], object] | None) -> None:
        self._reopen = reopen
        self._stop = tuple(stop)
        self._logs = _log_signals() if reopen is not None else ()
        self._arrived: SimpleQueue[int] = SimpleQueue()  # its put may be called in a handler
        self._lock = threading.Lock()  # of `tell`, which another thread calls
        self._writer = -1

    def __enter__(self) -> Self:
        self._before = {one: signal.signal(one, self._note) for one in (*self._stop, *self._logs)}
        # A thread that waits for a lock misses a signal that comes just before it waits, or that
        # another thread got: the interpreter's byte in a pipe is there all the same.
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        with self._lock:
            os.close(self._reader)
            os.close(self._writer)
            self._writer = -1
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.on_stop is not None and number in self._logs:
            self._reopened()
            return
        self._arrived.put(number)
        if self.on_stop is not None:
            self.on_stop()

    def _reopened(self) -> None:
        if self._reopen is not None:
            self._reopen()

    @property
    def count(self) -> int:
        """How many have arrived that nobody took."""
        return self._arrived.qsize()

    def next(self) -> int:
        """Wait for the next one that ends the server, or for what was told, and take it."""
        while True:
            while self._arrived.empty():
                os.read(self._reader, 512)
            number = self._arrived.get()
            if number not in self._logs:
                return number
            self._reopened()

    def tell(self, number: int) -> None:
        """Have `next` return; from any thread, also when there is nobody any more to be told."""
        self._arrived.put(number)
        with self._lock:
            if self._writer >= 0:
                with contextlib.suppress(BlockingIOError):  # it is full of bytes that wake too
                    os.write(self._writer, b"\0")

    def by_default(self) -> None:
        """From here on the signals do what they do to a process that does not handle them."""
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)


def _log_signals() -> tuple[int, ...]:
    """The signals that have the logs opened anew, those apart that were ignored from the start."""
    wanted = [signal.SIGUSR1] if os.isatty(0) else [signal.SIGUSR1, signal.SIGHUP]
    return tuple(number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN)
