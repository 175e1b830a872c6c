"""flup.server.singleserver: do one job after the other, in the thread that calls `run`."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Any

from fulgate.drivers.inline import Inline
from fulgate.flup.running import Running, setCloseOnExec

__all__ = ["SingleServer", "setCloseOnExec"]

log = logging.getLogger("fulgate")


class SingleServer(Running):
    """Makes `jobClass(socket, address, *jobArgs)` for each connection, and runs it."""

    def __init__(
        self,
        jobClass: Callable[..., Any] | None = None,
        jobArgs: tuple[Any, ...] = (),
        **kw: Any,
    ) -> None:
        self._jobClass = jobClass
        self._jobArgs = jobArgs

    def run(self, sock: socket.socket, timeout: float = 1.0) -> bool:
        """Serve a listening socket until told to end. Returns True after SIGHUP.

        `timeout` is in seconds: how often `_mainloopPeriodic` is called.
        """
        with self._loop() as reader:
            driver = self._asDriver(sock)
            if driver is not None:
                self._onExit, self._onCut = driver.stop, lambda: _cut(driver)
                if not self._keepGoing:
                    driver.stop()
                driver.run(periodic=self._mainloopPeriodic, interval=timeout)
            else:
                for client, address in self._accepted(sock, reader, timeout):
                    setCloseOnExec(client)
                    assert self._jobClass is not None
                    try:
                        self._jobClass(client, address, *self._jobArgs).run()
                    except Exception:
                        log.exception("a job raised")
                        client.close()
            return self._hupReceived

    def _asDriver(self, sock: socket.socket) -> Inline | None:
        """Give what serves the socket without jobs, if the jobs are our own."""
        return None


def _cut(driver: Inline) -> None:
    """Called in a signal handler, that is, inside of the application or of the driver."""
    driver.cut()
    raise SystemExit(1)
