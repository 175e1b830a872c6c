"""Have an ASGI application answer exchanges: what all of them share.

`asgi_http.py` is one HTTP request, `lifespan.py` the application's start and end.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from fulgate.cgi import repair
from fulgate.errors import Aborted
from fulgate.exchange import Exchange, Headers
from fulgate.gateways.asgi_http import Http, Line
from fulgate.gateways.asgi_scope import Application
from fulgate.gateways.lifespan import Lifespan
from fulgate.gateways.wsgi import exit_status
from fulgate.gateways.xsendfile import split_root
from fulgate.logs import request_line

__all__ = ["ASGI", "Application"]

logger = logging.getLogger("fulgate")

# Web servers that take a request's body for ended where the client asks for an upgrade.
CANNOT = ("nginx", "Apache", "HAProxy", "Caddy", "OpenBSD httpd", "h2o")


class Call(Protocol):
    """One exchange that is being answered."""

    task: asyncio.Task[None] | None

    def begin(self) -> None: ...
    def moved(self) -> None: ...
    def aborted(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def drain(self) -> None: ...


class ASGI:
    """An AsyncGateway: the ASGI application `app` answers exchanges of the Responder role.

    `path`, `script_name` and `repeated_params` are those of `fulgate.cgi.repair`; `stderr` sends
    tracebacks to the web server's log too; `lifespan` is "auto", "on" or "off". `x_sendfile` and
    `roots` are as for `XSendfile`, or "pass" and none; for "accel" nginx sends what is below a root
    also where the application sends it by its path (`http.response.pathsend`). `websocket` are the
    fields of `WebSocketLimits`. `limit` is of requests at once; 0 for none.
    """

    patient = False  # the body is the application's to wait for

    def __init__(
        self,
        app: Application,
        path: str = "auto",
        script_name: str = "",
        repeated_params: str = "refuse",
        stderr: bool = False,
        lifespan: str = "auto",
        x_sendfile: str = "pass",
        roots: Sequence[str] = (),
        websocket: tuple[int, float, float, bool] = (16 << 20, 20.0, 20.0, True),
        limit: int = 0,
    ) -> None:
        self.app = app
        self.x_sendfile = x_sendfile
        self.roots = [split_root(root) for root in roots]
        self.state: dict[str, Any] | None = None
        self.calls: set[Call] = set()
        self.over: Callable[[Exchange], None] = _nothing
        self._path = path
        self._script_name = script_name
        self._repeated_params = repeated_params
        self._stderr = stderr
        self._lifespan = Lifespan(app, lifespan)
        self._websocket = websocket
        self._limit = limit
        self._loop: asyncio.AbstractEventLoop | None = None

    # ---------------------------------------------------------------- called by the driver

    def start(self, over: Callable[[Exchange], None]) -> None:
        """Take note whom to tell that an exchange is over."""
        self.over = over

    def __call__(self, exchange: Exchange, line: Line) -> Call:
        repair(exchange, self._path, self._script_name, self._repeated_params)
        if exchange.refused is not None:
            return Refusal(self, exchange, line, exchange.refused.status, str(exchange.refused))
        if exchange.params.get("HTTP_UPGRADE", "").lower() == "websocket":
            return self._upgrade(exchange, line)
        return Http(self, exchange, line)

    def _upgrade(self, exchange: Exchange, line: Line) -> Call:
        """Give who answers a WebSocket's handshake, or says why there is none."""
        software = exchange.params.get("SERVER_SOFTWARE", "")
        why = ""
        if exchange.stdin_ended or software.startswith(CANNOT):
            why = f"the web server ({software or 'unknown'}) carries no WebSocket over FastCGI"
        else:
            try:
                from fulgate.gateways import asgi_websocket as ws
            except ImportError:
                why = "WebSocket needs wsproto: install fulgate[websocket]"
        if why:
            return Refusal(self, exchange, line, "501 Not Implemented", why)
        if status := ws.problem(exchange.params):
            headers = [("Sec-WebSocket-Version", "13")]
            return Refusal(self, exchange, line, status, "no WebSocket's handshake", headers)
        return ws.WebSocket(self, exchange, line, ws.WebSocketLimits(*self._websocket))

    def drain(self) -> None:
        """The server stops: have WebSockets close."""
        for call in list(self.calls):
            call.drain()

    def room(self) -> bool:
        """May another exchange begin?"""
        return not self._limit or len(self.calls) < self._limit

    def running(self) -> int:
        return len(self.calls)

    def cancel(self) -> None:
        """End the tasks that still run."""
        for call in list(self.calls):
            if call.task is not None:
                call.task.cancel()

    async def startup(self) -> None:
        """Have the application start. Raises StartupFailed."""
        await self._lifespan.startup()
        self.state = self._lifespan.state

    async def shutdown(self, timeout: float) -> None:
        """Have the application end, within `timeout` seconds."""
        await self._lifespan.shutdown(timeout)

    # ---------------------------------------------------------------- called by calls

    def spawn(self, call: Http, exchange: Exchange, line: Line) -> asyncio.Task[None]:
        """Start the application on a request, in a task of its own."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop.create_task(self._run(call, exchange, line))

    async def _run(self, call: Http, exchange: Exchange, line: Line) -> None:
        # Not in asgi_http.py, which is compiled: a frame is to be seen here, as the stack of what
        # the application waits in begins with it.
        try:
            await self.app(call.scope(), call.receive, call.send)
            if not exchange.ended and not exchange.aborted:
                began = "did not end its answer" if exchange.status else "gave no answer"
                logger.error("%s: the application %s", request_line(exchange), began)
                self.give_up(exchange, line)
        except BaseException as error:  # SystemExit in an application does not end the server
            self.failed(exchange, line, error)
        finally:
            call.left()

    def failed(self, exchange: Exchange, line: Line, error: BaseException) -> None:
        """Log why the application did not answer, and answer instead of it."""
        if exchange.aborted and isinstance(error, (OSError, asyncio.CancelledError)):
            logger.debug("%s: aborted by the web server", request_line(exchange))
        elif exchange.ended and isinstance(error, (Aborted, asyncio.CancelledError)):
            logger.debug("%s: the application was cancelled", request_line(exchange))
        elif isinstance(error, asyncio.CancelledError):
            logger.error("%s: the application was cancelled", request_line(exchange))
        else:
            exchange.error = type(error).__name__
            logger.error("%s: the application raised", request_line(exchange), exc_info=error)
            if self._stderr and not exchange.ended:
                line.log(exchange, "".join(traceback.format_exception(error)))
        self.give_up(exchange, line, exit_status(error))

    def give_up(self, exchange: Exchange, line: Line, app_status: int = 1) -> None:
        """End an exchange: with 500 when nothing was sent, as a broken answer otherwise."""
        if exchange.ended or exchange.aborted:
            return
        try:
            if exchange.head_sent:
                line.fail(exchange)
            else:
                line.refuse(exchange, "500 Internal Server Error", app_status=app_status)
        except Aborted:
            logger.debug("%s: aborted by the web server", request_line(exchange))


class Refusal:
    """Answers a request that the application does not get."""

    lasting = False
    task: asyncio.Task[None] | None = None

    def __init__(
        self,
        gateway: ASGI,
        exchange: Exchange,
        line: Line,
        status: str,
        why: str,
        headers: Headers | None = None,
    ) -> None:
        self._gateway = gateway
        self._exchange = exchange
        self._line = line
        self._status = status
        self._why = why
        self._headers = headers

    def begin(self) -> None:
        exchange = self._exchange
        logger.warning("%s: %s: %s", request_line(exchange), self._status, self._why)
        self._line.refuse(exchange, self._status, self._headers)
        self._gateway.over(exchange)

    def moved(self) -> None:
        """The body is of no interest."""
        self._exchange.take()

    def aborted(self) -> None:
        """The answer was given already."""

    pause = resume = drain = expire = aborted


def _nothing(exchange: Exchange) -> None:
    """Nobody is to be told."""
