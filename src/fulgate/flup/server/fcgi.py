"""flup.server.fcgi: a FastCGI server with threads."""

from __future__ import annotations

from typing import Any

from fulgate.flup.server.fcgi_base import FCGI_RESPONDER, BaseFCGIServer
from fulgate.flup.threaded import Threaded

__all__ = ["WSGIServer"]


class WSGIServer(BaseFCGIServer, Threaded):
    """Serves a WSGI application. The arguments are those of `BaseFCGIServer` and `ThreadPool`.

    `maxThreads` is the number of threads that run the application, up to 256; 64 by default.
    """

    def __init__(
        self,
        application: Any,
        environ: Any = None,
        multithreaded: bool = True,
        multiprocess: bool = False,
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
            multithreaded=multithreaded,
            multiprocess=multiprocess,
            bindAddress=bindAddress,
            umask=umask,
            multiplexed=multiplexed,
            debug=debug,
            roles=roles,
            forceCGI=forceCGI,
        )
        self._with_threads(kw)
