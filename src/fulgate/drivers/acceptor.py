"""Accepts connections on the listening sockets, and pauses when there is no room for more."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any, Final

from fulgate.drivers.connection import Connection
from fulgate.drivers.poller import READ, SHARED
from fulgate.drivers.wire import FOREVER, Hub, Wire
from fulgate.exchange import ServerProtocol

__all__ = ["Acceptor", "Allowed"]

log = logging.getLogger("fulgate")

ACCEPTS_A_ROUND: Final = 64
ACCEPT_PAUSE: Final = 0.5  # seconds without accepting, after the descriptors ran out
OUT_OF_DESCRIPTORS: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

Allowed = Callable[[Any], bool]  # of the peer's address, as `socket.accept` gives it


class Acceptor:
    """The listening sockets of a driver, which is the `hub`.

    `make_protocol` gives the protocol of a connection that came from a listening socket;
    `allowed` is asked about each peer. Whoever has a listening socket's event calls `accept`; the
    control thread calls `resume` at the time that `again` says.

    While it pauses, the poller does not know the listening sockets: other processes that share
    them may go on. `_lock` guards what it knows, and whether we pause.
    """

    def __init__(
        self,
        hub: Hub,
        connections: dict[int, Wire],
        listeners: Sequence[socket.socket],
        make_protocol: Callable[[socket.socket], ServerProtocol],
        allowed: Allowed | None,
    ) -> None:
        self.again = FOREVER  # when to accept again, after a pause
        self.listeners = {sock.fileno(): sock for sock in listeners}
        self._hub = hub
        self._connections = connections
        self._make_protocol = make_protocol
        self._allowed = allowed
        self._accepting = True
        self._starved = False
        self._lock = threading.Lock()
        self._watched: set[int] = set()

    def start(self) -> None:
        """Have the poller report connections."""
        for fd, sock in self.listeners.items():
            sock.setblocking(False)
            self._hub.poller.register(fd, READ | SHARED)
            self._watched.add(fd)

    def stop(self) -> None:
        """Take who is in the queue, since they were promised service, and close the sockets."""
        with self._lock:
            self._unwatch()
        for sock in self.listeners.values():
            self._accept(sock, self._hub.config.backlog)
            sock.close()

    def accept(self, fds: Iterable[int]) -> None:
        """Accept on the sockets that the poller has reported."""
        for fd in fds:
            try:
                if not self._hub.stopping:
                    self._accept(self.listeners[fd], ACCEPTS_A_ROUND)
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
                        self._hub.poller.register(fd, READ | SHARED)
                        self._watched.add(fd)
        except OSError as error:
            self._starve(error)

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
        if not self._accepting:
            self.again = monotonic()
            self._hub.alarm(self.again)

    def _accept(self, listener: socket.socket, most: int) -> None:
        limit = self._hub.config.worker_connections
        for _ in range(most):
            if len(self._connections) >= limit:
                self._pause()
                if len(self._connections) < limit:  # one has gone since, and could not know
                    self.one_left()
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
            try:
                if self._allowed is None or self._allowed(peer):
                    self._admit(listener, sock)
                else:
                    log.warning("refused a connection from %s, which is not allowed", peer)
                    sock.close()
            except OSError as error:
                log.debug("a new connection failed: %s", error)
                sock.close()

    def _admit(self, listener: socket.socket, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(self._hub, sock, self._make_protocol(listener))
        self._connections[connection.fd] = connection
        connection.begin()

    def _starve(self, error: OSError) -> None:
        """No descriptor, or no memory, for another connection: pause, and say so once."""
        self._pause()
        self.again = monotonic() + ACCEPT_PAUSE
        self._hub.alarm(self.again)
        if not self._starved:
            self._starved = True
            log.error("cannot accept connections for now: %s", error.strerror)
