"""One connection of the asyncio driver. All that touches it runs in the loop's thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from fulgate.config import Config
from fulgate.drivers.aio_watch import Timed
from fulgate.drivers.phases import (
    AHEAD_AFTER,
    ARRIVING,
    CLOSING,
    FOREVER,
    HEARD_AT_STOP,
    IDLE,
    LINGER,
    LINGER_PAUSE,
    LINGER_TIME,
    NEW,
    RECEIVE,
    RETRY_AFTER,
    RUNNING,
    WAITING,
    no_room,
    reset_at_close,
)
from fulgate.errors import Aborted, LimitExceeded, ProtocolError
from fulgate.exchange import Buffer, Exchange, Headers, Reply, ServerProtocol
from fulgate.listener import PassOn
from fulgate.logs import log_refusal

if TYPE_CHECKING:
    from fulgate.drivers.aio_shared import Shared

__all__ = ["AsyncGateway", "Connection", "Hub"]

log = logging.getLogger("fulgate")


class AsyncGateway(Protocol):
    """Gives who is to answer an exchange; called in the loop's thread.

    `patient` ones want small bodies to be there at the start.
    """

    patient: bool

    def __call__(self, exchange: Exchange, connection: Any, /) -> Timed: ...
    def start(self, over: Callable[[Exchange], None]) -> None: ...
    def room(self) -> bool: ...  # may another exchange begin?
    def running(self) -> int: ...  # exchanges that have begun and not ended
    def drain(self) -> None: ...  # the server stops: what has no end by itself is to end
    def cancel(self) -> None: ...  # end what still runs
    async def startup(self) -> None: ...  # before the first exchange
    async def shutdown(self, timeout: float) -> None: ...  # after the last one


class Hub(Protocol):
    """What a connection needs of its driver."""

    loop: asyncio.AbstractEventLoop
    config: Config
    gateway: AsyncGateway
    stopping: bool
    pass_on: PassOn | None
    aside: Callable[[Exchange], Reply | None] | None  # gives answers without the application

    def made(self, connection: Connection) -> None: ...
    def forget(self, connection: Connection) -> None: ...
    def deaf(self, connection: Connection) -> None: ...  # watch it: it does not receive
    @property  # before the application has an exchange
    def begun(self) -> Callable[[Exchange, Timed], None]: ...
    def over(self, exchange: Exchange) -> None: ...  # for the access log


class Connection:
    """One connection of a web server: what an asyncio.Protocol is, if not by its class."""

    transport: asyncio.Transport

    def __init__(self, hub: Hub, wire: ServerProtocol) -> None:
        self.hub = hub
        self.wire = wire
        self.running: Exchange | None = None
        self.closed = False
        self.full = False  # the transport has enough
        self.shared: Shared | None = None  # while several requests are on it
        self.deaf = False  # we do not receive, since nobody reads the body, or the peer our answers
        self._answerer: Timed | None = None
        self._waiting: Exchange | None = None  # its body is waited for
        self._choked = False  # what the protocol owes is not read
        self._ahead = False  # the deadline is that of looking behind a body that nobody reads
        self._phase = NEW
        self._deadline = FOREVER
        self._write_by = FOREVER
        self._written = 0  # bytes given to the transport
        self._left = 0  # of them, those that had left when `_write_by` was set
        self._half_closed = 0.0
        self._timer: asyncio.TimerHandle | None = None  # of `_expire`

    # ---------------------------------------------------------------- called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is no subclass of it
        limit = self.hub.config.write_behind
        self.transport.set_write_buffer_limits(limit, limit // 2)
        self.hub.made(self)
        self._settle()

    def data_received(self, data: bytes) -> None:
        if self.closed:
            return
        if self._phase >= CLOSING:  # what comes now is discarded
            if self._half_closed:
                self._linger()
            return
        wire = self.wire
        try:
            moved = wire.feed(data)
        except (ProtocolError, LimitExceeded) as error:
            log.warning("closed a connection: %s", error)
            self.close()
            return
        if wire.out:
            # First: the end of an aborted request goes before the answer to the next one.
            out, wire.out = wire.out, []
            self._write(out)
            if self.full:
                # Who asks and does not read the answers is not listened to meanwhile.
                self._choked = True
                self._stop_hearing()
        if wire.shared:
            self._take_beside(moved)
            return
        for exchange in moved:
            if self._phase < CLOSING and not self.closed:
                self._moved(exchange)
        if self.running is None:
            self._settle()

    def eof_received(self) -> None:
        """A web server that sends no more is one that has gone: the transport closes."""
        self._gone()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.hub.forget(self)

    def pause_writing(self) -> None:
        self.full = True
        if self._answerer is not None:
            self._answerer.pause()

    def resume_writing(self) -> None:
        self.full = False
        if self._choked:
            self._choked = False
            if not self._has_enough():
                self.hear()
        if self._answerer is not None:
            self._answerer.resume()
        elif self.shared is not None:
            self.shared.feed()

    # ---------------------------------------------------------------- called by the driver

    @property
    def socket(self) -> socket.socket:
        """The transport's socket, to look at."""
        found: socket.socket = self.transport.get_extra_info("socket")
        return found

    @property
    def busy(self) -> bool:
        """Is an answer awaited, or has a part of one yet to leave?"""
        if self.running is not None or self.shared is not None:
            return True
        return self.transport.get_write_buffer_size() > 0

    def drain(self) -> None:
        """The server stops: close when there is nothing to do."""
        if self._phase == LINGER:
            self.close(at_once=True)
        elif self._phase == NEW or self._phase == IDLE:
            self._settle()

    # ---------------------------------------------------------------- called by who answers

    def send(self, exchange: Exchange, data: Buffer) -> None:
        """Send a piece of the answer; b"" sends the staged head alone. Raises Aborted."""
        if self.shared is not None:
            self.shared.send(exchange, data)
        else:
            self._write(exchange.send(data))

    def finish(self, exchange: Exchange, data: Buffer = b"") -> None:
        """Send the last piece of the answer, and its end. Raises Aborted."""
        if self.shared is not None:
            self.shared.finish(exchange, data)
        else:
            self._write(exchange.finish(data))
            self._ended(exchange)

    def fail(self, exchange: Exchange) -> None:
        """Break an answer that has begun, so that the client sees an error. Raises Aborted."""
        if self.shared is not None:
            self.shared.fail(exchange)
        else:
            self._write(exchange.fail())
            self._ended(exchange)

    def log(self, exchange: Exchange, text: str) -> None:
        """Send a line for the web server's error log, where the protocol has such."""
        if self.shared is not None:
            self.shared.log(exchange, text)
        else:
            self._write(exchange.log(text))

    def refuse(
        self,
        exchange: Exchange,
        status: str,
        headers: Headers | None = None,
        app_status: int = 0,
    ) -> None:
        """Send a whole small answer of the server's own."""
        if not exchange.began:
            exchange.began = monotonic()
        if self.shared is not None:
            self.shared.refuse(exchange, status, headers, app_status)
            return
        with contextlib.suppress(Aborted):
            self._write(exchange.refuse(status, headers, app_status))
        self._ended(exchange)

    def want(self, exchange: Exchange) -> None:
        """Body is waited for: it has so long to come."""
        if self.shared is not None:
            self.shared.want(exchange)
        elif self.running is exchange and not exchange.stream_ended:
            self._write(exchange.want(RECEIVE))
            self._ahead = False
            self._deadline = self._in(self.hub.config.body_timeout)
            self._alarm()
            self.hear()

    def hear(self) -> None:
        """Receive again, once the body that came has been read."""
        if self.deaf and not self.closed and not self._choked:
            if self.shared is not None and self.shared.is_far():
                return
            self.deaf = False
            self.transport.resume_reading()

    def _stop_hearing(self) -> None:
        if not self.deaf and not self.closed:
            self.deaf = True
            self.transport.pause_reading()
            self.hub.deaf(self)

    def _has_enough(self) -> bool:
        """Has more of the body come than is kept?"""
        running = self.running
        return running is not None and running.body_size > self.hub.config.body_buffer

    def close(self, at_once: bool = False) -> None:
        """Close: running requests are aborted. What was written leaves, unless `at_once`."""
        if self.closed:
            if at_once:
                self.transport.abort()
            return
        self._gone()
        if self.wire.reset:
            reset_at_close(self.socket)
        if at_once or self.wire.reset:
            self.transport.abort()
        else:
            self.transport.close()
            self._watch_writing()

    # ---------------------------------------------------------------- requests

    def _take_beside(self, moved: list[Exchange]) -> None:
        """Act on what moved, where there are, or were, several requests."""
        from fulgate.drivers.aio_shared import Shared

        shared = self.shared
        if shared is None:
            shared = Shared(self)
        shared.take(moved)

    def _moved(self, exchange: Exchange) -> None:
        if exchange is self.running:
            if exchange.aborted:
                self._phase = IDLE
                self.running = None
                answerer, self._answerer = self._answerer, None
                self.hear()
                if answerer is not None:
                    answerer.aborted()
                return
            self._deadline = FOREVER
            if self._has_enough():
                self._stop_hearing()
                self._look_ahead_later(exchange)
            if self._answerer is not None:
                self._answerer.moved()
        elif exchange.aborted:
            self._phase = IDLE
            self._waiting = None
            self.hub.over(exchange)
        elif exchange.refused is not None:
            self._turn_away(exchange, exchange.refused)
        elif exchange.params_ended:
            if self._may_start(exchange):
                self._start(exchange)
            elif self._waiting is None:
                self._waiting = exchange
                self._phase = WAITING
                self._deadline = self._in(self.hub.config.body_wait)
                self._alarm()

    def _look_ahead_later(self, exchange: Exchange) -> None:
        """Nobody reads the body of the only request, and there may be others behind it."""
        answerer = self._answerer
        lasting = answerer is not None and answerer.lasting
        if not lasting and self.wire.may_follow(exchange):
            self._ahead = True
            self._deadline = self._in(AHEAD_AFTER)
            self._alarm()

    def _look_ahead(self) -> None:
        """See what comes behind that body, if nobody has read it since."""
        from fulgate.drivers.aio_shared import Shared

        self._ahead = False
        self._deadline = FOREVER
        if self._has_enough():
            self.wire.shared = True
            Shared(self).look_ahead()

    def _may_start(self, exchange: Exchange) -> bool:
        if not self.hub.gateway.patient or exchange.complete:
            return True
        config = self.hub.config
        return (
            exchange.content_length > config.body_buffer
            or exchange.body_size > config.body_buffer
            or config.body_wait <= 0
            or "HTTP_UPGRADE" in exchange.params
        )

    def _is_for_gateway(self, exchange: Exchange) -> bool:
        """May an exchange begin? One that is the server's, or one too many, is answered here."""
        exchange.began = monotonic()
        aside = self.hub.aside
        reply = aside(exchange) if aside is not None else None
        if reply is not None:
            self._answer(exchange, reply)
        elif not self.hub.gateway.room():
            self._turn_away(exchange, no_room(), RETRY_AFTER)
        else:
            return True
        return False

    def _start(self, exchange: Exchange) -> None:
        if not self._is_for_gateway(exchange):
            return
        self._waiting = None
        self.running = exchange
        self._phase = RUNNING
        self._deadline = FOREVER
        self._answerer = answerer = self.hub.gateway(exchange, self)
        if self.full:
            answerer.pause()
        self.hub.begun(exchange, answerer)
        answerer.begin()

    def _answer(self, exchange: Exchange, reply: Reply) -> None:
        """Send a whole answer of the server's own, and let the connection go on."""
        self._rest()
        self._put_answer(exchange, reply)
        self.hub.over(exchange)

    def _put_answer(self, exchange: Exchange, reply: Reply) -> None:
        length = str(len(reply.body))
        kind = [("Content-Type", reply.type), ("Content-Length", length)]
        exchange.start(reply.status, [*kind, ("Cache-Control", "no-store")])
        bodiless = exchange.params.get("REQUEST_METHOD") == "HEAD"
        with contextlib.suppress(Aborted):
            self.finish(exchange, b"" if bodiless else reply.body)

    def _rest(self) -> None:
        """Wait for nothing of the one request; of several, each has a phase of its own."""
        if self.shared is None:
            self._waiting = None
            self._phase = IDLE

    def _turn_away(
        self, exchange: Exchange, refused: LimitExceeded, headers: Headers | None = None
    ) -> None:
        self._rest()
        exchange.refused = refused
        log_refusal(exchange)
        self.refuse(exchange, refused.status, headers)
        self.hub.over(exchange)

    def _ended(self, exchange: Exchange) -> None:
        """The answer is complete, or broken: let the connection go on, or close it."""
        self.wire.done(exchange)
        if self.running is exchange:
            self.running = None
            self._answerer = None
            self._phase = IDLE
            if self.deaf:
                self.hear()
        if self.closed:
            return
        if self.wire.closing and self._phase < CLOSING:
            self._phase = CLOSING if exchange.input_ended or exchange.broken else LINGER
            self._deadline = FOREVER
        self._settle()

    def _settle(self) -> None:
        """Decide what the connection waits for now, when nothing runs."""
        if self.closed or self.running is not None:
            return
        hub = self.hub
        if self._phase >= CLOSING or self.wire.closing:
            if self._half_closed:
                return
            if self._phase == LINGER and self.transport.can_write_eof():
                # To close while the peer still sends could cost it our answer (RFC 9112, 9.6).
                self._half_closed = self._in(LINGER_TIME)
                self.transport.write_eof()
                self._linger()
            else:
                self.close()
            return
        if self.wire.idle:
            if self._phase == NEW:
                wait = HEARD_AT_STOP if hub.stopping else hub.config.arrival_timeout
            elif hub.stopping:
                self._leave()
                return
            else:
                self._phase = IDLE
                wait = hub.config.keep_alive
        elif self._phase == WAITING or self._phase == ARRIVING:
            return
        else:
            self._phase = ARRIVING
            wait = hub.config.arrival_timeout
        self._deadline = self._in(wait)
        self._alarm()

    def _leave(self) -> None:
        """Between requests, when the server stops: let another process go on, or close."""
        pass_on = self.hub.pass_on
        if pass_on is None or self.transport.get_write_buffer_size():
            self.close()
            return
        self.transport.pause_reading()
        sock = socket.socket(fileno=os.dup(self.socket.fileno()))
        self.close(at_once=True)
        pass_on(sock, self.wire.name)

    def _linger(self) -> None:
        pause = HEARD_AT_STOP if self.hub.stopping else LINGER_PAUSE
        self._deadline = min(self._in(pause), self._half_closed)
        self._alarm()

    def _write(self, buffers: list[Buffer]) -> None:
        if self.closed or not buffers:
            return
        transport = self.transport
        if len(buffers) == 1:
            self._written += len(buffers[0])
            transport.write(buffers[0])
        else:
            self._written += sum([len(data) for data in buffers])
            # In Python 3.12 and 3.13 `writelines` never has the protocol pause; `write` has.
            transport.writelines(buffers[:-1])
            transport.write(buffers[-1])
        if self._write_by == FOREVER and transport.get_write_buffer_size():
            self._watch_writing()

    def _gone(self) -> None:
        """Nothing is sent any more, and running requests are detached."""
        if self.closed:
            return
        if self.shared is not None:
            self.shared.gone()
            return
        self.closed = True
        aborted = self.wire.eof()
        self._deadline = FOREVER
        running, self.running = self.running, None
        answerer, self._answerer = self._answerer, None
        self._waiting = None
        for exchange in aborted:
            if exchange is not running:
                self.hub.over(exchange)
        if answerer is not None:
            answerer.aborted()

    # ---------------------------------------------------------------- deadlines

    def _in(self, seconds: float) -> float:
        """Give the time `seconds` from now; 0 means never."""
        return self.hub.loop.time() + seconds if seconds else FOREVER

    def _watch_writing(self) -> None:
        """See to it that what was written leaves: bytes have to, within `send_timeout`."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent and not self.closed:
            self._write_by = FOREVER
            return
        self._left = self._written - unsent
        self._write_by = self._in(self.hub.config.send_timeout)
        self._alarm()

    def _alarm(self) -> None:
        nearest = min(self._deadline, self._write_by)
        timer = self._timer
        if timer is not None:
            if timer.when() <= nearest:
                return  # it will see that it came too early
            timer.cancel()
            self._timer = None
        if nearest != FOREVER:
            self._timer = self.hub.loop.call_at(nearest, self._expire)

    def _writes_in_time(self, now: float) -> bool:
        """Do bytes leave? Closes the connection where they do not."""
        if self._write_by <= now:
            unsent = self.transport.get_write_buffer_size()
            if unsent and self._written - unsent <= self._left:
                log.info("closed a connection: its client did not read the answer in time")
                self.close(at_once=True)
                return False
            self._watch_writing()
        return True

    def _expire(self) -> None:
        self._timer = None
        now = self.hub.loop.time()
        if not self._writes_in_time(now):
            return
        if self.shared is not None:
            self.shared.expire(now)
            return
        if self._deadline > now:
            self._alarm()
        elif self._waiting is not None:
            self._start(self._waiting)
            self._settle()
        elif self._ahead and self._phase == RUNNING:
            self._look_ahead()
        elif self._phase == LINGER:
            if self.transport.get_write_buffer_size():  # the peer has yet to read
                self._half_closed = self._in(LINGER_TIME)
                self._linger()
            else:
                self.close(at_once=True)
        else:
            if self._phase == RUNNING:
                log.info("a request's body did not arrive in time")
            elif self._phase == ARRIVING:
                log.info("closed a connection: a request did not arrive in time")
            self.close()
