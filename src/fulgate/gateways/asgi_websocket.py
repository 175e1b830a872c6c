"""A WebSocket, as an ASGI application has it, over a web server that carries one by FastCGI.

lighttpd's convention (`"upgrade" => "enable"`, 1.4.74 and later): the request is the client's, with
HTTP_UPGRADE; STDIN does not end, and from the answer's `Status: 101` on it carries the client's
frames as STDOUT carries ours (RFC 6455). Its mod_fastcgi passes none on that comes over HTTP/2
(RFC 8441); docs/websocket.md has a configuration that turns these into the same request.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from wsproto import events
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.extensions import Extension
from wsproto.utilities import LocalProtocolError, RemoteProtocolError, generate_accept_token

from fulgate.errors import Aborted
from fulgate.exchange import Exchange, Headers
from fulgate.gateways.asgi_deflate import agree
from fulgate.gateways.asgi_http import Line, Waiter, checked_headers, status_line
from fulgate.gateways.asgi_scope import Message, make_scope
from fulgate.logs import request_line

if TYPE_CHECKING:
    from fulgate.gateways.asgi import ASGI

__all__ = ["WebSocket", "WebSocketLimits", "problem"]

logger = logging.getLogger("fulgate")

# What the application is at.
CONNECTING: Final = 0
DENYING: Final = 1  # it answers with HTTP
OPEN: Final = 2
CLOSING: Final = 3  # a close frame has been sent, the client's is awaited
CLOSED: Final = 4

CLOSE_TIMEOUT: Final = 5.0  # seconds for the client's close frame
QUEUED: Final = 65536  # bytes of messages that the application may be behind
SLICE: Final = 4096  # bytes that are inflated at once: they may become a thousand times as many

GOING_AWAY: Final = 1001
NO_STATUS: Final = 1005
ABNORMAL: Final = 1006
TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011
RESTART: Final = 1012


class WebSocketLimits:
    """`max_size` is in bytes of a message; pings go out every `ping_interval` seconds, and an
    answer has to come within `ping_timeout`. 0 means none. `deflate` allows compression.
    """

    def __init__(
        self,
        max_size: int = 16 << 20,
        ping_interval: float = 20.0,
        ping_timeout: float = 20.0,
        deflate: bool = True,
    ) -> None:
        self.max_size = max_size
        self.ping_interval = ping_interval
        self.ping_timeout = ping_timeout
        self.deflate = deflate


def problem(params: dict[str, Any]) -> str:
    """Give the status for a handshake that is none (RFC 6455, section 4.2.1); "" if it is one."""
    if params.get("REQUEST_METHOD") != "GET" or not params.get("HTTP_SEC_WEBSOCKET_KEY"):
        return "400 Bad Request"
    if params.get("HTTP_SEC_WEBSOCKET_VERSION") != "13":
        return "426 Upgrade Required"
    return ""


class WebSocket:
    """One WebSocket: the driver's answerer, and the application's `receive` and `send`."""

    lasting = True  # it ends by its pings, and when it is closed
    task: asyncio.Task[None] | None = None
    _paused = False
    _told = False  # that it is over
    _connected = False  # websocket.connect was given
    _waiting = False  # the application has answered what came, and waits for more
    _step = 0  # bytes that are read at once; 0 for all
    _failure: tuple[int, str] | None = None  # to close with: the client broke the rules

    def __init__(
        self, gateway: ASGI, exchange: Exchange, line: Line, limits: WebSocketLimits
    ) -> None:
        self._gateway = gateway
        self._exchange = exchange
        self._line = line
        self._limits = limits
        self._state = CONNECTING
        self._changed = Waiter()
        self._frames: Connection | None = None
        self._messages: deque[Message] = deque()
        self._queued = 0  # bytes in `_messages`
        self._pieces: list[Any] = []  # of a message that has not ended
        self._size = 0
        self._code = NO_STATUS  # of websocket.disconnect
        self._reason = ""
        self._awaited = b""  # what the pong has to hold
        self._pings = 0
        self._timer: asyncio.TimerHandle | None = None

    # ---------------------------------------------------------------- called by the driver

    def begin(self) -> None:
        self._gateway.calls.add(self)
        self._loop = asyncio.get_running_loop()
        self.task = self._loop.create_task(self._run())

    def moved(self) -> None:
        if self._exchange.refused is not None:
            self._lost(ABNORMAL)
        elif self._state >= OPEN:
            self._take()
        elif self._exchange.stdin_ended:
            self._changed.wake()

    def aborted(self) -> None:
        self._lost(ABNORMAL)
        self._over()

    def expire(self) -> None:
        """It has no time to end by."""

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._changed.wake()

    def drain(self) -> None:
        """The server stops: the client is to come again, to another process."""
        if self._state == OPEN:
            self._close(RESTART, "")
            self._changed.wake()

    # ---------------------------------------------------------------- frames that come

    def _take(self) -> None:
        """Read what has come, unless the application is too far behind."""
        exchange = self._exchange
        if self._queued > QUEUED and self._state == OPEN:
            return  # it stays where it is, and the driver stops reading
        data = exchange.take()
        exchange.received = 0  # what is limited is a message, not all of them
        self._line.hear()
        frames = self._frames
        if frames is not None:
            step = self._step or len(data) or 1
            for at in range(0, len(data), step):
                if self._state == CLOSED or self._failure is not None:
                    break
                self._read(frames, data[at : at + step])
        if exchange.stdin_ended and self._state < CLOSED:
            self._finish(ABNORMAL if self._code == NO_STATUS else self._code)
        self._changed.wake()

    def _read(self, frames: Connection, data: bytes) -> None:
        try:
            frames.receive_data(data)
            for event in frames.events():
                self._came(frames, event)
        except (RemoteProtocolError, LocalProtocolError) as error:
            self._fail(1002, str(error))

    def _came(self, frames: Connection, event: events.Event) -> None:
        if isinstance(event, events.Message):
            self._piece(event)
        elif isinstance(event, events.Ping):
            if self._state == OPEN:  # nothing goes after a close frame
                self._write(frames.send(event.response()))
        elif isinstance(event, events.Pong):
            if bytes(event.payload) == self._awaited:
                self._awaited = b""
        elif isinstance(event, events.CloseConnection):
            if frames.state is ConnectionState.OPEN:  # wsproto's word for frames that are wrong
                self._fail(int(event.code), event.reason or "")
                return
            if self._state == OPEN:
                self._code = int(event.code)
                self._reason = event.reason or ""
                if frames.state is ConnectionState.REMOTE_CLOSING:
                    self._write(frames.send(event.response()))
            self._finish(self._code)

    def _fail(self, code: int, reason: str) -> None:
        """Close because of frames that are wrong, when what came before them was answered."""
        logger.info("%s: %s", request_line(self._exchange), reason)
        self._failure = (code, reason)
        if self._state != OPEN:
            self._finish(self._code)
        elif self._waiting and not self._messages:
            self._close(code, reason)
        else:
            self._set_timer(CLOSE_TIMEOUT)

    def _piece(self, event: events.Message[Any]) -> None:
        if self._state != OPEN:
            return
        data = event.data
        is_text = isinstance(data, str)
        self._size += len(data) if not is_text or data.isascii() else len(data.encode())
        if 0 < self._limits.max_size < self._size:
            self._pieces = []
            self._close(TOO_BIG, f"more than {self._limits.max_size} bytes")
            return
        self._pieces.append(data if is_text else bytes(data))
        if not event.message_finished:
            return
        message: Message = {"type": "websocket.receive"}
        message["text" if is_text else "bytes"] = ("" if is_text else b"").join(self._pieces)
        self._messages.append(message)
        self._queued += self._size
        self._pieces = []
        self._size = 0

    # ---------------------------------------------------------------- frames that go

    def _write(self, data: bytes) -> None:
        if data and not self._exchange.aborted and not self._exchange.ended:
            self._line.send(self._exchange, data)

    def _close(self, code: int, reason: str) -> None:
        """Send a close frame; the client's is awaited for a while, unless it broke the rules."""
        frames = self._frames
        if self._state != OPEN or frames is None:
            return
        failure = self._failure
        if failure is not None:
            code, reason = failure
        self._state = CLOSING
        self._code, self._reason = code, reason
        short = reason.encode()[:123].decode("utf-8", "ignore")  # RFC 6455, section 5.5
        self._write(frames.send(events.CloseConnection(code=code, reason=short or None)))
        if failure is not None:
            self._finish(code)
        else:
            self._set_timer(CLOSE_TIMEOUT)

    def _finish(self, code: int) -> None:
        """Both sides have closed, or the client has gone: end the exchange."""
        exchange = self._exchange
        if self._state != CLOSED:
            self._state = CLOSED
            self._code = code
            self._cancel_timer()
            if not exchange.aborted and not exchange.ended:
                self._line.finish(exchange)
            self._over()
            self._changed.wake()

    def _lost(self, code: int) -> None:
        if self._state != CLOSED:
            self._code = code if self._state < CLOSING else self._code
            self._state = CLOSED
            self._cancel_timer()
        self._changed.wake()

    # ---------------------------------------------------------------- time

    def _set_timer(self, seconds: float) -> None:
        self._cancel_timer()
        if seconds > 0:
            self._timer = self._loop.call_later(seconds, self._expire)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        if self._state == CLOSING:
            self._finish(self._code)
        elif self._state == OPEN and self._failure is not None:
            self._close(*self._failure)
        elif self._state == OPEN and self._awaited:
            logger.info("%s: the client did not answer a ping", request_line(self._exchange))
            self._close(INTERNAL_ERROR, "no answer to a ping")
            self._finish(ABNORMAL)
        elif self._state == OPEN and self._frames is not None:
            self._pings += 1
            payload = b"%d" % self._pings
            self._awaited = payload if self._limits.ping_timeout else b""
            try:
                self._write(self._frames.send(events.Ping(payload=payload)))
            except Aborted:
                return
            self._set_timer(self._limits.ping_timeout or self._limits.ping_interval)
            if self._limits.ping_timeout:
                return
        if self._state == OPEN and self._timer is None:
            self._set_timer(self._limits.ping_interval)

    # ---------------------------------------------------------------- the application

    async def _run(self) -> None:
        gateway = self._gateway
        exchange = self._exchange
        try:
            scope = make_scope("websocket", exchange)
            offered = exchange.params.get("HTTP_SEC_WEBSOCKET_PROTOCOL", "")
            scope["subprotocols"] = [p for p in (part.strip() for part in offered.split(",")) if p]
            scope["extensions"]["websocket.http.response"] = {}
            if gateway.state is not None:
                scope["state"] = gateway.state.copy()
            await gateway.app(scope, self.receive, self.send)
            if self._state < OPEN and not exchange.ended and not exchange.aborted:
                logger.error("%s: the application gave no answer", request_line(exchange))
                gateway.give_up(exchange, self._line)
            self._close(1000, "")
        except BaseException as error:  # SystemExit in an application does not end the server
            self._raised(error)
        finally:
            while self._state == CLOSING:
                await self._changed.next()
            gateway.calls.discard(self)
            self._over()

    def _raised(self, error: BaseException) -> None:
        exchange = self._exchange
        if self._state in (CONNECTING, DENYING) and not exchange.aborted:
            self._gateway.failed(exchange, self._line, error)
            self._state = CLOSED
        elif isinstance(error, Aborted):
            logger.debug("%s: the client has gone", request_line(exchange))
        elif isinstance(error, asyncio.CancelledError):
            self._finish(GOING_AWAY)
        else:
            exchange.error = type(error).__name__
            logger.error("%s: the application raised", request_line(exchange), exc_info=error)
            self._close(INTERNAL_ERROR, "")

    def _over(self) -> None:
        if not self._told:
            self._told = True
            self._gateway.over(self._exchange)

    async def receive(self) -> Message:
        """Give websocket.connect, then messages, then websocket.disconnect."""
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        while True:
            if self._messages:
                message = self._messages.popleft()
                data = message.get("bytes") or message.get("text") or b""
                self._queued = max(0, self._queued - len(data)) if self._messages else 0
                if self._state == OPEN:
                    self._take()
                return message
            if self._failure is not None:
                self._close(*self._failure)
            if self._state >= CLOSING or (self._state < OPEN and self._gone()):
                return {
                    "type": "websocket.disconnect",
                    "code": self._code,
                    "reason": self._reason or None,
                }
            self._waiting = True
            await self._changed.next()
            self._waiting = False

    def _gone(self) -> bool:
        return self._exchange.aborted or self._exchange.stdin_ended or self._exchange.ended

    async def send(self, message: Message) -> None:
        """Take a message. Raises Aborted, an OSError, once the client has gone.

        Raises RuntimeError, TypeError or ValueError for what breaks the protocol.
        """
        kind = message["type"]
        state = self._state
        if self._exchange.aborted or state >= CLOSING:
            if kind == "websocket.close" and not self._exchange.aborted:
                return  # both have closed at the same time
            raise Aborted("the WebSocket is closed")
        if state == CONNECTING and kind == "websocket.accept":
            self._accept(message)
        elif state == CONNECTING and kind == "websocket.close":
            self._state = CLOSED
            self._line.refuse(self._exchange, "403 Forbidden")
            self._code = ABNORMAL
            self._over()
            self._changed.wake()
        elif state == CONNECTING and kind == "websocket.http.response.start":
            headers, _ = checked_headers(message.get("headers", ()))
            self._exchange.start(status_line(message["status"]), headers)
            self._state = DENYING
        elif state == DENYING and kind == "websocket.http.response.body":
            self._deny(message)
        elif state == OPEN and kind == "websocket.send":
            self._send(message)
        elif state == OPEN and kind == "websocket.close":
            self._close(message.get("code") or 1000, message.get("reason") or "")
        else:
            raise RuntimeError(f"{kind} cannot come now")
        while self._paused and not self._exchange.aborted and self._state == OPEN:
            await self._changed.next()

    def _accept(self, message: Message) -> None:
        params = self._exchange.params
        headers: Headers = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            (
                "Sec-WebSocket-Accept",
                generate_accept_token(params["HTTP_SEC_WEBSOCKET_KEY"].encode("latin-1")).decode(),
            ),
        ]
        given, _ = checked_headers(message.get("headers") or ())
        for name, _value in given:
            if name.lower().startswith("sec-websocket-"):
                raise ValueError(f"{name} is not the application's to send")
        subprotocol = message.get("subprotocol")
        if subprotocol:
            checked, _ = checked_headers([(b"Sec-WebSocket-Protocol", subprotocol.encode())])
            headers += checked
        extensions: list[Extension] = []
        offers = params.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", "")
        if self._limits.deflate and (agreed := agree(offers)) is not None:
            headers.append(("Sec-WebSocket-Extensions", agreed[1]))
            extensions.append(agreed[0])
            self._step = SLICE
        self._exchange.start("101 Switching Protocols", headers + given)
        self._frames = Connection(ConnectionType.SERVER, extensions)
        self._state = OPEN
        self._line.send(self._exchange, b"")
        self._set_timer(self._limits.ping_interval)
        self._take()  # who may send before that is a proxy that knows the answer

    def _deny(self, message: Message) -> None:
        data = bytes(message.get("body", b""))
        if message.get("more_body"):
            self._line.send(self._exchange, data)
            return
        self._line.finish(self._exchange, data)
        self._state = CLOSED
        self._code = ABNORMAL
        self._over()
        self._changed.wake()

    def _send(self, message: Message) -> None:
        frames = self._frames
        assert frames is not None
        data, text = message.get("bytes"), message.get("text")
        if (data is None) == (text is None):
            raise ValueError("websocket.send wants bytes or text, one of them")
        if data is not None:
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError(f"the message is not bytes, but {type(data).__name__}")
            self._write(frames.send(events.BytesMessage(data=bytes(data))))
            return
        if not isinstance(text, str):
            raise TypeError(f"the text is not str, but {type(text).__name__}")
        self._write(frames.send(events.TextMessage(data=text)))
