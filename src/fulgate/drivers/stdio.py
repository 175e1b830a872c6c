"""The driver for a process that answers one request on its standard streams (CGI)."""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Protocol

from fulgate.config import Config
from fulgate.errors import Aborted
from fulgate.exchange import Buffer, Carrier, Exchange, SyncGateway
from fulgate.spawned import had_standard

__all__ = ["Stdio"]

log = logging.getLogger("fulgate")


class OneExchange(Protocol):
    """A protocol that carries a single exchange, which is there from the beginning."""

    @property
    def exchange(self) -> Exchange: ...
    @property
    def wanted(self) -> int: ...  # bytes that may be read now
    def feed(self, data: bytes) -> object: ...
    def eof(self) -> object: ...


class Stdio(Carrier):
    """Has the gateway answer one exchange, in the thread that calls `run`.

    `stdin` and `stdout` are descriptors, blocking or not; they are the driver's from now on.
    """

    def __init__(
        self,
        protocol: OneExchange,
        gateway: SyncGateway,
        config: Config,
        stdin: int,
        stdout: int,
        ended: Callable[[Exchange], None] | None = None,
    ) -> None:
        self._protocol = protocol
        self._gateway = gateway
        self._config = config
        self._stdin = stdin
        self._stdout = stdout
        self._ended = ended
        self._app_status = 0

    def run(self) -> int:
        """Answer, and give the process's exit status: 0 unless the application failed."""
        exchange = self._protocol.exchange
        exchange.began = monotonic()
        try:
            self._gateway(exchange, self)
            if not exchange.ended and not exchange.aborted:
                raise RuntimeError("the gateway did not end the answer")
        finally:
            self._close()
            os.close(self._stdin)
        if self._ended is not None:
            self._ended(exchange)
        for function in exchange.after or ():
            try:
                function()
            except BaseException:
                log.exception("an error in a function that was to run after the answer")
        return 1 if exchange.broken or exchange.aborted else self._app_status

    def receive(self, exchange: Exchange) -> bytes:
        protocol = self._protocol
        while not exchange.body_size and (wanted := protocol.wanted):
            self._check(exchange)
            data = self._read(exchange, wanted)
            if data:
                protocol.feed(data)
            else:
                protocol.eof()
            if exchange.refused is not None:
                raise Aborted(str(exchange.refused))
        self._check(exchange)
        return exchange.take()

    def send(self, exchange: Exchange, data: Buffer) -> None:
        self._check(exchange)
        self._write(exchange, exchange.send(data))

    def finish(self, exchange: Exchange, data: Buffer = b"", app_status: int = 0) -> None:
        self._check(exchange)
        self._app_status = app_status
        self._write(exchange, exchange.finish(data, app_status))
        self._close()  # now the web server has all, whatever runs afterwards

    def fail(self, exchange: Exchange) -> None:
        exchange.fail()
        self._close()

    def log(self, exchange: Exchange, text: str) -> None:
        """Send text to the web server's log, which is where standard error goes."""
        if not had_standard(2):
            return
        data = text.encode("utf-8", "backslashreplace")
        if not data.endswith(b"\n"):
            data += b"\n"
        try:
            os.write(2, data)
        except OSError as error:
            log.debug("cannot write to standard error: %s", error)

    def _check(self, exchange: Exchange) -> None:
        if exchange.aborted:
            raise Aborted("the request was given up by the web server")

    def _read(self, exchange: Exchange, size: int) -> bytes:
        while True:
            if not _wait(self._stdin, select.POLLIN, self._config.body_timeout):
                raise self._abort(exchange, "the body did not come in time")
            try:
                return os.read(self._stdin, size)
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._abort(exchange, str(error)) from error

    def _write(self, exchange: Exchange, out: Iterable[Buffer]) -> None:
        rest = memoryview(b"".join(out))
        while rest:
            try:
                rest = rest[os.write(self._stdout, rest) :]
            except BlockingIOError:
                if not _wait(self._stdout, select.POLLOUT, self._config.send_timeout):
                    raise self._abort(exchange, "the answer was not taken in time") from None
            except OSError as error:  # EPIPE: the client has gone, and the web server told so
                raise self._abort(exchange, str(error)) from error

    def _abort(self, exchange: Exchange, why: str) -> Aborted:
        exchange.aborted = True
        return Aborted(why)

    def _close(self) -> None:
        if self._stdout >= 0:
            os.close(self._stdout)
            self._stdout = -1


def _wait(fd: int, events: int, seconds: float) -> bool:
    """Wait for a descriptor; 0 seconds mean without end. False when the time is over."""
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(seconds * 1000 if seconds > 0 else None))
