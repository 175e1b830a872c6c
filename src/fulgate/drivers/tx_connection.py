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
from fulgate.errors import Aborted, LimitExceeded, ProtocolError
from fulgate.exchange import Buffer, Exchange, Headers, ServerProtocol

__all__ = ["Answerer", "Connection", "Gateway", "Hub"]

log = logging.getLogger("fulgate")

# what the deadline is for
NEW: Final = 0  # accepted, nothing heard yet
IDLE: Final = 1  # between requests
ARRIVING: Final = 2  # a part of a request is here
WAITING: Final = 3  # PARAMS are here, a small body is waited for
RUNNING: Final = 4  # the application has it
CLOSING: Final = 5  # what is unsent goes, then the connection
LINGER: Final = 6  # all is sent, the peer may still be sending

FOREVER: Final = float("inf")
LINGER_PAUSE: Final = 2.0  # seconds of silence after which a peer that does not close is closed
LINGER_TIME: Final = 30.0  # seconds of lingering in all
HEARD_AT_STOP: Final = 0.2  # seconds, for a new connection to say something when we stop
PIECE: Final = 65536  # what a transport takes before it says that it has enough


class Answerer(Protocol):
    """Who answers an exchange; called in the reactor's thread."""

    def begin(self) -> None: ...
    def moved(self) -> None: ...  # body came, or its end, or it was refused
    def aborted(self) -> None: ...  # it is over, and `connection` takes no more
    def pause(self) -> None: ...  # the client reads slowly
    def resume(self) -> None: ...  # all that was written has left


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

    def allows(self, peer: Any) -> bool: ...
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
        self.unsent = 0  # bytes
        self.full = False  # the transport has enough
        self.deaf = False  # we do not receive, since nobody reads the body
        self._out: deque[Buffer] = deque()
        self._scheduled = False  # `_flush` is about to be called
        self._over: Exchange | None = None  # ended by another thread
        self._answerer: Answerer | None = None
        self._waiting: Exchange | None = None  # its body is waited for
        self._phase = NEW
        self._deadline = FOREVER
        self._write_by = FOREVER
        self._half_closed = 0.0
        self._call: Any = None  # of `_expire`

    # ---------------------------------------------------------------- called by Twisted

    def connectionMade(self) -> None:
        if not self.hub.allows(self.transport.getPeer()):
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
            over, self._over = self._over, None
            try:
                moved = self.wire.feed(data)
            except (ProtocolError, LimitExceeded) as error:
                log.warning("closed a connection: %s", error)
                moved = None
            if moved is not None and self.wire.out:
                # First: the end of an aborted request goes before the answer to the next one.
                self.put(self.wire.out)
                self.wire.out = []
        if moved is None:
            self.close()
            return
        if over is not None:
            self._ended(over)
        for exchange in moved:
            if self._phase < CLOSING and not self.closed:
                self._moved(exchange)
        self._flush()
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
        self._write_by = FOREVER
        self._flush()
        if not self.full and self._answerer is not None:
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

    def put(self, buffers: list[Buffer]) -> None:
        """Queue output, under the lock; `schedule` or `_flush` sends it."""
        if self.closed:
            return
        for data in buffers:
            self._out.append(data)
            self.unsent += len(data)

    def schedule(self, over: Exchange | None = None) -> None:
        """Have the reactor send, from any thread and under the lock; `over` has ended."""
        if over is not None:
            self._over = over
        if not self._scheduled:
            self._scheduled = True
            self.hub.reactor.callFromThread(self._flush)

    def send(self, exchange: Exchange, data: Buffer) -> None:
        """Send a piece of the answer; b"" sends the staged head alone. Raises Aborted."""
        with self.lock:
            self.put(exchange.send(data))
        self._flush()

    def finish(self, exchange: Exchange, data: Buffer = b"") -> None:
        """Send the last piece of the answer, and its end. Raises Aborted."""
        with self.lock:
            self.put(exchange.finish(data))
            self.wire.done(exchange)
        self._flush()
        self._ended(exchange)

    def fail(self, exchange: Exchange) -> None:
        """Break an answer that has begun, so that the client sees an error. Raises Aborted."""
        with self.lock:
            self.put(exchange.fail())
            self.wire.done(exchange)
        self._flush()
        self._ended(exchange)

    def refuse(self, exchange: Exchange, status: str, headers: Headers | None = None) -> None:
        """Send a whole small answer of the server's own."""
        if not exchange.began:
            exchange.began = monotonic()
        with self.lock, contextlib.suppress(Aborted):
            self.put(exchange.refuse(status, headers))
            self.wire.done(exchange)
        self._flush()
        self._ended(exchange)

    def want(self, exchange: Exchange) -> None:
        """Body is waited for: it has so long to come."""
        if self.running is exchange and not exchange.stdin_ended:
            self._deadline = self._in(self.hub.config.body_timeout)
            self._alarm()
            self.hear()

    def hear(self) -> None:
        """Receive again, once the body that came has been read."""
        if self.deaf:
            self.deaf = False
            self.transport.resumeProducing()

    def close(self, at_once: bool = False) -> None:
        """Close: running requests are aborted. What was written leaves, unless `at_once`."""
        if self.closed:
            return
        if not at_once:
            self._write()
        self._gone()
        self.transport.unregisterProducer()
        if at_once:
            self.transport.abortConnection()
        else:
            self.transport.loseConnection()
            self._write_by = self._in(self.hub.config.send_timeout)
            self._alarm()

    # ---------------------------------------------------------------- below: the reactor's thread

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
            if exchange.body_size > self.hub.config.body_buffer and not self.deaf:
                self.deaf = True
                self.transport.pauseProducing()
            if self._answerer is not None:
                self._answerer.moved()
        elif exchange.refused is not None:
            self._turn_away(exchange, exchange.refused.status)
        elif exchange.params_ended:
            if self._may_start(exchange):
                self._start(exchange)
            elif self._waiting is None:
                self._waiting = exchange
                self._phase = WAITING
                self._deadline = self._in(self.hub.config.body_wait)
                self._alarm()

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

    def _start(self, exchange: Exchange) -> None:
        exchange.began = monotonic()
        if not self.hub.gateway.room():
            self._turn_away(exchange, "503 Service Unavailable", [("Retry-After", "1")])
            return
        self._waiting = None
        self.running = exchange
        self._phase = RUNNING
        self._deadline = FOREVER
        self._answerer = answerer = self.hub.gateway(exchange, self)
        if self.full:
            answerer.pause()
        answerer.begin()

    def _turn_away(self, exchange: Exchange, status: str, headers: Headers | None = None) -> None:
        self._waiting = None
        self._phase = IDLE
        self.refuse(exchange, status, headers)
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
            self._phase = CLOSING if exchange.stdin_ended or exchange.broken else LINGER
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
                over, self._over = self._over, None
                batch = b"" if self.full or self.closed else self._batch()
                if over is None and not batch:
                    self.changed.notify_all()
                    break
            if batch:
                self.transport.write(batch)
            if over is not None:
                self._ended(over)

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
            self._out.clear()
            self.unsent = 0
            over, self._over = self._over, None
            self.changed.notify_all()
        self._deadline = self._write_by = FOREVER
        running, self.running = self.running, None
        answerer, self._answerer = self._answerer, None
        self._waiting = None
        for exchange in aborted:
            if exchange is not running:
                self.hub.over(exchange)
        if answerer is not None and running is not over:
            answerer.aborted()

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
            self._call = self.hub.reactor.callLater(max(0.0, nearest - now), self._expire)
        elif self._call.getTime() > nearest:
            self._call.reset(max(0.0, nearest - now))

    def _expire(self) -> None:
        self._call = None
        now = self.hub.reactor.seconds()
        if self._write_by <= now:
            log.info("closed a connection: its client did not read the answer in time")
            self._abort()
        elif self._deadline > now:
            self._alarm()
        elif self._waiting is not None:
            self._start(self._waiting)
            self._flush()
            self._settle()
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
