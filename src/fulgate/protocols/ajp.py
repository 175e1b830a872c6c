"""AJP 1.3, the application's side. No I/O.

A connection carries one request at a time. Its body comes in packets that are asked for one by one
(GET_BODY_CHUNK), but for the first one where a Content-Length is there. A packet of body has no
type: it is told from a request only by being owed. So what is owed is counted, and what comes for
a request that has been answered is still taken as body, and dropped.
"""

from __future__ import annotations

import re
import struct
from typing import Final
from urllib.parse import unquote

from fulgate.errors import Aborted, LimitExceeded, ProtocolError
from fulgate.exchange import Buffer, Exchange, Limits, Role, ServerProtocol
from fulgate.protocols.ajp_packets import (
    AUTH_TYPE,
    BODY_OVERHEAD,
    CHUNK_OVERHEAD,
    CONTEXT,
    CPING,
    END_AND_CLOSE,
    END_AND_REUSE,
    FLUSH,
    FORWARD_REQUEST,
    GET_BODY_CHUNK,
    HEADER_LEN,
    PACKET_SIZE,
    PONG,
    QUERY_STRING,
    REMOTE_USER,
    ROUTE,
    SECRET,
    SEND_BODY_CHUNK,
    SERVLET_PATH,
    SHUTDOWN,
    SSL_CERT,
    SSL_CIPHER,
    SSL_KEY_SIZE,
    SSL_SESSION,
    TO_APPLICATION,
    TO_SERVER,
    Forward,
    decode_forward,
    encode_head,
    read_start,
)

__all__ = ["AJP", "AJPExchange"]

# Below this, one joined buffer is cheaper than two buffers for each packet.
JOIN_BELOW: Final = 262144

# The names under which Apache gives the same to a CGI script. What only AJP has keeps its prefix.
ATTRIBUTES: Final = {
    CONTEXT: "AJP_CONTEXT",
    SERVLET_PATH: "AJP_SERVLET_PATH",
    REMOTE_USER: "REMOTE_USER",
    AUTH_TYPE: "AUTH_TYPE",
    ROUTE: "AJP_JVM_ROUTE",
    SSL_CERT: "SSL_CLIENT_CERT",
    SSL_CIPHER: "SSL_CIPHER",
    SSL_SESSION: "SSL_SESSION_ID",
    SSL_KEY_SIZE: "SSL_CIPHER_USEKEYSIZE",
}
NAMED: Final = {
    "AJP_REMOTE_PORT": "REMOTE_PORT",
    "AJP_LOCAL_ADDR": "SERVER_ADDR",
    "AJP_SSL_PROTOCOL": "SSL_PROTOCOL",
}

# Names of headers that are kept, and how long they may be.
KNOWN_LIMIT: Final = 1024
KNOWN_LENGTH: Final = 64

_is_plain = re.compile(r"[A-Za-z0-9-]+").fullmatch
# What a header becomes; "" where it is left out, as Upgrade: AJP cannot carry what would follow.
_variables: dict[str, str] = {
    "content-type": "CONTENT_TYPE",
    "content-length": "CONTENT_LENGTH",
    "upgrade": "",
}

_chunk_start = struct.Struct(">HHBH").pack
_chunk_next = struct.Struct(">BHHBH").pack  # behind the NUL of the one before
_get_body = struct.Struct(">HHBH").pack
_read_length = struct.Struct(">H").unpack_from


def variable_of(header: str) -> str:
    """Give the CGI variable for a header's name, or "" for one that is left out.

    Two names that differ only in "-" and "_" would become one variable, and one could be passed
    off as the other. So only names of letters, digits and "-" count, as in Apache's own CGI.
    """
    name = _variables.get(header)
    if name is None:
        lower = header.lower()
        name = _variables.get(lower)
        if name is None:
            name = "HTTP_" + header.upper().replace("-", "_") if _is_plain(header) else ""
        if len(_variables) < KNOWN_LIMIT and len(header) <= KNOWN_LENGTH:
            _variables[header] = name
    return name


def cgi_pairs(forward: Forward) -> list[tuple[str, str]]:
    """Give a request as CGI variables (RFC 3875, section 4.1), in the order of the packet.

    A request attribute X becomes AJP_X, which no header can become.
    """
    path, mark, query = forward.uri.partition("?")
    given = forward.attributes.get(QUERY_STRING)
    if given is not None:
        mark, query = "?", given
    pairs = [
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("REQUEST_METHOD", forward.method),
        ("REQUEST_URI", path + mark + query if query else path),
        ("SCRIPT_NAME", ""),
        ("PATH_INFO", unquote(path, "latin-1") if "%" in path else path),
        ("QUERY_STRING", query),
        ("REQUEST_SCHEME", "https" if forward.is_ssl else "http"),
        ("SERVER_PORT", str(forward.server_port)),
    ]
    if forward.is_ssl:
        pairs.append(("HTTPS", "on"))
    for name, value in (
        ("SERVER_PROTOCOL", forward.protocol),
        ("SERVER_NAME", forward.server_name),
        ("REMOTE_ADDR", forward.remote_addr),
        ("REMOTE_HOST", forward.remote_host),
    ):
        if value:
            pairs.append((name, value))
    for header, value in forward.headers:
        variable = variable_of(header)
        if variable:
            pairs.append((variable, value))
    for code, value in forward.attributes.items():
        if code in ATTRIBUTES:
            pairs.append((ATTRIBUTES[code], value))
    for name, value in forward.named:
        if name in NAMED:
            pairs.append((NAMED[name], value))
        else:
            pairs.append(("AJP_" + name, value))
    return pairs


class AJPExchange(Exchange):
    """An AJP request and its answer."""

    # Set by the protocol that makes it.
    _protocol: AJP
    _pairs: list[tuple[str, str]]

    def pairs(self) -> list[tuple[str, str]]:
        return self._pairs[:]

    def head(self) -> bytes:
        head = encode_head(self.status, self.headers)
        most = self._protocol.packet_size
        if len(head) > most:
            raise ValueError(
                f"status and headers take {len(head)} bytes, and an AJP packet has {most}:"
                " ajp_packet_size and Apache's ProxyIOBufferSize can make it longer"
            )
        return head

    def _chunks(self, data: Buffer) -> list[Buffer]:
        """Give `data`, of any length above 0, as SEND_BODY_CHUNK packets."""
        most = self._protocol.packet_size - CHUNK_OVERHEAD
        size = len(data)
        if size <= most:
            return [
                b"".join((_chunk_start(TO_SERVER, size + 4, SEND_BODY_CHUNK, size), data, b"\0"))
            ]
        out: list[Buffer] = [_chunk_start(TO_SERVER, most + 4, SEND_BODY_CHUNK, most)]
        view = memoryview(data)
        pos = most
        out.append(view[:pos])
        while pos < size:
            stop = min(pos + most, size)
            length = stop - pos
            out.append(_chunk_next(0, TO_SERVER, length + 4, SEND_BODY_CHUNK, length))
            out.append(view[pos:stop])
            pos = stop
        out.append(b"\0")
        return [b"".join(out)] if size <= JOIN_BELOW else out

    def send(self, data: Buffer) -> list[Buffer]:
        head = self.take_head()
        size = len(data)
        self.sent += size
        out: list[Buffer] = [head] if head else []
        if size:
            out += self._chunks(data)
        if out and size <= self._protocol.packet_size:
            # A short piece is sent to be read, and Apache would keep it. Long ones push it out.
            out.append(FLUSH)
        if not out:
            return out
        return [b"".join(out)] if size <= JOIN_BELOW else out

    def finish(self, data: Buffer = b"", app_status: int = 0) -> list[Buffer]:
        head = self.take_head()
        self.ended = True
        size = len(data)
        self.sent += size
        out: list[Buffer] = [head] if head else []
        if size:
            out += self._chunks(data)
        out.append(END_AND_REUSE if self.keep else END_AND_CLOSE)
        return [b"".join(out)] if size <= JOIN_BELOW else out

    def fail(self) -> list[Buffer]:
        if self.aborted:
            raise Aborted("the request was given up by the web server")
        if self.ended:
            raise RuntimeError("this answer has ended already")
        self.ended = True
        self.broken = True
        self.keep = False
        return []

    def want(self, n: int) -> list[Buffer]:
        return [] if self.aborted or self.ended else self._protocol.ask(self)


class AJP(ServerProtocol):
    """One connection of a web server, seen from the application's side.

    With a `secret` a request that does not have it is refused with 403. `packet_size` in bytes is
    the most that the web server takes, header included, from 8,192 to 65,536. Body is asked for
    without being wanted as long as not more than `ahead` bytes wait to be taken.
    """

    name = "ajp"

    def __init__(
        self,
        limits: Limits,
        secret: str = "",
        packet_size: int = PACKET_SIZE,
        ahead: int = 65536,
    ) -> None:
        self.out: list[Buffer] = []
        self.closing = False
        self.packet_size = packet_size
        self._limits = limits
        self._secret = secret.encode()
        self._ahead = ahead
        self._active: AJPExchange | None = None
        self._owed = 0  # packets of body that are to come
        self._perhaps = False  # one more than those, which nobody asked for
        self._refused = False  # what comes from now on means nothing
        # An incomplete packet: its pieces, their length, and the length worth looking at it again.
        self._parts: list[bytes] = []
        self._have = 0
        self._need = 0

    @property
    def idle(self) -> bool:
        return self._active is None and not self._have and not self._owed

    @property
    def alone(self) -> bool:
        """Is there at most one request on the connection? Always."""
        return True

    def feed(self, data: bytes) -> list[Exchange]:
        if self._refused:
            return []
        if self._have:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._parts)
            self._parts = []
            self._have = 0
        moved: list[Exchange] = []
        pos = 0
        end = len(data)
        need = HEADER_LEN
        while end - pos >= HEADER_LEN:
            magic, length = read_start(data, pos)
            if magic != TO_APPLICATION:
                raise ProtocolError(f"{magic:#06x} is not what a packet of AJP begins with")
            start = pos + HEADER_LEN
            stop = start + length
            if stop > end:
                need = stop - pos
                break
            pos = stop
            if self._owed:
                self._body(data[start:stop], moved)
            elif not length:
                raise ProtocolError("an empty packet of body that was not asked for")
            else:
                self._message(data[start:stop], moved)
            if self._refused:
                return moved
        if pos < end:
            self._parts = [data[pos:] if pos else data]
            self._have = end - pos
            self._need = need
        return moved

    def eof(self) -> list[Exchange]:
        aborted: list[Exchange] = []
        if self._active is not None:
            self._active.aborted = True
            aborted.append(self._active)
            self._active = None
        self._parts = []
        self._have = 0
        self._owed = 0
        self.closing = True
        return aborted

    def done(self, exchange: Exchange) -> None:
        if self._active is exchange:
            self._active = None
        if not exchange.keep:
            self.closing = True

    def ask(self, exchange: AJPExchange) -> list[Buffer]:
        """Give GET_BODY_CHUNK, unless it was sent already or there is no more body."""
        if exchange is not self._active or exchange.stdin_ended or self._owed or self._refused:
            return []
        self._owed = 1
        size = self.packet_size - BODY_OVERHEAD
        if exchange.content_length >= 0:
            size = min(size, exchange.content_length - exchange.received)
        return [_get_body(TO_SERVER, 3, GET_BODY_CHUNK, size)]

    # Requests

    def _message(self, content: bytes, moved: list[Exchange]) -> None:
        kind = content[0]
        if kind == FORWARD_REQUEST:
            if self._active is not None:
                raise ProtocolError("a request came before the answer to the last one had ended")
            moved.append(self._begin(content))
        elif kind == CPING:
            if len(content) != 1:
                raise ProtocolError(f"a CPING of {len(content)} bytes")
            self.out.append(PONG)
        elif kind == SHUTDOWN:
            raise ProtocolError("SHUTDOWN is not for a web server to say")
        else:
            raise ProtocolError(f"a packet of type {kind}, or of body that was not asked for")

    def _begin(self, content: bytes) -> AJPExchange:
        forward = decode_forward(content)
        exchange = AJPExchange(1, Role.RESPONDER, keep=True)
        exchange._protocol = self
        exchange._pairs = pairs = cgi_pairs(forward)
        exchange.params = dict(pairs)
        exchange.repeated = len(exchange.params) != len(pairs)
        exchange.params_ended = True
        self._active = exchange
        if self._admits(forward):
            self._check_size(exchange, forward, len(content))
        else:
            self._refuse(exchange, "403 Forbidden", "the secret is wrong, or missing")
        self._begin_body(exchange, forward)
        self.out += self.ask(exchange)
        return exchange

    def _admits(self, forward: Forward) -> bool:
        if not self._secret:
            return True
        given = forward.attributes.get(SECRET, "").encode("latin-1")
        return _equal(given, self._secret)

    def _check_size(self, exchange: AJPExchange, forward: Forward, size: int) -> None:
        limits = self._limits
        count = len(forward.headers) + len(forward.attributes) + len(forward.named)
        status = "431 Request Header Fields Too Large"
        if 0 < limits.params_size < size:
            why = f"a request of {size} bytes is longer than {limits.params_size}"
            self._refuse(exchange, status, why)
        elif 0 < limits.params < count:
            why = f"{count} headers and attributes are more than {limits.params}"
            self._refuse(exchange, status, why)

    def _begin_body(self, exchange: AJPExchange, forward: Forward) -> None:
        """See from the headers whether there is a body, and whether its first packet is owed.

        Apache sends a first packet to every request without Transfer-Encoding that has a body.
        Over HTTP/2 that body need not have a Content-Length (RFC 9113, section 8.1.1): then
        nothing tells whether that packet is to come, and taken for a request it would be one that
        the client wrote. So such a body is asked for, and the answer shows.
        """
        lengths: set[str] = set()
        streams = False
        for name, value in forward.headers:
            lower = name.lower()
            if lower == "content-length":
                lengths.add(value)
            elif lower == "transfer-encoding":
                streams = True
        if len(lengths) > 1 or (lengths and streams):
            self._refuse(exchange, "400 Bad Request", "the body's length is ambiguous")
        elif lengths:
            self._begin_known_body(exchange, lengths.pop())
        elif not streams:
            protocol = forward.protocol or "HTTP/1.0"
            if protocol.startswith(("HTTP/1.", "HTTP/0.")):
                exchange.stdin_ended = True
            else:
                self._perhaps = True

    def _begin_known_body(self, exchange: AJPExchange, length: str) -> None:
        limit = self._limits.body
        if not length.isdecimal():
            self._refuse(exchange, "400 Bad Request", f"Content-Length is {length[:32]!r}")
            return
        # A number that no disk holds is too large, whatever its value: int() of it takes long.
        if len(length) > 18 or (0 < limit < int(length)):
            self._refuse(
                exchange,
                "413 Content Too Large",
                f"a body of {length[:32]} bytes is more than {limit}",
            )
            return
        exchange.content_length = int(length)
        if exchange.content_length:
            self._owed = 1
        else:
            exchange.stdin_ended = True

    def _refuse(self, exchange: AJPExchange, status: str, why: str) -> None:
        """Have a request answered with `status`, and the connection closed after that."""
        self._refused = True
        exchange.keep = False
        if exchange.refused is None:
            exchange.refused = LimitExceeded(status, why)

    # Bodies

    def _body(self, content: bytes, moved: list[Exchange]) -> None:
        """Take a packet of body; one without bytes is the end of the body."""
        size = len(content)
        if size:
            if size < 2 or _read_length(content)[0] != size - 2:
                raise ProtocolError(f"a packet of body of {size} bytes has another length in it")
            size -= 2
        if self._perhaps and size:
            self._owed += 1  # that was the one that nobody asked for
        self._perhaps = False
        self._owed -= 1
        exchange = self._active
        if exchange is None:
            return
        if size:
            self._take(exchange, content[2:])
        else:
            exchange.stdin_ended = True
        if exchange.body_size <= self._ahead:
            self.out += self.ask(exchange)
        if exchange not in moved:
            moved.append(exchange)

    def _take(self, exchange: AJPExchange, data: bytes) -> None:
        length = len(data)
        exchange.received += length
        if 0 <= exchange.content_length <= exchange.received:
            if exchange.received > exchange.content_length:
                raise ProtocolError("a body is longer than its Content-Length")
            exchange.stdin_ended = True
        if 0 < self._limits.body < exchange.received:
            self._refuse(
                exchange,
                "413 Content Too Large",
                f"the body is longer than {self._limits.body} bytes",
            )
            exchange.drop()
        else:
            exchange.body_size += length
            exchange.body.append(data)


def _equal(given: bytes, known: bytes) -> bool:
    """Compare in a time that tells nothing of where they differ.

    `hmac.compare_digest` does that too, and has every server load OpenSSL: 4 MB.
    """
    differ = len(given) ^ len(known)
    for one, other in zip(given, known, strict=False):
        differ |= one ^ other
    return not differ
