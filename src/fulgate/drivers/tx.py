"""The reactor's driver: a factory for any Twisted server endpoint."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from twisted.internet import protocol
from twisted.internet.defer import Deferred

from fulgate.config import Config
from fulgate.drivers.tx_connection import Connection, Gateway
from fulgate.exchange import Exchange, ServerProtocol

__all__ = ["Factory"]

log = logging.getLogger("fulgate")

AFTER_CUT: Final = 0.2  # seconds, for applications to note that they were cut


class Factory(protocol.Factory):
    """Builds connections for a Twisted server endpoint, and drains them at the end.

    The arguments are those of `Threads`, but for `gateway`, and for the reactor: the default one.
    """

    noisy = False

    def __init__(
        self,
        make_protocol: Callable[[Any], ServerProtocol],
        gateway: Gateway,
        config: Config,
        ended: Callable[[Exchange], None] | None = None,
        allowed: Callable[[Any, Any], bool] | None = None,
        reactor: Any = None,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self.reactor = reactor
        self.config = config
        self.gateway = gateway
        self.connections: set[Connection] = set()
        self.stopping = False
        self._held: deque[Connection] = deque()  # beyond `worker_connections`
        self._make_protocol = make_protocol
        self._record = ended
        self._allowed = allowed
        self._draining: list[Deferred[bool]] = []
        self._calls: list[Any] = []  # of the drain
        self._clean = True
        self._trigger: Any = None
        gateway.start(self.over)

    # ---------------------------------------------------------------- called by Twisted

    def startFactory(self) -> None:
        self.stopping = False
        if self._trigger is None:
            self._trigger = self.reactor.addSystemEventTrigger("before", "shutdown", self._shutdown)

    def stopFactory(self) -> None:
        self.drain()

    def buildProtocol(self, addr: Any) -> Connection | None:
        if self.stopping:
            return None
        return Connection(self, self._make_protocol(None))

    def _shutdown(self) -> Deferred[bool]:
        self._trigger = None
        return self.drain()

    # ---------------------------------------------------------------- the end

    def drain(self, timeout: float | None = None) -> Deferred[bool]:
        """Take no more connections, close idle ones, let requests end, then cut the rest.

        `timeout` in seconds is for the requests that run; None takes `graceful_timeout`. The
        Deferred fires with whether all of them ended by themselves. It begins by itself when the
        last port stops listening, and when the reactor stops, which waits for it.
        """
        drained: Deferred[bool] = Deferred()
        self._draining.append(drained)
        if len(self._draining) == 1:
            self.stopping = True
            self._clean = True
            if timeout is None:
                timeout = self.config.graceful_timeout
            self._calls = [self.reactor.callLater(timeout, self._cut, timeout)]
            held, self._held = self._held, deque()
            for connection in held:  # whoever had connected was promised service
                self._admit(connection)
            for connection in list(self.connections):
                connection.drain()
        self.check()
        return drained

    def cut(self) -> None:
        """Have a drain that waits give up waiting."""
        if self._draining and self._clean:
            self._cut(0.0)

    def _cut(self, timeout: float) -> None:
        self._clean = False
        log.warning(
            "stopped with %d requests unfinished after %g s", self.gateway.running(), timeout
        )
        for connection in list(self.connections):
            connection.close(at_once=True)
        # A thread that does not note it cannot be ended.
        self._calls.append(self.reactor.callLater(AFTER_CUT, self._drained))
        self.check()

    def check(self) -> None:
        """Has the drain ended?"""
        if self._draining and not self.connections and not self.gateway.running():
            self._drained()

    def _drained(self) -> None:
        for call in self._calls:
            if call.active():
                call.cancel()
        self._calls = []
        if self._trigger is not None:
            self.reactor.removeSystemEventTrigger(self._trigger)
            self._trigger = None
        draining, self._draining = self._draining, []
        for drained in draining:
            drained.callback(self._clean)

    # ---------------------------------------------------------------- called by connections

    def allows(self, transport: Any) -> bool:
        if self._allowed is None:
            return True
        peer = transport.getPeer()
        host = getattr(peer, "host", None)
        address = "" if host is None else (host, peer.port)
        return self._allowed(address, transport.getHandle())

    def made(self, connection: Connection) -> None:
        """Serve a connection, or let it wait until another one has gone."""
        if len(self.connections) < self.config.worker_connections:
            self._admit(connection)
        else:
            connection.transport.pauseProducing()
            self._held.append(connection)

    def _admit(self, connection: Connection) -> None:
        self.connections.add(connection)
        connection.begin()

    def forget(self, connection: Connection) -> None:
        if connection in self.connections:
            self.connections.remove(connection)
            if self._held:
                self._admit(self._held.popleft())
        elif connection in self._held:
            self._held.remove(connection)
        self.check()

    def over(self, exchange: Exchange) -> None:
        """An exchange has ended, or will never begin: for the access log. From any thread."""
        if self._record is not None and exchange.params_ended:
            self._record(exchange)
