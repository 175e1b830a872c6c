"""An HTTP server for development in front of a FastCGI application: uvicorn, in a thread.

It takes HTTP from a browser and passes each request on over FastCGI, through the socket that a
web server would use in production.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from email.utils import formatdate
from typing import Any, cast

from fulgate.client.proxy import BrokenAnswer, FastCGIProxy, Message, Receive, Scope, Send
from fulgate.client.static import StaticFiles, parse_static
from fulgate.errors import BindError, ConfigError

try:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise ImportError(
        "fulgate.front needs uvicorn, which the extra fulgate[http] brings", name="uvicorn"
    ) from error

__all__ = ["Front"]

logger = logging.getLogger("fulgate.front")

_ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

BACKLOG = 512
START_TIMEOUT = 30.0
# What uvicorn needs of a stop's time beside waiting for the requests that run.
OVERHEAD = 0.5


class Front:
    """The HTTP server at `http` ("HOST:PORT", "[::1]:8000", ":8000" for loopback).

    It passes requests to the FastCGI `endpoint`; `static` are "/PREFIX=FOLDER" that it serves
    itself, the longest prefix first. Raises ConfigError.
    """

    def __init__(self, http: str, endpoint: str, static: Sequence[str] = ()) -> None:
        self._host, self._port = _parse(http)
        # Who stops in a debugger meets no timeout here.
        proxy = FastCGIProxy(endpoint, read_timeout=0)
        folders = sorted(map(parse_static, static), key=lambda pair: -len(pair[0]))
        mounts = [(prefix, StaticFiles(folder)) for prefix, folder in folders]
        self._app = _dated(_mounted(proxy, mounts))
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._failure: BaseException | None = None
        self._reroute = _Reroute()

    @property
    def url(self) -> str:
        """The address to open, such as "http://127.0.0.1:8000"; the real port once started."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    def start(self) -> None:
        """Bind the port and serve it in a thread; return when it serves.

        Raises BindError. No signal handler is set.
        """
        if self._thread is not None:
            raise RuntimeError("this front was started already")
        self._socket = sock = _bind(self._host, self._port)
        self._port = sock.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            http=_NoAccessLog,
            loop="asyncio",
            ws="wsproto" if importlib.util.find_spec("wsproto") else "none",
            ws_ping_interval=None,  # the application's server pings
            lifespan="on",
            log_config=None,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=None,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="fulgate-http", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + START_TIMEOUT
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                sock.close()
                raise BindError(f"the HTTP front did not start: {self._failure or 'no reason'}")
            time.sleep(0.005)

    def _run(self) -> None:
        assert self._server is not None
        assert self._socket is not None
        self._reroute.thread = threading.get_ident()
        uvicorn_logger = logging.getLogger("uvicorn.error")
        uvicorn_logger.addFilter(self._reroute)
        try:
            self._server.run(sockets=[self._socket])
        except BaseException as error:
            self._failure = error
            logger.error("the HTTP front failed", exc_info=True)
        finally:
            uvicorn_logger.removeFilter(self._reroute)
            self._socket.close()

    def stop(self, timeout: float = 5.0) -> bool:
        """Stop: accept no more, close idle connections, let answers end within `timeout` seconds.

        What still runs then is cut. Give whether the thread has ended; a second call is harmless.
        """
        server, thread = self._server, self._thread
        if server is None or thread is None:
            return True
        deadline = time.monotonic() + timeout
        # uvicorn wants whole seconds; what it does with them takes any number.
        server.config.timeout_graceful_shutdown = cast(int, max(timeout - OVERHEAD, 0.1))
        self._reroute.stopping = server.should_exit = True
        thread.join(max(deadline - time.monotonic(), 0.0))
        if thread.is_alive():
            server.force_exit = True
            thread.join(OVERHEAD)
        return not thread.is_alive()


def _parse(http: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]/]*)):([0-9]{1,5})", http, re.ASCII)
    if match is None or int(match[3]) > 65535:
        raise ConfigError(f"http {http!r}: write HOST:PORT, IPv6 as [::1]:PORT, ports to 65535")
    return match[1] or match[2] or "127.0.0.1", int(match[3])


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise BindError(f"cannot listen on http {host}:{port}: {error.strerror}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise BindError(f"cannot listen on http {host}:{port}: {error.strerror}") from error
    return sock


def _mounted(proxy: _ASGIApp, mounts: Sequence[tuple[str, _ASGIApp]]) -> _ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            for prefix, files in mounts:
                if path.startswith(prefix + "/"):
                    await files({**scope, "root_path": prefix}, receive, send)
                    return
        await proxy(scope, receive, send)

    return app


def _dated(app: _ASGIApp) -> _ASGIApp:
    """Add Date where the application did not; uvicorn would add it beside the application's."""

    async def dated(scope: Scope, receive: Receive, send: Send) -> None:
        async def add_date(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                if all(name != b"date" for name, _ in headers):
                    headers.append((b"date", formatdate(usegmt=True).encode()))
                message = {**message, "headers": headers}
            await send(message)

        await app(scope, receive, add_date)

    return dated


class _NoAccessLog(H11Protocol):
    # uvicorn's own switch for it changes the loggers of the whole process.
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.access_log = False


class _Reroute(logging.Filter):
    """Passes what uvicorn's logger says in our thread on to our logger, and nowhere else."""

    thread: int | None = None
    stopping = False

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self.thread:
            return True
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, BrokenAnswer):
            return False  # the proxy has logged it, in one line
        level = record.levelno
        if level < logging.WARNING or self.stopping:  # a stop cuts what does not end, as told
            level = logging.DEBUG
        with contextlib.suppress(Exception):
            logger.log(level, "%s", record.getMessage().strip(), exc_info=record.exc_info)
        return False
