"""One connection of the reactor's driver.

All that touches it runs in the reactor's thread, but for the methods that say so and what
`tx_pool.py` does. *The lock* guards the protocol and what was not sent yet; it is never held over
a call that may block, or into code that is not ours.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Protocol

from twisted.internet import interfaces, protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from fulgate.config import Config
from fulgate.drivers.answerer import Answerer
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
)
from fulgate.errors import Aborted, LimitExceeded, ProtocolError
from fulgate.exchange import Buffer, Exchange, Headers, ServerProtocol
from fulgate.logs import log_refusal

__all__ = ["Connection", "Gateway", "Hub"]

log = logging.getLogger("fulgate")


PIECE: Final = 65536  # what a transport takes before it says that it has enough


class Gateway(Protocol):
    """Gives who is to answer an exchange; called in the reactor's thread.

    `patient` ones want small bodies to be there at the start.
    """

    patient: bool

    def __call__(self, exchange: Exchange, connection: Connection, /) -> Answerer: ...
    def room(self) -> bool: ...  # may another exchange wait?
    def running(self) -> int: ...  # exchanges that have begun and not ended
    def start(self, over: Callable[[Exchange], None]) -> None: ...


class Hub(Protocol):
    """What a connection needs of its factory."""

    reactor: Any
    config: Config
    gateway: Gateway
    stopping: bool

    def allows(self, transport: Any) -> bool: ...
    def made(self, connection: Connection) -> None: ...
    def forget(self, connection: Connection) -> None: ...
    def over(self, exchange: Exchange) -> None: ...  # for the access log, from any thread
    def check(self) -> None: ...  # whether a drain has ended


@implementer(interfaces.IPushProducer)
class Connection(protocol.Protocol):
    """One connection of a web server."""

    transport: Any

    def __init__(self, hub: Hub, wire: ServerProtocol) -> None:
        self.hub = hub
        self.wire = wire
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)  # for whoever answers, in another thread
        self.running: Exchange | None = None
        self.closed = False
        self.unsent = 0  # bytes in `_out`
        self.emptied = 0  # how often the transport had enough, and sent it all
        self.full = False  # the transport has enough
        self.deaf = False  # we do not receive, since nobody reads the body, or the peer our answers
        self._out: deque[Buffer] = deque()
        self._scheduled = False  # `_flush` is about to be called
        self._over: list[Exchange] = []  # ended by other threads
        self._answerer: Answerer | None = None
        self._waiting: Exchange | None = None  # its body is waited for
        self._choked = False  # what the protocol owes is not read
        self._ahead = False  # the deadline is that of looking behind a body that nobody reads
        self._phase = NEW
        self._deadline = FOREVER
        self._write_by = FOREVER
        self._half_closed = 0.0
        self._call: Any = None  # of `_expire`

    # ---------------------------------------------------------------- called by Twisted

    def connectionMade(self) -> None:
        if not self.hub.allows(self.transport):
            self.closed = True
            self.transport.abortConnection()
            return
        with contextlib.suppress(AttributeError, OSError):  # a Unix socket has no such thing
            self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, True)
        self.hub.made(self)

    def dataReceived(self, data: bytes) -> None:
        if self.closed:
            return
        if self._phase >= CLOSING:  # what comes now is discarded
            if self._phase == LINGER and self._half_closed:
                self._linger()
            return
        with self.lock:
            over, self._over = self._over, []
            try:
                moved = self.wire.feed(data)
            except (ProtocolError, LimitExceeded) as error:
                log.warning("closed a connection: %s", error)
                moved = None
            owed = moved is not None and len(self.wire.out) > 0
            if owed:
                # First: the end of an aborted request goes before the answer to the next one.
                self._owe(self.wire.out)
                self.wire.out = []
        for exchange in over:
            self._ended(exchange)
        if moved is None:
            self.close()
            return
        if self.wire.shared:
            self._take_beside(moved)
        else:
            for exchange in moved:
                if self._phase < CLOSING and not self.closed:
                    self._moved(exchange)
        self._flush()
        if owed and self.full and not self.closed:
            # Who asks and does not read the answers is not listened to meanwhile.
            self._choked = True
            self._stop_hearing()
        self._settle()

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        self._gone()
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self.hub.forget(self)

    def pauseProducing(self) -> None:
        self.full = True
        self._write_by = self._in(self.hub.config.send_timeout)
        self._alarm()
        if self._answerer is not None:
            self._answerer.pause()

    def resumeProducing(self) -> None:
        self.full = False
        self.emptied += 1
        self._write_by = FOREVER
        self._flush()
        if self.full:
            return
        if self._choked:
            self._choked = False
            if not self._has_enough():
                self.hear()
        if self._answerer is not None:
            self._answerer.resume()

    def stopProducing(self) -> None:
        """The connection is lost; `connectionLost` follows."""

    # ---------------------------------------------------------------- called by the factory

    def begin(self) -> None:
        """It is one of those that are served."""
        if self.closed:
            return
        self.transport.resumeProducing()
        self._settle()

    def drain(self) -> None:
        """The server stops: close when there is nothing to do."""
        if self._phase == LINGER:
            self.close(at_once=True)
        elif self._phase == NEW or self._phase == IDLE:
            self._settle()

    # ---------------------------------------------------------------- called by who answers

    # Under the lock, also by other threads:

    def pieces(self, data: Buffer) -> list[Buffer]:
        """Give a piece of an answer as it is to be put: at once, or in several; at least one."""
        return [data]

    def put(self, exchange: Exchange, buffers: list[Buffer]) -> None:
        """Queue output; `schedule` or `_flush` sends it."""
        self._owe(buffers)

    def backlog(self, exchange: Exchange) -> int:
        """Give how many bytes are unsent that have to leave before more is put for it."""
        return self.unsent

    def most(self) -> int:
        """Give how many these may be."""
        return self.hub.config.write_behind

    def schedule(self, over: Exchange | None = None) -> None:
        """Have the reactor send; `over` has ended."""
        if over is not None:
            self._over.append(over)
        if not self._scheduled:
            self._scheduled = True
            self.hub.reactor.callFromThread(_flush, self)

    # In the reactor's thread:

    def send(self, exchange: Exchange, data: Buffer) -> None:
        """Send a piece of the answer; b"" sends the staged head alone. Raises Aborted."""
        with self.lock:
            self.put(exchange, exchange.send(data))
        self._flush()

    def finish(self, exchange: Exchange, data: Buffer = b"") -> None:
        """Send the last piece of the answer, and its end. Raises Aborted."""
        with self.lock:
            self.put(exchange, exchange.finish(data))
            self.wire.done(exchange)
        self._flush()
        self._ended(exchange)

    def fail(self, exchange: Exchange) -> None:
        """Break an answer that has begun, so that the client sees an error. Raises Aborted."""
        with self.lock:
            self.put(exchange, exchange.fail())
            self.wire.done(exchange)
        self._flush()
        self._ended(exchange)

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
        with self.lock, contextlib.suppress(Aborted):
            self.put(exchange, exchange.refuse(status, headers, app_status))
            self.wire.done(exchange)
        self._flush()
        self._ended(exchange)

    def want(self, exchange: Exchange) -> None:
        """Body is waited for: it has so long to come."""
        if self.running is exchange and not exchange.stream_ended:
            with self.lock:
                self.put(exchange, exchange.want(RECEIVE))
            self._flush()
            self._ahead = False
            self._deadline = self._in(self.hub.config.body_timeout)
            self._alarm()
            self.hear()

    def hear(self) -> None:
        """Receive again, once the body that came has been read."""
        if self.deaf and not self._choked:
            self.deaf = False
            self.transport.resumeProducing()

    def _stop_hearing(self) -> None:
        if not self.deaf:
            self.deaf = True
            self.transport.pauseProducing()

    def _has_enough(self) -> bool:
        """Has more of the body come than is kept?"""
        running = self.running
        return running is not None and running.body_size > self.hub.config.body_buffer

    def close(self, at_once: bool = False) -> None:
        """Close: running requests are aborted. What was written leaves, unless `at_once`."""
        if self.closed:
            return
        if not at_once:
            self._write()
        self._gone()
        self.transport.unregisterProducer()
        if at_once or self.wire.reset:  # by a reset, where there is such
            self.transport.abortConnection()
        else:
            self.transport.loseConnection()
            self._write_by = self._in(self.hub.config.send_timeout)
            self._alarm()

    # ---------------------------------------------------------------- below: the reactor's thread

    def _take_beside(self, moved: list[Exchange]) -> None:
        """Act on what moved, where there are, or were, several requests."""
        from fulgate.drivers.tx_shared import SharedConnection

        SharedConnection.of(self)._take_beside(moved)

    def _moved(self, exchange: Exchange) -> None:
        if exchange.aborted:
            self._phase = IDLE
            if exchange is self.running:
                self.running = None
                answerer, self._answerer = self._answerer, None
                if answerer is not None:
                    answerer.aborted()
            else:
                self._waiting = None
                self.hub.over(exchange)
        elif exchange is self.running:
            self._deadline = FOREVER
            if self._has_enough():
                self._stop_hearing()
                self._look_ahead_later(exchange)
            if self._answerer is not None:
                self._answerer.moved()
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
        if self.wire.may_follow(exchange):
            self._ahead = True
            self._deadline = self._in(AHEAD_AFTER)
            self._alarm()

    def _look_ahead(self) -> None:
        """See what comes behind that body, if nobody has read it since."""
        from fulgate.drivers.tx_shared import SharedConnection

        self._ahead = False
        self._deadline = FOREVER
        if self._has_enough():
            self.wire.shared = True
            SharedConnection.of(self)._look_ahead_of_all()

    def _may_start(self, exchange: Exchange) -> bool:
        config = self.hub.config
        return (
            exchange.complete
            or not self.hub.gateway.patient
            or exchange.content_length > config.body_buffer
            or exchange.body_size > config.body_buffer
            or config.body_wait <= 0
            or "HTTP_UPGRADE" in exchange.params
        )

    def _is_for_gateway(self, exchange: Exchange) -> bool:
        """May an exchange begin? One too many is answered here."""
        exchange.began = monotonic()
        if self.hub.gateway.room():
            return True
        self._turn_away(exchange, no_room(), RETRY_AFTER)
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
        answerer.begin()

    def _turn_away(
        self, exchange: Exchange, refused: LimitExceeded, headers: Headers | None = None
    ) -> None:
        self._waiting = None
        self._phase = IDLE
        exchange.refused = refused
        log_refusal(exchange)
        self.refuse(exchange, refused.status, headers)
        self.hub.over(exchange)

    def _ended(self, exchange: Exchange) -> None:
        """The answer is complete, or broken: let the connection go on, or close it."""
        if self.running is exchange:
            self.running = None
            self._answerer = None
            self._phase = IDLE
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
        config = self.hub.config
        if self._phase >= CLOSING or self.wire.closing:
            if not self.unsent and not self.full and not self._half_closed:
                if self._phase == LINGER and self._half_close():
                    self._linger()
                else:
                    self.close()
            return
        if self.wire.idle:
            if self._phase == NEW:
                wait = HEARD_AT_STOP if self.hub.stopping else config.arrival_timeout
            elif self.hub.stopping and not self.unsent and not self.full:
                self.close()
                return
            else:
                self._phase = IDLE
                wait = config.keep_alive
        elif self._phase == WAITING or self._phase == ARRIVING:
            return
        else:
            self._phase = ARRIVING
            wait = config.arrival_timeout
        self._deadline = self._in(wait)
        self._alarm()

    def _half_close(self) -> bool:
        """To close while the peer still sends could cost it our answer (RFC 9112, section 9.6)."""
        half = getattr(self.transport, "loseWriteConnection", None)
        if half is None:
            return False
        self._half_closed = self._in(LINGER_TIME)
        self.transport.unregisterProducer()
        half()
        return True

    def _linger(self) -> None:
        pause = HEARD_AT_STOP if self.hub.stopping else LINGER_PAUSE
        self._deadline = min(self._in(pause), self._half_closed)
        self._alarm()

    def _flush(self) -> None:
        """Send what the transport takes, and see whether the connection waited for that."""
        self._write()
        sent = not self.unsent and not self.full
        if sent and (self._phase >= CLOSING or (self.hub.stopping and self._phase == IDLE)):
            self._settle()

    def _write(self) -> None:
        """Give the transport what it takes, and note what another thread has ended."""
        while True:
            with self.lock:
                self._scheduled = False
                over, self._over = self._over, []
                batch = b"" if self.full or self.closed else self._batch()
                if not over and not batch:
                    self.changed.notify_all()
                    break
            if batch:
                self.transport.write(batch)
            for exchange in over:
                self._ended(exchange)

    def _owe(self, buffers: list[Buffer]) -> None:
        """Queue what goes before all that is put from now on, under the lock."""
        if self.closed:
            return
        for data in buffers:
            self._out.append(data)
            self.unsent += len(data)

    def _batch(self) -> bytes:
        """Take what is unsent, or a piece of it, under the lock."""
        out = self._out
        batch: list[Buffer] = []
        size = 0
        while out and size < PIECE:
            batch.append(out.popleft())
            size += len(batch[-1])
        self.unsent -= size
        return b"".join(batch)

    def _gone(self) -> None:
        """Nothing is sent any more, and running requests are detached."""
        if self.closed:
            return
        with self.lock:
            self.closed = True
            aborted = self.wire.eof()
            over = self._emptied()
        self._deadline = self._write_by = FOREVER
        running, self.running = self.running, None
        answerer, self._answerer = self._answerer, None
        self._waiting = None
        for exchange in aborted:
            if exchange is not running:
                self.hub.over(exchange)
        if answerer is not None and running not in over:
            answerer.aborted()

    def _emptied(self) -> list[Exchange]:
        """Drop what is unsent, under the lock; give the exchanges that other threads have ended."""
        self._out.clear()
        self.unsent = 0
        over, self._over = self._over, []
        self.changed.notify_all()
        return over

    # Deadlines

    def _in(self, seconds: float) -> float:
        """Give the time `seconds` from now; 0 means never."""
        return self.hub.reactor.seconds() + seconds if seconds else FOREVER

    def _alarm(self) -> None:
        nearest = min(self._deadline, self._write_by)
        if nearest == FOREVER:
            return  # a call that is there will find nothing to do
        now = self.hub.reactor.seconds()
        if self._call is None:
            self._call = self.hub.reactor.callLater(max(0.0, nearest - now), _expire, self)
        elif self._call.getTime() > nearest:
            self._call.reset(max(0.0, nearest - now))

    def _writes_in_time(self, now: float) -> bool:
        """Do bytes leave? Closes the connection where they do not."""
        if self._write_by > now:
            return True
        log.info("closed a connection: its client did not read the answer in time")
        self._abort()
        return False

    def _expire(self) -> None:
        self._call = None
        now = self.hub.reactor.seconds()
        if not self._writes_in_time(now):
            return
        if self._deadline > now:
            self._alarm()
        elif self._waiting is not None:
            self._start(self._waiting)
            self._flush()
            self._settle()
        elif self._ahead and self._phase == RUNNING:
            self._look_ahead()
        elif self._phase == LINGER:
            self._abort()
        else:
            if self._phase == RUNNING:
                log.info("a request's body did not arrive in time")
            elif self._phase == ARRIVING:
                log.info("closed a connection: a request did not arrive in time")
            self.close()

    def _abort(self) -> None:
        if self.closed:
            self.transport.abortConnection()
        else:
            self.close(at_once=True)


# Not the methods themselves: by then the connection may be of another class (tx_shared.py).


def _flush(connection: Connection) -> None:
    connection._flush()


def _expire(connection: Connection) -> None:
    connection._expire()
