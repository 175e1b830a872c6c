"""What the tests of gateways share: a carrier in memory, and applications."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fulgate.errors import Aborted
from fulgate.exchange import Buffer, Carrier, Exchange, Limits
from fulgate.gateways.wsgi import WSGI
from fulgate.protocols.fastcgi import (
    FastCGI,
)
from fulgate.protocols.fastcgi_client import FastCGIClient
from fulgate.protocols.fastcgi_records import (
    record,
)

Environ = dict[str, Any]
Start = Callable[..., Callable[[bytes], object]]
TEXT = [("Content-Type", "text/plain")]


class Memory(Carrier):
    """Notes what a gateway asks of it; `pieces` are the body as it arrives."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.calls: list[tuple[str, bytes]] = []
        self.wire: list[bytes] = []
        self.fails_at = ""  # the call that raises Aborted
        self.on_receive: Callable[[Exchange], None] = lambda exchange: None

    def _note(self, exchange: Exchange, call: str, data: Buffer = b"") -> None:
        self.calls.append((call, bytes(data)))
        if call == self.fails_at:
            exchange.aborted = True
        if exchange.aborted:
            raise Aborted("gone")

    def receive(self, exchange: Exchange) -> bytes:
        self._note(exchange, "receive")
        self.on_receive(exchange)
        return self.pieces.pop(0) if self.pieces else b""

    def send(self, exchange: Exchange, data: Buffer) -> None:
        self._note(exchange, "send", data)
        self.wire.append(b"".join(exchange.send(data)))

    def finish(self, exchange: Exchange, data: Buffer = b"", app_status: int = 0) -> None:
        self._note(exchange, "finish", data)
        self.wire.append(b"".join(exchange.finish(data, app_status)))

    def fail(self, exchange: Exchange) -> None:
        self._note(exchange, "fail")
        self.wire.append(b"".join(exchange.fail()))

    def log(self, exchange: Exchange, text: str) -> None:
        self._note(exchange, "log", text.encode())


def exchange(**params: str) -> Exchange:
    sent = {"REQUEST_METHOD": "GET", "REQUEST_URI": "/x?y", "QUERY_STRING": "y", **params}
    protocol = FastCGI(Limits(), {})
    _, out = FastCGIClient().begin(sent.items())
    (moved,) = protocol.feed(b"".join(out) + record(5, 1))
    return moved


def run(app: Any, carrier: Memory | None = None, **params: str) -> tuple[Exchange, Memory]:
    made, carrier = exchange(**params), carrier or Memory()
    WSGI(app)(made, carrier)
    return made, carrier


class Body:
    """An iterable that notes what is done to it."""

    def __init__(self, pieces: Iterable[bytes], fail_at: int = -1) -> None:
        self.pieces = iter(pieces)
        self.given = 0
        self.closed = 0
        self.fail_at = fail_at

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self.given == self.fail_at:
            raise LookupError("in the middle")
        piece = next(self.pieces)
        self.given += 1
        return piece

    def close(self) -> None:
        self.closed += 1


def answering(body: Any, status: str = "200 OK", headers: Any = TEXT) -> Any:
    def app(environ: Environ, start: Start) -> Any:
        start(status, headers)
        return body

    return app
