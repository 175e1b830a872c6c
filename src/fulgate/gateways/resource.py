"""Has a `twisted.web` resource answer exchanges, in the reactor's thread and without HTTP between.

A request of Twisted's speaks to a channel, which is HTTP's as a rule. The one here takes its head,
and its bytes, into the exchange.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import quote_from_bytes, unquote_to_bytes

from twisted.internet import error
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET, Site

from fulgate.cgi import repair
from fulgate.errors import Aborted
from fulgate.exchange import Buffer, Exchange, Headers
from fulgate.gateways.head import check_length, check_name, check_status, check_value
from fulgate.gateways.trampoline import deferred_of
from fulgate.logs import log_refusal, request_line

__all__ = ["ResourceGateway"]

log = logging.getLogger("fulgate")

# What speaks of HTTP between two neighbours means nothing here (RFC 9110, section 7.6.1).
HOP_BY_HOP = frozenset(
    (b"transfer-encoding", b"connection", b"keep-alive", b"upgrade", b"proxy-connection")
)


class Line(Protocol):
    """What a driver offers to a gateway in the reactor's thread. All but `want` raise Aborted."""

    def send(self, exchange: Exchange, data: Buffer) -> None: ...
    def finish(self, exchange: Exchange, data: Buffer = b"") -> None: ...
    def fail(self, exchange: Exchange) -> None: ...
    def refuse(self, exchange: Exchange, status: str) -> None: ...
    def want(self, exchange: Exchange) -> None: ...


class MountedSite(Site):
    """A site whose root is at SCRIPT_NAME, which becomes `request.prepath`."""

    def getResourceFor(self, request: Any) -> Any:
        mount: bytes = request.channel.mount
        count = mount.count(b"/")
        if count and b"/" + b"/".join(request.postpath[:count]) == mount:
            request.prepath = request.postpath[:count]
            del request.postpath[:count]
        return _Awaited(super().getResourceFor(request))


class _Awaited:
    """A resource whose render methods may be coroutines: what they give is the rest of the body."""

    def __init__(self, resource: Any) -> None:
        self._resource = resource

    def render(self, request: Any) -> Any:
        body = self._resource.render(request)
        if not inspect.iscoroutine(body):
            return body
        running = deferred_of(body)
        request.notifyFinish().addErrback(lambda reason: running.cancel())
        running.addCallback(_ended, request).addErrback(_failed, request)
        return NOT_DONE_YET

    def __getattr__(self, name: str) -> Any:
        return getattr(self._resource, name)


def _ended(result: Any, request: Any) -> None:
    """Send what a coroutine has returned, and end the answer, unless it has ended already."""
    if result is NOT_DONE_YET or _is_over(request):
        return
    if result is not None and not isinstance(result, bytes):
        raise TypeError(f"a coroutine gives the body as bytes, not {type(result).__name__}")
    if result and not request.startedWriting:
        request.setHeader(b"content-length", b"%d" % len(result))
    request.write(result or b"")
    request.finish()


def _failed(failure: Any, request: Any) -> None:
    over = _is_over(request)
    if not over and not request.startedWriting:
        request.processingFailed(failure)
        return
    if not over or not failure.check(CancelledError):
        error = (failure.type, failure.value, failure.getTracebackObject())
        uri = request.uri.decode("latin-1")
        log.error("%s: the coroutine raised after its answer began", uri, exc_info=error)
    if not over:
        request.loseConnection()  # Twisted would end the answer with a page about the error


def _is_over(request: Any) -> bool:
    return bool(request.finished or request._disconnected)


class Channel:
    """What a twisted.web.server.Request has for a channel and for a transport: one exchange."""

    factory = None  # it would write an access log of its own

    def __init__(
        self, gateway: ResourceGateway, exchange: Exchange, line: Line, mount: bytes
    ) -> None:
        self.site = gateway.site
        self.mount = mount
        self.transport = self
        self._gateway = gateway
        self._exchange = exchange
        self._line = line
        self._producer: Any = None
        self._streaming = True
        self._paused = False
        self._pulling: Any = None
        self._left = -1  # of Content-Length
        self._received = False  # the whole request is there, and being answered
        self._over = False
        self._request: Any = None

    # ---------------------------------------------------------------- called by the driver

    def begin(self) -> None:
        """Make the request, and wait for its body."""
        params = self._exchange.params
        make: Any = self.site.requestFactory
        request = self._request = make(self)
        for name, value in params.items():
            if name.startswith("HTTP_") and isinstance(value, str):
                field = name[5:].replace("_", "-").title()
                request.requestHeaders.addRawHeader(
                    field.encode("latin-1"), value.encode("latin-1")
                )
        for name, header in (
            ("CONTENT_TYPE", b"Content-Type"),
            ("CONTENT_LENGTH", b"Content-Length"),
        ):
            if params.get(name):
                request.requestHeaders.setRawHeaders(header, [params[name].encode("latin-1")])
        length = self._exchange.content_length
        if length < 0 and self._exchange.stdin_ended:
            length = self._exchange.body_size
        request.gotLength(length if length >= 0 else None)
        request.parseCookies()
        self.moved()

    def moved(self) -> None:
        exchange = self._exchange
        if self._over or self._received:
            exchange.take()  # too late to be of use
            return
        if exchange.refused is not None:
            log_refusal(exchange)
            status = exchange.refused.status
            self._lost("the request was refused")
            self._line.refuse(exchange, status)
            self._gateway.over(exchange)
            return
        while data := exchange.take():  # a piece at a time, of what is in a file
            self._request.handleContentChunk(data)
        if exchange.stdin_ended:
            self._receive()
        else:
            self._line.want(exchange)

    def aborted(self) -> None:
        if not self._over:
            self._lost("the web server gave the request up")
            self._gateway.over(self._exchange)

    def pause(self) -> None:
        self._paused = True
        if self._producer is not None and self._streaming:
            self._producer.pauseProducing()

    def resume(self) -> None:
        self._paused = False
        if self._producer is None:
            return
        if self._streaming:
            self._producer.resumeProducing()
        else:
            self._pull()

    def _receive(self) -> None:
        self._received = True
        params = self._exchange.params
        method = params.get("REQUEST_METHOD", "GET").encode("latin-1")
        version = params.get("SERVER_PROTOCOL", "HTTP/1.0").encode("latin-1")
        try:
            self._request.requestReceived(method, target(params), version)
        except Exception:
            log.exception("%s: the request was not understood", request_line(self._exchange))
            self._break()

    def _lost(self, why: str) -> None:
        """There is no way to the client any more."""
        self._over = True
        producer = self._unregister()
        if producer is not None:
            producer.stopProducing()
        self._request.connectionLost(Failure(error.ConnectionLost(why)))

    def _break(self) -> None:
        """End an answer that cannot be completed, so that the client sees it."""
        if self._over:
            return
        self._fail()
        self._lost("the answer was broken off")
        self._gateway.over(self._exchange)

    # ---------------------------------------------------------------- called by the request

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Any) -> None:
        # Twisted means to cut the body into chunks, which is HTTP's: FastCGI tells its end.
        self._request.chunked = 0
        pairs = headers  # a list of pairs, in older versions of Twisted
        if not isinstance(headers, list):
            pairs = [(name, one) for name, all in headers.getAllRawHeaders() for one in all]
        fields: Headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in pairs
            if name.lower() not in HOP_BY_HOP
        ]
        status = f"{code.decode('latin-1')} {reason.decode('latin-1')}"
        try:
            body = check_status(status)
            for name, value in fields:
                kind = check_name(name)
                check_value(name, value)
                if kind and not body and self._request.method != b"HEAD":
                    self._left = check_length(value, self._left)
        except (TypeError, ValueError) as problem:
            log.error("%s: %s", request_line(self._exchange), problem)
            self._soon(self._break)
            return
        self._exchange.start(status, fields)
        self._send(b"")

    def write(self, data: bytes) -> None:
        if self._left >= 0:
            if len(data) > self._left:
                log.error("%s: the body is cut at its length", request_line(self._exchange))
            data = data[: self._left]
            self._left -= len(data)
        if data:
            self._send(data)

    def writeSequence(self, iovec: Any) -> None:
        self.write(b"".join(iovec))

    def _send(self, data: bytes) -> None:
        if self._over or not self._exchange.status:
            return
        with contextlib.suppress(Aborted):  # `aborted` is on its way
            self._line.send(self._exchange, data)

    def requestDone(self, request: Any) -> None:
        """The answer is complete."""
        if self._over:
            return
        if self._left > 0:
            log.error(
                "%s: the body is %d bytes too short", request_line(self._exchange), self._left
            )
        if self._left > 0 or not self._exchange.head_sent:
            self._fail()
        else:
            self._over = True
            with contextlib.suppress(Aborted):
                self._line.finish(self._exchange)
        self._gateway.over(self._exchange)

    def _fail(self) -> None:
        self._over = True
        with contextlib.suppress(Aborted):
            if self._exchange.head_sent:
                self._line.fail(self._exchange)
            else:
                self._line.refuse(self._exchange, "500 Internal Server Error")

    def loseConnection(self) -> None:
        """Break the answer off: the web server's client sees an error."""
        self._soon(self._break)

    abortConnection = loseConnection

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Twisted calls it when it cannot read a form."""
        self._line.refuse(self._exchange, "400 Bad Request")
        self._lost("the request was bad")
        self._gateway.over(self._exchange)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self._producer is not None:
            raise RuntimeError("there is a producer already")
        if self._over:
            producer.stopProducing()
            return
        self._producer = producer
        self._streaming = streaming
        if streaming:
            if self._paused:
                producer.pauseProducing()
        else:
            self._pull()

    def unregisterProducer(self) -> None:
        self._unregister()

    def _unregister(self) -> Any:
        producer, self._producer = self._producer, None
        if self._pulling is not None:
            self._pulling.cancel()
            self._pulling = None
        return producer

    def _pull(self) -> None:
        if self._pulling is None and not self._paused:
            self._pulling = self._soon(self._pull_now)

    def _pull_now(self) -> None:
        self._pulling = None
        if self._producer is None or self._paused:
            return
        try:
            self._producer.resumeProducing()
        except Exception:
            log.exception("%s: the producer raised", request_line(self._exchange))
            self._break()
        else:
            if self._producer is not None:
                self._pull()

    def _soon(self, function: Callable[[], None]) -> Any:
        return self._gateway.reactor.callLater(0, function)

    # about the connection between client and web server

    def getPeer(self) -> Any:
        params = self._exchange.params
        return _address(params.get("REMOTE_ADDR", ""), params.get("REMOTE_PORT", ""))

    def getHost(self) -> Any:
        params = self._exchange.params
        port = params.get("SERVER_PORT") or ("443" if self.isSecure() else "80")
        return _address(params.get("SERVER_ADDR") or "127.0.0.1", port)

    def isSecure(self) -> bool:
        return bool(self._exchange.params.get("wsgi.url_scheme") == "https")


class ResourceGateway:
    """Answers exchanges with the resource of `site`. `path`, `script_name` and `repeated_params`
    are those of `fulgate.cgi.repair`.
    """

    patient = False  # the body goes into a file as it comes

    def __init__(
        self,
        site: MountedSite,
        reactor: Any,
        path: str = "auto",
        script_name: str = "",
        repeated_params: str = "refuse",
    ) -> None:
        self.site = site
        self.reactor = reactor
        self._rules = (path, script_name, repeated_params)
        self._running: set[Exchange] = set()
        self._over: Callable[[Exchange], None] = lambda exchange: None

    def start(self, over: Callable[[Exchange], None]) -> None:
        self._over = over

    def room(self) -> bool:
        return True

    def running(self) -> int:
        return len(self._running)

    def __call__(self, exchange: Exchange, line: Line) -> Channel:
        if exchange.refused is None:
            repair(exchange, *self._rules)
        mount = exchange.params.get("SCRIPT_NAME", "").encode("latin-1")
        self._running.add(exchange)
        return Channel(self, exchange, line, mount)

    def over(self, exchange: Exchange) -> None:
        self._running.discard(exchange)
        self._over(exchange)


def target(params: dict[str, Any]) -> bytes:
    """Give the request's target, as Twisted wants it: the client's own, where the path is still
    the same, since that tells "%2F" from "/".
    """
    uri = params.get("REQUEST_URI", "").encode("latin-1")
    path = (params.get("SCRIPT_NAME", "") + params.get("PATH_INFO", "")).encode("latin-1")
    if unquote_to_bytes(uri.partition(b"?")[0]) == path and path:
        found: bytes = uri
        return found
    quoted = quote_from_bytes(path or b"/", safe="/~!$&'()*+,;=:@").encode("ascii")
    query = params.get("QUERY_STRING", "").encode("latin-1")
    return quoted + (b"?" + query if query else b"")


def _address(host: str, port: str) -> Any:
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
    if ":" in host:
        return IPv6Address("TCP", host, number)
    if host.startswith("unix:") or not host:
        return UNIXAddress(None)
    return IPv4Address("TCP", host, number)
