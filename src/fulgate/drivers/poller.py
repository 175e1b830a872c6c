"""One-shot pollers that several threads share: epoll, kqueue, and poll(2) for the rest.

Events are bit masks of READ, WRITE and HANGUP. A descriptor that was reported is silent until
`modify` arms it again. Any thread may register, modify and unregister while another polls; one
thread at a time polls. `wake` ends a poll early, from any thread.
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

__all__ = ["HANGUP", "READ", "WRITE", "EpollPoller", "KqueuePoller", "PollPoller", "Poller", "make"]

READ: Final = 1
WRITE: Final = 4
HANGUP: Final = 0x2018  # any of EPOLLHUP, EPOLLERR and EPOLLRDHUP

POLLRDHUP: Final[int] = getattr(select, "POLLRDHUP", 0)  # where poll(2) has it

Events = list[tuple[int, int]]


class Poller(Protocol):
    """What the driver needs of a poller. `mask` is READ | WRITE; HANGUP is always reported."""

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
    ONE_SHOT: Final = select.EPOLLONESHOT | select.EPOLLRDHUP

    class EpollPoller:
        """epoll(7) with EPOLLONESHOT; EPOLLEXCLUSIVE does not go with that."""

        def __init__(self) -> None:
            self._pipe = WakePipe()
            self._epoll = select.epoll()
            self._epoll.register(self._pipe.fd, select.EPOLLIN)

        def register(self, fd: int, mask: int) -> None:
            self._epoll.register(fd, mask | ONE_SHOT)

        def modify(self, fd: int, mask: int) -> None:
            self._epoll.modify(fd, mask | ONE_SHOT)

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
    """kqueue(2) with EV_ONESHOT. The module is a parameter, so that a test can stand in for it.

    Read and write are filters of their own, each one-shot: reporting one of them deletes the
    other, so that a descriptor is silent after any event, as it is under epoll.
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
        self.modify(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        m = self._module
        # Without READ wanted, the read filter still tells of the peer's end, with a low-water
        # mark that no amount of data reaches.
        if mask & READ:
            read = m.kevent(fd, m.KQ_FILTER_READ, m.KQ_EV_ADD | m.KQ_EV_ONESHOT)
        else:
            read = m.kevent(
                fd, m.KQ_FILTER_READ, m.KQ_EV_ADD | m.KQ_EV_ONESHOT, m.KQ_NOTE_LOWAT, 0x7FFFFFFF
            )
        changes = [read]
        if mask & WRITE:
            changes.append(m.kevent(fd, m.KQ_FILTER_WRITE, m.KQ_EV_ADD | m.KQ_EV_ONESHOT))
        self._masks[fd] = mask
        self._kqueue.control(changes, 0, 0)

    def unregister(self, fd: int) -> None:
        self._masks.pop(fd, None)
        self._delete(fd)

    def _delete(self, fd: int) -> None:
        m = self._module
        for kind in (m.KQ_FILTER_READ, m.KQ_FILTER_WRITE):
            # A filter that has fired, or was never armed, is not there any more.
            with contextlib.suppress(OSError):
                self._kqueue.control([m.kevent(fd, kind, m.KQ_EV_DELETE)], 0, 0)

    def poll(self, timeout: float) -> Events:
        m = self._module
        merged: dict[int, int] = {}
        for event in self._kqueue.control(None, 256, None if timeout < 0 else timeout):
            fd = event.ident
            if fd == self._pipe.fd:
                merged[fd] = READ
                continue
            mask = WRITE if event.filter == m.KQ_FILTER_WRITE else READ & self._masks.get(fd, READ)
            if event.flags & m.KQ_EV_EOF:
                mask |= HANGUP
            merged[fd] = merged.get(fd, 0) | mask
        for fd in merged:
            if self._masks.get(fd, 0) & WRITE:
                self._delete(fd)
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

    def poll(self, timeout: float) -> Events:
        with self._lock:
            poll = select.poll()
            poll.register(self._pipe.fd, select.POLLIN)
            for fd, mask in self._armed.items():
                # POLLIN and POLLOUT have the values of READ and WRITE nearly everywhere.
                wanted = POLLRDHUP | (select.POLLIN if mask & READ else 0)
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
                # POLLNVAL: closed meanwhile. What was unregistered or fired is not armed.
                if found & select.POLLNVAL or self._armed.pop(fd, None) is None:
                    continue
                mask = READ if found & select.POLLIN else 0
                mask |= WRITE if found & select.POLLOUT else 0
                mask |= HANGUP if found & (select.POLLHUP | select.POLLERR | POLLRDHUP) else 0
                events.append((fd, mask))
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
