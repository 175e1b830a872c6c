"""FastCGI 1.0, the web server's side. No I/O.

Names are the specification's own; the sections in brackets are its sections.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from fulgate.errors import ProtocolError
from fulgate.exchange import Buffer, Role
from fulgate.protocols.fastcgi_records import (
    ABORT_REQUEST,
    BEGIN_REQUEST,
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
    encode_pair,
    record,
)

__all__ = ["FastCGIClient", "Params", "Request", "encode_pairs", "stream"]

Params = Iterable[tuple[str | bytes, str | bytes]]
"""Name-value pairs in their order; text is encoded as latin-1."""

MAX_REQUEST_ID: Final = 0xFFFF
MAX_PAIR_LENGTH: Final = 0x7FFFFFFF

# What an application may send of what has no end by itself, until it is taken for hostile.
MAX_STDERR: Final = 4194304  # bytes of one request
MAX_VALUES: Final = 1000  # of GET_VALUES_RESULT, and one record more
MAX_USELESS: Final = 1000  # records that move no request, since the last one began

# Below this, one joined buffer is cheaper than a list of buffers.
JOIN_BELOW: Final = 32768

_begin_request = struct.Struct(">HB5x").pack
_end_request = struct.Struct(">IB3x").unpack


def _octets(text: str | bytes) -> bytes:
    data = text.encode("latin-1") if isinstance(text, str) else text
    if len(data) > MAX_PAIR_LENGTH:
        raise ValueError("a name or a value of a pair is longer than 2**31 - 1 bytes")
    return data


def encode_pairs(pairs: Params) -> bytes:
    """Give name-value pairs [3.4] one after the other.

    Raises UnicodeEncodeError for text outside latin-1, ValueError for 2**31 bytes and more.
    """
    return b"".join([encode_pair(_octets(name), _octets(value)) for name, value in pairs])


def stream(kind: int, request_id: int, data: Buffer) -> list[Buffer]:
    """Give `data` as records of a stream [3.3], at most 65,535 bytes each; none for b"".

    An empty record would end the stream: `record(kind, request_id)` does that.
    """
    size = len(data)
    if size <= JOIN_BELOW:
        return [record(kind, request_id, data)] if size else []
    out: list[Buffer] = []
    view = memoryview(data)
    for pos in range(0, size, MAX_LENGTH):
        piece = view[pos : pos + MAX_LENGTH]
        # The header of a record is what `record` gives for no content, its length put in.
        head = bytearray(record(kind, request_id))
        head[4:6] = len(piece).to_bytes(2, "big")
        out.append(bytes(head))
        out.append(piece)
    return out


class Request:
    """One request that a web server makes, and what came back for it. No I/O.

    The methods that send return the bytes to put on the wire. Once the request has ended they
    return none: the application may answer, and end, before it has read everything [6.2].
    """

    def __init__(self, id: int, role: Role, keep: bool) -> None:
        self.id = id
        self.role = role
        self.keep = keep
        # what went
        self.stdin_ended = False
        self.data_ended = role is not Role.FILTER
        self.aborted = False
        # what came
        self.stdout: list[bytes] = []  # received and not yet taken
        self.stderr: list[bytes] = []  # the same
        self.received = 0  # bytes of STDOUT in all
        self.complained = 0  # bytes of STDERR in all
        self.stdout_ended = False  # by an empty record; some applications leave it out
        self.stderr_ended = False  # the same; most applications never use STDERR
        self.ended = False  # END_REQUEST came
        self.cut = False  # the connection ended before END_REQUEST came
        self.app_status = 0
        self.protocol_status = REQUEST_COMPLETE

    @property
    def whole(self) -> bool:
        """Did the application answer, and was the answer ended in order?"""
        return self.ended and self.protocol_status == REQUEST_COMPLETE and not self.aborted

    def take(self) -> bytes:
        """Take what has arrived of STDOUT; b"" when there is nothing at the moment."""
        parts, self.stdout = self.stdout, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def take_stderr(self) -> bytes:
        """Take what has arrived of STDERR; b"" when there is nothing at the moment."""
        parts, self.stderr = self.stderr, []
        return b"".join(parts)

    def send(self, data: Buffer) -> list[Buffer]:
        """Give a piece of STDIN; nothing for b""."""
        if self.stdin_ended:
            raise RuntimeError("STDIN of this request has ended already")
        if self.ended or self.aborted:
            return []
        return stream(STDIN, self.id, data)

    def end(self) -> list[Buffer]:
        """Give the end of STDIN."""
        if self.stdin_ended:
            raise RuntimeError("STDIN of this request has ended already")
        self.stdin_ended = True
        return [] if self.ended or self.aborted else [record(STDIN, self.id)]

    def send_data(self, data: Buffer) -> list[Buffer]:
        """Give a piece of FCGI_DATA, which a Filter gets after STDIN [6.4]; nothing for b""."""
        if self.data_ended:
            raise RuntimeError("DATA has ended, or the role has none")
        if self.ended or self.aborted:
            return []
        return stream(DATA, self.id, data)

    def end_data(self) -> list[Buffer]:
        """Give the end of FCGI_DATA."""
        if self.data_ended:
            raise RuntimeError("DATA has ended, or the role has none")
        self.data_ended = True
        return [] if self.ended or self.aborted else [record(DATA, self.id)]

    def abort(self) -> list[Buffer]:
        """Give ABORT_REQUEST [5.4]. The id stays in use until END_REQUEST comes."""
        if self.ended or self.aborted:
            return []
        self.aborted = True
        return [record(ABORT_REQUEST, self.id)]


class FastCGIClient:
    """One connection to an application, seen from the web server's side.

    `out` is what is to be sent after a `feed`, and `behind` how many bytes of a body wait until
    they are asked for: both are for protocols in which the application asks.
    """

    behind = 0

    def __init__(self) -> None:
        self.out: list[Buffer] = []
        self.values: list[tuple[str, str]] | None = (
            None  # of GET_VALUES_RESULT, since they were asked for
        )
        self.unknown_types: list[int] = []  # the types that UNKNOWN_TYPE named [4.2]
        self._active: dict[int, Request] = {}
        self._last_id = 0
        self._useless = 0  # records that moved nothing, since a request began
        # An incomplete record: its pieces, their length, and the length worth looking at it again.
        self._parts: list[bytes] = []
        self._have = 0
        self._need = 0

    @property
    def idle(self) -> bool:
        """Is there no request, and no part of a record, on this connection?"""
        return not self._active and not self._have

    def begin(
        self, params: Params, role: Role = Role.RESPONDER, keep: bool = True, id: int = 0
    ) -> tuple[Request, list[Buffer]]:
        """Begin a request; give it and the bytes of BEGIN_REQUEST and of all PARAMS.

        `keep` asks the application not to close the connection afterwards [5.1]. `id` 0 takes
        the next one that is free [3.3], not the one that was used last: a record that comes late
        is then an error, and not a part of another request's answer. Raises ValueError for an id
        that is in use or out of range, or for what `encode_pairs` does not take; RuntimeError
        when all ids are in use.
        """
        if id == 0:
            id = self._free_id()
        elif not 0 < id <= MAX_REQUEST_ID or id in self._active:
            raise ValueError(f"request id {id} is in use or out of range")
        head = record(BEGIN_REQUEST, id, _begin_request(role, KEEP_CONN if keep else 0))
        block = stream(PARAMS, id, encode_pairs(params))
        request = self._active[id] = Request(id, role, keep)
        self._last_id = id
        self._useless = 0
        out: list[Buffer] = [head, *block, record(PARAMS, id)]
        return request, [b"".join(out)] if len(block) == 1 else out

    def _free_id(self) -> int:
        if len(self._active) == MAX_REQUEST_ID:
            raise RuntimeError("all request ids of this connection are in use")
        id = self._last_id
        while True:
            id = id % MAX_REQUEST_ID + 1
            if id not in self._active:
                return id

    def get_values(
        self, names: Iterable[str] = ("FCGI_MAX_CONNS", "FCGI_MAX_REQS", "FCGI_MPXS_CONNS")
    ) -> list[Buffer]:
        """Give a GET_VALUES record that asks for `names` [4.1]; `values` is reset to None.

        Raises ValueError when the names do not fit in one record.
        """
        content = encode_pairs((name, "") for name in names)
        if len(content) > MAX_LENGTH:
            raise ValueError("the names do not fit in one record")
        self.values = None
        return [record(GET_VALUES, NULL_REQUEST_ID, content)]

    def feed(self, data: bytes) -> list[Request]:
        """Take received bytes and return the requests that these bytes MOVED.

        Moved: STDOUT or STDERR came or ended, or the request ended. Raises ProtocolError, and
        nothing else, whatever the bytes; then the connection is to be closed, and `eof` gives
        the requests that are cut by it. What came before the offence is in the requests.
        """
        self._parts.append(data)
        self._have += len(data)
        if self._have < self._need:
            return []
        data = b"".join(self._parts)
        moved: list[Request] = []
        pos = 0
        end = len(data)
        need = HEADER_LEN
        while end - pos >= HEADER_LEN:
            if data[pos] != VERSION_1:
                raise ProtocolError(f"version {data[pos]} is not FastCGI's")
            length = data[pos + 4] << 8 | data[pos + 5]
            need = HEADER_LEN + length + data[pos + 6]
            if end - pos < need:
                break
            start = pos + HEADER_LEN
            self._record(
                data[pos + 1],
                data[pos + 2] << 8 | data[pos + 3],
                data[start : start + length],
                moved,
            )
            pos += need
            need = HEADER_LEN
        self._parts = [data[pos:]] if pos < end else []
        self._have = end - pos
        self._need = need
        return moved

    def eof(self, reset: bool = False) -> list[Request]:
        """Take note that the connection ended; return the requests whose answers are cut.

        A `reset` says that it did not end in order, which makes no difference here.
        """
        cut = list(self._active.values())
        for request in cut:
            request.cut = True
        self._active.clear()
        self._parts = []
        self._have = 0
        return cut

    def _record(self, kind: int, id: int, content: bytes, moved: list[Request]) -> None:
        if id == NULL_REQUEST_ID:
            self._management(kind, content)
            self._count_useless()
            return
        request = self._active.get(id)
        if request is None:
            # With the ids reused, another request would take this for its own answer.
            raise ProtocolError(f"a record of type {kind} for request {id}, which is not active")
        if kind in (STDOUT, STDERR) and not content:
            self._count_useless()
        if kind == STDOUT:
            if content:
                if request.stdout_ended:
                    raise ProtocolError("STDOUT after the end of STDOUT")
                request.stdout.append(content)
                request.received += len(content)
            request.stdout_ended = not content
        elif kind == STDERR:
            if content:
                if request.stderr_ended:
                    raise ProtocolError("STDERR after the end of STDERR")
                request.complained += len(content)
                if request.complained > MAX_STDERR:
                    raise ProtocolError(f"more than {MAX_STDERR} bytes of STDERR")
                request.stderr.append(content)
            request.stderr_ended = not content
        elif kind == END_REQUEST:
            self._end(request, content)
        else:
            raise ProtocolError(f"a record of type {kind} is not an application's to send")
        if request not in moved:
            moved.append(request)

    def _count_useless(self) -> None:
        self._useless += 1
        if self._useless > MAX_USELESS:
            raise ProtocolError(f"more than {MAX_USELESS} records that say nothing")

    def _end(self, request: Request, content: bytes) -> None:
        if len(content) != 8:
            raise ProtocolError(f"END_REQUEST of {len(content)} bytes")
        app_status, protocol_status = _end_request(content)
        if protocol_status > UNKNOWN_ROLE:
            raise ProtocolError(f"END_REQUEST with protocolStatus {protocol_status}")
        request.app_status = app_status
        request.protocol_status = protocol_status
        request.ended = True
        del self._active[request.id]

    def _management(self, kind: int, content: bytes) -> None:
        if kind == GET_VALUES_RESULT:
            # Go sends an empty one after the one with the values.
            before = self.values or []
            if len(before) > MAX_VALUES:
                raise ProtocolError(f"more than {MAX_VALUES} values")
            self.values = [*before, *decode_pairs(content)]
        elif kind == UNKNOWN_TYPE:
            if len(content) != 8:
                raise ProtocolError(f"UNKNOWN_TYPE of {len(content)} bytes")
            self.unknown_types.append(content[0])
        else:
            raise ProtocolError(f"a management record of type {kind} is not an application's")
