"""flup.server.ajp_fork: an AJP server with processes, each for one request at a time."""

from __future__ import annotations

import logging
from typing import Any

from fulgate.flup.forked import Forked
from fulgate.flup.server.ajp_base import DEFAULT, BaseAJPServer
from fulgate.flup.serving import TimeoutException

__all__ = ["TimeoutException", "WSGIServer"]


class WSGIServer(BaseAJPServer, Forked):
    """Serves a WSGI application in preforked processes.

    The arguments are those of `BaseAJPServer` and `PreforkServer`; here all may connect by
    default, as in flup. A request that takes longer than `timeout` seconds has TimeoutException
    raised in the application.
    """

    def __init__(
        self,
        application: Any,
        scriptName: Any = "",
        environ: Any = None,
        bindAddress: Any = DEFAULT,
        allowedServers: Any = None,
        loggingLevel: int = logging.INFO,
        debug: bool = False,
        timeout: float | None = None,
        **kw: Any,
    ) -> None:
        BaseAJPServer.__init__(
            self,
            application,
            scriptName=scriptName,
            environ=environ,
            multithreaded=False,
            multiprocess=True,
            bindAddress=bindAddress,
            allowedServers=allowedServers,
            loggingLevel=loggingLevel,
            debug=debug,
        )
        self._with_processes(timeout, kw)
