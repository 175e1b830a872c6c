"""flup.server.fcgi_fork: a FastCGI server with processes, each for one request at a time."""

from __future__ import annotations

from typing import Any

from fulgate.flup.forked import Forked
from fulgate.flup.server.fcgi_base import FCGI_RESPONDER, BaseFCGIServer
from fulgate.flup.serving import TimeoutException

__all__ = ["TimeoutException", "WSGIServer"]


class WSGIServer(BaseFCGIServer, Forked):
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
        self._with_processes(timeout, kw)
