"""flup.server.fcgi_base: what all of flup's FastCGI servers have in common."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fulgate.endpoint import AllowedClients
from fulgate.flup.request import CGIRequest, Request
from fulgate.flup.serving import Application, Connection, Serving
from fulgate.flup.sockets import Address, listen_on_stdin
from fulgate.listener import Listener, inherited_on_stdin
from fulgate.server import Server

__all__ = [
    "FCGI_AUTHORIZER",
    "FCGI_CANT_MPX_CONN",
    "FCGI_FILTER",
    "FCGI_LISTENSOCK_FILENO",
    "FCGI_MAX_CONNS",
    "FCGI_MAX_REQS",
    "FCGI_MPXS_CONNS",
    "FCGI_OVERLOADED",
    "FCGI_REQUEST_COMPLETE",
    "FCGI_RESPONDER",
    "FCGI_UNKNOWN_ROLE",
    "BaseFCGIServer",
    "CGIRequest",
    "Connection",
    "MultiplexedConnection",
    "Request",
]

# FastCGI 1.0, section 8, as far as a handler needs it.
FCGI_LISTENSOCK_FILENO = 0
FCGI_RESPONDER = 1
FCGI_AUTHORIZER = 2
FCGI_FILTER = 3
FCGI_REQUEST_COMPLETE = 0
FCGI_CANT_MPX_CONN = 1
FCGI_OVERLOADED = 2
FCGI_UNKNOWN_ROLE = 3
FCGI_MAX_CONNS = "FCGI_MAX_CONNS"
FCGI_MAX_REQS = "FCGI_MAX_REQS"
FCGI_MPXS_CONNS = "FCGI_MPXS_CONNS"


class MultiplexedConnection(Connection):
    """What `multiplexed=True` asks for; as a class it is the same as `Connection`."""

    _own = True
    _multiplexed = True


class BaseFCGIServer(Serving):
    """The application, its arguments, and how an answer is made of it.

    `environ` is put into each request's environ. `bindAddress` is a path, (host, port), a tuple of
    more elements for IPv6, or None: the socket on descriptor 0, and where that is none, CGI.
    `umask` is for the socket's file. `debug` shows tracebacks to clients. `forceCGI`, and
    FCGI_FORCE_CGI=Y in the environment, mean CGI whatever descriptor 0 is. Raises ValueError for
    `roles` without FCGI_RESPONDER.
    """

    _naming = "FCGI_WEB_SERVER_ADDRS"

    def __init__(
        self,
        application: Application,
        environ: Mapping[str, Any] | None = None,
        multithreaded: bool = True,
        multiprocess: bool = False,
        bindAddress: Address | None = None,
        umask: int | None = None,
        multiplexed: bool = False,
        debug: bool = False,
        roles: Sequence[int] = (FCGI_RESPONDER,),
        forceCGI: bool = False,
    ) -> None:
        if FCGI_RESPONDER not in roles:
            raise ValueError("roles without FCGI_RESPONDER are not served")
        super().__init__(
            application, environ, multithreaded, multiprocess, bindAddress, umask, debug
        )
        self._settings["multiplex"] = multiplexed
        self.roles = roles
        self.forceCGI = forceCGI
        self._connectionClass = MultiplexedConnection if multiplexed else Connection
        self._allowed = AllowedClients(())
        self._inherited: Listener | None = None
        if bindAddress is None and inherited_on_stdin():
            # A host that daemonises puts /dev/null over it before `run`.
            self._inherited = listen_on_stdin()

    def _setupSocket(self) -> socket.socket:
        """Give the listening socket. As CGI: answer the one request, and end the process."""
        self._allowed = AllowedClients.of((), os.environ)
        if self._bindAddress is not None:
            return self._listen(self._bindAddress, bool(self._allowed))
        force = self.forceCGI or os.environ.get("FCGI_FORCE_CGI", "")[:1] in ("Y", "y")
        inherited, self._inherited = self._inherited, None
        if not force:
            if inherited is not None:
                return inherited
            if inherited_on_stdin():
                return listen_on_stdin()
        self.multithreaded, self.multiprocess = False, True
        sys.exit(Server(self._answer, stderr=True).answer())

    def _isClientAllowed(self, addr: Any) -> bool:
        """To be overridden. By default who stands in FCGI_WEB_SERVER_ADDRS, if that is set."""
        # It shuts other transports than TCP out (FastCGI 1.0, section 3.2).
        return not self._allowed or (isinstance(addr, tuple) and self._allowed.allows(addr))
