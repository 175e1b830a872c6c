"""FastCGI 1.0, the application's side. No I/O.

Names are the specification's own; the sections in brackets are its sections.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from fulgate.errors import Aborted, LimitExceeded, ProtocolError
from fulgate.exchange import (
    Buffer,
    Exchange,
    Limits,
    Role,
    ServerProtocol,
    encode_head,
)
from fulgate.protocols.fastcgi_records import (
    ABORT_REQUEST,
    BEGIN_REQUEST,
    CANT_MPX_CONN,
    DATA,
    END_REQUEST,
    GET_VALUES,
    GET_VALUES_RESULT,
    HEADER_LEN,
    KEEP_CONN,
    MAX_LENGTH,
    NULL_REQUEST_ID,
    PARAMS,
    REQUEST_COMPLETE,
    STDERR,
    STDIN,
    STDOUT,
    UNKNOWN_ROLE,
    UNKNOWN_TYPE,
    VERSION_1,
    decode_pairs,
    decode_params,
    encode_pair,
    pack_end_request,
    pack_header,
    pack_stdout_end_and_end_request,
    read_header,
    record,
)

__all__ = ["FastCGI", "FastCGIExchange"]

# A request whose PARAMS pass the limit is read to their end, so that it can be answered, but no
# further than this many bytes behind the limit. Nothing of it is kept.
PARAMS_PATIENCE: Final = 4 << 20

# Below this, one joined buffer is cheaper than a list of buffers.
JOIN_BELOW: Final = 32768

# The content of a long STDOUT record: the longest that keeps what follows aligned to 8 bytes [3.3].
STDOUT_CHUNK: Final = 65528

ROLES: Final = {role.value: role for role in Role}
RESPONDER_ONLY: Final = frozenset({Role.RESPONDER})

# A request without a body in one piece: BEGIN_REQUEST and the header of PARAMS, then the content,
# then two empty records. Version and type are read as one number, and so are length and padding.
WHOLE_BEGIN: Final = 24
WHOLE_END: Final = 16
BEGIN_OF: Final = VERSION_1 << 8 | BEGIN_REQUEST
PARAMS_OF: Final = VERSION_1 << 24 | PARAMS << 16  # | the id
STDIN_OF: Final = VERSION_1 << 24 | STDIN << 16  # | the id

_read_whole_begin = struct.Struct(">HHIHB5xIHBx").unpack_from
_whole_end = struct.Struct(">IIII").pack


class FastCGIExchange(Exchange):
    """A FastCGI request and its answer."""

    _logged = False  # STDERR has begun, so that it must end

    _params_size = 0

    def __init__(self, id: int, role: Role, keep: bool, protocol: FastCGI) -> None:
        super().__init__(id, role, keep)
        self._protocol = protocol
        self._params: list[bytes] = []

    def pairs(self) -> list[tuple[str, str]]:
        return decode_pairs(self.raw)

    def _take_head(self) -> bytes:
        if self.aborted:
            raise Aborted("the request was given up by the web server")
        if self.ended:
            raise RuntimeError("this answer has ended already")
        if self.head_sent:
            return b""
        if not self.status:
            raise RuntimeError("the answer was not started")
        head = encode_head(self.status, self.headers)
        self.head_sent = True
        return head

    def _stdout(self, data: Buffer) -> list[Buffer]:
        """Give `data`, of any length above 0, as STDOUT records."""
        id = self.id
        size = len(data)
        if size <= JOIN_BELOW:
            return [b"".join((pack_header(VERSION_1, STDOUT, id, size, 0), data))]
        if size <= MAX_LENGTH:
            return [pack_header(VERSION_1, STDOUT, id, size, 0), data]
        out: list[Buffer] = []
        view = memoryview(data)
        for pos in range(0, size, STDOUT_CHUNK):
            piece = view[pos : pos + STDOUT_CHUNK]
            out.append(pack_header(VERSION_1, STDOUT, id, len(piece), 0))
            out.append(piece)
        return out

    def send(self, data: Buffer) -> list[Buffer]:
        head = self._take_head()
        self.sent += len(data)
        if head and len(data) <= JOIN_BELOW:
            return self._stdout(b"".join((head, data)))
        out = self._stdout(head) if head else []
        if data:
            out += self._stdout(data)
        return out

    def finish(self, data: Buffer = b"", app_status: int = 0) -> list[Buffer]:
        head = self._take_head()
        self.ended = True
        id = self.id
        size = len(data)
        self.sent += size
        tail = pack_stdout_end_and_end_request(
            VERSION_1, STDOUT, id, 0, 0, VERSION_1, END_REQUEST, id, 8, 0,
            app_status & 0xFFFFFFFF, REQUEST_COMPLETE,
        )  # fmt: skip
        if self._logged:
            tail = record(STDERR, id) + tail
        size += len(head)
        if size == 0:
            return [tail]
        if size <= JOIN_BELOW:
            return [b"".join((pack_header(VERSION_1, STDOUT, id, size, 0), head, data, tail))]
        out = self._stdout(head) if head else []
        if data:
            out += self._stdout(data)
        out.append(tail)
        return out

    def fail(self) -> list[Buffer]:
        if self.aborted:
            raise Aborted("the request was given up by the web server")
        if self.ended:
            raise RuntimeError("this answer has ended already")
        self.ended = True
        self.broken = True
        if self._protocol.alone:
            self.keep = False
            # An answer to a question that was not asked says nothing, but nginx takes any record
            # of id 0 for an error; without fastcgi_keep_conn it takes a mere close for the end.
            return [pack_header(VERSION_1, GET_VALUES_RESULT, NULL_REQUEST_ID, 0, 0)]
        return [pack_end_request(VERSION_1, END_REQUEST, self.id, 8, 0, 1, REQUEST_COMPLETE)]

    def log(self, text: str) -> list[Buffer]:
        if self.aborted or self.ended:
            return []
        data = text.encode("utf-8", "backslashreplace")
        self._logged = self._logged or len(data) > 0
        return [
            record(STDERR, self.id, data[pos : pos + MAX_LENGTH])
            for pos in range(0, len(data), MAX_LENGTH)
        ]


class FastCGI(ServerProtocol):
    """One connection of a web server, seen from the application's side.

    `values` answers GET_VALUES [4.1]; `roles` are served, others get UNKNOWN_ROLE [5.5]; without
    `multiplex` a request beside another one gets CANT_MPX_CONN [5.5].
    """

    def __init__(
        self,
        limits: Limits,
        values: Mapping[str, str],
        roles: frozenset[Role] = RESPONDER_ONLY,
        multiplex: bool = False,
    ) -> None:
        self.out: list[Buffer] = []
        self.closing = False
        self._limits = limits
        self._values = values
        self._roles = roles
        self._responder = Role.RESPONDER in roles
        self._multiplex = multiplex
        self._active: dict[int, FastCGIExchange] = {}
        # An incomplete record: its pieces, their length, and the length worth looking at it again.
        self._parts: list[bytes] = []
        self._have = 0
        self._need = 0

    @property
    def idle(self) -> bool:
        return not self._active and not self._have

    @property
    def alone(self) -> bool:
        """Is there at most one request on the connection?"""
        return len(self._active) <= 1

    def feed(self, data: bytes) -> list[Exchange]:
        if self._have:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._parts)
            self._parts = []
            self._have = 0
        elif self._responder and not self._active:
            exchange = self._whole(data)
            if exchange is not None:
                return [exchange]
        moved: list[Exchange] = []
        active = self._active
        pos = 0
        end = len(data)
        need = HEADER_LEN
        while end - pos >= HEADER_LEN:
            version, kind, id, length, padding = read_header(data, pos)
            if version != VERSION_1:
                raise ProtocolError(f"version {version} is not FastCGI's")
            start = pos + HEADER_LEN
            stop = start + length
            if stop + padding > end:
                need = stop + padding - pos
                break
            pos = stop + padding
            content = data[start:stop]
            exchange = active.get(id)
            if exchange is None:
                self._inactive(kind, id, content)
            elif kind == STDIN:
                self._stdin(exchange, content, moved)
            elif kind == PARAMS:
                if length and exchange.refused is None and not exchange.params_ended:
                    exchange._params.append(content)
                    exchange._params_size += length
                    if exchange._params_size > self._limits.params_size:
                        self._params_too_large(exchange, length)
                else:
                    self._params(exchange, content, moved)
            else:
                self._rare(exchange, kind, content, moved)
        if pos < end:
            self._parts = [data[pos:] if pos else data]
            self._have = end - pos
            self._need = need
        return moved

    def eof(self) -> list[Exchange]:
        aborted: list[Exchange] = list(self._active.values())
        for exchange in aborted:
            exchange.aborted = True
        self._active.clear()
        self._parts = []
        self._have = 0
        self.closing = True
        return aborted

    def done(self, exchange: Exchange) -> None:
        if self._active.get(exchange.id) is exchange:
            del self._active[exchange.id]
        if not exchange.keep:
            self.closing = True

    # What feed does less often than for every record.

    def _whole(self, data: bytes) -> FastCGIExchange | None:
        """Read one request without a body, if that is just what `data` is.

        Web servers send a GET so, in one segment: BEGIN_REQUEST, PARAMS in one record, and the
        ends of PARAMS and of STDIN. What is not so, or not in order, is left to `feed`.
        """
        end = len(data) - WHOLE_END
        if end < WHOLE_BEGIN:
            return None
        begin, id, begin_size, role, flags, params, length, padding = _read_whole_begin(data)
        if (
            begin != BEGIN_OF
            or begin_size != 8 << 16
            or params != PARAMS_OF | id
            or WHOLE_BEGIN + length + padding != end
            or data[end:] != _whole_end(PARAMS_OF | id, 0, STDIN_OF | id, 0)
            or role != Role.RESPONDER
            or not (id and length)
            or 0 < self._limits.params_size < length
        ):
            return None
        exchange = FastCGIExchange(id, Role.RESPONDER, flags & KEEP_CONN != 0, self)
        exchange._params.append(data[WHOLE_BEGIN : WHOLE_BEGIN + length])
        self._active[id] = exchange
        self._params(exchange, b"", [])
        exchange.stdin_ended = True
        return exchange

    def _params(self, exchange: FastCGIExchange, content: bytes, moved: list[Exchange]) -> None:
        """Take a PARAMS record that ends the stream, or one that is too much."""
        if exchange.params_ended:
            raise ProtocolError("PARAMS after the end of PARAMS")
        if content:
            self._params_too_large(exchange, len(content))
            return
        if exchange.refused is None:
            exchange.raw = raw = b"".join(exchange._params)
            params, count = decode_params(raw)
            exchange.params = params
            exchange.repeated = len(params) != count
            if 0 < self._limits.params < count:
                exchange.refused = LimitExceeded(
                    "431 Request Header Fields Too Large",
                    f"{count} parameters are more than {self._limits.params}",
                )
            self._body_length(exchange, params.get("CONTENT_LENGTH", ""))
        exchange._params = []
        exchange.params_ended = True
        if exchange.refused is not None:
            exchange.keep = False
        moved.append(exchange)

    def _params_too_large(self, exchange: FastCGIExchange, length: int) -> None:
        limit = self._limits.params_size
        if exchange.params_ended:
            raise ProtocolError("PARAMS after the end of PARAMS")
        if not limit:
            return
        if exchange.refused is None:
            exchange.refused = LimitExceeded(
                "431 Request Header Fields Too Large", f"PARAMS are longer than {limit} bytes"
            )
            exchange._params = []
        else:
            exchange._params_size += length
        if exchange._params_size > limit + PARAMS_PATIENCE:
            raise exchange.refused

    def _body_length(self, exchange: FastCGIExchange, text: str) -> None:
        """Read CONTENT_LENGTH; "", "-1" and nonsense say nothing, STDIN's end does."""
        if not text.isdecimal():
            return
        limit = self._limits.body
        # A number that no disk holds is too large, whatever its value: int() of it takes long.
        if len(text) > 18 or (0 < limit < int(text)):
            if exchange.refused is None:
                exchange.refused = LimitExceeded(
                    "413 Content Too Large", f"a body of {text[:32]} bytes is more than {limit}"
                )
            return
        exchange.content_length = int(text)

    def _stdin(self, exchange: FastCGIExchange, content: bytes, moved: list[Exchange]) -> None:
        if not exchange.params_ended:
            raise ProtocolError("STDIN before the end of PARAMS")
        if exchange.stdin_ended:
            raise ProtocolError("STDIN after the end of STDIN")
        if not content:
            exchange.stdin_ended = True
        elif exchange.refused is None:
            length = len(content)
            exchange.received += length
            exchange.body_size += length
            exchange.body.append(content)
            if 0 < self._limits.body < exchange.received:
                exchange.refused = LimitExceeded(
                    "413 Content Too Large", f"the body is longer than {self._limits.body} bytes"
                )
                exchange.keep = False
                exchange.take()
        else:
            return
        if exchange not in moved:
            moved.append(exchange)

    def _inactive(self, kind: int, id: int, content: bytes) -> None:
        if id == NULL_REQUEST_ID:
            self._management(kind, content)
        elif kind == BEGIN_REQUEST:
            self._begin(id, content)
        # All else is ignored [3.3].

    def _begin(self, id: int, content: bytes) -> None:
        if len(content) != 8:
            raise ProtocolError(f"BEGIN_REQUEST of {len(content)} bytes")
        role = ROLES.get(content[0] << 8 | content[1])
        keep = content[2] & KEEP_CONN != 0
        if role is None or role not in self._roles:
            self._refuse(id, UNKNOWN_ROLE)
            if not keep and not self._active:
                self.closing = True
        elif self._active and not self._multiplex:
            self._refuse(id, CANT_MPX_CONN)
        else:
            self._active[id] = FastCGIExchange(id, role, keep, self)

    def _refuse(self, id: int, protocol_status: int) -> None:
        self.out.append(pack_end_request(VERSION_1, END_REQUEST, id, 8, 0, 0, protocol_status))

    def _management(self, kind: int, content: bytes) -> None:
        if kind == GET_VALUES:
            asked = dict.fromkeys(name for name, _ in decode_pairs(content))
            values = self._values
            result = b"".join(
                encode_pair(name.encode("latin-1"), values[name].encode("latin-1"))
                for name in asked
                if name in values
            )
            self.out.append(record(GET_VALUES_RESULT, NULL_REQUEST_ID, result))
        else:
            body = bytes((kind, 0, 0, 0, 0, 0, 0, 0))
            self.out.append(record(UNKNOWN_TYPE, NULL_REQUEST_ID, body))

    def _rare(
        self, exchange: FastCGIExchange, kind: int, content: bytes, moved: list[Exchange]
    ) -> None:
        if kind == ABORT_REQUEST:
            exchange.aborted = True
            self.out.append(
                pack_end_request(VERSION_1, END_REQUEST, exchange.id, 8, 0, 0, REQUEST_COMPLETE)
            )
            self.done(exchange)
            if exchange not in moved:
                moved.append(exchange)
        elif kind == BEGIN_REQUEST:
            raise ProtocolError(f"BEGIN_REQUEST for request {exchange.id}, which is active")
        elif kind == DATA and exchange.role is Role.FILTER:
            if exchange.data_ended:
                raise ProtocolError("DATA after the end of DATA")
            if content:
                exchange.data.append(content)
            else:
                exchange.data_ended = True
            if exchange not in moved:
                moved.append(exchange)
        # Other types of record mean nothing to a request, and are ignored.
