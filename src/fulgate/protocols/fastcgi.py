"""FastCGI 1.0, the application's side. No I/O.

Names are the specification's own; the sections in brackets are its sections.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from fulgate.errors import Aborted, LimitExceeded, ProtocolError
from fulgate.exchange import (
    JOIN_BELOW,
    Buffer,
    Exchange,
    Headers,
    Limits,
    Role,
    ServerProtocol,
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
    OVERLOADED,
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
    read_header,
    record,
)

__all__ = ["FastCGI", "FastCGIExchange"]

# A request whose PARAMS pass the limit is read to their end, so that it can be answered, but no
# further than this many bytes behind the limit. Nothing of it is kept.
PARAMS_PATIENCE: Final = 4 << 20

# From this many bytes on a part of what was received is kept as a view, if it is a good part of
# that: a view keeps all of it.
VIEW_FROM: Final = 4096

# The content of a long STDOUT record: the longest that keeps what follows aligned to 8 bytes [3.3].
STDOUT_CHUNK: Final = 65528

ROLES: Final = {role.value: role for role in Role}
RESPONDER: Final = Role.RESPONDER
RESPONDER_ONLY: Final = frozenset({Role.RESPONDER})

# A request without a body in one piece: BEGIN_REQUEST and the header of PARAMS, then the content,
# then two empty records.
WHOLE_BEGIN: Final = 24
WHOLE_END: Final = 16

_whole_end: Final = struct.Struct(">BBHIBBHI").pack

# Version, type and id as one number; what follows REQUEST_COMPLETE is reserved.
STDOUT_OF: Final = VERSION_1 << 24 | STDOUT << 16  # | the id
END_OF: Final = VERSION_1 << 24 | END_REQUEST << 16  # | the id
ENDED: Final = REQUEST_COMPLETE << 24

_stdout_header: Final = struct.Struct(">IHxx").pack
_end: Final = struct.Struct(">IIIIII").pack  # the end of STDOUT, and END_REQUEST

# How such a request ends, and an answer of appStatus 0, for the ids that are small: web servers
# that have one request at a time on a connection call it 1.
WHOLE_ENDS: Final = [
    _whole_end(VERSION_1, PARAMS, id, 0, VERSION_1, STDIN, id, 0) for id in range(64)
]
ENDS: Final = [_end(STDOUT_OF | id, 0, END_OF | id, 8 << 16, 0, ENDED) for id in range(64)]


class FastCGIExchange(Exchange):
    """A FastCGI request and its answer."""

    frame_size = STDOUT_CHUNK
    _logged = False  # STDERR has begun, so that it must end

    _params_size = 0
    _told = 0  # the `feed` that has told of it last

    # Set by the protocol that makes it.
    _protocol: FastCGI
    _params: list[bytes]  # as they come, when they come in pieces

    def pairs(self) -> list[tuple[str, str]]:
        return decode_pairs(self.raw)

    def _stdout(self, data: Buffer) -> list[Buffer]:
        """Give `data`, of any length above 0, as STDOUT records."""
        id = self.id
        size = len(data)
        if size <= JOIN_BELOW:
            return [b"".join((_stdout_header(STDOUT_OF | id, size), data))]
        if size <= MAX_LENGTH:
            return [_stdout_header(STDOUT_OF | id, size), data]
        out: list[Buffer] = []
        view = memoryview(data)
        for pos in range(0, size, STDOUT_CHUNK):
            piece = view[pos : pos + STDOUT_CHUNK]
            out.append(_stdout_header(STDOUT_OF | id, len(piece)))
            out.append(piece)
        return out

    def send(self, data: Buffer) -> list[Buffer]:
        head = self.take_head()
        self.sent += len(data)
        if head and len(data) <= JOIN_BELOW:
            return self._stdout(b"".join((head, data)))
        out = self._stdout(head) if head else []
        if data:
            out += self._stdout(data)
        return out

    def frame(self, size: int) -> Buffer:
        head = self.take_head()
        self.sent += size
        before = pack_header(VERSION_1, STDOUT, self.id, size, 0)
        return b"".join((*self._stdout(head), before)) if head else before

    def finish(self, data: Buffer = b"", app_status: int = 0) -> list[Buffer]:
        head = self.take_head()
        self.ended = True
        id = self.id
        size = len(data)
        self.sent += size
        if app_status or id >= len(ENDS):
            tail = _end(STDOUT_OF | id, 0, END_OF | id, 8 << 16, app_status & 0xFFFFFFFF, ENDED)
        else:
            tail = ENDS[id]
        if self._logged:
            tail = record(STDERR, id) + tail
        size += len(head)
        if size == 0:
            return [tail]
        if size <= JOIN_BELOW:
            return [b"".join((_stdout_header(STDOUT_OF | id, size), head, data, tail))]
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

    def refuse(
        self, status: str, headers: Headers | None = None, app_status: int = 0
    ) -> list[Buffer]:
        if not (self._protocol.overloaded and status.startswith("503")):
            return super().refuse(status, headers, app_status)
        self.status = status  # for the log
        self.ended = True
        return [pack_end_request(VERSION_1, END_REQUEST, self.id, 8, 0, 0, OVERLOADED)]

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
    `multiplex` a request beside another one gets CANT_MPX_CONN, with it one beside `max_requests`
    gets OVERLOADED [5.5]. With `overloaded` a request that is refused with 503 gets OVERLOADED
    instead [5.5].
    """

    def __init__(
        self,
        limits: Limits,
        values: Mapping[str, str],
        roles: frozenset[Role] = RESPONDER_ONLY,
        multiplex: bool = False,
        overloaded: bool = False,
        max_requests: int = 65535,
    ) -> None:
        self.overloaded = overloaded
        self.shared = False
        self.shown = False
        self.out: list[Buffer] = []
        self.closing = False
        self._limits = limits
        self._values = values
        self._roles = roles
        self._responder = Role.RESPONDER in roles
        self._multiplex = multiplex
        self._max_requests = max_requests
        self._active: dict[int, FastCGIExchange] = {}
        # An incomplete record: its pieces, their length, and the length worth looking at it again.
        self._parts: list[Buffer] = []
        self._have = 0
        self._need = 0
        self._feeds = 0  # how often `feed` had to look closer

    @property
    def idle(self) -> bool:
        return not self._active and not self._have

    @property
    def alone(self) -> bool:
        """Is there at most one request on the connection?"""
        return len(self._active) <= 1

    @property
    def count(self) -> int:
        return len(self._active)

    def requests(self) -> list[Exchange]:
        return list(self._active.values())

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
        self._feeds += 1
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
            exchange = active.get(id)
            if length >= VIEW_FROM and length * 4 >= end and kind == STDIN and exchange is not None:
                self._stdin(exchange, memoryview(data)[start:stop], moved)
                continue
            content = data[start:stop]
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
            self._have = have = end - pos
            if have >= VIEW_FROM and have * 4 >= end:
                self._parts = [memoryview(data)[pos:]]
            else:
                self._parts = [data[pos:]]
            self._need = need
        return moved

    def may_follow(self, exchange: Exchange) -> bool:
        # Without KEEP_CONN the connection ends with it. A Filter may want DATA first, behind STDIN.
        return self._multiplex and exchange.keep and exchange.data_ended

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
        active = self._active
        if active.get(exchange.id) is exchange:
            if len(active) == 1:
                active.clear()  # an idle connection keeps no table
            else:
                del active[exchange.id]
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
        id = data[2] << 8 | data[3]
        length = data[20] << 8 | data[21]
        # Byte by byte: compiled, a look at a byte costs far less than reading a structure.
        if (
            WHOLE_BEGIN + length + data[22] != end
            or not (0 < id < len(WHOLE_ENDS) and length)
            or data[0] != VERSION_1
            or data[1] != BEGIN_REQUEST
            or data[4]
            or data[5] != 8
            or data[6]
            or data[8]
            or data[9] != 1  # the Responder
            or data[16] != VERSION_1
            or data[17] != PARAMS
            or data[18] != data[2]
            or data[19] != data[3]
            or data[end:] != WHOLE_ENDS[id]
            or 0 < self._limits.params_size < length
        ):
            return None
        exchange = self._new(id, RESPONDER, data[10] & KEEP_CONN != 0)
        self._decode(exchange, data[WHOLE_BEGIN : WHOLE_BEGIN + length])
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
            self._decode(exchange, b"".join(exchange._params))
        else:
            exchange.params_ended = True
        exchange._params = []
        self._tell(exchange, moved)

    def _decode(self, exchange: FastCGIExchange, raw: bytes) -> None:
        """Take the whole of PARAMS."""
        exchange.raw = raw
        params, count = decode_params(raw)
        exchange.params = params
        exchange.params_ended = True
        if len(params) != count:
            exchange.repeated = True
        if 0 < self._limits.params < count:
            exchange.refused = LimitExceeded(
                "431 Request Header Fields Too Large",
                f"{count} parameters are more than {self._limits.params}",
            )
        length = params.get("CONTENT_LENGTH")
        if length:
            exchange.content_length = self._length(exchange, length)
        if exchange.role is Role.FILTER:
            self._length(exchange, params.get("FCGI_DATA_LENGTH", ""))

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

    def _length(self, exchange: FastCGIExchange, text: str) -> int:
        """Read CONTENT_LENGTH; "", "-1" and nonsense say nothing, STDIN's end does."""
        if not text.isdecimal():
            return -1
        limit = self._limits.body
        # A number that no disk holds is too large, whatever its value: int() of it takes long.
        if len(text) > 18 or (0 < limit < int(text)):
            if exchange.refused is None:
                exchange.refused = LimitExceeded(
                    "413 Content Too Large", f"a body of {text[:32]} bytes is more than {limit}"
                )
            return -1
        return int(text)

    def _stdin(self, exchange: FastCGIExchange, content: Buffer, moved: list[Exchange]) -> None:
        if not exchange.params_ended:
            raise ProtocolError("STDIN before the end of PARAMS")
        if exchange.stdin_ended:
            raise ProtocolError("STDIN after the end of STDIN")
        if not content:
            exchange.stdin_ended = True
        elif exchange.refused is None:
            exchange.body.append(content)
            self._received(exchange, len(content))
        else:
            return
        self._tell(exchange, moved)

    def _data(self, exchange: FastCGIExchange, content: bytes, moved: list[Exchange]) -> None:
        if not exchange.stdin_ended:
            raise ProtocolError("DATA before the end of STDIN")
        if exchange.data_ended:
            raise ProtocolError("DATA after the end of DATA")
        if not content:
            exchange.data_ended = True
        elif exchange.refused is None:
            exchange.data.append(content)
            self._received(exchange, len(content))
        else:
            return
        self._tell(exchange, moved)

    def _tell(self, exchange: FastCGIExchange, moved: list[Exchange]) -> None:
        """Put an exchange into `moved`, once; there may be thousands, so it is not looked for."""
        if exchange._told != self._feeds:
            exchange._told = self._feeds
            moved.append(exchange)

    def _received(self, exchange: FastCGIExchange, length: int) -> None:
        """Count a piece of the body, and refuse what is too long."""
        exchange.received += length
        exchange.body_size += length
        if 0 < self._limits.body < exchange.received:
            exchange.refused = LimitExceeded(
                "413 Content Too Large", f"the body is longer than {self._limits.body} bytes"
            )
            exchange.drop()

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
        elif not self._active or self._beside(id):
            self._new(id, role, keep)._params = []

    def _beside(self, id: int) -> bool:
        """May a request begin beside others? Refuses it if it may not."""
        if not self._multiplex:
            self._refuse(id, CANT_MPX_CONN)
            return False
        self.shared = self.shown = True
        # A connection that closes once the others have ended is none to begin on.
        if self.closing or len(self._active) >= self._max_requests:
            self._refuse(id, OVERLOADED)
            return False
        return True

    def _new(self, id: int, role: Role, keep: bool) -> FastCGIExchange:
        exchange = FastCGIExchange(id, role, keep)
        exchange._protocol = self
        self._active[id] = exchange
        return exchange

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
            # Whoever asks for this is about to have several requests here, and the first of them
            # is not to be treated as one that is alone.
            if self._multiplex and "FCGI_MPXS_CONNS" in asked:
                self.shared = self.shown = True
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
            self._tell(exchange, moved)
        elif kind == BEGIN_REQUEST:
            raise ProtocolError(f"BEGIN_REQUEST for request {exchange.id}, which is active")
        elif kind == DATA and exchange.role is Role.FILTER:
            self._data(exchange, content, moved)
        # Other types of record mean nothing to a request, and are ignored.
