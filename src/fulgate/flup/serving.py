"""What flup's servers have in common: the application, its arguments, and how it is answered."""

from __future__ import annotations

import html
import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fulgate.config import Config
from fulgate.drivers.inline import Inline
from fulgate.flup.answer import Pieces, encoded, text_start_response
from fulgate.flup.request import CGIRequest, Request
from fulgate.flup.sockets import Address, listen
from fulgate.listener import Listener
from fulgate.server import Server

__all__ = ["Application", "Connection", "Serving", "TimeoutException", "is_own_job"]

log = logging.getLogger("fulgate")

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


class TimeoutException(Exception):
    """A request took longer than `timeout`. Raised inside of the application."""


class Connection:
    """The job for an accepted connection: `run` serves it in the thread that calls it."""

    _own = True  # a driver can do without it, unless a program derives another one
    _multiplexed = False

    def __init__(
        self, sock: socket.socket, addr: Any, server: Serving, timeout: float | None = None
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


def is_own_job(kind: Any) -> bool:
    """Is it one of ours, in whose place a driver can serve?"""
    return "_own" in vars(kind)


class Serving:
    """The application, its arguments, and how an answer is made of it.

    `protocol` is what is spoken. `settings` are fields of Config.
    """

    protocol = "fastcgi"
    request_class: type[Request] = Request
    cgirequest_class: type[Request] = CGIRequest
    roles: Any = (1,)
    _connectionClass: type[Connection] = Connection
    _naming = ""  # how one names the machines that may connect

    def __init__(
        self,
        application: Application,
        environ: Mapping[str, Any] | None,
        multithreaded: bool,
        multiprocess: bool,
        bindAddress: Address | None,
        umask: int | None,
        debug: bool,
        **settings: Any,
    ) -> None:
        self.application = application
        self.environ = {} if environ is None else environ
        self.multithreaded = multithreaded
        self.multiprocess = multiprocess
        self.debug = debug
        self._bindAddress = bindAddress
        self._umask = umask
        self._settings = settings
        self._appLock = threading.Lock()  # for applications that want one thread at a time
        self._jobs: set[Inline] = set()
        self._jobsEnd = False
        self._servesJobs: Server | None = None

    # ---------------------------------------------------------------- sockets

    def _setupSocket(self) -> socket.socket:
        """Give the listening socket. Raises BindError and OSError."""
        raise NotImplementedError

    def _listen(self, address: Address, restricted: bool) -> socket.socket:
        """Listen; warn where other machines may connect, and not only some."""
        listener = listen(address, self._umask)
        listener.protocol = self.protocol
        if listener.exposed and not restricted:
            log.warning(
                "%s lets every machine that can connect run requests here: name the web"
                " servers in %s, or bind to 127.0.0.1",
                listener.label,
                self._naming,
            )
        return listener

    def _cleanupSocket(self, sock: socket.socket) -> None:
        """Close the listening socket, and remove its file."""
        sock.close()

    def _isClientAllowed(self, addr: Any) -> bool:
        """To be overridden: may a peer with this address, as `accept` gave it, connect?"""
        raise NotImplementedError

    def _newServer(self, sock: socket.socket | None = None, threads: int = 1) -> Server:
        """Give a server for the application, which owns `sock` from now on."""
        server = Server(
            self._answer,
            Config(threads=threads, stderr=True, **self._settings),
            allowed=self._isClientAllowed,
            environ={},
            protocol=self.protocol,
        )
        if isinstance(sock, Listener):
            server.listeners = [sock]
        elif sock is not None:
            listener = Listener(fileno=sock.detach())
            listener.protocol = self.protocol
            server.listeners = [listener]
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
        if type(self).handler is not Serving.handler:
            pieces.of_handler()
            return pieces
        return pieces.of_application()

    def handler(self, req: Request) -> Any:
        """To be overridden by programs that answer without WSGI.

        Returns a protocolStatus and an appStatus (FastCGI 1.0, section 5.5), of which the latter is
        ignored; or nothing, as with SCGI.
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
        return 0, 0

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
