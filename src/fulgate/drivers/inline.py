"""The inline driver: everything happens in the thread that calls `run`, one request at a time.

For a process that is its own unit of concurrency (a preforked child), for one connection in a
thread of somebody else's pool, and wherever the application wants the main thread. While the
application runs nothing is accepted, so that another process can take what comes; whether its
client has gone is seen only when it reads or sends, or asks for that.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from fulgate.config import Config
from fulgate.drivers.outbox import File, Outbox
from fulgate.drivers.phases import (
    ACCEPT_PAUSE,
    FOREVER,
    HEARD_AT_STOP,
    LINGER_PAUSE,
    OUT_OF_DESCRIPTORS,
    RECEIVE,
    reset_at_close,
)
from fulgate.errors import Aborted, LimitExceeded, ProtocolError
from fulgate.exchange import Buffer, Carrier, Exchange, ServerProtocol, SyncGateway
from fulgate.listener import Listener
from fulgate.logs import log_refusal, request_line

__all__ = ["Inline"]

log = logging.getLogger("fulgate")


class InlineConnection(Carrier):
    """One accepted connection, and what the gateway needs of it."""

    def __init__(self, driver: Inline, sock: socket.socket, protocol: ServerProtocol) -> None:
        self.driver = driver
        self.sock = sock
        self.fd = sock.fileno()
        self.protocol = protocol
        self.waiting: list[Exchange] = []  # PARAMS are here, the body is waited for
        self.lingering = False
        self.closed = False
        self.deadline = FOREVER
        self._heard = False
        self._arriving = False
        self._outbox = Outbox()

    # between requests

    def received(self) -> list[Exchange]:
        """Receive once; give the exchanges that can be answered now."""
        data = self._recv()
        if data is None:
            return []
        if self.lingering:
            if not data:
                self.close()
            return []
        moved = self._feed(data)
        return [] if self.closed else self._sort(moved)

    def _sort(self, moved: list[Exchange]) -> list[Exchange]:
        """Tell the exchanges that may be answered now from those that wait for a small body."""
        ready: list[Exchange] = []
        for exchange in [*self.waiting, *(e for e in moved if e not in self.waiting)]:
            if exchange.aborted:
                self.driver.over(exchange)
            elif exchange.refused is not None or self._may_start(exchange):
                ready.append(exchange)
            elif exchange.params_ended and exchange not in self.waiting:
                self.deadline = monotonic() + self.driver.config.body_wait
                self.waiting.append(exchange)
        self.waiting = [e for e in self.waiting if e not in ready and not e.aborted]
        return ready

    def _may_start(self, exchange: Exchange) -> bool:
        config = self.driver.config
        return exchange.complete or (
            exchange.params_ended
            and (
                exchange.content_length > config.body_buffer
                or exchange.body_size > config.body_buffer
                or config.body_wait <= 0
                or "HTTP_UPGRADE" in exchange.params
            )
        )

    def expire(self) -> list[Exchange]:
        """The deadline has passed: give what is to be answered now, or close."""
        if self.waiting:
            ready, self.waiting = self.waiting, []
            return ready
        if self._arriving:
            log.info("closed a connection: a request did not arrive in time")
        self.close()
        return []

    def settle(self) -> None:
        """See what becomes of the connection, now that nothing runs."""
        if self.closed or self.lingering:
            return
        config = self.driver.config
        if self.protocol.reset:
            self.close()
        elif self.protocol.closing:
            self._linger()
        elif self.protocol.idle:
            self._arriving = False
            if self.driver.stopping and self._heard:
                self.close()
            elif self.driver.stopping:  # nothing was said yet, but may be about to be
                self.deadline = min(self.deadline, monotonic() + HEARD_AT_STOP)
            elif self._heard:  # else the deadline is that of its first request
                self.deadline = monotonic() + (config.keep_alive or FOREVER)
        elif not self.waiting and not self._arriving:
            self._arriving = True
            timeout = HEARD_AT_STOP if self.driver.stopping else config.arrival_timeout
            self.deadline = monotonic() + (timeout or FOREVER)

    def _linger(self) -> None:
        """Everything is sent. To close while the peer still sends could cost it our answer."""
        self.lingering = True
        self.deadline = monotonic() + LINGER_PAUSE
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()

    def close(self) -> None:
        """Close at once; what goes on is aborted."""
        if self.closed:
            return
        self.closed = True
        for exchange in self.protocol.eof():
            if exchange is not self.driver.running:
                self.driver.over(exchange)
        self.waiting = []
        self._outbox.clear()
        self.driver.forget(self)
        if self.protocol.reset:
            reset_at_close(self.sock)
        else:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def _feed(self, data: bytes) -> list[Exchange]:
        moved: list[Exchange] = []
        if not data:
            self.close()
            return moved
        self._heard = True
        try:
            moved = self.protocol.feed(data)
        except (ProtocolError, LimitExceeded) as error:
            log.warning("closed a connection: %s", error)
            self.close()
        else:
            if self.protocol.out:
                out, self.protocol.out = self.protocol.out, []
                with contextlib.suppress(Aborted):
                    self._write(out)
        return moved

    # called by the gateway

    sends_files = True

    def receive(self, exchange: Exchange) -> bytes:
        while True:
            self._check(exchange)
            if data := exchange.take():
                return data
            if exchange.stream_ended:
                return b""
            if wanted := exchange.want(RECEIVE):
                self._write(wanted)
            if self._wait(select.POLLIN, self.driver.config.body_timeout):
                self._receive()
            else:
                log.info("a request's body did not arrive in time")
                self.close()

    def send(self, exchange: Exchange, data: Buffer) -> None:
        if exchange.input_ended:
            self._receive()  # perhaps the client has gone
        self._check(exchange)
        self._write(exchange.send(data), exchange)

    def finish(self, exchange: Exchange, data: Buffer = b"", app_status: int = 0) -> None:
        self._check(exchange)
        out = exchange.finish(data, app_status)
        self.protocol.done(exchange)
        self._write(out, exchange)

    def finish_file(self, exchange: Exchange, fd: int, offset: int, size: int) -> None:
        file = File(exchange, fd, offset, size)
        if exchange.aborted or self.closed:
            file.close()
        self._check(exchange)
        self._outbox.put_file(file)
        self._write([], exchange)
        self._outbox.left = []
        if exchange.aborted:
            raise Aborted("the request was given up by the web server")
        out = exchange.fail() if file.short else exchange.finish()
        self.protocol.done(exchange)
        if file.short:
            log.error("%s: a file was cut off while it was sent", request_line(exchange))
        self._write(out, exchange)

    def fail(self, exchange: Exchange) -> None:
        self._check(exchange)
        out = exchange.fail()
        self.protocol.done(exchange)
        self._write(out)

    def refuse(self, exchange: Exchange, refused: LimitExceeded) -> None:
        """Answer instead of the application, which has not begun. Raises Aborted."""
        log_refusal(exchange)
        out = exchange.refuse(refused.status)
        self.protocol.done(exchange)
        self._write(out)

    def log(self, exchange: Exchange, text: str) -> None:
        self._write(exchange.log(text), exchange)

    def look(self, exchange: Exchange) -> None:
        # A body that nobody takes must not pile up here.
        if exchange.body_size < self.driver.config.write_behind:
            with contextlib.suppress(Aborted):
                self._receive()

    def _check(self, exchange: Exchange) -> None:
        if exchange.aborted or self.closed:
            raise Aborted("the request was given up by the web server")

    def _receive(self) -> None:
        """Take what is there, without waiting."""
        data = None if self.closed else self._recv()
        if data is not None:
            self._feed(data)

    def _recv(self) -> bytes | None:
        try:
            return self.sock.recv(RECEIVE)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _write(self, buffers: list[Buffer], exchange: Exchange | None = None) -> None:
        """Send, waiting while the socket is full. Raises Aborted when the peer is gone."""
        outbox = self._outbox
        for data in buffers:
            outbox.put(data)
        config = self.driver.config
        while outbox.size:
            if self.closed:
                raise Aborted("the connection is closed")
            try:
                outbox.send(self.sock)
            except OSError as error:
                self.close()
                raise Aborted("the web server closed the connection") from error
            if not outbox.size:
                return
            events = select.POLLOUT
            # A peer that sends its whole body before it reads must not wait for us for ever.
            if exchange and not exchange.input_ended and exchange.body_size < config.write_behind:
                events |= select.POLLIN
            ready = self._wait(events, config.send_timeout)
            if not ready:
                log.info("closed a connection: its client did not read the answer in time")
                self.close()
            elif ready & select.POLLIN:
                self._receive()

    def _wait(self, events: int, timeout: float) -> int:
        """Wait for the socket; 0 when that lasts too long."""
        poller = select.poll()
        poller.register(self.fd, events)
        return sum(mask for _, mask in poller.poll(timeout * 1000 if timeout else None))


class Inline:
    """Serves listening sockets, and connections that it is given, in the thread that calls `run`.

    The arguments are those of `Threads`; `around` is called with True before and with False
    after each request.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        make_protocol: Callable[[socket.socket], ServerProtocol],
        gateway: SyncGateway,
        config: Config,
        ended: Callable[[Exchange], None] | None = None,
        allowed: Callable[[Any, socket.socket], bool] | None = None,
    ) -> None:
        self.config = config
        self.around: Callable[[bool], object] | None = None
        self.connections: dict[int, InlineConnection] = {}
        self.stopping = False
        self.running: Exchange | None = None
        self._listeners = {sock.fileno(): sock for sock in listeners}
        self._make_protocol = make_protocol
        self._gateway = gateway
        self._ended = ended
        self._allowed = allowed
        self._stop = self._cut = self._retire = False
        self._accept_again = 0.0
        self._starved = False
        self._stop_at = FOREVER
        self._wake: socket.socket | None = None

    # from anywhere

    def stop(self) -> None:
        """Have `run` end: what has come is served first. From any thread or signal handler."""
        self._stop = True
        self._rouse()

    def retire(self) -> None:
        """The same, but who waits in the backlog is left to other processes."""
        self._retire = True
        self.stop()

    def cut(self) -> None:
        """Have `run` end at once; what goes on is aborted as soon as it reads or sends."""
        self._cut = True
        self.stop()
        for connection in list(self.connections.values()):
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def _rouse(self) -> None:
        if (wake := self._wake) is not None:
            with contextlib.suppress(OSError):  # full: it will wake; closed: it has ended
                wake.send(b".")

    # the loop

    def adopt(self, sock: socket.socket, listener: socket.socket | None = None) -> InlineConnection:
        """Serve a connection that was accepted already, and own it."""
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = InlineConnection(self, sock, self._make_protocol(listener or sock))
        connection.deadline = monotonic() + (self.config.arrival_timeout or FOREVER)
        self.connections[connection.fd] = connection
        return connection

    def run(
        self,
        until: socket.socket | None = None,
        periodic: Callable[[], object] | None = None,
        interval: float = 1.0,
    ) -> None:
        """Serve until `stop`; without listeners, until the last connection is closed.

        `until` is a socket, whose end has this process retire, and on which a byte stops it.
        `periodic` is called at least every `interval` seconds while nothing runs.
        """
        reader, self._wake = socket.socketpair()
        try:
            reader.setblocking(False)
            self._wake.setblocking(False)
            for sock in self._listeners.values():
                sock.setblocking(False)
            for connection in list(self.connections.values()):
                self._ready(connection)
            while not self._is_over():
                timeout = self._timeout(interval if periodic else FOREVER)
                self._round(reader, until, timeout)
                if periodic is not None:
                    periodic()
        finally:
            for connection in list(self.connections.values()):
                connection.close()
            wake, self._wake = self._wake, None
            wake.close()
            reader.close()

    def _is_over(self) -> bool:
        if self._cut:
            return True
        if self._stop and not self.stopping:
            self._begin_stop()
        return not self.connections and (self.stopping or not self._listeners)

    def _begin_stop(self) -> None:
        self.stopping = True
        self._stop_at = monotonic() + self.config.graceful_timeout
        for sock in [] if self._retire else self._listeners.values():
            if isinstance(sock, Listener):
                sock.quiesce()
            for _ in range(self.config.backlog + 1):  # who is in the queue was promised service
                if (connection := self._accept(sock)) is None:
                    break
                self._ready(connection)
        for connection in list(self.connections.values()):
            if connection.lingering:
                connection.close()
            else:
                self._ready(connection)
                if not connection.closed and not connection.waiting:
                    connection.deadline = min(connection.deadline, monotonic() + HEARD_AT_STOP)

    def _timeout(self, most: float) -> float | None:
        now = monotonic()
        nearest = min([now + most, self._stop_at, *(c.deadline for c in self.connections.values())])
        if self._accept_again > now:
            nearest = min(nearest, self._accept_again)
        return None if nearest == FOREVER else max(0.0, nearest - now) * 1000 + 1

    def _round(
        self, reader: socket.socket, until: socket.socket | None, timeout: float | None
    ) -> None:
        poller = select.poll()  # no descriptor of its own, which a fork would share
        poller.register(reader.fileno(), select.POLLIN)
        if until is not None and not self._stop:
            poller.register(until.fileno(), select.POLLIN)
        room = len(self.connections) < self.config.worker_connections
        if room and not self.stopping and self._accept_again <= monotonic():
            for fd in self._listeners:
                poller.register(fd, select.POLLIN)
        for fd in self.connections:
            poller.register(fd, select.POLLIN)
        accept: list[socket.socket] = []
        for fd, _ in poller.poll(timeout):
            if fd in self.connections:
                self._ready(self.connections[fd])
            elif fd in self._listeners:
                # Later: a new connection may get the number of one that is closed in this round.
                accept.append(self._listeners[fd])
            elif fd == reader.fileno():
                with contextlib.suppress(BlockingIOError):
                    reader.recv(4096)
            elif until is not None and fd == until.fileno():
                self._told(until)
        for sock in accept:
            # One at a time: what this process cannot serve now, another one may take.
            if not self._stop and (connection := self._accept(sock)) is not None:
                self._ready(connection)
        now = monotonic()
        for connection in list(self.connections.values()):
            if connection.deadline <= now or self._stop_at <= now:
                self._answer(connection, connection.expire())

    def _told(self, until: socket.socket) -> None:
        try:
            everything_ends = until.recv(1) != b""
        except BlockingIOError:
            return
        except OSError:
            everything_ends = False
        self._stop = True
        self._retire = self._retire or not everything_ends

    def _accept(self, listener: socket.socket) -> InlineConnection | None:
        try:
            sock, peer = listener.accept()
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in OUT_OF_DESCRIPTORS:
                self._accept_again = monotonic() + ACCEPT_PAUSE
                if not self._starved:
                    self._starved = True
                    log.error("cannot accept connections for now: %s", error.strerror)
            return None  # else the peer gave up before we took its connection
        if self._starved:
            self._starved = False
            log.info("accepting connections again")
        try:
            if self._allowed is None or self._allowed(peer, sock):
                return self.adopt(sock, listener)
        except Exception:
            log.exception("an error in the server, while it accepted a connection")
        sock.close()
        return None

    def _ready(self, connection: InlineConnection) -> None:
        try:
            self._answer(connection, connection.received())
        except Exception:
            log.exception("an error in the server, while it handled a connection")
            connection.close()

    def _answer(self, connection: InlineConnection, exchanges: list[Exchange]) -> None:
        for exchange in exchanges:
            self.running = exchange
            exchange.began = monotonic()
            try:
                if self.around is not None:
                    self.around(True)
                if exchange.refused is not None:
                    connection.refuse(exchange, exchange.refused)
                else:
                    self._gateway(exchange, connection)
                if not exchange.ended and not exchange.aborted:
                    raise RuntimeError("the gateway did not end the answer")
            except Aborted:
                pass
            except BaseException:
                log.exception("an error in the server, while it served a request")
                connection.close()
            finally:
                self.running = None
                if self.around is not None:
                    self.around(False)
            self.over(exchange)
            connection._arriving = False
        connection.settle()

    def over(self, exchange: Exchange) -> None:
        """An exchange has ended, or will never begin."""
        try:
            if self._ended is not None and exchange.params_ended:
                self._ended(exchange)
            for function in exchange.after or ():
                function()
        except Exception:
            log.exception("an error in the server, after it served a request")

    def forget(self, connection: InlineConnection) -> None:
        if self.connections.get(connection.fd) is connection:
            del self.connections[connection.fd]
        self._accept_again = 0.0
