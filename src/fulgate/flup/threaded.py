"""What flup's servers with threads have in common."""

from __future__ import annotations

import logging
import socket
from typing import Any

from fulgate.config import Config
from fulgate.flup.server.threadedserver import OWN_RUN, ThreadedServer
from fulgate.flup.server.threadpool import OWN_POOL
from fulgate.flup.serving import Serving, is_own_job
from fulgate.server import Server

__all__ = ["Threaded"]

log = logging.getLogger("fulgate")

MOST_THREADS = 256
SOME_THREADS = 64  # where nothing is said


class Threaded(Serving, ThreadedServer):
    """Serves with threads; `_with_threads` is called once the application is known.

    `maxThreads` is the number of threads that run the application, up to 256; 64 by default.
    """

    _listening: socket.socket | None = None

    def _with_threads(self, kw: dict[str, Any]) -> None:
        for name in ("jobClass", "jobArgs"):
            kw.pop(name, None)
        self._threads = min(kw.get("maxThreads", SOME_THREADS), MOST_THREADS)
        ThreadedServer.__init__(self, jobClass=self._connectionClass, jobArgs=(self, None), **kw)

    def run(self) -> bool:  # type: ignore[override]  # it has no argument in flup either
        """Serve until SIGINT, SIGTERM, SIGHUP or `shutdown`. Returns True after SIGHUP.

        In another thread than the main one signals are left alone. Raises BindError and OSError.
        """
        self._jobsEnd = False
        with self._hosted():
            sock = self._listening = self._setupSocket()
            try:
                return bool(ThreadedServer.run(self, sock))
            except (OSError, ValueError):
                if not self._endSoon:
                    raise
                return False  # `shutdown` closed the socket under a `run` that is not ours
            finally:
                self._listening = None
                self._cleanupSocket(sock)
                self._endJobs(Config().graceful_timeout)
                end_pool = getattr(self._threadPool, "shutdown", None)
                if end_pool is not None:
                    end_pool()
                self._endSoon = False
                self._hasRun = True

    def shutdown(self) -> None:
        """Have `run` return, once the requests that run have ended. Does not wait for that."""
        ThreadedServer.shutdown(self)
        sock = self._listening
        if ThreadedServer.run is not OWN_RUN and sock is not None and self._bindAddress is not None:
            # Whatever the program's own loop looks at, this ends it.
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                log.debug("the listening socket is closed already: %s", error)

    def _asServer(self, sock: socket.socket) -> Server | None:
        if type(self._threadPool) is not OWN_POOL or not is_own_job(self._jobClass):
            return None
        return self._newServer(sock, max(1, self._threads) if self.multithreaded else 1)
