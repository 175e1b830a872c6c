"""flup.server.scgi_base: what flup's SCGI servers have in common."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fulgate.flup.request import Request
from fulgate.flup.restricted import Restricted
from fulgate.flup.server import NoDefault
from fulgate.flup.serving import Application, Connection, TimeoutException
from fulgate.flup.sockets import Address

__all__ = ["BaseSCGIServer", "Connection", "NoDefault", "Request", "TimeoutException"]

DEFAULT = ("localhost", 4000)


class BaseSCGIServer(Restricted):
    """The arguments are those of `Restricted`."""

    protocol = "scgi"

    def __init__(
        self,
        application: Application,
        scriptName: Any = NoDefault,
        environ: Mapping[str, Any] | None = None,
        multithreaded: bool = True,
        multiprocess: bool = False,
        bindAddress: Address = DEFAULT,
        umask: int | None = None,
        allowedServers: Any = NoDefault,
        loggingLevel: int = logging.INFO,
        debug: bool = False,
    ) -> None:
        super().__init__(
            application,
            scriptName,
            environ,
            multithreaded,
            multiprocess,
            bindAddress,
            umask,
            allowedServers,
            loggingLevel,
            debug,
        )
