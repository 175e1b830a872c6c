"""flup.server.fcgi_single: a FastCGI server without threads, in the thread that calls `run`."""

from __future__ import annotations

import socket
from typing import Any

from fulgate.drivers.inline import Inline
from fulgate.flup.server.fcgi_base import FCGI_RESPONDER, BaseFCGIServer
from fulgate.flup.server.singleserver import SingleServer
from fulgate.flup.serving import is_own_job

__all__ = ["WSGIServer"]


class WSGIServer(BaseFCGIServer, SingleServer):
    """Serves a WSGI application, one request at a time. The arguments are `BaseFCGIServer`'s."""

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
        **kw: Any,
    ) -> None:
        BaseFCGIServer.__init__(
            self,
            application,
            environ=environ,
            multithreaded=False,
            multiprocess=False,
            bindAddress=bindAddress,
            umask=umask,
            multiplexed=multiplexed,
            debug=debug,
            roles=roles,
            forceCGI=forceCGI,
        )
        for name in ("jobClass", "jobArgs"):
            kw.pop(name, None)
        SingleServer.__init__(self, jobClass=self._connectionClass, jobArgs=(self, None), **kw)

    def run(self) -> bool:  # type: ignore[override]  # it has no argument in flup either
        """Serve until SIGINT, SIGTERM, SIGHUP or `shutdown`. Returns True after SIGHUP.

        In another thread than the main one signals are left alone. Raises BindError and OSError.
        """
        with self._hosted():
            sock = self._setupSocket()
            try:
                return SingleServer.run(self, sock)
            finally:
                self._cleanupSocket(sock)

    def _asDriver(self, sock: socket.socket) -> Inline | None:
        if not is_own_job(self._jobClass):
            return None
        return self._newServer(sock).inline()
