"""flup.server.ajp_base: what flup's AJP servers have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fulgate.flup.request import Request
from fulgate.flup.restricted import Restricted
from fulgate.flup.server import NoDefault
from fulgate.flup.serving import Application, Connection, TimeoutException
from fulgate.flup.sockets import Address

__all__ = ["BaseAJPServer", "Connection", "NoDefault", "Request", "TimeoutException"]

DEFAULT = ("localhost", 8009)

# What flup calls differently.
FLUP = {
    "SSL_CLIENT_CERT": "SSL_CERT",
    "SSL_SESSION_ID": "SSL_SESSION",
    "SSL_CIPHER_USEKEYSIZE": "SSL_KEY_SIZE",
    "REMOTE_PORT": "AJP_REMOTE_PORT",
    "SERVER_ADDR": "AJP_LOCAL_ADDR",
    "SSL_PROTOCOL": "AJP_SSL_PROTOCOL",
}


class BaseAJPServer(Restricted):
    """The arguments are those of `Restricted`, but for `umask`."""

    protocol = "ajp"

    def __init__(
        self,
        application: Application,
        scriptName: Any = "",
        environ: Mapping[str, Any] | None = None,
        multithreaded: bool = True,
        multiprocess: bool = False,
        bindAddress: Address = DEFAULT,
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
            None,
            allowedServers,
            loggingLevel,
            debug,
        )

    def _answer(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Add flup's names: AJP's own without a prefix, where nothing else is called so."""
        for name in list(environ):
            if name in FLUP:
                environ.setdefault(FLUP[name], environ[name])
            elif name.startswith("AJP_") and not name.startswith("AJP_HTTP_"):
                environ.setdefault(name[4:], environ[name])
        return super()._answer(environ, start_response)
