"""What flup's preforking servers have in common."""

from __future__ import annotations

import contextlib
import signal
import socket
from types import FrameType
from typing import Any

from fulgate.flup.server.preforkserver import BUSY, FREE, SIGNALS, PreforkServer
from fulgate.flup.serving import Serving, TimeoutException, is_own_job

__all__ = ["Forked"]


class Forked(Serving, PreforkServer):
    """Serves in preforked processes; `_with_processes` is called once the application is known.

    A request that takes longer than `timeout` seconds has TimeoutException raised in the
    application.
    """

    def _with_processes(self, timeout: float | None, kw: dict[str, Any]) -> None:
        for name in ("multithreaded", "multiprocess", "jobClass", "jobArgs"):
            kw.pop(name, None)
        self._timeout = timeout
        job = self._connectionClass
        PreforkServer.__init__(self, jobClass=job, jobArgs=(self, timeout), **kw)

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
        if not is_own_job(self._jobClass):
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
