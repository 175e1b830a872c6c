"""The asyncio driver: a protocol of asyncio for each connection, on any running loop.

All of `Aio` happens in the loop's thread. `aio_thread.py` runs it in a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import math
import select
import socket
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final

from fulgate.config import Config
from fulgate.drivers.acceptor import Allowed
from fulgate.drivers.aio_connection import AsyncGateway, Connection
from fulgate.drivers.aio_watch import Watch
from fulgate.drivers.phases import (
    ACCEPT_PAUSE,
    ACCEPTS_A_ROUND,
    ACCEPTS_AFTER,
    ACCEPTS_IF_SHARED,
    GIVE_WAY,
    OUT_OF_DESCRIPTORS,
    RECEIVE,
)
from fulgate.drivers.worker import Score
from fulgate.exchange import Exchange, Reply, ServerProtocol
from fulgate.listener import Listener, PassOn
from fulgate.systemd import Watchdog

__all__ = ["Aio"]

log = logging.getLogger("fulgate")

AFTER_CUT: Final = 0.2  # seconds, for applications to note that they were cut
AT_LEAST: Final = 0.5  # seconds for the application's own shutdown, whatever the deadline
LOOK: Final = 0.5  # seconds between two looks at connections that do not receive
GONE: Final = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


class Link(asyncio.BufferedProtocol):
    """What asyncio's own loops know of a connection, which has what comes read into a buffer.

    As an asyncio.Protocol it would come in bytes that such a loop makes with 256 KiB and shortens:
    to map and unmap those takes longer than the rest of its work. It has to be of this class, which
    what is compiled cannot be. Other loops, as uvloop, make no more bytes than are needed, and take
    a protocol of any class.
    """

    __slots__ = ("_buffer", "_connection")

    def __init__(self, connection: Connection, buffer: memoryview) -> None:
        self._connection = connection
        self._buffer = buffer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection.connection_made(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.data_received(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> None:
        self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()


class Aio:
    """Serves listening sockets in the running loop. The arguments are those of `Threads`.

    It owns the listening sockets from `start` on.
    """

    loop: asyncio.AbstractEventLoop
    pass_on: PassOn | None = None  # takes idle connections at a stop
    watchdog: Watchdog | None = None
    on_accepting: Callable[[], None] | None = None  # called when the application has started

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        make_protocol: Callable[[socket.socket], ServerProtocol],
        gateway: AsyncGateway,
        config: Config,
        ended: Callable[[Exchange], None] | None = None,
        allowed: Allowed | None = None,
        score: Score | None = None,
        shared: bool = False,
    ) -> None:
        self.config = config
        self.gateway = gateway
        self.started = False
        self.stopping = False
        self.connections: set[Connection] = set()
        self._buffer = memoryview(bytearray(RECEIVE))  # what comes is copied from there at once
        self._into_buffer = True
        self._listeners = list(listeners)
        self._make_protocol = make_protocol
        self._record = ended
        self._allowed = allowed
        self.aside: Callable[[Exchange], Reply | None] | None = None
        self.watch = Watch(config, score, lambda: (len(self.connections), self._accepted))
        self.begun = self.watch.begun
        self._board = score if shared else None
        self._gave_way = 0.0  # until when others could take what waits
        self._waited = False  # has it waited for them?
        self._accepted = 0
        self._adopting: set[asyncio.Task[None]] = set()
        self._accepting = False
        self._starved = False
        self._deaf: set[Connection] = set()
        self._cut = asyncio.Event()
        self._emptied = asyncio.Event()
        gateway.start(self.over)

    async def start(self) -> None:
        """Start the application (its lifespan), then accept. Raises StartupFailed."""
        self.loop = asyncio.get_running_loop()
        self._into_buffer = isinstance(self.loop, asyncio.BaseEventLoop)
        await self.gateway.startup()
        self.watch.start()
        for sock in self._listeners:
            sock.setblocking(False)
        if self.on_accepting is not None:
            self.on_accepting()
        self.started = True
        self._accept_again()
        self._beat()

    def _beat(self) -> None:
        """Tell the watchdog that the loop turns."""
        watchdog = self.watchdog
        if watchdog is not None and math.isfinite(watchdog.interval):
            watchdog.beat(monotonic())
            self.loop.call_later(watchdog.interval, self._beat)

    async def stop(self, timeout: float, pass_on: PassOn | None = None) -> bool:
        """Stop accepting, let requests end for up to `timeout` seconds, then cut what is left.

        Connections between requests are given to `pass_on`; without it they are closed. Then the
        application's own shutdown has what remains of that time. Returns whether all requests
        ended by themselves.
        """
        self.pass_on = pass_on
        end = self.loop.time() + timeout
        self.stop_accepting()
        while self._adopting:
            await asyncio.wait(list(self._adopting))
        for connection in list(self.connections):
            connection.drain()
        self.gateway.drain()
        clean = await self._empty(end)
        if not clean:
            waited = timeout - max(0.0, end - self.loop.time())
            left = max(self.gateway.running(), sum([c.busy for c in self.connections]))
            log.warning("stopped with %d requests unfinished after %.1f s", left, waited)
            for connection in list(self.connections):
                connection.close(at_once=True)
            # They have been told; whoever does not go by itself is cancelled.
            self._cut.clear()
            await self._empty(self.loop.time() + AFTER_CUT)
            self.gateway.cancel()
            await self._empty(self.loop.time() + AFTER_CUT)
        await self.gateway.shutdown(max(AT_LEAST, end - self.loop.time()))
        self.watch.stop()
        return clean

    def stop_accepting(self) -> None:
        """Take who is in the queue, since they were promised service, and close the sockets."""
        if not self.stopping:
            self._pause()
            self.stopping = True
            for sock in self._listeners:
                if isinstance(sock, Listener):
                    sock.quiesce()
                self._accept(sock, self.config.backlog + 1)  # so many a queue holds
                sock.close()

    def cut(self) -> None:
        """Have a `stop` that waits give up waiting."""
        self._cut.set()
        self._emptied.set()

    async def _empty(self, end: float) -> bool:
        while self.connections or self.gateway.running():
            left = end - self.loop.time()
            if left <= 0 or self._cut.is_set():
                return False
            self._emptied.clear()
            waiting = self.loop.call_later(min(left, 0.05), self._emptied.set)
            await self._emptied.wait()
            waiting.cancel()
        return True

    # ---------------------------------------------------------------- accepting

    def _accept_again(self) -> None:
        if not self._accepting and not self.stopping:
            self._accepting = True
            for sock in self._listeners:
                self.loop.add_reader(sock.fileno(), self._take, sock)

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            for sock in self._listeners:
                self.loop.remove_reader(sock.fileno())

    def _take(self, listener: socket.socket) -> None:
        """Accept, unless another process should: see phases.py."""
        if self._board is None:
            self._accept(listener, ACCEPTS_A_ROUND)
        elif self._waited:
            self._waited = False
            self._accept(listener, ACCEPTS_AFTER)
        elif not self._board.ahead():
            self._accept(listener, ACCEPTS_IF_SHARED)
        else:
            self._pause()
            self._waited = True
            self._gave_way = self.loop.time() + GIVE_WAY
            self.loop.call_at(self._gave_way, self._accept_again)

    def _accept(self, listener: socket.socket, most: int) -> None:
        limit = self.config.worker_connections
        for _ in range(most):
            if len(self.connections) + len(self._adopting) >= limit and not self.stopping:
                self._pause()
                return
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                if self._starved:
                    self._starved = False
                    log.info("accepting connections again")
                return
            except OSError as error:
                if error.errno in OUT_OF_DESCRIPTORS:
                    self._starve(error)
                    return
                continue  # the peer gave up before we took its connection
            if self._allowed is None or self._allowed(peer, sock):
                self._accepted += 1
                self.adopt(sock, self._make_protocol(listener))
            else:
                sock.close()

    def adopt(self, sock: socket.socket, protocol: ServerProtocol) -> None:
        """Serve a connection."""
        task = self.loop.create_task(self._adopt(sock, protocol))
        self._adopting.add(task)
        task.add_done_callback(self._adopting.discard)

    async def _adopt(self, sock: socket.socket, protocol: ServerProtocol) -> None:
        try:
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection: Any = Connection(self, protocol)
            link = Link(connection, self._buffer) if self._into_buffer else connection
            await self.loop.connect_accepted_socket(lambda: link, sock)
        except OSError as error:
            log.debug("a new connection failed: %s", error)
            sock.close()

    def _starve(self, error: OSError) -> None:
        """No descriptor, or no memory, for another connection: pause, and say so once."""
        self._pause()
        self.loop.call_later(ACCEPT_PAUSE, self._accept_again)
        if not self._starved:
            self._starved = True
            log.error("cannot accept connections for now: %s", error.strerror)

    # ---------------------------------------------------------------- called by connections

    def made(self, connection: Connection) -> None:
        self.connections.add(connection)
        if self._board is not None:
            self._board.connected(len(self.connections))

    def forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if self._board is not None:
            self._board.connected(len(self.connections))
        self._deaf.discard(connection)
        if self.stopping:
            self._emptied.set()
        elif not (self._accepting or self._starved or self.loop.time() < self._gave_way):
            self._accept_again()

    def over(self, exchange: Exchange) -> None:
        """An exchange has ended, or will never begin."""
        self.watch.over(exchange)
        if self._record is not None and exchange.params_ended:
            self._record(exchange)
        if self.stopping:
            self._emptied.set()

    def deaf(self, connection: Connection) -> None:
        """A connection does not receive; look every now and then whether its peer has gone."""
        if not self._deaf:
            self.loop.call_later(LOOK, self._look)
        self._deaf.add(connection)

    def _look(self) -> None:
        poll = select.poll()
        watched: dict[int, Connection] = {}
        for connection in list(self._deaf):
            fd = connection.socket.fileno()
            if connection.deaf and not connection.closed and fd >= 0:
                watched[fd] = connection
                poll.register(fd, GONE)
            else:
                self._deaf.discard(connection)
        if not watched:
            return
        for fd, _ in poll.poll(0):
            watched[fd].close(at_once=True)
        if self._deaf:
            self.loop.call_later(LOOK, self._look)
