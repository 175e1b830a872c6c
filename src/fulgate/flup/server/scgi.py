"""flup.server.scgi: an SCGI server with threads."""

from __future__ import annotations

import logging
from typing import Any

from fulgate.flup.server import NoDefault
from fulgate.flup.server.scgi_base import DEFAULT, BaseSCGIServer
from fulgate.flup.threaded import Threaded

__all__ = ["WSGIServer"]


class WSGIServer(BaseSCGIServer, Threaded):
    """Serves a WSGI application. The arguments are those of `BaseSCGIServer` and `ThreadPool`.

    Here all may connect by default, as in flup. `maxThreads` is the number of threads that run the
    application, up to 256; 64 by default.
    """

    def __init__(
        self,
        application: Any,
        scriptName: Any = NoDefault,
        environ: Any = None,
        multithreaded: bool = True,
        multiprocess: bool = False,
        bindAddress: Any = DEFAULT,
        umask: int | None = None,
        allowedServers: Any = None,
        loggingLevel: int = logging.INFO,
        debug: bool = False,
        **kw: Any,
    ) -> None:
        BaseSCGIServer.__init__(
            self,
            application,
            scriptName=scriptName,
            environ=environ,
            multithreaded=multithreaded,
            multiprocess=multiprocess,
            bindAddress=bindAddress,
            umask=umask,
            allowedServers=allowedServers,
            loggingLevel=loggingLevel,
            debug=debug,
        )
        self._with_threads(kw)
