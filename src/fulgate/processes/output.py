"""What workers write to standard output and error: caught by the master, line by line.

Each worker has two pipes, whose other ends the master reads as it waits for whatever else happens:
so what a process says while it dies comes out, too. What is not read yet stays in the pipe, and
beyond that the worker waits as it would for a slow terminal; nothing of the master waits for it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from typing import Final

__all__ = ["Output", "Tell"]

STREAMS: Final = {1: "stdout", 2: "stderr"}
AT_ONCE: Final = 65536  # bytes that are read of a stream before others have their turn
LAST: Final = 1 << 20  # bytes that are read of what a worker has left, when it is gone
LONGEST: Final = 4096  # bytes of a line; a longer one becomes several

Tell = Callable[[int, str, str], None]  # a line: of which process, into which stream, the text


class _Stream:
    def __init__(self, number: int, fd: int) -> None:
        self.number = number
        self.fd = fd
        self.rest = b""  # of a line that has not ended

    def lines(self, data: bytes) -> Iterable[bytes]:
        """Give the lines that have ended, without their ends."""
        *whole, self.rest = (self.rest + data).split(b"\n")
        for line in whole:
            yield from _pieces(line)
        if len(self.rest) >= LONGEST:
            *whole, self.rest = _pieces(self.rest)
            yield from whole


def _pieces(line: bytes) -> list[bytes]:
    line = line.removesuffix(b"\r")
    return [line[at : at + LONGEST] for at in range(0, len(line), LONGEST)] or [b""]


class Output:
    """The output of one worker. Raises OSError where there are no pipes to be had."""

    def __init__(self, tell: Tell, adopted: Iterable[tuple[int, int]] = ()) -> None:
        self.pid = 0
        self._tell = tell
        self._streams = {fd: _Stream(number, fd) for number, fd in adopted}
        self._theirs: dict[int, int] = {}
        self._before: dict[int, int] = {}
        if not self._streams:
            try:
                for number in STREAMS:
                    ours, self._theirs[number] = os.pipe()
                    self._streams[ours] = _Stream(number, ours)
            except OSError:
                self.close()
                raise
        for fd in self._streams:
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)

    # ---------------------------------------------------------------- in the worker

    def take_over(self) -> None:
        """Have standard output and error lead here."""
        for number, fd in self._theirs.items():
            with contextlib.suppress(OSError):  # it may have been closed all along
                self._before[number] = os.dup(number)
            os.dup2(fd, number)
        self.close()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, ValueError, OSError):
                stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    def give_back(self) -> None:
        """The master is gone, and nobody reads: have them lead to where they did before."""
        for number, fd in self._before.items():
            os.dup2(fd, number)

    # ---------------------------------------------------------------- in the master

    def hired(self, pid: int) -> None:
        """The worker was forked: its ends are its own now."""
        self.pid = pid
        for fd in self._theirs.values():
            os.close(fd)
        self._theirs = {}

    @property
    def open(self) -> list[int]:
        """The descriptors from which more may come."""
        return list(self._streams)

    def leave(self) -> list[tuple[int, int]]:
        """Give the streams, by number and descriptor, to a program that is executed here."""
        for fd in self._streams:
            os.set_inheritable(fd, True)
        return [(stream.number, fd) for fd, stream in self._streams.items()]

    def read(self, fd: int) -> int:
        """Read what has come, and tell of the lines. Gives how many bytes that were."""
        stream = self._streams.get(fd)
        if stream is None:
            return 0
        try:
            data = os.read(fd, AT_ONCE)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        for line in stream.lines(data):
            self._say(stream, line)
        if not data:
            if stream.rest:
                self._say(stream, stream.rest)
            del self._streams[fd]
            os.close(fd)
        return len(data)

    def drain(self) -> None:
        """The worker is gone: read what it has left. Others that it started may go on writing."""
        for fd in self.open:
            total = 0
            while total < LAST and (found := self.read(fd)):
                total += found
            stream = self._streams.get(fd)
            if stream is not None and stream.rest:
                self._say(stream, stream.rest)
                stream.rest = b""

    def close(self) -> None:
        """Read no more."""
        for fd in (*self._streams, *self._theirs.values()):
            os.close(fd)
        self._streams, self._theirs = {}, {}

    def _say(self, stream: _Stream, line: bytes) -> None:
        self._tell(self.pid, STREAMS[stream.number], line.decode("utf-8", "backslashreplace"))
