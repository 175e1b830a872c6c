"""One connection of the threads driver: its state, and what is done with it by whoever polls.

`connection.py` adds what the application's thread does.

*The lock* guards the protocol, the outbox and all state here. It is never held over a call that
may block: the socket does not block, and under the lock it is only written to.

*Inbound*, the right to receive, belongs to one party at a time, as `inbound` says:

- ARMED: the poller has it; whoever polls receives, under the lock.
- APP: the thread that runs the request has it, and is in the application. The control thread may
  take it from there to ARMED, so that aborts are seen while the application runs.
- READING: the same thread, inside `receive`, without the lock where it has to wait.

Taking it from ARMED needs no call to the poller: an event that comes while another has it is
dropped, and only then the poller is asked to be silent, since it would tell of it again and again.
While READING, or while a thread waits in `_wait_writable`, a close only shuts the socket down,
and that thread closes the descriptor when it comes back. Else the number could name another
connection by then.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
from collections import deque
from time import monotonic
from typing import Final, Protocol

from fulgate.config import Config
from fulgate.drivers.outbox import Outbox
from fulgate.drivers.poller import END, GONE, READ, WRITE, Poller
from fulgate.errors import Aborted, LimitExceeded, ProtocolError
from fulgate.exchange import Buffer, Carrier, Exchange, ServerProtocol

__all__ = ["APP", "ARMED", "FOREVER", "READING", "RECEIVE", "Hub", "Task", "Wire"]

log = logging.getLogger("fulgate")

# who may receive
ARMED: Final = 0
APP: Final = 1
READING: Final = 2

# what the deadline is for
NEW: Final = 0  # accepted, nothing heard yet
IDLE: Final = 1  # between requests
ARRIVING: Final = 2  # a part of a request is here
WAITING: Final = 3  # PARAMS are here, a small body is waited for
RUNNING: Final = 4  # the application has it
CLOSING: Final = 5  # the outbox goes, then the connection
LINGER: Final = 6  # all is sent, the peer may still be sending

FOREVER: Final = float("inf")
LINGER_PAUSE: Final = 2.0  # seconds of silence after which a peer that does not close is closed
LINGER_TIME: Final = 30.0  # seconds of lingering in all
ARRIVED_AT_STOP: Final = 2.0  # seconds, for the rest of a request that has begun to arrive
HEARD_AT_STOP: Final = 0.2  # seconds, for a new connection to say something when we stop
RECEIVE: Final = 65536


class Hub(Protocol):
    """What a connection needs of its driver."""

    config: Config
    poller: Poller
    pending: deque[Task]
    stopping: bool
    next_scan: float

    def room(self) -> bool: ...  # may another request wait for a thread?
    def alarm(self, deadline: float) -> None: ...
    def blocking(self) -> None: ...  # the calling thread is about to block
    def forget(self, connection: Wire) -> None: ...  # before its descriptor is closed
    def ended(self, exchange: Exchange) -> None: ...  # for the access log; without a lock


class Wire(Carrier):
    """One accepted connection, of which nobody knows yet; `begin` is called next."""

    def __init__(self, hub: Hub, sock: socket.socket, protocol: ServerProtocol) -> None:
        self.hub = hub
        self.sock = sock
        self.fd = sock.fileno()
        self.protocol = protocol
        self.lock = threading.Lock()
        self.inbound = ARMED
        self.phase = NEW
        self.deadline = FOREVER
        self.waiting: Exchange | None = None  # its body is waited for
        self.running: Exchange | None = None  # it has been handed to the application
        self.outbox = Outbox()
        self.closed = False
        self._registered = False
        self._armed = 0  # the mask that the poller has
        self._users = 0  # threads that wait for the descriptor, beside the owner of inbound
        self._half_closed = 0.0  # when we shut our side, to linger
        self._unlogged: list[Exchange] = []  # ended here, to be logged outside the lock

    # ---------------------------------------------------------------- called by whoever polls

    def begin(self) -> None:
        """Receive what came with the connection, and have the poller look after the rest."""
        with self.lock:
            self._receive()
            self._settle()
        if self._unlogged:
            self._log_ended()

    def ready(self, mask: int) -> None:
        """Handle an event: flush, receive, and put what may run into the hub's queue."""
        with self.lock:
            if mask == READ and self.inbound == ARMED:
                if not self.closed and self._receive():
                    self._settle()
            elif not self.closed:
                self._ready(mask)
        if self._unlogged:
            self._log_ended()

    def _ready(self, mask: int) -> None:
        """Handle an event that is not just that of the peer's bytes, which we wait for."""
        if mask & WRITE:
            self._flush()
        if self.closed:
            return
        if mask & READ and self.inbound == ARMED:
            if self._receive():
                self._settle()
        elif (mask & END and self.inbound == ARMED) or (mask & GONE and _is_gone(self.fd)):
            self._close()  # END: and there is no room for what it sent last
        self._arm(mask)

    def _receive(self) -> bool:
        """Receive once, and act on what came; False when nothing did."""
        data: bytes
        try:
            data = self.sock.recv(RECEIVE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self._take(data)
        return True

    def expire(self, now: float) -> None:
        """Act on the deadline, if it has passed; called by the control thread."""
        with self.lock:
            if self.closed or self.deadline > now:
                return
            if self.waiting is not None:
                self._start(self.waiting, now)
                self._settle()
            else:
                if self.outbox.size:
                    log.info("closed a connection: its client did not read the answer in time")
                elif self.phase == ARRIVING:
                    log.info("closed a connection: a request did not arrive in time")
                self._close()
        if self._unlogged:
            self._log_ended()

    def watch(self) -> None:
        """Have the poller look for aborts while the application runs; by the control thread."""
        with self.lock:
            if not self.closed and self.inbound == APP:
                self.inbound = ARMED
                self._arm()

    def drain(self) -> None:
        """The server stops: serve what has come, and close when there is nothing."""
        with self.lock:
            if self.closed or self.inbound != ARMED:
                return
            if self._half_closed:
                self._close()
                return
            if self.phase == ARRIVING:
                self._set_deadline(min(self.deadline, monotonic() + ARRIVED_AT_STOP))
            self._receive()
            self._settle()
        if self._unlogged:
            self._log_ended()

    def catch_up(self) -> None:
        """See whether the peer went while its request was queued; by the thread that runs it."""
        with self.lock:
            if self.closed or self.inbound != APP:
                return
            self._receive()
            self._settle()
        if self._unlogged:
            self._log_ended()

    def flush(self) -> None:
        """Wait until all that was written has left, or the connection is closed."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close at once, whatever goes on."""
        with self.lock:
            self._close()
        if self._unlogged:
            self._log_ended()

    # ---------------------------------------------------------------- below: under the lock

    def _take(self, data: bytes) -> None:
        """Feed the protocol; b"" is the peer's end."""
        if not data:
            self._close()
            return
        if self.phase >= CLOSING:
            return  # what comes now is discarded
        protocol = self.protocol
        try:
            moved = protocol.feed(data)
        except (ProtocolError, LimitExceeded) as error:
            log.warning("closed a connection: %s", error)
            self._close()
            return
        if protocol.out:
            # First: the end of an aborted request goes before the answer to one that has its id.
            owed = protocol.out
            protocol.out = []
            with contextlib.suppress(Aborted):
                self._write(owed)
        for exchange in moved:
            if self.closed:
                return  # `_close` has seen to them
            plain = exchange.complete and exchange.refused is None and not exchange.aborted
            if plain and self.running is None:
                self._start(exchange, monotonic())
            else:
                self._moved(exchange)

    def _moved(self, exchange: Exchange) -> None:
        """Act on an exchange that is not just complete, and waited for by nobody."""
        running = exchange is self.running
        if exchange.aborted:
            self.phase = IDLE
            if running:
                self.running = None
            else:
                self.waiting = None
                self._unlogged.append(exchange)
        elif running:
            return  # its thread finds what came when it asks
        elif exchange.refused is not None:
            self._refuse(exchange, exchange.refused.status)
        elif exchange.params_ended:
            now = monotonic()
            if self._may_start(exchange):
                self._start(exchange, now)
            elif self.waiting is None:
                self.waiting = exchange
                self.phase = WAITING
                self._set_deadline(now + self.hub.config.body_wait)

    def _may_start(self, exchange: Exchange) -> bool:
        config = self.hub.config
        return (
            exchange.complete
            or exchange.content_length > config.body_buffer
            or exchange.body_size > config.body_buffer
            or config.body_wait <= 0
            or "HTTP_UPGRADE" in exchange.params
        )

    def _start(self, exchange: Exchange, now: float) -> None:
        """Queue the exchange for a thread, or shed it when the queue is full."""
        hub = self.hub
        exchange.began = now
        if len(hub.pending) >= hub.config.queue and not hub.room():
            self._refuse(exchange, "503 Service Unavailable", [("Retry-After", "1")])
            return
        self.waiting = None
        self.running = exchange
        self.phase = RUNNING
        self.deadline = FOREVER
        hub.pending.append((self, exchange))

    def _refuse(
        self, exchange: Exchange, status: str, headers: list[tuple[str, str]] | None = None
    ) -> None:
        self.waiting = None
        self.phase = IDLE
        if exchange.refused is None:
            exchange.refused = LimitExceeded(status, "too many requests wait for a thread")
        if not exchange.began:
            exchange.began = monotonic()
        with contextlib.suppress(Aborted):
            self._write(exchange.refuse(status, headers))
        self.protocol.done(exchange)
        if not self.closed and self.protocol.closing:
            self._finish_closing(exchange)
        self._unlogged.append(exchange)

    def _end(self, exchange: Exchange) -> None:
        """The answer is complete, or broken: let the connection go on, or close it.

        Called by the thread that ran it, at the moment at which the answer's end is written, so
        that the peer's next request finds the protocol ready for it.
        """
        self.protocol.done(exchange)
        if self.closed:
            return
        if self.running is exchange:
            self.running = None
        if self.protocol.closing:
            self._finish_closing(exchange)
        self._settle()

    def _finish_closing(self, exchange: Exchange) -> None:
        self.phase = CLOSING if exchange.stdin_ended or exchange.broken else LINGER
        if not self.outbox.size:  # else the deadline is that of writing
            self.deadline = FOREVER

    def _settle(self) -> None:
        """Give inbound up: decide what the connection waits for now."""
        if self.closed:
            self.inbound = ARMED
            self._release_descriptor()
            return
        if self.running is not None:
            # Alone on its connection, so that its thread may pull the body itself.
            self.inbound = APP
            if self.outbox.size:
                self._arm()
        else:
            self.inbound = ARMED
            phase = self.phase
            if phase >= CLOSING or self.protocol.closing:
                self._settle_closing()
            elif self.protocol.idle:
                self._settle_idle()
            elif phase != WAITING and phase != ARRIVING:
                self.phase = ARRIVING
                limit = self.hub.config.arrival_timeout or FOREVER
                if self.hub.stopping:
                    limit = min(limit, ARRIVED_AT_STOP)
                self._set_deadline(monotonic() + limit)
            self._arm()

    def _settle_idle(self) -> None:
        hub = self.hub
        if self.outbox.size:
            return  # its deadline is that of writing
        if self.phase == NEW:
            limit = HEARD_AT_STOP if hub.stopping else hub.config.arrival_timeout
        elif hub.stopping:
            self._close()
            return
        else:
            self.phase = IDLE
            limit = hub.config.keep_alive
        self.deadline = deadline = monotonic() + (limit or FOREVER)
        if deadline < hub.next_scan:
            hub.alarm(deadline)

    def _settle_closing(self) -> None:
        if self.outbox.size:
            return  # `_flush` comes back here
        if self.phase != LINGER:
            self._close()
            return
        now = monotonic()
        if not self._half_closed:
            self._half_closed = now
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:
                self._close()
                return
        pause = HEARD_AT_STOP if self.hub.stopping else LINGER_PAUSE
        self._set_deadline(min(now + pause, self._half_closed + LINGER_TIME))

    def _set_deadline(self, deadline: float) -> None:
        self.deadline = deadline
        if deadline < self.hub.next_scan:
            self.hub.alarm(deadline)

    def _set_write_deadline(self) -> None:
        # That of a request that arrives, or whose body is waited for, stays: it is the nearer one.
        if self.phase != ARRIVING and self.phase != WAITING:
            self._set_deadline(monotonic() + (self.hub.config.send_timeout or FOREVER))

    def _write(self, buffers: list[Buffer]) -> None:
        """Send what the socket takes; the rest goes to the outbox. Raises Aborted."""
        if self.closed:
            raise Aborted("the connection is closed")
        outbox = self.outbox
        if len(buffers) == 1 and not outbox.size:
            data = buffers[0]
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._close()
                raise Aborted("the connection was closed by the web server") from error
            if sent < len(data):
                outbox.put(memoryview(data)[sent:])
                self._set_write_deadline()
        elif buffers:
            for data in buffers:
                outbox.put(data)
            self._flush()
            if self.closed:
                raise Aborted("the connection was closed by the web server")

    def _flush(self) -> None:
        """Send from the outbox what the socket takes; a peer that is gone closes the connection."""
        outbox = self.outbox
        try:
            progress = outbox.send(self.sock)
        except OSError:
            self._close()
            return
        if outbox.size:
            if progress or self.deadline == FOREVER:
                self._set_write_deadline()
        elif self.running is not None:
            self.deadline = FOREVER
        elif self.inbound == ARMED:
            if self.phase >= CLOSING or self.protocol.closing:
                self._settle_closing()
            elif self.protocol.idle:
                self._settle_idle()

    def _arm(self, reported: int = 0) -> None:
        """Tell the poller what we wait for: the peer's next bytes, room to write, its end.

        What it looks for in vain costs nothing, so it is told to look for less only when it has
        `reported` what nobody waits for.
        """
        if self.closed:
            return
        unsent = self.outbox.size
        mask = WRITE if unsent and not self._users else 0
        if self.inbound == ARMED:
            running = self.running
            if (not unsent or unsent <= self.hub.config.write_behind) and (
                running is None or running.body_size <= self.hub.config.body_buffer
            ):
                mask |= READ
            else:
                mask |= END
        armed = self._armed
        if mask == armed or not (mask & ~armed or reported & armed & ~mask):
            return
        try:
            if self._registered:
                self.hub.poller.modify(self.fd, mask)
            else:
                self.hub.poller.register(self.fd, mask)
                self._registered = True
        except OSError as error:  # no memory, or too many watches
            log.error("closed a connection: %s", error)
            self._close()
        self._armed = mask

    def _close(self) -> None:
        """Close: nothing of ours is sent any more, and running requests are detached."""
        if self.closed:
            return
        self.closed = True
        self.deadline = FOREVER
        aborted = self.protocol.eof()
        for exchange in aborted:
            if exchange is not self.running:
                self._unlogged.append(exchange)
        self.running = self.waiting = None
        self.outbox.clear()
        if self._registered:
            with contextlib.suppress(OSError):
                self.hub.poller.unregister(self.fd)
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.hub.forget(self)
        self._release_descriptor()

    def _release_descriptor(self) -> None:
        if not self._users and self.inbound != READING:
            self.sock.close()

    def _log_ended(self) -> None:
        ended, self._unlogged = self._unlogged, []
        for exchange in ended:
            self.hub.ended(exchange)


def _is_gone(fd: int) -> bool:
    """Ask for the peer again: an event may be of the one that had this number before."""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


Task = tuple[Wire, Exchange]
