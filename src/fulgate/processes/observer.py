"""The observer: a process beside the workers, which answers for the status of all pools.

The master forks it as it forks workers. It reads the scoreboards in the memory that they share, and
nothing else, so that it answers whatever the workers do; who asks slowly, or wants too much, has to
do with it alone, and costs the master nothing. It has threads, which the master, who forks, has
not. It ends when the master closes its end of a channel, or is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
from collections.abc import Callable, Iterable, Mapping
from time import monotonic, sleep
from typing import Final, NoReturn, Protocol

from fulgate.processes.scoreboard import Scoreboard
from fulgate.processes.worker import IGNORED

__all__ = ["Boards", "Observer", "Watches"]

log = logging.getLogger("fulgate")

FIRST_PAUSE: Final = 1.0  # seconds before another is forked, when one has died; doubles
LONGEST_PAUSE: Final = 60.0
AT_END: Final = 3.0  # seconds for it to end, when the master does
LASTED: Final = 60.0  # seconds after which one that dies does not count as a failure


class Watches(Protocol):
    """What the observer runs, in threads of its own."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


Boards = Mapping[str, Scoreboard]


class Observer:
    """The master's side of it.

    `make` gives, in the new process, what answers for these scoreboards; `wanted` says whether
    there is to be any; `close_in_child` closes there what belongs to the master alone.
    """

    def __init__(
        self,
        wanted: Callable[[], bool],
        make: Callable[[Boards], Watches],
        close_in_child: Callable[[], None],
        reopen: Callable[[], object],
    ) -> None:
        self.pid = 0
        self._wanted = wanted
        self._make = make
        self._close_in_child = close_in_child
        self._reopen = reopen
        self._channel: socket.socket | None = None
        self._ended: set[int] = set()  # such as were told to end, and are yet to be reaped
        self._began = 0.0
        self._pause = 0.0
        self._again = 0.0  # when another may be forked

    def look(self, boards: Boards, now: float) -> None:
        """Fork it, when there is to be one and there is none."""
        if self.pid or now < self._again or not self._wanted():
            return
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            self._cannot(error, now)
            return
        try:
            pid = os.fork()
        except OSError as error:
            ours.close()
            theirs.close()
            self._cannot(error, now)
            return
        if not pid:
            ours.close()
            self._child(theirs, boards)
        theirs.close()
        self.pid, self._channel, self._began = pid, ours, now

    def renew(self) -> None:
        """Have the next `look` fork another, of the configuration and the pools as they are now.

        The one there is answers who has connected already, and ends.
        """
        self.end()
        self._again = self._pause = 0.0

    def end(self) -> None:
        """Have it end."""
        if self.pid:
            self._ended.add(self.pid)
        self.pid = 0
        self.close()

    def close(self) -> None:
        """Close the channel; in a worker that was forked meanwhile, too."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def leave(self) -> tuple[int, int] | None:
        """Give process id and channel to a master that is executed in the place of this one."""
        if self._channel is None:
            return None
        self._channel.set_inheritable(True)
        return self.pid, self._channel.fileno()

    def adopt(self, pid: int, channel: int) -> None:
        """Take over one that a master of before has left; it is replaced by `renew`."""
        self.pid, self._channel = pid, socket.socket(fileno=channel)
        self._channel.set_inheritable(False)

    def reap(self, now: float) -> None:
        """See whether it has died, and let go of those that were told to end."""
        for pid in [*self._ended, *([self.pid] if self.pid else [])]:
            try:
                found, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                found, status = pid, 0
            if not found:
                continue
            self._ended.discard(pid)
            if pid == self.pid:
                self.pid = 0
                self.close()
                self._pause = 0.0 if now - self._began > LASTED else self._pause
                self._pause = min(max(FIRST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
                self._again = now + self._pause
                code = os.waitstatus_to_exitcode(status)
                log.error("the observer %d, who answers for the status, ended with %d", pid, code)

    @property
    def known(self) -> Iterable[int]:
        """The processes that are ours to reap."""
        return self._ended | ({self.pid} if self.pid else set())

    @property
    def missing(self) -> bool:
        """Is there none, although there should be one?"""
        return not self.pid and self._wanted()

    def kill(self) -> None:
        """The master ends: so it has to, and any that has not ended yet."""
        self.end()
        end = monotonic() + AT_END
        while self._ended and monotonic() < end:
            sleep(0.01)
            self.reap(monotonic())
        for pid in self._ended:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        self._ended.clear()

    def tell(self, number: int) -> None:
        """Send it a signal."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _cannot(self, error: OSError, now: float) -> None:
        log.error("cannot fork the observer: %s", error.strerror)
        self._again = now + FIRST_PAUSE

    # ---------------------------------------------------------------- in the new process

    def _child(self, master: socket.socket, boards: Boards) -> NoReturn:
        status = 1
        try:
            self._close_in_child()
            self._live(master, boards)
            status = 0
        except BaseException:
            log.exception("the observer failed")
        finally:
            os._exit(status)

    def _live(self, master: socket.socket, boards: Boards) -> None:
        for name in (*IGNORED, "SIGTERM"):  # who stops the master stops the observer, in time
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, lambda number, frame: self._reopen())
        watches = self._make(boards)
        watches.start()
        poll = select.poll()
        poll.register(master, select.POLLIN)
        while not poll.poll():
            pass
        watches.stop()
