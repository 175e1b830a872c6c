"""flup.server.fcgi_base: what all of flup's FastCGI servers have in common."""

from __future__ import annotations

import html
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fulgate.config import Config
from fulgate.drivers.inline import Inline
from fulgate.endpoint import AllowedClients
from fulgate.flup.answer import Pieces, encoded, text_start_response
from fulgate.flup.request import CGIRequest, Request
from fulgate.flup.sockets import Address, listen, listen_on_stdin
from fulgate.listener import Listener, inherited_on_stdin
from fulgate.serve import Server

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

log = logging.getLogger("fulgate")

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

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# What a server says of itself; `environ` does not overrule it.
OWN = frozenset(
    {
        "wsgi.version",
        "wsgi.input",
        "wsgi.errors",
        "wsgi.multithread",
        "wsgi.multiprocess",
        "wsgi.run_once",
    }
)


class Connection:
    """The job for an accepted connection: `run` serves it in the thread that calls it."""

    _multiplexed = False

    def __init__(
        self, sock: socket.socket, addr: Any, server: BaseFCGIServer, timeout: float | None = None
    ) -> None:
        self._sock = sock
        self._addr = addr
        self.server = server

    def run(self) -> None:
        """Serve until the connection is closed, or the server is shut down."""
        driver = self.server._jobServer().inline(self._sock)
        jobs = self.server._jobs
        jobs.add(driver)
        try:
            if self.server._jobsEnd:
                driver.stop()
            driver.run()
        finally:
            jobs.discard(driver)


class MultiplexedConnection(Connection):
    """What `multiplexed=True` asks for; for now the same as `Connection`."""

    _multiplexed = True


class BaseFCGIServer:
    """The application, its arguments, and how an answer is made of it.

    `environ` is put into each request's environ. `bindAddress` is a path, (host, port), a tuple of
    more elements for IPv6, or None: the socket on descriptor 0, and where that is none, CGI.
    `umask` is for the socket's file. `debug` shows tracebacks to clients. `forceCGI`, and
    FCGI_FORCE_CGI=Y in the environment, mean CGI whatever descriptor 0 is. Raises ValueError for
    `roles` without FCGI_RESPONDER.
    """

    request_class = Request
    cgirequest_class = CGIRequest

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
        self.application = application
        self.environ = {} if environ is None else environ
        self.multithreaded = multithreaded
        self.multiprocess = multiprocess
        self.debug = debug
        self.roles = roles
        self.forceCGI = forceCGI
        self._bindAddress = bindAddress
        self._umask = umask
        self._appLock = threading.Lock()  # for applications that want one thread at a time
        self._connectionClass = MultiplexedConnection if multiplexed else Connection
        self._allowed = AllowedClients(())
        self._jobs: set[Inline] = set()
        self._jobsEnd = False
        self._servesJobs: Server | None = None
        self._inherited: Listener | None = None
        if bindAddress is None and inherited_on_stdin():
            # A host that daemonises puts /dev/null over it before `run`.
            self._inherited = listen_on_stdin()

    # ---------------------------------------------------------------- sockets

    def _setupSocket(self) -> socket.socket:
        """Give the listening socket. As CGI: answer the one request, and end the process."""
        self._allowed = AllowedClients.of((), os.environ)
        if self._bindAddress is not None:
            listener = listen(self._bindAddress, self._umask)
            if listener.exposed and not self._allowed:
                log.warning(
                    "%s lets every machine that can connect run requests here: name the web"
                    " servers in FCGI_WEB_SERVER_ADDRS, or bind to 127.0.0.1",
                    listener.label,
                )
            return listener
        force = self.forceCGI or os.environ.get("FCGI_FORCE_CGI", "")[:1] in ("Y", "y")
        inherited, self._inherited = self._inherited, None
        if not force:
            if inherited is not None:
                return inherited
            if inherited_on_stdin():
                return listen_on_stdin()
        self.multithreaded, self.multiprocess = False, True
        sys.exit(Server(self._answer, stderr=True).answer())

    def _cleanupSocket(self, sock: socket.socket) -> None:
        """Close the listening socket, and remove its file."""
        sock.close()

    def _isClientAllowed(self, addr: Any) -> bool:
        """To be overridden. By default who stands in FCGI_WEB_SERVER_ADDRS, if that is set."""
        # It shuts other transports than TCP out (FastCGI 1.0, section 3.2).
        return not self._allowed or (isinstance(addr, tuple) and self._allowed.allows(addr))

    def _newServer(self, sock: socket.socket | None = None, threads: int = 1) -> Server:
        """Give a server for the application, which owns `sock` from now on."""
        server = Server(
            self._answer,
            Config(threads=threads, stderr=True),
            allowed=self._isClientAllowed,
            environ={},
        )
        if isinstance(sock, Listener):
            server.listeners = [sock]
        elif sock is not None:
            server.listeners = [Listener(fileno=sock.detach())]
        return server

    def _jobServer(self) -> Server:
        server = self._servesJobs
        if server is None:
            server = self._servesJobs = self._newServer()
        return server

    def _endJobs(self, timeout: float) -> None:
        """End the connections that are served as jobs; after `timeout` seconds cut them."""
        self._jobsEnd = True
        deadline = time.monotonic() + timeout
        for job in list(self._jobs):
            job.stop()
        while self._jobs and time.monotonic() < deadline:
            time.sleep(0.01)
        for job in list(self._jobs):
            job.cut()

    # ---------------------------------------------------------------- answers

    def _answer(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """The application as the gateway sees it: with flup's environ, and flup's errors."""
        for name, value in self.environ.items():
            if name not in OWN:
                environ[name] = value
        if "HTTPS" in self.environ:
            secure = environ["HTTPS"] in ("on", "1")
            environ["wsgi.url_scheme"] = "https" if secure else "http"
        environ["wsgi.multithread"] = self.multithreaded
        environ["wsgi.multiprocess"] = self.multiprocess
        self._sanitizeEnv(environ)
        release = None
        if not self.multithreaded:
            self._appLock.acquire()
            release = self._appLock.release
        pieces = Pieces(self, environ, start_response, release)
        if type(self).handler is not BaseFCGIServer.handler:
            pieces.of_handler()
            return pieces
        return pieces.of_application()

    def handler(self, req: Request) -> tuple[int, int]:
        """To be overridden by programs that answer without WSGI.

        Returns a protocolStatus and an appStatus (FastCGI 1.0, section 5.5); the latter is ignored.
        """
        write = None
        start_response = text_start_response(req.start_response)

        def start(*args: Any) -> Any:
            nonlocal write
            write = start_response(*args)
            return write

        result = self.application(req.params, start)
        try:
            for piece in result:
                if piece and write is not None:
                    write(encoded(piece))
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()
        return FCGI_REQUEST_COMPLETE, 0

    def _sanitizeEnv(self, environ: dict[str, Any]) -> None:
        """To be overridden: change an environ before the application sees it.

        What flup repairs here is repaired already.
        """

    def error(self, req: Request) -> None:
        """To be overridden: write an answer to `req.stdout`, as a CGI program does.

        Called where the application raised before anything of its answer had left.
        """
        body = "<h1>Internal Server Error</h1>\n<p>The application failed. Its log says why.</p>\n"
        if self.debug:
            trace = html.escape(traceback.format_exc())
            body = f"<h1>The application failed</h1>\n<pre>{trace}</pre>\n"
        text = (
            "<!DOCTYPE html>\n<html><head><title>Internal Server Error</title></head>\n"
            f"<body>\n{body}</body></html>\n"
        )
        req.stdout.write(
            b"Status: 500 Internal Server Error\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"
            + text.encode("utf-8", "backslashreplace")
        )
