"""A stand-in for what `select` has of kqueue(2), where the system has none: on top of poll(2).

It does what FreeBSD's manual says of the few filters and flags that the poller uses.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
from collections.abc import Iterable
from typing import NamedTuple

KQ_FILTER_READ = -1
KQ_FILTER_WRITE = -2
KQ_EV_ADD = 0x0001
KQ_EV_DELETE = 0x0002
KQ_EV_ONESHOT = 0x0010
KQ_EV_EOF = 0x8000
KQ_NOTE_LOWAT = 0x0001


class Kevent(NamedTuple):
    ident: int
    filter: int = KQ_FILTER_READ
    flags: int = KQ_EV_ADD
    fflags: int = 0
    data: int = 0


class Kqueue:
    """Filters by descriptor and kind. Any thread may change them while another one waits."""

    def __init__(self) -> None:
        self._filters: dict[tuple[int, int], Kevent] = {}
        self._lock = threading.Lock()
        self._wake, self._out = os.pipe()
        os.set_blocking(self._wake, False)

    def close(self) -> None:
        os.close(self._wake)
        os.close(self._out)

    def control(
        self, changes: Iterable[Kevent] | None, most: int, timeout: float | None
    ) -> list[Kevent]:
        with self._lock:
            for change in changes or ():
                self._change(change)
        if changes:
            os.write(self._out, b"\0")
        deadline = None if timeout is None else time.monotonic() + timeout
        while most:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            events = self._wait(left, most)
            if events or left == 0:
                return events
        return []

    def _change(self, change: Kevent) -> None:
        key = change.ident, change.filter
        if change.flags & KQ_EV_DELETE:
            if key not in self._filters:
                raise OSError(errno.ENOENT, "no such filter")
            del self._filters[key]
        else:
            os.fstat(change.ident)  # EBADF
            self._filters[key] = change

    def _wait(self, left: float | None, most: int) -> list[Kevent]:
        masks: dict[int, int] = {self._wake: select.POLLIN}
        with self._lock:
            for (fd, kind), kevent in self._filters.items():
                mask = select.POLLOUT
                if kind == KQ_FILTER_READ:
                    # The only low-water mark that is used is one that no data reaches.
                    mask = select.POLLRDHUP | (0 if kevent.fflags & KQ_NOTE_LOWAT else 1)
                masks[fd] = masks.get(fd, 0) | mask
        poll = select.poll()
        for fd, mask in masks.items():
            poll.register(fd, mask)
        ready = poll.poll(None if left is None else left * 1000)
        events: list[Kevent] = []
        with self._lock:
            for fd, found in ready:
                if fd == self._wake:
                    with contextlib.suppress(BlockingIOError):  # another thread was first
                        os.read(self._wake, 4096)
                elif len(events) + 2 <= most:  # what is left out stays as it is, to be told later
                    events += self._fired(fd, found)
        return events

    def _fired(self, fd: int, found: int) -> list[Kevent]:
        events = []
        for kind in (KQ_FILTER_READ, KQ_FILTER_WRITE):
            kevent = self._filters.get((fd, kind))
            if kevent is None:
                continue
            if found & select.POLLNVAL:  # a descriptor that was closed takes its filters along
                del self._filters[fd, kind]
                continue
            gone = select.POLLHUP | select.POLLERR
            if kind == KQ_FILTER_READ:
                gone |= select.POLLRDHUP
                fires = found & (gone if kevent.fflags & KQ_NOTE_LOWAT else gone | select.POLLIN)
            else:
                fires = found & (gone | select.POLLOUT)
            if fires:
                flags = kevent.flags | (KQ_EV_EOF if found & gone else 0)
                events.append(Kevent(fd, kind, flags))
                if kevent.flags & KQ_EV_ONESHOT:
                    del self._filters[fd, kind]
        return events


class FakeSelect:
    """What stands in for the module `select`."""

    KQ_FILTER_READ = KQ_FILTER_READ
    KQ_FILTER_WRITE = KQ_FILTER_WRITE
    KQ_EV_ADD = KQ_EV_ADD
    KQ_EV_DELETE = KQ_EV_DELETE
    KQ_EV_ONESHOT = KQ_EV_ONESHOT
    KQ_EV_EOF = KQ_EV_EOF
    KQ_NOTE_LOWAT = KQ_NOTE_LOWAT
    kevent = Kevent
    kqueue = Kqueue
