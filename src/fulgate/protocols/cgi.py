"""CGI 1.1 (RFC 3875): one request in the process's environment and standard input. No I/O."""

from __future__ import annotations

from collections.abc import Mapping

from fulgate.errors import LimitExceeded
from fulgate.exchange import JOIN_BELOW, Buffer, Exchange, Limits, Role, ServerProtocol

__all__ = ["CGI", "CGIExchange", "PlainExchange"]


class PlainExchange(Exchange):
    """A request whose answer has no other form than head and body, as a CGI program writes it."""

    frame_size = 1 << 18  # so many zeros may stand for what a file lacks in the end

    def send(self, data: Buffer) -> list[Buffer]:
        head = self.take_head()
        self.sent += len(data)
        if not head:
            return [data] if data else []
        if len(data) <= JOIN_BELOW:
            return [b"".join((head, data))]
        return [head, data]

    def finish(self, data: Buffer = b"", app_status: int = 0) -> list[Buffer]:
        out = self.send(data)
        self.ended = True
        return out

    def frame(self, size: int) -> Buffer:
        head = self.take_head()
        self.sent += size
        return head


class CGIExchange(PlainExchange):
    """The one request of a process; the answer's end is that of standard output."""

    def __init__(self, params: Mapping[str, str]) -> None:
        super().__init__(1, Role.RESPONDER, keep=False)
        self.params = dict(params)
        # Absent means empty (section 4.1.5); elsewhere absent means that the server does not tell.
        self.params.setdefault("PATH_INFO", "")
        self.params_ended = True
        self._pairs = list(params.items())

    def pairs(self) -> list[tuple[str, str]]:
        return list(self._pairs)

    def fail(self) -> list[Buffer]:
        # CGI has no way to tell, but for a Content-Length that the answer does not reach.
        self.ended = self.broken = True
        return []


class CGI(ServerProtocol):
    """The process's standard input and output. `params` are the CGI variables, as latin-1 text.

    `exchange` is there from the beginning. `feed` takes what comes on standard input, `eof` its
    end. The body has CONTENT_LENGTH bytes (section 4.2), and no script may read more. Without a
    length there is none, unless the server passes on a body of unknown length: then
    HTTP_TRANSFER_ENCODING is there, or CONTENT_LENGTH is -1, and standard input ends.
    """

    closing = True

    def __init__(self, params: Mapping[str, str], limits: Limits) -> None:
        self.out: list[Buffer] = []
        self.exchange = exchange = CGIExchange(params)
        self._limit = limits.body
        length = params.get("CONTENT_LENGTH", "")
        if length.isdecimal():
            if len(length) > 18 or (0 < limits.body < int(length)):
                exchange.refused = LimitExceeded(
                    "413 Content Too Large",
                    f"a body of {length[:32]} bytes is more than {limits.body}",
                )
            else:
                exchange.content_length = int(length)
        streams = length == "-1" or bool(params.get("HTTP_TRANSFER_ENCODING"))
        exchange.stdin_ended = exchange.content_length == 0 or (
            exchange.content_length < 0 and not streams
        )

    @property
    def wanted(self) -> int:
        """How many bytes may be read from standard input now; at most 65,536."""
        exchange = self.exchange
        if exchange.stdin_ended:
            return 0
        if exchange.content_length < 0:
            return 65536
        return min(65536, exchange.content_length - exchange.received)

    def feed(self, data: bytes) -> list[Exchange]:
        exchange = self.exchange
        if exchange.stdin_ended or exchange.refused is not None:
            return []
        exchange.body.append(data)
        exchange.body_size += len(data)
        exchange.received += len(data)
        if 0 < self._limit < exchange.received:
            exchange.refused = LimitExceeded(
                "413 Content Too Large", f"the body is longer than {self._limit} bytes"
            )
            exchange.take()
        elif exchange.received == exchange.content_length:
            exchange.stdin_ended = True
        return [exchange]

    def eof(self) -> list[Exchange]:
        """Take note that standard input has ended: the body has, and nobody is gone."""
        self.exchange.stdin_ended = True
        return [self.exchange]

    def done(self, exchange: Exchange) -> None:
        pass  # one request, and no other

    @property
    def idle(self) -> bool:
        return self.exchange.ended
