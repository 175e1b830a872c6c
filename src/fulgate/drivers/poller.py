"""Pollers that several threads share: epoll, kqueue, and poll(2) for the rest.

Events are bit masks of READ, WRITE, END and GONE. What is ready is reported by each poll, until it
is taken or `modify` asks for less: a request costs no call to arm its connection again. Any thread
may register, modify and unregister while another polls, so an event may be late: of something that
another thread has just taken, or of a number that names another descriptor by now. `wake` ends a
poll early, from any thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import weakref
from typing import Any, Final, Protocol

from fulgate.errors import ConfigError

__all__ = [
    "END",
    "GONE",
    "READ",
    "WRITE",
    "EpollPoller",
    "KqueuePoller",
    "PollPoller",
    "Poller",
    "make",
]

# The values are epoll's.
READ: Final = 1
WRITE: Final = 4
END: Final = 0x2000  # the peer sends no more; READ tells of that too (EPOLLRDHUP)
GONE: Final = 0x18  # there is no peer any more; needs not be asked for (EPOLLERR | EPOLLHUP)

POLLRDHUP: Final[int] = getattr(select, "POLLRDHUP", 0)  # where poll(2) has it

Events = list[tuple[int, int]]


class Poller(Protocol):
    """What the driver needs of a poller. `mask` is any of READ, WRITE and END, or 0."""

    def register(self, fd: int, mask: int) -> None: ...
    def modify(self, fd: int, mask: int) -> None: ...
    def unregister(self, fd: int) -> None: ...
    def poll(self, timeout: float) -> Events: ...  # seconds; below 0: without end
    def wake(self) -> None: ...
    def woken(self, fd: int) -> bool: ...  # was this event a wake-up, and no descriptor of yours?
    def close(self) -> None: ...


class WakePipe:
    """A pipe whose reading end becomes readable when somebody calls `wake`."""

    def __init__(self) -> None:
        self.fd, self._out = os.pipe()  # not inherited by programs that are executed (PEP 446)
        os.set_blocking(self.fd, False)
        os.set_blocking(self._out, False)
        self._close = weakref.finalize(self, _close_both, self.fd, self._out)
        self._close.atexit = False

    def wake(self) -> None:
        if self._out < 0:
            return  # closed
        # BlockingIOError: the pipe is full of wake-ups that nobody has taken yet.
        with contextlib.suppress(BlockingIOError):
            os.write(self._out, b"\0")

    def drain_if(self, fd: int) -> bool:
        if fd != self.fd:
            return False
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self.fd, 512)) == 512:
                pass
        return True

    def close(self) -> None:
        self._out = -1
        self._close()


def _close_both(one: int, other: int) -> None:
    os.close(one)
    os.close(other)


if sys.platform == "linux":

    class EpollPoller:
        """epoll(7), level-triggered."""

        def __init__(self) -> None:
            self._pipe = WakePipe()
            self._epoll = select.epoll()
            self._epoll.register(self._pipe.fd, select.EPOLLIN)

        def register(self, fd: int, mask: int) -> None:
            self._epoll.register(fd, mask)

        def modify(self, fd: int, mask: int) -> None:
            self._epoll.modify(fd, mask)

        def unregister(self, fd: int) -> None:
            self._epoll.unregister(fd)

        def poll(self, timeout: float) -> Events:
            return self._epoll.poll(timeout, 256)

        def woken(self, fd: int) -> bool:
            return self._pipe.drain_if(fd)

        def wake(self) -> None:
            self._pipe.wake()

        def close(self) -> None:
            self._epoll.close()
            self._pipe.close()


class KqueuePoller:
    """kqueue(2). The module is a parameter, so that a test can stand in for it.

    Read and write are filters of their own. It cannot tell END from GONE; without READ and END
    wanted it tells of neither, and with WRITE alone of GONE.
    """

    def __init__(self, module: Any = select) -> None:
        self._module = module
        self._pipe = WakePipe()
        self._kqueue = module.kqueue()
        self._kqueue.control(
            [module.kevent(self._pipe.fd, module.KQ_FILTER_READ, module.KQ_EV_ADD)], 0, 0
        )
        self._masks: dict[int, int] = {}

    def register(self, fd: int, mask: int) -> None:
        self._masks[fd] = 0
        self.modify(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        m = self._module
        before = self._masks[fd]
        self._masks[fd] = mask
        if mask & READ:
            self._kqueue.control([m.kevent(fd, m.KQ_FILTER_READ, m.KQ_EV_ADD)], 0, 0)
        elif mask & END:
            # A low-water mark that no amount of data reaches.
            end = m.kevent(fd, m.KQ_FILTER_READ, m.KQ_EV_ADD, m.KQ_NOTE_LOWAT, 0x7FFFFFFF)
            self._kqueue.control([end], 0, 0)
        elif before & (READ | END):
            self._delete(fd, m.KQ_FILTER_READ)
        if mask & WRITE:
            self._kqueue.control([m.kevent(fd, m.KQ_FILTER_WRITE, m.KQ_EV_ADD)], 0, 0)
        elif before & WRITE:
            self._delete(fd, m.KQ_FILTER_WRITE)

    def unregister(self, fd: int) -> None:
        if fd in self._masks:
            self.modify(fd, 0)
            self._masks.pop(fd, None)

    def _delete(self, fd: int, kind: int) -> None:
        m = self._module
        with contextlib.suppress(OSError):  # it went with a descriptor that was closed
            self._kqueue.control([m.kevent(fd, kind, m.KQ_EV_DELETE)], 0, 0)

    def poll(self, timeout: float) -> Events:
        m = self._module
        merged: dict[int, int] = {}
        for event in self._kqueue.control(None, 256, None if timeout < 0 else timeout):
            fd = event.ident
            if fd == self._pipe.fd:
                merged[fd] = READ
                continue
            wanted = self._masks.get(fd, 0)
            mask = WRITE if event.filter == m.KQ_FILTER_WRITE else READ & wanted
            if event.flags & m.KQ_EV_EOF:
                mask |= GONE if mask == WRITE else END
            merged[fd] = merged.get(fd, 0) | mask
        return list(merged.items())

    def wake(self) -> None:
        self._pipe.wake()

    def woken(self, fd: int) -> bool:
        return self._pipe.drain_if(fd)

    def close(self) -> None:
        self._kqueue.close()
        self._pipe.close()


class PollPoller:
    """poll(2), for systems with neither epoll nor kqueue: slower, as it passes all descriptors.

    `_armed` belongs to whoever holds `_lock`; the polling thread works on a copy, and is woken
    when the copy is out of date.
    """

    def __init__(self) -> None:
        self._pipe = WakePipe()
        self._lock = threading.Lock()
        self._armed: dict[int, int] = {}
        self._polling = False

    def register(self, fd: int, mask: int) -> None:
        self.modify(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        with self._lock:
            self._armed[fd] = mask
            polling = self._polling
        if polling:
            self._pipe.wake()

    def unregister(self, fd: int) -> None:
        with self._lock:
            self._armed.pop(fd, None)
            polling = self._polling
        if polling:
            self._pipe.wake()  # until poll(2) returns, what it was passed is not really closed

    def poll(self, timeout: float) -> Events:
        with self._lock:
            poll = select.poll()
            poll.register(self._pipe.fd, select.POLLIN)
            for fd, mask in self._armed.items():
                # POLLIN and POLLOUT have the values of READ and WRITE nearly everywhere.
                wanted = (select.POLLIN if mask & READ else 0) | (POLLRDHUP if mask & END else 0)
                poll.register(fd, wanted | (select.POLLOUT if mask & WRITE else 0))
            self._polling = True
        try:
            ready = poll.poll(None if timeout < 0 else timeout * 1000)
        finally:
            with self._lock:
                self._polling = False
        events: Events = []
        with self._lock:
            for fd, found in ready:
                if self._pipe.drain_if(fd):
                    continue
                # POLLNVAL: closed meanwhile.
                if found & select.POLLNVAL or fd not in self._armed:
                    continue
                mask = READ if found & select.POLLIN else 0
                mask |= WRITE if found & select.POLLOUT else 0
                mask |= END if found & POLLRDHUP else 0
                mask |= GONE if found & (select.POLLHUP | select.POLLERR) else 0
                events.append((fd, mask & (self._armed[fd] | GONE)))
        return events

    def wake(self) -> None:
        self._pipe.wake()

    def woken(self, fd: int) -> bool:
        return self._pipe.drain_if(fd)

    def close(self) -> None:
        self._pipe.close()


def make(kind: str = "auto") -> Poller:
    """Make the poller of that name: auto, epoll, kqueue or poll. Raises ConfigError."""
    if kind in ("auto", "epoll") and sys.platform == "linux":
        return EpollPoller()
    if kind in ("auto", "kqueue") and hasattr(select, "kqueue"):
        return KqueuePoller()
    if kind in ("auto", "poll") and hasattr(select, "poll"):
        return PollPoller()
    raise ConfigError(f"there is no poller {kind!r} on this system")
