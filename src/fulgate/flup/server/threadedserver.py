"""flup.server.threadedserver: accept connections, and have a thread pool do a job for each."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

from fulgate.flup.running import Running, setCloseOnExec
from fulgate.flup.server.threadpool import ThreadPool
from fulgate.server import Server

__all__ = ["ThreadedServer", "setCloseOnExec"]


class ThreadedServer(Running):
    """Makes `jobClass(socket, address, *jobArgs)` for each connection, and runs it in the pool.

    `kw` is for the pool, which is this module's `ThreadPool`, whatever that is at the time.
    """

    def __init__(
        self,
        jobClass: Callable[..., Any] | None = None,
        jobArgs: tuple[Any, ...] = (),
        **kw: Any,
    ) -> None:
        self._jobClass = jobClass
        self._jobArgs = jobArgs
        self._threadPool: Any = ThreadPool(**kw)

    def run(self, sock: socket.socket, timeout: float = 1.0) -> bool:
        """Serve a listening socket until told to end. Returns True after SIGHUP.

        `timeout` is in seconds: how often `_mainloopPeriodic` is called.
        """
        with self._loop() as reader:
            server = self._asServer(sock)
            if server is not None:
                self._serve(server, reader, timeout)
            else:
                for client, address in self._accepted(sock, reader, timeout):
                    setCloseOnExec(client)
                    assert self._jobClass is not None
                    job = self._jobClass(client, address, *self._jobArgs)
                    if not self._threadPool.addJob(job, allowQueuing=False):
                        client.close()  # as flup does: no thread is left
            return self._hupReceived

    def _asServer(self, sock: socket.socket) -> Server | None:
        """Give what serves the socket without jobs, if the pool and the jobs are our own."""
        return None

    def _serve(self, server: Server, reader: socket.socket, timeout: float) -> None:
        self._onCut = server.cut
        server.start()
        try:
            while self._keepGoing:
                self._pause(reader, timeout)
                self._mainloopPeriodic()
        finally:
            # Not here: in the main thread a second signal is to be heard meanwhile.
            stopper = threading.Thread(
                target=self._stop, args=(server,), name="fulgate-stop", daemon=True
            )
            stopper.start()
            while stopper.is_alive():
                self._pause(reader, 0.5)

    def _stop(self, server: Server) -> None:
        server.stop()
        self._rouse()


# Programs replace the method, and may do so before anything else is imported.
OWN_RUN = ThreadedServer.run
