"""Gateways that block, in a thread pool of Twisted's: one hop to it, and one back for an answer.

A thread that has answered takes the next exchange that waits, without the reactor.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from fulgate.config import Config
from fulgate.drivers.tx_connection import Connection
from fulgate.errors import Aborted
from fulgate.exchange import Buffer, Carrier, Exchange, SyncGateway

__all__ = ["Pool"]

log = logging.getLogger("fulgate")


class PoolCarrier(Carrier):
    """One exchange, answered in a thread that waits for the reactor's."""

    def __init__(self, pool: Pool, exchange: Exchange, connection: Connection) -> None:
        self.exchange = exchange
        self.connection = connection
        self._pool = pool
        self._hub = connection.hub

    # in the reactor's thread

    def begin(self) -> None:
        self._pool.submit(self)

    def moved(self) -> None:
        with self.connection.lock:
            self.connection.changed.notify_all()

    aborted = moved

    def pause(self) -> None:
        """`send` waits by itself."""

    resume = pause

    # in the pool's

    def receive(self, exchange: Exchange) -> bytes:
        connection = self.connection
        asked = False
        with connection.lock:
            while True:
                if exchange.aborted:
                    raise Aborted("the request was given up by the web server")
                if exchange.refused is not None:
                    raise Aborted(str(exchange.refused))
                data = exchange.take()
                if data:
                    if connection.deaf:
                        self._hub.reactor.callFromThread(connection.hear)
                    return data
                if exchange.stream_ended:
                    return b""
                if not asked:
                    asked = True
                    self._hub.reactor.callFromThread(self._want)
                connection.changed.wait()

    def _want(self) -> None:
        self.connection.want(self.exchange)

    def send(self, exchange: Exchange, data: Buffer) -> None:
        with self.connection.lock:
            self._send(exchange, self.connection.pieces(data))

    def _send(self, exchange: Exchange, pieces: list[Buffer]) -> None:
        connection = self.connection
        for piece in pieces:
            connection.put(exchange, exchange.send(piece))
            connection.schedule()
            most = connection.most()
            if connection.backlog(exchange) > most:
                self._wait(exchange, most // 2)
        if exchange.aborted:
            raise Aborted("the request was given up by the web server")

    def finish(self, exchange: Exchange, data: Buffer = b"", app_status: int = 0) -> None:
        connection = self.connection
        with connection.lock:
            *first, last = connection.pieces(data)
            if first:
                self._send(exchange, first)
            connection.put(exchange, exchange.finish(last, app_status))
            connection.wire.done(exchange)
            connection.schedule(exchange)
            self._wait(exchange, connection.most())

    def fail(self, exchange: Exchange) -> None:
        with self.connection.lock:
            self.connection.put(exchange, exchange.fail())
            self.connection.wire.done(exchange)
            self.connection.schedule(exchange)

    def log(self, exchange: Exchange, text: str) -> None:
        with self.connection.lock:
            buffers = exchange.log(text)
            if buffers:
                self.connection.put(exchange, buffers)
                self.connection.schedule()

    def flush(self) -> None:
        """Wait until all that was written for it has left, or the connection is closed."""
        connection = self.connection
        with connection.lock:
            self._wait(self.exchange, 0)
            emptied = connection.emptied
            while connection.full and connection.emptied == emptied and not connection.closed:
                connection.changed.wait()

    def _wait(self, exchange: Exchange, enough: int) -> None:
        connection = self.connection
        while connection.backlog(exchange) > enough and not connection.closed:
            connection.changed.wait()


class Pool:
    """A `Gateway` for `tx`: `gateway` answers in `config.threads` threads at most.

    `pool` is a twisted.python.threadpool.ThreadPool that runs, the reactor's by default.
    """

    patient = True

    def __init__(self, gateway: SyncGateway, config: Config, reactor: Any, pool: Any) -> None:
        self._gateway = gateway
        self._config = config
        self._reactor = reactor
        self._pool = pool
        self._lock = threading.Lock()
        self._busy = 0
        self._pending: deque[PoolCarrier] = deque()

    def start(self, over: Callable[[Exchange], None]) -> None:
        self._over = over

    def __call__(self, exchange: Exchange, connection: Connection) -> PoolCarrier:
        return PoolCarrier(self, exchange, connection)

    def submit(self, carrier: PoolCarrier) -> None:
        """Have a thread answer, at once or when one is free."""
        with self._lock:
            free = self._busy < self._config.threads
            if free:
                self._busy += 1
            else:
                self._pending.append(carrier)
        if free:
            if self._pool is None:
                self._pool = self._reactor.getThreadPool()
            if self._pool.max < self._config.threads:
                self._pool.adjustPoolsize(maxthreads=self._config.threads)
            self._pool.callInThread(self._work, carrier)

    def room(self) -> bool:
        with self._lock:
            return self._busy < self._config.threads or len(self._pending) < self._config.queue

    def running(self) -> int:
        with self._lock:
            return self._busy + len(self._pending)

    def _work(self, carrier: PoolCarrier) -> None:
        while True:
            hub = carrier.connection.hub
            self._answer(carrier)
            with self._lock:
                if not self._pending:
                    self._busy -= 1
                    break
                carrier = self._pending.popleft()
        if hub.stopping:
            self._reactor.callFromThread(hub.check)

    def _answer(self, carrier: PoolCarrier) -> None:
        exchange = carrier.exchange
        connection = carrier.connection
        try:
            if not exchange.aborted:
                self._gateway(exchange, carrier)
                if not exchange.ended and not exchange.aborted:
                    raise RuntimeError("the gateway did not end the answer")
        except Aborted:
            pass
        except BaseException:
            # Whatever it is, SystemExit included, it must not cost the thread.
            log.exception("an error in the server, while it served a request")
            self._reactor.callFromThread(connection.close, True)
        try:
            self._over(exchange)
            if exchange.after:
                carrier.flush()
        except BaseException:
            log.exception("an error in the server, after it served a request")
        for function in exchange.after or ():
            try:
                function()
            except BaseException:
                log.exception("an error in a function that was to run after the answer")
