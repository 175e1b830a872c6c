"""flup.server.preforkserver: processes that accept on the same socket, one job each at a time."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from fulgate.flup.running import Running, accept, drain, setCloseOnExec

__all__ = ["PreforkServer", "setCloseOnExec"]

log = logging.getLogger("fulgate")

BUSY = b"\x00"  # from a child: a request has begun
FREE = b"\xff"  # and ended
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
ALL_END = b"\x01"  # to a child: not only it ends, but the server
DRAIN_PATIENCE = 1.0  # seconds for children that are free to take who is in the queue
END_PATIENCE = 30.0  # seconds for requests to end, at a stop, before SIGKILL
TOO_SOON = 1.0  # seconds; children that fail sooner are not replaced faster than that


class Child:
    """One child as its parent knows it."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self.control = control  # readable: it is busy, free, or has gone; closed: it is to go
        self.avail = True
        self.leaving = False
        self.closed = False  # its end of the control socket
        self.born = time.monotonic()

    def leave(self, last: bytes = b"") -> None:
        """Have it end, once its request has. `last` tells it that all of them do."""
        self.leaving = True
        with contextlib.suppress(OSError):
            if last:
                self.control.send(last)
            self.control.shutdown(socket.SHUT_WR)


class PreforkServer(Running):
    """Makes `jobClass(socket, address, *jobArgs)` for each connection, and runs it in a child.

    There are at least `maxSpare` children and at most `maxChildren`; more are started while fewer
    than `minSpare` of them are free, and they go when more than `maxSpare` are. A child ends after
    `maxRequests` requests, if that is above 0. `sockTimeout` is in seconds, for accepted sockets; 0
    is none. Raises ValueError.
    """

    def __init__(
        self,
        minSpare: int = 1,
        maxSpare: int = 5,
        maxChildren: int = 50,
        maxRequests: int = 0,
        sockTimeout: float = 0,
        jobClass: Callable[..., Any] | None = None,
        jobArgs: tuple[Any, ...] = (),
    ) -> None:
        if minSpare < 1:
            raise ValueError("minSpare is at least 1")
        if maxSpare < minSpare:
            raise ValueError("maxSpare is at least minSpare")
        if not isinstance(sockTimeout, (int, float)) or sockTimeout < 0:
            raise ValueError("sockTimeout is a number of seconds, or 0")
        self._minSpare = minSpare
        self._maxSpare = maxSpare
        self._maxChildren = max(maxSpare, maxChildren)
        self._maxRequests = maxRequests
        self._sockTimeout = sockTimeout
        self._jobClass = jobClass
        self._jobArgs = jobArgs
        self._children: dict[int, Child] = {}
        self._replace = False  # SIGUSR1: all children are to be replaced
        self._mask: set[signal.Signals] | set[int] = set()
        self._not_before = 0.0  # children fail: wait with the next

    def run(self, sock: socket.socket) -> bool:
        """Serve a listening socket until told to end. Returns True after SIGHUP.

        SIGUSR1 replaces the children, once the request of each has ended.
        """
        with self._loop() as reader:
            sock.setblocking(False)
            setCloseOnExec(sock)
            try:
                while self._keepGoing:
                    self._replace_children()
                    self._keep_spares(sock, reader)
                    self._watch(reader, 1.0)
                    self._reap()
                    self._mainloopPeriodic()
            finally:
                self._end_children(reader, sock)
            return self._hupReceived

    # ---------------------------------------------------------------- the parent

    def _keep_spares(self, sock: socket.socket, reader: socket.socket) -> None:
        """Start as many children as are wanting, and let go of those that are too many."""
        staying = [child for child in self._children.values() if not child.leaving]
        free = [child for child in staying if child.avail]
        for child in free[self._maxSpare :]:
            child.leave()
        wanted = max(self._maxSpare - len(staying), self._minSpare - len(free))
        room = self._maxChildren - len(self._children)
        if time.monotonic() >= self._not_before:
            for _ in range(min(wanted, room)):
                if not self._keepGoing or not self._spawn(sock, reader):
                    break

    def _replace_children(self) -> None:
        if self._replace:
            self._replace = False
            for child in self._children.values():
                child.leave()

    def _watch(self, reader: socket.socket, timeout: float) -> None:
        """Wait for news: of children, of signals, or of `shutdown`."""
        poller = select.poll()
        poller.register(reader.fileno(), select.POLLIN)
        by_fd = {child.control.fileno(): child for child in self._children.values()}
        for fd, child in by_fd.items():
            if child.closed:
                timeout = min(timeout, 0.02)  # it ends about now
            else:
                poller.register(fd, select.POLLIN)
        for fd, _ in poller.poll(timeout * 1000):
            if fd == reader.fileno():
                drain(reader)
                continue
            child = by_fd[fd]
            try:
                states = child.control.recv(4096)
            except BlockingIOError:
                continue
            except OSError:
                states = b""
            if states:
                child.avail = states[-1:] == FREE
            else:
                child.closed = True
                child.avail = False

    def _bury(self, child: Child, options: int) -> None:
        """See whether it has ended, and how."""
        try:
            pid, status = os.waitpid(child.pid, options)
        except ChildProcessError:  # the program has waited for it
            pid, status = child.pid, 0
        if not pid:
            return
        child.control.close()
        del self._children[child.pid]
        if status:
            code = os.waitstatus_to_exitcode(status)
            how = f"signal {-code}" if code < 0 else f"status {code}"
            log.error("child %d ended with %s", child.pid, how)
            if time.monotonic() - child.born < TOO_SOON:
                self._not_before = time.monotonic() + TOO_SOON

    def _reap(self) -> None:
        for child in list(self._children.values()):
            self._bury(child, os.WNOHANG)

    def _end_children(self, reader: socket.socket, sock: socket.socket) -> None:
        """Let requests end for a while, then kill."""
        for child in self._children.values():
            child.leave(ALL_END)
        self._onCut = self._kill_children
        begun = time.monotonic()
        deadline = begun + END_PATIENCE
        refusing = False
        while self._children and time.monotonic() < deadline:
            # Children that are free take whoever is in the queue. From then on nobody would.
            busy = not any(child.avail for child in self._children.values())
            if not refusing and (busy or time.monotonic() - begun > DRAIN_PATIENCE):
                refusing = True
                self._refuse(sock)
            self._watch(reader, min(0.5, max(0.0, deadline - time.monotonic())))
            self._reap()
        if self._children:
            log.warning("killed %d children that did not end in time", len(self._children))
            self._kill_children()
        for child in list(self._children.values()):
            self._bury(child, 0)

    def _refuse(self, sock: socket.socket) -> None:
        """To be overridden: have new clients refused while the last requests end."""

    def _kill_children(self) -> None:
        for pid in list(self._children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _usr1Handler(self, signum: int, frame: FrameType | None) -> None:
        self._replace = True
        self._rouse()

    def _signalHandlers(self) -> dict[int, Callable[[int, FrameType | None], None]]:
        return {**super()._signalHandlers(), signal.SIGUSR1: self._usr1Handler}

    # ---------------------------------------------------------------- the children

    def _spawn(self, sock: socket.socket, reader: socket.socket) -> bool:
        """Fork one child. False when the system does not give one for now."""
        try:
            ours, its = socket.socketpair()
        except OSError as error:
            log.error("cannot start a child for now: %s", error.strerror)
            return False
        ours.setblocking(False)
        its.setblocking(False)
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal that comes before the child has its own handlers waits until then.
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = os.fork()
        except OSError as error:
            self._unblock()
            ours.close()
            its.close()
            if error.errno not in (errno.EAGAIN, errno.ENOMEM):
                raise
            log.error("cannot start a child for now: %s", error.strerror)
            self._not_before = time.monotonic() + TOO_SOON
            return False
        if not pid:
            self._be_child(sock, reader, ours, its)
        self._unblock()
        with contextlib.suppress(OSError):  # it does the same; whoever is first
            os.setpgid(pid, pid)
        its.close()
        self._children[pid] = Child(pid, ours)
        return True

    def _unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _be_child(
        self, sock: socket.socket, reader: socket.socket, ours: socket.socket, its: socket.socket
    ) -> NoReturn:
        """Serve, and end the process: nothing of the parent's program runs on here."""
        status = 1
        try:
            os.setpgid(0, 0)  # Ctrl+C in a terminal is for the parent, which tells the children
            self._forget_parent(reader, ours)
            self._child(sock, its)
            status = 0
        except KeyboardInterrupt:
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                logging.shutdown()
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)

    def _forget_parent(self, reader: socket.socket, ours: socket.socket) -> None:
        """Let go of what is the parent's: else its death would not be seen here."""
        signal.set_wakeup_fd(-1)
        self._restoreSignalHandlers()
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        for child in self._children.values():
            child.control.close()
        self._children = {}
        ours.close()
        reader.close()
        if self._wake is not None:
            self._wake.close()
        self._wake = self._onExit = self._onCut = None

    def _notifyParent(self, parent: socket.socket, msg: bytes) -> None:
        """Tell the parent whether this child is busy."""
        with contextlib.suppress(OSError):  # it has gone, which is seen elsewhere
            parent.send(msg)

    def _child(self, sock: socket.socket, parent: socket.socket) -> None:
        """Do jobs, until the parent closes its end or has died."""
        self._unblock()
        requests = 0
        while True:
            poller = select.poll()
            poller.register(sock.fileno(), select.POLLIN)
            poller.register(parent.fileno(), select.POLLIN)
            ready = {fd for fd, _ in poller.poll()}
            if parent.fileno() in ready:
                return
            try:
                accepted = accept(sock)
            except OSError as error:
                log.error("cannot accept connections for now: %s", error.strerror)
                time.sleep(TOO_SOON)
                continue
            if accepted is None:
                continue
            client, address = accepted
            if not self._isClientAllowed(address):
                client.close()
                continue
            setCloseOnExec(client)
            client.settimeout(self._sockTimeout or None)
            self._notifyParent(parent, BUSY)
            assert self._jobClass is not None
            try:
                self._jobClass(client, address, *self._jobArgs).run()
            except Exception:
                log.exception("a job raised")
                client.close()
            requests += 1
            if 0 < self._maxRequests <= requests:
                return
            self._notifyParent(parent, FREE)
