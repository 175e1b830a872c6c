"""Accepts connections on the listening sockets, and pauses when there is no room for more."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any, Final

from fulgate.drivers.connection import Connection
from fulgate.drivers.poller import READ
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
    `allowed` is asked about each peer. Whoever has a listening socket's one-shot event calls
    `accept`; the control thread calls `resume` at the time that `again` says.
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

    def start(self) -> None:
        """Have the poller report connections."""
        for fd, sock in self.listeners.items():
            sock.setblocking(False)
            self._hub.poller.register(fd, READ)

    def stop(self) -> None:
        """Take who is in the queue, since they were promised service, and close the sockets."""
        for fd, sock in self.listeners.items():
            with contextlib.suppress(OSError):
                self._hub.poller.unregister(fd)
            self._accept(sock, self._hub.config.backlog)
            sock.close()

    def accept(self, fds: Iterable[int]) -> None:
        """Accept on the sockets whose event the calling thread has, and arm them again."""
        for fd in fds:
            try:
                if not self._hub.stopping:
                    self._accept(self.listeners[fd], ACCEPTS_A_ROUND)
            except Exception:
                log.exception("an error in the server, while it accepted a connection")
            finally:
                self._listen([fd])

    def resume(self) -> None:
        """Accept again, after a pause."""
        self.again = FOREVER
        self._accepting = True
        self._listen(self.listeners)

    def one_left(self) -> None:
        """A connection is gone: if we pause, there may be room for another."""
        if not self._accepting:
            self.again = monotonic()
            self._hub.alarm(self.again)

    def _accept(self, listener: socket.socket, most: int) -> None:
        limit = self._hub.config.worker_connections
        for _ in range(most):
            if len(self._connections) >= limit:
                self._accepting = False
                if len(self._connections) >= limit:
                    return  # `forget` sees to it
                self._accepting = True  # one has gone since, and could not know
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
        connection.received()

    def _starve(self, error: OSError) -> None:
        """No descriptor, or no memory, for another connection: pause, and say so once."""
        self._accepting = False
        self.again = monotonic() + ACCEPT_PAUSE
        self._hub.alarm(self.again)
        if not self._starved:
            self._starved = True
            log.error("cannot accept connections for now: %s", error.strerror)

    def _listen(self, fds: Iterable[int]) -> None:
        if not self._accepting or self._hub.stopping:
            return
        try:
            for fd in fds:
                self._hub.poller.modify(fd, READ)
        except OSError as error:
            if not self._hub.stopping:  # else it has been unregistered meanwhile
                self._starve(error)
