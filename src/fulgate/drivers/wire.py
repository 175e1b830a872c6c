"""One connection of the threads driver: its state, and what is done with it by whoever polls.

`connection.py` adds what the application's thread does.

*The lock* guards the protocol, the outbox and all state here. It is never held over a call that
may block: the socket does not block, and under the lock it is only written to. What every request
goes through calls `acquire` and `release`, since `with` takes twice as long.

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
from collections.abc import Callable
from time import monotonic
from typing import Final

from fulgate.config import Config
from fulgate.drivers.outbox import Outbox
from fulgate.drivers.phases import (
    AHEAD_AFTER,
    ARRIVED_AT_STOP,
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
    SHARED,
    WAITING,
    clock,
    no_room,
    reset_at_close,
)
from fulgate.drivers.poller import END, GONE, POLLRDHUP, READ, WRITE, Poller
from fulgate.errors import Aborted, LimitExceeded, ProtocolError
from fulgate.exchange import Buffer, Carrier, Exchange, Headers, Reply, ServerProtocol
from fulgate.listener import PassOn
from fulgate.logs import log_refusal, request_line

__all__ = ["APP", "ARMED", "READING", "Hub", "Task", "Wire"]

log = logging.getLogger("fulgate")

# On a connection with several requests: beyond it the peer does not read at all, and is not read.
MOST_UNSENT: Final = 4 << 20

_new_lock: Final = threading.Lock

# who may receive
ARMED: Final = 0
APP: Final = 1
READING: Final = 2


class Hub:
    """What a connection needs of its driver.

    No typing.Protocol: of a class mypyc knows where the attributes are.
    """

    config: Config
    # Of the configuration, what is asked for with each request.
    queue: int
    keep_alive: float
    write_behind: int
    poller: Poller
    pending: deque[Task]
    stopping: bool
    pass_on: PassOn | None  # idle connections go to another process
    next_scan: float
    # What answers some requests at once, without a thread, by whoever polls.
    aside: Callable[[Exchange], Reply | None] | None = None

    def room(self) -> bool:
        """May another request wait for a thread?"""
        raise NotImplementedError

    def alarm(self, deadline: float) -> None:
        """Have the deadlines looked at, at this time at the latest."""
        raise NotImplementedError

    def blocking(self) -> None:
        """The calling thread is about to block."""
        raise NotImplementedError

    def forget(self, connection: Wire) -> None:
        """The connection is about to close its descriptor."""
        raise NotImplementedError

    def ended(self, exchange: Exchange) -> None:
        """An exchange has ended, for the access log; called without a lock."""
        raise NotImplementedError


class Wire(Carrier):
    """One accepted connection, of which nobody knows yet; `begin` is called next."""

    def __init__(self, hub: Hub, sock: socket.SocketType, protocol: ServerProtocol) -> None:
        self.hub = hub
        self.sock = sock
        self.fd = sock.fileno()
        self.protocol = protocol
        self.lock = _new_lock()
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
        self._deaf = False  # we take nothing more, so that no request is lost when we close
        self._ahead = FOREVER  # when to look behind a body that nobody reads
        self._far = False  # we have looked as far as we may
        self._half_closed = 0.0  # when we shut our side, to linger
        self._unlogged: list[Exchange] = []  # ended here, to be logged outside the lock

    # ---------------------------------------------------------------- called by whoever polls

    def begin(self) -> None:
        """Receive what came with the connection, and have the poller look after the rest."""
        lock = self.lock
        lock.acquire()
        try:
            self._receive()
            self._settle()
        finally:
            lock.release()
        if self._unlogged:
            self._log_ended()

    def ready(self, mask: int) -> None:
        """Handle an event: flush, receive, and put what may run into the hub's queue."""
        lock = self.lock
        lock.acquire()
        try:
            if mask == READ and self.inbound == ARMED:
                if not self.closed and self._receive():
                    self._settle()
            elif not self.closed:
                self._ready(mask)
        finally:
            lock.release()
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
        elif (mask & END and self.inbound == ARMED and _has_ended(self.fd)) or (
            mask & GONE and _is_gone(self.fd)
        ):
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
            if self.phase == SHARED:
                self._expire_beside(now)
            elif self._ahead <= now and self.running is not None:
                self._look_ahead(self.running, now)
            elif self.waiting is not None:
                self._start(self.waiting, now)
                self._settle()
            else:
                if self.outbox.size:
                    log.info("closed a connection: its client did not read the answer in time")
                elif self.phase == ARRIVING:
                    log.info("closed a connection: a request did not arrive in time")
                elif self.phase <= IDLE:
                    self._close_idle()
                    return
                self._close()
        if self._unlogged:
            self._log_ended()

    def watch(self) -> None:
        """Have the poller look for aborts while the request runs, or waits for a thread.

        Called by the control thread.
        """
        with self.lock:
            if not self.closed and self.inbound == APP and not self._deaf:
                self.inbound = ARMED
                self._arm()
            running = self.running
            if running is not None and running.body_size > self.hub.config.body_buffer:
                self._look_ahead_later(running)

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
            if self.closed or self.inbound != APP or self._deaf:
                return
            self._receive()
            self._settle()
            if self.phase == SHARED:
                self.hub.poller.wake()  # further requests may be queued, and nobody may know
        if self._unlogged:
            self._log_ended()

    def flush(self) -> None:
        """Wait until all that was written has left, or the connection is closed."""
        raise NotImplementedError

    # What `shared.py` adds, for a connection with several requests; all under the lock.

    def _take_beside(self, moved: list[Exchange]) -> None:
        """Act on what moved, where there are, or were, several requests."""
        raise NotImplementedError

    def _drop_aborted(self, moved: list[Exchange]) -> None:
        """Forget what was written for requests that were aborted, and has not left."""
        raise NotImplementedError

    def _look_ahead(self, exchange: Exchange, now: float) -> None:
        """See what comes behind the body of the only request, if nobody has read it since."""
        raise NotImplementedError

    def _settle_beside(self) -> None:
        raise NotImplementedError

    def _expire_beside(self, now: float) -> None:
        raise NotImplementedError

    def _flush_beside(self) -> None:
        raise NotImplementedError

    def _give_up(self, exchange: Exchange, status: str) -> None:
        """End one request before its time: with this answer, or as a broken one."""
        raise NotImplementedError

    def _leave_lane(self, exchange: Exchange) -> None:
        """A request is over; what was written for it may still be on its way."""
        raise NotImplementedError

    def _close_beside(self, aborted: list[Exchange]) -> None:
        raise NotImplementedError

    def _has_come(self) -> bool:
        """Is this end one that we have made, and do requests go on?"""
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
            if not self._has_come():
                self._close()
            return
        if self.phase >= CLOSING and self.phase != SHARED:
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
            if self.phase == SHARED:
                self._drop_aborted(moved)  # nothing of it may follow its end
            owed = protocol.out
            protocol.out = []
            with contextlib.suppress(Aborted):
                self._write(owed)
        if protocol.shared:
            self._take_beside(moved)
            return
        for exchange in moved:
            if self.closed:
                return  # `_close` has seen to them
            plain = exchange.complete and exchange.refused is None and not exchange.aborted
            if plain and self.running is None:
                self._start(exchange, clock())
            else:
                self._moved(exchange)

    def _moved(self, exchange: Exchange) -> None:
        """Act on an exchange that is not just complete, and waited for by nobody."""
        running = exchange is self.running
        if exchange.aborted:
            self.phase = IDLE
            if running:
                self.running = None
                if exchange.leaving:
                    self._unlogged.append(exchange)
            else:
                self.waiting = None
                self._unlogged.append(exchange)
        elif running:
            # Its thread finds what came when it asks, and when it has answered nobody does.
            if exchange.leaving:
                exchange.take()
            elif self.inbound == ARMED and exchange.body_size > self.hub.config.body_buffer:
                self._look_ahead_later(exchange)
        elif exchange.refused is not None:
            self._refuse(exchange, exchange.refused)
        elif exchange.params_ended:
            now = monotonic()
            if self._may_start(exchange):
                self._start(exchange, now)
            elif self.waiting is None:
                self.waiting = exchange
                self.phase = WAITING
                self._set_deadline(now + self.hub.config.body_wait)

    def _look_ahead_later(self, exchange: Exchange) -> None:
        """Nobody reads the body of the only request, and there may be others behind it."""
        if self._ahead == FOREVER and not self._deaf and self.protocol.may_follow(exchange):
            self._ahead = ahead = monotonic() + AHEAD_AFTER
            if ahead < self.deadline:  # else that of writing
                self._set_deadline(ahead)

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
        if hub.aside is not None:
            reply = hub.aside(exchange)
            if reply is not None:
                self._answer(exchange, reply)
                return
        if len(hub.pending) >= hub.queue and not hub.room():
            self._refuse(exchange, no_room(), RETRY_AFTER)
            return
        self.waiting = None
        self.running = exchange
        self.phase = RUNNING
        self.deadline = self._ahead = FOREVER
        hub.pending.append((self, exchange))

    def _answer(self, exchange: Exchange, reply: Reply) -> None:
        """Send a whole answer of the server's own, and let the connection go on."""
        self._is_over(exchange)
        length = str(len(reply.body))
        kind = [("Content-Type", reply.type), ("Content-Length", length)]
        exchange.start(reply.status, [*kind, ("Cache-Control", "no-store")])
        bodiless = exchange.params.get("REQUEST_METHOD") == "HEAD"
        with contextlib.suppress(Aborted):
            self._write(exchange.finish(b"" if bodiless else reply.body))
        self.protocol.done(exchange)
        if not self.closed and self.protocol.closing and self.phase != SHARED:
            self._finish_closing(exchange)
        self._unlogged.append(exchange)

    def _refuse(
        self, exchange: Exchange, refused: LimitExceeded, headers: Headers | None = None
    ) -> None:
        self._is_over(exchange)
        exchange.refused = refused
        log_refusal(exchange)
        if not exchange.began:
            exchange.began = monotonic()
        with contextlib.suppress(Aborted):
            self._write(exchange.refuse(refused.status, headers))
        self.protocol.done(exchange)
        if not self.closed and self.protocol.closing and self.phase != SHARED:
            self._finish_closing(exchange)
        self._unlogged.append(exchange)

    def _is_over(self, exchange: Exchange) -> None:
        """A request is answered by the server itself."""
        if self.phase == SHARED:
            self._leave_lane(exchange)
        else:
            self.waiting = None
            self.phase = IDLE

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
        self.phase = CLOSING if exchange.input_ended or exchange.broken else LINGER
        if not self.outbox.size:  # else the deadline is that of writing
            self.deadline = FOREVER

    def _settle(self) -> None:
        """Give inbound up: decide what the connection waits for now."""
        if self.closed:
            self.inbound = ARMED
            self._release_descriptor()
            return
        if self.running is not None and not self.running.leaving:
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
            elif phase != WAITING and phase != ARRIVING and self.running is None:
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
        if hub.pass_on is not None and self._leave(hub.pass_on):
            return
        if self.phase == NEW:
            limit = HEARD_AT_STOP if hub.stopping else hub.config.arrival_timeout
        elif hub.stopping or self._deaf:
            self._close_idle()
            return
        else:
            self.phase = IDLE
            limit = hub.keep_alive
        self.deadline = deadline = clock() + (limit or FOREVER)
        if deadline < hub.next_scan:
            hub.alarm(deadline)

    def _close_idle(self) -> None:
        """Close between requests; what the web server has just written is still served.

        On a Unix socket its writes fail from here on, and what it wrote before can be read.
        """
        if not self._deaf and self.sock.family == socket.AF_UNIX:
            self._deaf = True
            try:
                self.sock.shutdown(socket.SHUT_RD)
            except OSError:
                self._close()
                return
            while (
                not self.closed
                and self.running is None
                and self.phase != SHARED
                and self._receive()
            ):
                pass
            if self.running is not None or self.phase == SHARED:
                self._settle()
                self.hub.poller.wake()  # a thread has to take it
                return
        self._close()

    def _leave(self, pass_on: PassOn) -> bool:
        """Give the connection to another process, which takes what the peer sends next."""
        if self._users or self._deaf:
            return False
        try:
            copy = socket.fromfd(self.fd, self.sock.family, self.sock.type)
        except OSError:
            return False  # no descriptor to be had: it is tried again
        self.closed = True
        self.deadline = FOREVER
        self._unregister()
        pass_on(copy, self.protocol.name)
        self.hub.forget(self)
        self._release_descriptor()
        return True

    def time_out(self, exchange: Exchange) -> None:
        """The application takes too long: answer 504, or break the answer.

        Called by the control thread.
        """
        with self.lock:
            if self.closed or exchange.aborted or exchange.ended:
                return
            if self.phase == SHARED:
                self._give_up(exchange, "504 Gateway Timeout")
                return
            if self.running is not exchange:
                return
            with contextlib.suppress(Aborted):
                if exchange.head_sent:
                    self._write(exchange.fail())
                else:
                    self._write(exchange.refuse("504 Gateway Timeout"))
            exchange.aborted = True  # what its thread does from now on raises Aborted
            if not self.closed:
                self.protocol.done(exchange)
                self.running = None
                self.inbound = ARMED
                self.phase = CLOSING
                self._settle_closing()
                self._arm()

    def _settle_closing(self) -> None:
        if self.phase == SHARED:
            self._settle_beside()
            return
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
        if self.phase != ARRIVING and self.phase != WAITING and self.phase != SHARED:
            deadline = monotonic() + (self.hub.config.send_timeout or FOREVER)
            self._set_deadline(min(deadline, self._ahead) if self.running is not None else deadline)

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
        if self.phase == SHARED:
            self._flush_beside()
            return
        outbox = self.outbox
        try:
            progress = outbox.send(self.sock)
            if outbox.left:
                self._files_left()
                outbox.send(self.sock)
                if self.inbound == ARMED:
                    self._settle()
                    if self.closed:
                        return
        except OSError:
            self._close()
            return
        if outbox.size:
            if progress or self.deadline == FOREVER:
                self._set_write_deadline()
        elif self.running is not None:
            self.deadline = self._ahead
        elif self.inbound == ARMED:
            if self.phase >= CLOSING or self.protocol.closing:
                self._settle_closing()
            elif self.protocol.idle:
                self._settle_idle()

    def _files_left(self) -> None:
        """End the answers whose files have left, or were too short."""
        outbox = self.outbox
        left, outbox.left = outbox.left, []
        for file in left:
            exchange = file.exchange
            if file.short:
                log.error("%s: a file was cut off while it was sent", request_line(exchange))
            for data in exchange.fail() if file.short else exchange.finish():
                outbox.put(data)
            self.protocol.done(exchange)
            if exchange.leaving:
                self._unlogged.append(exchange)
            if self.phase == SHARED:
                self._leave_lane(exchange)
                continue
            self.running = None
            self.phase = IDLE
            if self.protocol.closing:
                self._finish_closing(exchange)

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
            if self._far:
                mask |= END
            elif (not unsent or unsent <= self.hub.write_behind) and (
                running is None or running.body_size <= self.hub.config.body_buffer
            ):
                mask |= READ
            else:
                # Where there are several requests none may keep us from hearing of the others.
                mask |= READ if self.phase == SHARED and unsent <= MOST_UNSENT else END
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
        if self.phase == SHARED:
            self._close_beside(aborted)
        else:
            for exchange in aborted:
                if exchange is not self.running or exchange.leaving:
                    self._unlogged.append(exchange)
        self.running = self.waiting = None
        self.outbox.clear()
        self._unregister()
        if self.protocol.reset:
            reset_at_close(self.sock)
        if self._users or self.inbound == READING:  # who waits is to see it, and closes
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
        self.hub.forget(self)
        self._release_descriptor()

    def _unregister(self) -> None:
        if self._registered:
            with contextlib.suppress(OSError):
                self.hub.poller.unregister(self.fd)

    def _release_descriptor(self) -> None:
        if not self._users and self.inbound != READING:
            self.sock.close()

    def _log_ended(self) -> None:
        ended, self._unlogged = self._unlogged, []
        for exchange in ended:
            self.hub.ended(exchange)
            if exchange.leaving:
                exchange.params = {}  # as its thread would have done


def _has_ended(fd: int) -> bool:
    """Ask for the peer's end again, for the same reason as `_is_gone`, where the system tells."""
    if not POLLRDHUP:
        return True
    poll = select.poll()
    poll.register(fd, POLLRDHUP)
    return bool(poll.poll(0))


def _is_gone(fd: int) -> bool:
    """Ask for the peer again: an event may be of the one that had this number before."""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


Task = tuple[Wire, Exchange]
