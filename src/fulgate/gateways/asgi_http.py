"""One HTTP request, answered by an ASGI application (ASGI 3.0, "HTTP & WebSocket", version 2.5)."""

from __future__ import annotations

import asyncio
import http
import logging
import os
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol
from wsgiref.util import is_hop_by_hop

from fulgate.errors import Aborted
from fulgate.exchange import Buffer, Exchange, Headers
from fulgate.gateways.asgi_scope import Message, Scope, make_scope, share_names
from fulgate.gateways.awaited import Awaited, in_thread, open_in_thread
from fulgate.gateways.head import (
    ANY_BODY,
    CONTENT_LENGTH,
    INFORMATIONAL,
    NO_BODY,
    check_length,
    check_name,
    check_status,
    check_value,
    known_statuses,
)
from fulgate.gateways.xsendfile import named_file, open_below, refused_file, uri_of
from fulgate.logs import log_refusal, request_line

if TYPE_CHECKING:
    from fulgate.gateways.asgi import ASGI

__all__ = ["Http", "Line", "checked_headers", "status_line"]

logger = logging.getLogger("fulgate")

PIECE: Final = 262144  # bytes of a file that are read at once
KNOWN_LIMIT: Final = 1024
DROPPED: Final = -1  # hop-by-hop: ASGI has the server ignore it

_lines: dict[int, str] = {}  # 200: "200 OK"
_names: dict[bytes, tuple[str, int]] = {}  # b"content-length": ("content-length", CONTENT_LENGTH)


class Line(Protocol):
    """What a driver offers to a gateway in its loop's thread. All but `want` raise Aborted."""

    def send(self, exchange: Exchange, data: Buffer) -> None: ...
    def finish(self, exchange: Exchange, data: Buffer = b"") -> None: ...
    def fail(self, exchange: Exchange) -> None: ...
    def refuse(
        self,
        exchange: Exchange,
        status: str,
        headers: Headers | None = None,
        app_status: int = 0,
    ) -> None: ...
    def want(self, exchange: Exchange) -> None: ...
    def hear(self) -> None: ...  # the body that came has been taken
    def log(self, exchange: Exchange, text: str) -> None: ...


def status_line(code: object) -> str:
    """Give "200 OK" for 200. Raises TypeError or ValueError."""
    if type(code) is not int:
        raise TypeError(f"the status is not int, but {type(code).__name__}")
    line = _lines.get(code)
    if line is None:
        try:
            phrase = http.HTTPStatus(code).phrase
        except ValueError:
            phrase = "Unknown"
        line = f"{code} {phrase}"
        if check_status(line) == INFORMATIONAL:
            raise ValueError(f"{code} is not the status of an answer")
        _lines[code] = line
    return line


def checked_headers(given: Any) -> tuple[Headers, int]:
    """Give headers as text, and what Content-Length says, or -1. Raises TypeError, ValueError.

    Hop-by-hop headers are left out: they are the web server's.
    """
    headers: Headers = []
    length = -1
    for name, value in given:
        try:
            text, kind = _names[name]
        except (KeyError, TypeError):
            text, kind = _checked_name(name)
        if kind == DROPPED:
            continue
        if not isinstance(value, bytes):
            raise TypeError(f"the value of {text} is not bytes, but {type(value).__name__}")
        field = value.decode("latin-1")
        if not (field.isascii() and field.isprintable()):
            check_value(text, field)
        if kind == CONTENT_LENGTH:
            length = check_length(field, length)
        headers.append((text, field))
    return headers, length


def _checked_name(name: Any) -> tuple[str, int]:
    if not isinstance(name, bytes):
        raise TypeError(f"the name of a header is not bytes, but {type(name).__name__}")
    text = name.decode("latin-1")
    kind = DROPPED if is_hop_by_hop(text) else check_name(text)
    if len(_names) < KNOWN_LIMIT:
        _names[name] = text, kind
    return text, kind


class Waiter:
    """Lets several tasks wait for the next change; takes nothing while nobody waits."""

    _waiting: list[asyncio.Future[None]] | None = None

    def next(self) -> asyncio.Future[None]:
        """Give what is done at the next change, to be awaited by one task."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Those of tasks that were cancelled are done without a change.
        self._waiting = [one for one in self._waiting or () if not one.done()]
        self._waiting.append(future)
        return future

    def wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        for future in waiting or ():
            if not future.done():
                future.set_result(None)


class Http:
    """A request and its answer. Answerer to the driver, `receive` and `send` to the application."""

    lasting = False
    task: asyncio.Task[None] | None = None
    _paused = False
    _received = False  # the end of the body, or its only piece
    _status_body = ANY_BODY
    _bodiless = False
    _length = -1  # what the application's Content-Length says
    _left = -1  # of it; -1 when there is nothing to count
    _named: str | None = None  # the file that X-Sendfile names
    _sending = False  # a file is sent
    _complete = False  # the application has ended its answer
    _told = False  # that it is over
    _waited = False  # for a message

    def __init__(self, gateway: ASGI, exchange: Exchange, line: Line) -> None:
        self._gateway = gateway
        self._exchange = exchange
        self._line = line
        self._changed = Waiter()

    # ---------------------------------------------------------------- called by the driver

    def begin(self) -> None:
        self._gateway.calls.add(self)
        self.task = self._gateway.spawn(self, self._exchange, self._line)

    def moved(self) -> None:
        exchange = self._exchange
        if exchange.refused is not None and not exchange.ended:
            log_refusal(exchange)
            try:
                if exchange.head_sent:
                    self._line.fail(exchange)
                else:
                    self._line.refuse(exchange, exchange.refused.status)
            except Aborted:
                logger.debug("%s: aborted by the web server", request_line(exchange))
            self._over()
        self._changed.wake()

    def aborted(self) -> None:
        self._changed.wake()
        self._over()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._changed.wake()

    def drain(self) -> None:
        """The server stops: this request may end."""

    def expire(self) -> None:
        """It has had its time: answer 504, or break the answer, and have the application end."""
        exchange = self._exchange
        if not exchange.ended and not exchange.aborted:
            try:
                if exchange.head_sent:
                    self._line.fail(exchange)
                else:
                    self._line.refuse(exchange, "504 Gateway Timeout")
            except Aborted:
                logger.debug("%s: aborted by the web server", request_line(exchange))
            self._over()
        if self.task is not None:
            self.task.cancel()

    # ---------------------------------------------------------------- the application

    def scope(self) -> Scope:
        """Give what the application is told of the request."""
        scope = make_scope("http", self._exchange)
        scope["method"] = self._exchange.params["REQUEST_METHOD"].upper()
        scope["extensions"]["http.response.pathsend"] = {}
        if self._gateway.state is not None:
            scope["state"] = self._gateway.state.copy()
        return scope

    def left(self) -> None:
        """The application has returned, or raised."""
        self._gateway.calls.discard(self)
        self._over()

    def _over(self) -> None:
        if not self._told:
            self._told = True
            self._gateway.over(self._exchange)

    async def receive(self) -> Message:
        """Give the next piece of the body, or http.disconnect once there is nothing to wait for."""
        exchange = self._exchange
        while True:
            if exchange.aborted or exchange.ended:
                return {"type": "http.disconnect"}
            if not self._received:
                body = exchange.take()
                ended = exchange.stdin_ended or self._is_empty_upgrade()
                if exchange.store is not None and exchange.stored:
                    ended = False
                if body or ended:
                    self._received = ended
                    self._line.hear()
                    return {"type": "http.request", "body": body, "more_body": not ended}
                self._line.want(exchange)
            if not self._waited:
                self._waited = True
                share_names(exchange)
            await Awaited(self._changed.next())

    def _is_empty_upgrade(self) -> bool:
        """lighttpd leaves STDIN open where it may upgrade, although no body comes."""
        return self._exchange.content_length == 0 and "HTTP_UPGRADE" in self._exchange.params

    async def send(self, message: Message) -> None:
        """Take a message of the answer. Raises Aborted, an OSError, once the client is gone.

        Raises RuntimeError, TypeError or ValueError for what breaks the protocol.
        """
        exchange = self._exchange
        if exchange.aborted or exchange.refused is not None:
            raise Aborted("the request was given up by the web server")
        kind = message["type"]
        if exchange.ended or self._sending:
            if not self._complete:
                raise Aborted("the answer was broken off")
            logger.warning("%s: %s came after the end of the answer", request_line(exchange), kind)
            return  # what the specification has the server do
        if kind == "http.response.start":
            self._start(message)
        elif not exchange.status:
            raise RuntimeError(f"{kind} came before http.response.start")
        elif self._named is not None and kind in ("http.response.body", "http.response.pathsend"):
            if not message.get("more_body", False):
                await self._send_named(self._named)
        elif kind == "http.response.body":
            self._body(message.get("body", b""), bool(message.get("more_body", False)))
            if self._paused:
                await self._drain()
        elif kind == "http.response.pathsend":
            if exchange.head_sent:
                raise RuntimeError("http.response.pathsend came after http.response.body")
            await self._send_file(message["path"])
        else:
            raise RuntimeError(f"{kind} is no message of an HTTP answer")

    def _start(self, message: Message) -> None:
        exchange = self._exchange
        if exchange.status:
            raise RuntimeError("http.response.start came twice")
        if message.get("trailers"):
            raise RuntimeError("trailers cannot be sent over FastCGI")
        status = status_line(message["status"])
        headers, length = checked_headers(message.get("headers", ()))
        if self._gateway.x_sendfile != "pass":
            headers, self._named = named_file(headers)
            length = length if self._named is None else -1
        body = known_statuses.get(status, ANY_BODY)
        self._status_body = body
        self._bodiless = body == NO_BODY or exchange.params.get("REQUEST_METHOD") == "HEAD"
        self._length = length
        self._left = -1 if self._bodiless else length
        if body == NO_BODY and length >= 0 and status[:3] == "204":
            # RFC 9110, section 8.6: none in a 204
            headers = [item for item in headers if item[0].lower() != "content-length"]
        exchange.start(status, headers)

    def _body(self, data: Any, more: bool) -> None:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"the body is not bytes, but {type(data).__name__}")
        exchange = self._exchange
        size = len(data)
        if self._bodiless:
            if not more and self._length < 0 and not self._status_body and not exchange.head_sent:
                exchange.headers.append(("Content-Length", str(size)))
            data = b""
        elif self._left >= 0:
            if size > self._left:
                raise RuntimeError(f"the body is longer than its Content-Length of {self._length}")
            self._left -= size
            if self._left and not more:
                raise RuntimeError(
                    f"the body is {self._left} bytes shorter than its Content-Length of"
                    f" {self._length}"
                )
        elif not more and not exchange.head_sent and not self._status_body:
            exchange.headers.append(("Content-Length", str(size)))
        if type(data) is not bytes:
            data = bytes(data)  # the application may change it
        if not more:
            self._complete = True
            self._line.finish(exchange, data)
            self._over()
            self._changed.wake()
        elif data or not exchange.head_sent:
            self._line.send(exchange, data)

    async def _drain(self) -> None:
        """Wait until the client has read enough."""
        exchange = self._exchange
        while self._paused and not exchange.aborted:
            await Awaited(self._changed.next())
        if exchange.aborted and not exchange.ended:
            raise Aborted("the request was given up by the web server")

    # ---------------------------------------------------------------- files by their path

    async def _send_file(self, path: Any) -> None:
        """Send a file as the body: by nginx where it has that folder, else by pieces."""
        name = os.fspath(path)
        if not isinstance(name, str) or not os.path.isabs(name):
            raise ValueError(f"http.response.pathsend wants an absolute path, not {path!r}")
        uri = self._internal(name)
        if uri and self._exchange.status[:3] == "200":
            self._redirect(uri)
            return
        await self._send_open(await open_in_thread(_open, name))

    async def _send_named(self, path: str) -> None:
        """Send the file that X-Sendfile names, or have nginx send it: as `XSendfile` for WSGI."""
        self._sending = self._complete = True  # a body that comes now is for nobody
        roots = self._gateway.roots
        if self._gateway.x_sendfile == "accel":
            uri = uri_of(path, roots)
            if uri is None:
                self._refuse_file(path, PermissionError())
            else:
                self._redirect(uri)
            return
        try:
            file = await open_in_thread(open_below, path, [folder for folder, _ in roots])
        except OSError as error:
            self._refuse_file(path, error)
            return
        await self._send_open(file)

    def _refuse_file(self, path: str, error: OSError) -> None:
        self._line.refuse(self._exchange, refused_file(path, error))
        self._over()
        self._changed.wake()

    def _redirect(self, uri: str) -> None:
        headers = self._exchange.headers
        headers[:] = [item for item in headers if item[0].lower() != "content-length"]
        headers.append(("X-Accel-Redirect", uri))
        self._bodiless = True
        self._length = 0
        self._body(b"", False)

    async def _send_open(self, file: BinaryIO) -> None:
        """Send a file as the body, to where it ends now, or to where Content-Length says."""
        exchange = self._exchange
        self._sending = self._complete = True
        try:
            size = os.fstat(file.fileno()).st_size
            if self._length < 0 and not self._status_body:
                exchange.headers.append(("Content-Length", str(size)))
                self._length = size
                self._left = -1 if self._bodiless else size
            elif self._left > size:
                raise RuntimeError(f"the file is shorter than its Content-Length of {self._length}")
            while self._left > 0 and (piece := await in_thread(file.read, min(PIECE, self._left))):
                self._body(piece, True)
                await self._drain()
            self._body(b"", False)
        finally:
            file.close()  # has nothing to write

    def _internal(self, name: str) -> str:
        """Give the URI under which nginx has a file, all links followed; "" where it has not."""
        if self._gateway.x_sendfile != "accel":
            return ""
        roots = [(_real(folder), uri) for folder, uri in self._gateway.roots]
        return uri_of(_real(name), roots) or ""


def _open(path: str) -> BinaryIO:
    return open(path, "rb")


def _real(path: str) -> str:
    """Give a path with all links followed, as a header has it: bytes in latin-1."""
    return os.fsencode(os.path.realpath(path)).decode("latin-1")
