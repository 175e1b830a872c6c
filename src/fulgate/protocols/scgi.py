"""SCGI 1, the application's side: one request for each connection. No I/O.

The request is a netstring of headers, `15:NAME NUL VALUE NUL ...,`, and a body of CONTENT_LENGTH
bytes. The answer is that of a CGI program (RFC 3875, section 6), and ends with the connection.
"""

from __future__ import annotations

from typing import Final

from fulgate.errors import Aborted, LimitExceeded, ProtocolError
from fulgate.exchange import Buffer, Exchange, Limits, Role, ServerProtocol
from fulgate.protocols.cgi import PlainExchange

__all__ = ["SCGI", "SCGIExchange"]

MOST_DIGITS: Final = 10  # of the netstring's length, which is that of one request's headers
RESPONDER: Final = Role.RESPONDER


class SCGIExchange(PlainExchange):
    """An SCGI request and its answer."""

    # Set by the protocol that makes it.
    _protocol: SCGI

    def pairs(self) -> list[tuple[str, str]]:
        fields = self.raw.decode("latin-1").split("\0")
        return list(zip(fields[0:-1:2], fields[1::2], strict=True))

    def fail(self) -> list[Buffer]:
        if self.aborted:
            raise Aborted("the request was given up by the web server")
        if self.ended:
            raise RuntimeError("this answer has ended already")
        self.ended = self.broken = True
        self._protocol.reset = self.head_sent
        return []


class SCGI(ServerProtocol):
    """One connection of a web server, seen from the application's side."""

    name = "scgi"

    def __init__(self, limits: Limits) -> None:
        self.out: list[Buffer] = []
        self.closing = False
        self._limits = limits
        self._exchange: SCGIExchange | None = None
        # Headers that are not whole: their pieces, their length, and the length to look again at.
        self._parts: list[bytes] = []
        self._have = 0
        self._need = 0

    @property
    def idle(self) -> bool:
        return self._exchange is None and not self._have

    def feed(self, data: bytes) -> list[Exchange]:
        if self.closing:
            return []  # there is one request on a connection
        exchange = self._exchange
        if exchange is not None:
            return [exchange] if self._body(exchange, data) else []
        if self._have:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._parts)
        exchange = self._head(data)
        if exchange is None:
            self._parts = [data]
            self._have = len(data)
            return []
        self._parts = []
        self._have = 0
        exchange._protocol = self
        exchange.params_ended = True
        self._exchange = exchange
        return [exchange]

    def eof(self) -> list[Exchange]:
        exchange = self._exchange
        self._exchange = None
        self._parts = []
        self._have = 0
        self.closing = True
        if exchange is None:
            return []
        exchange.aborted = True
        self.reset = exchange.head_sent and not exchange.ended
        return [exchange]

    def done(self, exchange: Exchange) -> None:
        self._exchange = None
        self.closing = True

    def _head(self, data: bytes) -> SCGIExchange | None:
        """Read the netstring of headers, and what follows; None, and `_need`, if it is not whole.

        The answer may leave before the request has come, so too long a one is refused at once.
        """
        colon = data.find(b":", 0, MOST_DIGITS + 1)
        digits = data[:colon] if colon >= 0 else data
        if not digits.isdigit() or len(digits) > MOST_DIGITS or digits[:1] == b"0":
            raise ProtocolError(f"{data[:20]!r} does not begin an SCGI request")
        if colon < 0:
            self._need = len(data) + 1
            return None
        size = int(digits)
        limit = self._limits.params_size
        if 0 < limit < size:
            exchange = SCGIExchange(1, RESPONDER, False)
            exchange.refused = LimitExceeded(
                "431 Request Header Fields Too Large",
                f"headers of {size} bytes are more than {limit}",
            )
            return exchange
        end = colon + 1 + size
        if len(data) <= end:
            self._need = end + 1
            return None
        if data[end] != 0x2C:
            raise ProtocolError("no comma ends the headers")
        exchange = self._decode(data[colon + 1 : end])
        if len(data) > end + 1:
            self._body(exchange, data[end + 1 :])
        return exchange

    def _decode(self, raw: bytes) -> SCGIExchange:
        """Make an exchange of the headers: names and values, a NUL after each."""
        fields = raw.decode("latin-1").split("\0")
        if len(fields) % 2 == 0 or fields[-1]:
            raise ProtocolError("the headers end within a name or a value")
        if fields[0] != "CONTENT_LENGTH":
            raise ProtocolError(f"the first header is {fields[0][:40]!r}, and not CONTENT_LENGTH")
        names = fields[0:-1:2]
        exchange = SCGIExchange(1, RESPONDER, False)
        exchange.raw = raw
        exchange.params = params = dict(zip(names, fields[1::2], strict=True))
        if "" in params:
            raise ProtocolError("a header without a name")
        if params.get("SCGI") != "1":
            raise ProtocolError("no header says SCGI 1 (nginx: include scgi_params)")
        if 0 < self._limits.params < len(names):
            exchange.refused = LimitExceeded(
                "431 Request Header Fields Too Large",
                f"{len(names)} headers are more than {self._limits.params}",
            )
        elif len(params) != len(names):
            exchange.repeated = True
            if names.count("CONTENT_LENGTH") > 1:  # of two lengths one would be believed elsewhere
                exchange.refused = LimitExceeded("400 Bad Request", "CONTENT_LENGTH came twice")
        self._body_length(exchange, fields[1])
        return exchange

    def _body_length(self, exchange: SCGIExchange, text: str) -> None:
        if not (text.isascii() and text.isdigit()):
            raise ProtocolError(f"a CONTENT_LENGTH of {text[:40]!r}")
        limit = self._limits.body
        # A number that no disk holds is too large, whatever its value: int() of it takes long.
        if len(text) > 18 or 0 < limit < int(text):
            if exchange.refused is None:
                exchange.refused = LimitExceeded(
                    "413 Content Too Large", f"a body of {text[:32]} bytes is more than {limit}"
                )
        else:
            exchange.content_length = int(text)
            exchange.stdin_ended = exchange.content_length == 0

    def _body(self, exchange: SCGIExchange, data: bytes) -> bool:
        """Take what comes of the body; what comes behind it is nobody's. Was there any?"""
        if exchange.stdin_ended or exchange.refused is not None:
            return False
        left = exchange.content_length - exchange.received
        if len(data) > left:
            data = data[:left]
        exchange.body.append(data)
        exchange.body_size += len(data)
        exchange.received += len(data)
        exchange.stdin_ended = exchange.received == exchange.content_length
        return True
