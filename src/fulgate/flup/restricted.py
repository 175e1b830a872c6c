"""What flup's servers have in common that are told where the application lives, and who asks."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Mapping
from typing import Any

from fulgate.endpoint import AllowedClients
from fulgate.flup.request import Request
from fulgate.flup.server import NoDefault
from fulgate.flup.serving import Application, Serving
from fulgate.flup.sockets import Address

__all__ = ["Restricted"]


class Restricted(Serving):
    """The application, its arguments, and how an answer is made of it.

    `scriptName` is the path at which the application lives, for a web server that does not say so;
    None leaves SCRIPT_NAME and PATH_INFO as they come. `environ` is put into each request's
    environ. `bindAddress` is a path, (host, port), or a tuple of more elements for IPv6; `umask` is
    for the socket's file. `allowedServers` are the addresses, or networks, that may connect over
    TCP; None is all, and by default 127.0.0.1 may. `loggingLevel` is for the log of Fulgate.
    `debug` shows tracebacks to clients. Raises ConfigError.
    """

    requestClass: type[Request] = Request  # of what `handler` and `error` are given
    _naming = "allowedServers"

    def __init__(
        self,
        application: Application,
        scriptName: Any,
        environ: Mapping[str, Any] | None,
        multithreaded: bool,
        multiprocess: bool,
        bindAddress: Address,
        umask: int | None,
        allowedServers: Any,
        loggingLevel: int,
        debug: bool,
    ) -> None:
        super().__init__(
            application,
            environ,
            multithreaded,
            multiprocess,
            bindAddress,
            umask,
            debug,
            **_paths(scriptName),
        )
        self.request_class = self.requestClass
        self.scriptName = scriptName
        self.logger = logging.getLogger("fulgate")
        if loggingLevel != logging.INFO:
            self.logger.setLevel(loggingLevel)
        self._allowed = _allowed(("127.0.0.1",) if allowedServers is NoDefault else allowedServers)

    def _setupSocket(self) -> socket.socket:
        assert self._bindAddress is not None
        return self._listen(self._bindAddress, self._allowed is not None)

    def _isClientAllowed(self, addr: Any) -> bool:
        """To be overridden. By default who stands in `allowedServers`, and whoever has no address.

        `addr` is as `accept` gave it.
        """
        if self._allowed is None or not isinstance(addr, tuple):
            return True
        return bool(self._allowed) and self._allowed.allows(addr)


def _paths(script_name: Any) -> dict[str, str]:
    """Give the settings that a scriptName means."""
    if script_name is None:
        return {"path": "cgi"}
    if script_name is NoDefault or not script_name.strip("/"):
        return {}
    return {"script_name": "/" + script_name.strip("/")}


def _allowed(servers: Iterable[str] | None) -> AllowedClients | None:
    return None if servers is None else AllowedClients(servers)
