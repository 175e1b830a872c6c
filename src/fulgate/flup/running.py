"""What flup's servers have in common: how `run` is kept going, and how it is ended."""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

__all__ = ["Running", "accept", "setCloseOnExec"]

log = logging.getLogger("fulgate")

ACCEPT_PAUSE = 0.5  # seconds without accepting, after the descriptors ran out
OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def setCloseOnExec(sock: socket.socket) -> None:
    """Keep a socket from programs that this process starts."""
    sock.set_inheritable(False)


class Running:
    """`run` goes on while `_keepGoing`; `shutdown`, `_exit` and signals end it.

    In the main thread SIGINT and SIGTERM have it return False, SIGHUP True; a second signal cuts
    requests that still run. In another thread no handlers are set, and where a Twisted reactor
    runs, its shutdown ends `run` too.
    """

    _keepGoing = False
    _hupReceived = False
    _endSoon = False  # `shutdown` came, perhaps before `run`
    _hasRun = False
    _wake: socket.socket | None = None
    _onExit: Callable[[], object] | None = None
    _onCut: Callable[[], object] | None = None
    _oldSIGs: tuple[tuple[int, Any], ...] = ()

    def shutdown(self) -> None:
        """Have `run` return, once the requests that run have ended. Does not wait for that.

        It may be called from any thread, from a signal handler, by the application, and before
        `run`, which then returns at once.
        """
        if self._hasRun and not self._keepGoing:
            return
        self._endSoon = True
        self._exit()

    def _exit(self, reload: bool = False) -> None:
        """End `run`, which returns `reload`. Safe in signal handlers and in any thread."""
        if self._keepGoing:
            self._hupReceived = reload
            self._keepGoing = False
        self._rouse()

    def _rouse(self) -> None:
        wake = self._wake
        if wake is not None:
            with contextlib.suppress(OSError):  # full: it will wake; closed: it has ended
                wake.send(b".")
        if self._onExit is not None and not self._keepGoing:
            self._onExit()

    def _mainloopPeriodic(self) -> None:
        """To be overridden: called about every second while `run` waits."""

    def _isClientAllowed(self, addr: Any) -> bool:
        """To be overridden: may a peer with this address, as `accept` gave it, connect?"""
        return True

    # ---------------------------------------------------------------- inside run

    @contextlib.contextmanager
    def _loop(self) -> Iterator[socket.socket]:
        """Set up what ends the loop; give a socket that can be read when there is news."""
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        self._wake = writer
        self._hupReceived = False
        self._keepGoing = True
        if self._endSoon:
            self._keepGoing = False
        in_main = threading.current_thread() is threading.main_thread()
        if in_main:
            self._installSignalHandlers()
        try:
            yield reader
        finally:
            if in_main:
                self._restoreSignalHandlers()
            self._keepGoing = self._endSoon = False
            self._hasRun = True
            self._wake = self._onExit = self._onCut = None
            reader.close()
            writer.close()

    def _pause(self, reader: socket.socket, timeout: float | None) -> None:
        """Wait until there is news, for up to `timeout` seconds."""
        poller = select.poll()
        poller.register(reader.fileno(), select.POLLIN)
        poller.poll(None if timeout is None else timeout * 1000)
        drain(reader)

    def _accepted(
        self, sock: socket.socket, reader: socket.socket, timeout: float
    ) -> Iterator[tuple[socket.socket, Any]]:
        """Accept connections of clients that are allowed, until `run` is to end."""
        sock.setblocking(False)
        setCloseOnExec(sock)
        while self._keepGoing:
            poller = select.poll()  # not select.select, which ends at descriptor 1023
            poller.register(reader.fileno(), select.POLLIN)
            poller.register(sock.fileno(), select.POLLIN)
            ready = {fd for fd, _ in poller.poll(timeout * 1000)}
            if reader.fileno() in ready:
                drain(reader)
            if sock.fileno() in ready and self._keepGoing:
                try:
                    accepted = accept(sock)
                except OSError as error:
                    log.error("cannot accept connections for now: %s", error.strerror)
                    self._pause(reader, ACCEPT_PAUSE)
                    accepted = None
                if accepted is not None:
                    if self._isClientAllowed(accepted[1]):
                        yield accepted
                    else:
                        accepted[0].close()
            self._mainloopPeriodic()

    # ---------------------------------------------------------------- signals

    def _hupHandler(self, signum: int, frame: FrameType | None) -> None:
        if self._keepGoing:
            self._exit(reload=True)

    def _intHandler(self, signum: int, frame: FrameType | None) -> None:
        if self._keepGoing:
            self._exit()
        elif self._onCut is not None:
            self._onCut()

    def _signalHandlers(self) -> dict[int, Callable[[int, FrameType | None], None]]:
        return {
            signal.SIGINT: self._intHandler,
            signal.SIGTERM: self._intHandler,
            signal.SIGHUP: self._hupHandler,
        }

    def _installSignalHandlers(self) -> None:
        self._oldSIGs = tuple(
            (number, signal.signal(number, handler))
            for number, handler in self._signalHandlers().items()
        )

    def _restoreSignalHandlers(self) -> None:
        for number, handler in self._oldSIGs:
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._oldSIGs = ()

    # ---------------------------------------------------------------- inside a Twisted program

    @contextlib.contextmanager
    def _hosted(self) -> Iterator[None]:
        """While this lasts, the shutdown of a reactor in another thread ends `run`, and waits.

        The reactor joins its thread pool, in which `run` may be, only after its triggers
        'before' shutdown.
        """
        reactor = sys.modules.get("twisted.internet.reactor")
        if reactor is None or threading.current_thread() is threading.main_thread():
            yield
            return
        trigger = _Trigger(reactor, self)
        trigger.reactor.callFromThread(trigger.register)
        try:
            yield
        finally:
            trigger.reactor.callFromThread(trigger.ended)


class _Trigger:
    """Ends a server before the reactor shuts down. All methods are called in its thread."""

    def __init__(self, reactor: Any, server: Running) -> None:
        self.reactor = reactor
        self._server = server
        self._id: Any = None
        self._deferred: Any = None
        self._over = False

    def register(self) -> None:
        if self._over:
            return
        if getattr(self.reactor, "_stopped", False):  # too late for a trigger
            self._server.shutdown()
            return
        self._id = self.reactor.addSystemEventTrigger("before", "shutdown", self.stop)

    def stop(self) -> Any:
        from twisted.internet.defer import Deferred

        self._id = None
        if self._over:
            return None
        self._server.shutdown()
        self._deferred = Deferred()
        return self._deferred

    def ended(self) -> None:
        self._over = True
        if self._deferred is not None:
            self._deferred.callback(None)
        elif self._id is not None:
            self.reactor.removeSystemEventTrigger(self._id)


def drain(reader: socket.socket) -> None:
    """Read away what woke the loop."""
    with contextlib.suppress(BlockingIOError):
        reader.recv(4096)


def accept(sock: socket.socket) -> tuple[socket.socket, Any] | None:
    """Accept one connection, or None when there is none after all.

    Raises OSError only for want of descriptors or memory.
    """
    try:
        return sock.accept()
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno in OUT_OF_DESCRIPTORS or error.errno in (errno.EBADF, errno.EINVAL):
            raise
        return None  # the peer gave up before
