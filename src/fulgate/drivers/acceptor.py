"""Accepts connections on the listening sockets, and pauses when there is no room for more."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any, Final

from fulgate.drivers.connection import Connection
from fulgate.drivers.phases import (
    ACCEPT_PAUSE,
    ACCEPTS_A_ROUND,
    ACCEPTS_AFTER,
    ACCEPTS_IF_SHARED,
    FOREVER,
    GIVE_WAY,
    NEW,
    OUT_OF_DESCRIPTORS,
)
from fulgate.drivers.poller import READ
from fulgate.drivers.wire import Hub, Wire
from fulgate.drivers.worker import Score
from fulgate.exchange import ServerProtocol
from fulgate.listener import Listener

__all__ = ["Acceptor", "Allowed"]

log = logging.getLogger("fulgate")

# `accept` makes a `socket.socket` of the descriptor that this gives: a class in Python, whose
# making and closing take half as long as what the kernel does. We make one of its base class.
_accept: Final[Any] = socket.SocketType._accept  # type: ignore[attr-defined]
STREAM: Final = int(socket.SOCK_STREAM)
UNIX: Final = int(socket.AF_UNIX)

# Of the address, and the socket, that have come.
Allowed = Callable[[Any, socket.SocketType], bool]


class Acceptor:
    """The listening sockets of a driver, which is the `hub`.

    `make_protocol` gives the protocol of a connection that came from a listening socket; `allowed`
    is asked about each peer; `board` knows of the other processes that accept from the same
    sockets. Whoever has a listening socket's event calls `accept`; the control thread calls
    `resume` at the time that `again` says.

    While it pauses, the poller does not know the listening sockets: other processes that share
    them may go on. `_lock` guards what it knows, and whether we pause. `_turn` is held while we
    accept, so that a stop knows of all connections; `_lock` and theirs may be taken meanwhile.
    """

    def __init__(
        self,
        hub: Hub,
        connections: dict[int, Wire],
        listeners: Sequence[socket.socket],
        make_protocol: Callable[[socket.socket], ServerProtocol],
        allowed: Allowed | None,
        board: Score | None = None,
    ) -> None:
        self.again = FOREVER  # when to accept again, after a pause
        self.accepted = 0
        self.listeners = {sock.fileno(): sock for sock in listeners}
        self._families = {sock.fileno(): int(sock.family) for sock in listeners}
        self._hub = hub
        self._connections = connections
        self._make_protocol = make_protocol
        self._allowed = allowed
        self._board = board
        self._waited = False  # for others to take what waits
        self._accepting = True
        self._starved = False
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # held until what was accepted is among the connections
        self._watched: set[int] = set()

    def start(self) -> None:
        """Have the poller report connections."""
        for fd, sock in self.listeners.items():
            sock.setblocking(False)
            self._hub.poller.register(fd, READ)
            self._watched.add(fd)

    def stop(self) -> None:
        """Take who is in the queue, since they were promised service, and close the sockets."""
        with self._lock:
            self._unwatch()
        for sock in self.listeners.values():
            if isinstance(sock, Listener):
                sock.quiesce()
            with self._turn:
                self._accept(sock, self._hub.config.backlog + 1)  # so many a queue holds
                sock.close()

    def accept(self, fds: Iterable[int]) -> None:
        """Accept on the sockets that the poller has reported."""
        most = self._share()
        for fd in fds if most else ():
            try:
                with self._turn:
                    if not self._hub.stopping:
                        self._accept(self.listeners[fd], most)
            except Exception:
                log.exception("an error in the server, while it accepted a connection")

    def resume(self) -> None:
        """Accept again, after a pause."""
        self.again = FOREVER
        try:
            with self._lock:
                self._accepting = True
                for fd in self.listeners.keys() - self._watched:
                    if not self._hub.stopping:
                        self._hub.poller.register(fd, READ)
                        self._watched.add(fd)
        except OSError as error:
            self._starve(error)

    def _share(self) -> int:
        """How many connections are ours to take now?"""
        if self._board is None:
            return ACCEPTS_A_ROUND
        if self._waited:
            self._waited = False
            return ACCEPTS_AFTER  # nobody else took them in that time
        if not self._board.ahead():
            return ACCEPTS_IF_SHARED
        with self._lock:
            self._unwatch()
            self._waited = True
        self.again = monotonic() + GIVE_WAY
        self._hub.alarm(self.again)
        return 0

    def _pause(self) -> None:
        with self._lock:
            self._accepting = False
            self._unwatch()

    def _unwatch(self) -> None:
        for fd in self._watched:
            with contextlib.suppress(OSError):
                self._hub.poller.unregister(fd)
        self._watched.clear()

    def one_left(self) -> None:
        """A connection is gone: if we pause, there may be room for another."""
        if self._board is not None:
            self._board.connected(len(self._connections))
        if not self._accepting:
            self.again = monotonic()
            self._hub.alarm(self.again)

    def _accept(self, listener: socket.socket, most: int) -> None:
        limit = self._hub.config.worker_connections
        family = self._families[listener.fileno()]
        for _ in range(most):
            if len(self._connections) >= limit and not self._hub.stopping:
                self._pause()
                if len(self._connections) < limit:  # one has gone since, and could not know
                    self.one_left()
                return
            try:
                fd, peer = _accept(listener)
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
            self.accepted += 1
            try:
                sock = socket.SocketType(family, STREAM, 0, fd)
            except OSError as error:
                log.debug("a new connection failed: %s", error)
                os.close(fd)
                continue
            try:
                if self._allowed is None or self._allowed(peer, sock):
                    self.admit(sock, self._make_protocol(listener))
                else:
                    sock.close()
            except OSError as error:
                log.debug("a new connection failed: %s", error)
                sock.close()

    def admit(self, sock: socket.SocketType, protocol: ServerProtocol, phase: int = NEW) -> None:
        """Hold a connection that was accepted here, or, IDLE, elsewhere. Raises OSError."""
        sock.setblocking(False)
        if sock.family != UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(self._hub, sock, protocol)
        connection.phase = phase
        self._connections[connection.fd] = connection
        if self._board is not None:
            self._board.connected(len(self._connections))
        connection.begin()

    def _starve(self, error: OSError) -> None:
        """No descriptor, or no memory, for another connection: pause, and say so once."""
        self._pause()
        self.again = monotonic() + ACCEPT_PAUSE
        self._hub.alarm(self.again)
        if not self._starved:
            self._starved = True
            log.error("cannot accept connections for now: %s", error.strerror)
