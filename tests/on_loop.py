"""The suite for all drivers has WSGI applications: here they run in threads, beside a loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from fulgate.config import Config
from fulgate.errors import Aborted
from fulgate.exchange import Buffer, Carrier, Exchange, SyncGateway

log = logging.getLogger("fulgate")


class OnLoop(Carrier):
    """One exchange: answered in a thread, carried in the loop's. Each call is one hop, and back."""

    lasting = False
    task: asyncio.Task[None] | None = None

    def __init__(self, threads: InThreads, exchange: Exchange, connection: Any) -> None:
        self.exchange = exchange
        self.connection = connection
        self.threads = threads
        self.woken = threading.Event()
        self.full = False
        self.wanted = False

    # in the loop's thread

    def begin(self) -> None:
        self.threads.submit(self)

    def moved(self) -> None:
        self.woken.set()  # if it is refused, the WSGI gateway answers when it reads

    def aborted(self) -> None:
        self.woken.set()

    def expire(self) -> None:
        """A thread cannot be ended."""

    def pause(self) -> None:
        self.full = True

    def resume(self) -> None:
        self.full = False
        self.woken.set()

    # in a thread

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Have the loop do it. A connection's methods are looked up there, as they may change."""
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def run() -> None:
            try:
                done.set_result(function(*arguments))
            except BaseException as error:
                done.set_exception(error)

        try:
            self.connection.hub.loop.call_soon_threadsafe(run)
        except RuntimeError as error:  # the loop is closed
            raise Aborted(str(error)) from error
        return done.result()

    def receive(self, exchange: Exchange) -> bytes:
        while True:
            self.woken.clear()
            data, ended = self.call(self._take)
            if data or ended:
                return bytes(data)
            self.woken.wait()

    def _take(self) -> tuple[bytes, bool]:
        exchange = self.exchange
        if exchange.aborted:
            raise Aborted("the request was given up by the web server")
        if exchange.refused is not None:
            raise Aborted(str(exchange.refused))
        data = exchange.take()
        if data:
            self.connection.hear()
        elif not exchange.stream_ended and not self.wanted:
            self.wanted = True
            self.connection.want(exchange)
        if data:
            self.wanted = False
        return data, exchange.stream_ended

    def send(self, exchange: Exchange, data: Buffer) -> None:
        self.call(lambda: self.connection.send(exchange, data))
        self._drain()
        if exchange.aborted:
            raise Aborted("the request was given up by the web server")

    def finish(self, exchange: Exchange, data: Buffer = b"", app_status: int = 0) -> None:
        self.call(lambda: self.connection.finish(exchange, data))
        self._drain()

    def fail(self, exchange: Exchange) -> None:
        self.call(lambda: self.connection.fail(exchange))

    def log(self, exchange: Exchange, text: str) -> None:
        self.call(lambda: self.connection.log(exchange, text))

    def _drain(self) -> None:
        while self.full and not self.connection.closed and not self.exchange.aborted:
            self.woken.clear()
            if self.full:
                self.woken.wait(0.05)

    def flush(self) -> None:
        transport = self.connection.transport
        while not self.connection.closed and self.call(transport.get_write_buffer_size):
            self.woken.clear()
            self.woken.wait(0.01)


class InThreads:
    """An AsyncGateway: a WSGI gateway in `config.threads` threads, and a queue."""

    patient = True

    def __init__(self, gateway: SyncGateway, config: Config) -> None:
        self._gateway = gateway
        self._config = config
        self._lock = threading.Lock()
        self._busy = 0
        self._pending: deque[OnLoop] = deque()

    def start(self, over: Callable[[Exchange], None]) -> None:
        self._over = over

    async def startup(self) -> None:
        self._loop = asyncio.get_running_loop()

    async def shutdown(self, timeout: float) -> None:
        """There is nothing to end."""

    def cancel(self) -> None:
        """A thread cannot be."""

    drain = cancel

    def __call__(self, exchange: Exchange, connection: Any) -> OnLoop:
        return OnLoop(self, exchange, connection)

    def room(self) -> bool:
        with self._lock:
            return self._busy < self._config.threads or len(self._pending) < self._config.queue

    def running(self) -> int:
        with self._lock:
            return self._busy + len(self._pending)

    def submit(self, carrier: OnLoop) -> None:
        with self._lock:
            if self._busy >= self._config.threads:
                self._pending.append(carrier)
                return
            self._busy += 1
        threading.Thread(target=self._work, args=(carrier,), daemon=True).start()

    def _work(self, carrier: OnLoop) -> None:
        while True:
            self._answer(carrier)
            with self._lock:
                if not self._pending:
                    self._busy -= 1
                    return
                carrier = self._pending.popleft()

    def _answer(self, carrier: OnLoop) -> None:
        exchange = carrier.exchange
        try:
            if not exchange.aborted:
                self._gateway(exchange, carrier)
        except Aborted:
            pass
        if exchange.after:
            carrier.flush()
        for function in exchange.after or ():
            try:
                function()
            except BaseException:
                log.exception("an error in a function that was to run after the answer")
