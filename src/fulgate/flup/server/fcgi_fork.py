"""flup.server.fcgi_fork: a FastCGI server with processes, each for one request at a time."""

from __future__ import annotations

import contextlib
import signal
import socket
from types import FrameType
from typing import Any

from fulgate.flup.server.fcgi_base import (
    FCGI_RESPONDER,
    BaseFCGIServer,
    Connection,
    MultiplexedConnection,
)
from fulgate.flup.server.preforkserver import BUSY, FREE, SIGNALS, PreforkServer

__all__ = ["TimeoutException", "WSGIServer"]


class TimeoutException(Exception):
    """A request took longer than `timeout`. Raised inside of the application."""


class WSGIServer(BaseFCGIServer, PreforkServer):
    """Serves a WSGI application in preforked processes.

    The arguments are those of `BaseFCGIServer` and `PreforkServer`. A request that takes longer
    than `timeout` seconds has TimeoutException raised in the application.
    """

    def __init__(
        self,
        application: Any,
        environ: Any = None,
        bindAddress: Any = None,
        umask: int | None = None,
        multiplexed: bool = False,
        debug: bool = False,
        roles: Any = (FCGI_RESPONDER,),
        forceCGI: bool = False,
        timeout: float | None = None,
        **kw: Any,
    ) -> None:
        BaseFCGIServer.__init__(
            self,
            application,
            environ=environ,
            multithreaded=False,
            multiprocess=True,
            bindAddress=bindAddress,
            umask=umask,
            multiplexed=multiplexed,
            debug=debug,
            roles=roles,
            forceCGI=forceCGI,
        )
        for name in ("multithreaded", "multiprocess", "jobClass", "jobArgs"):
            kw.pop(name, None)
        self._timeout = timeout
        PreforkServer.__init__(self, jobClass=self._connectionClass, jobArgs=(self, timeout), **kw)

    def run(self) -> bool:  # type: ignore[override]  # it has no argument in flup either
        """Serve until SIGINT, SIGTERM, SIGHUP or `shutdown`. Returns True after SIGHUP.

        In another thread than the main one signals are left alone. Raises BindError and OSError.
        Children do not return from it.
        """
        with self._hosted():
            sock = self._setupSocket()
            try:
                return PreforkServer.run(self, sock)
            finally:
                self._cleanupSocket(sock)

    def _refuse(self, sock: socket.socket) -> None:
        if self._bindAddress is not None:  # else others may listen on it too
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _child(self, sock: socket.socket, parent: socket.socket) -> None:
        if self._jobClass not in (Connection, MultiplexedConnection):
            PreforkServer._child(self, sock, parent)
            return
        driver = self._newServer(sock).inline()
        requests = 0

        def around(begins: bool) -> None:
            nonlocal requests
            if begins:
                self._notifyParent(parent, BUSY)
                if self._timeout:
                    signal.setitimer(signal.ITIMER_REAL, self._timeout)
                return
            if self._timeout:
                signal.setitimer(signal.ITIMER_REAL, 0)
            requests += 1
            if 0 < self._maxRequests <= requests:
                driver.retire()
            else:
                self._notifyParent(parent, FREE)

        def late(signum: int, frame: FrameType | None) -> None:
            raise TimeoutException(f"the request took longer than {self._timeout} s")

        def leave(signum: int, frame: FrameType | None) -> None:
            driver.retire()

        for number in SIGNALS:
            signal.signal(number, leave)
        self._unblock()
        if self._timeout:
            signal.signal(signal.SIGALRM, late)
        driver.around = around
        driver.run(until=parent)
