"""AJP 1.3: its packets, and the codes in them, for both sides. No I/O.

The protocol is described by "The Apache Tomcat Connectors - AJP Protocol Reference: AJPv13". What
it leaves open is as Apache's mod_proxy_ajp does it: a string of length 0xFFFF is none and has no
NUL behind it, a piece of an answer has a NUL behind it, and one of no bytes flushes.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from fulgate.errors import ProtocolError
from fulgate.exchange import Headers

__all__ = [
    "AnswerHead",
    "Forward",
    "PacketReader",
    "decode_forward",
    "decode_head",
    "encode_forward",
    "encode_head",
    "packet",
]

# What a packet begins with, as it goes to the application, and as it comes from there.
TO_APPLICATION: Final = 0x1234
TO_SERVER: Final = 0x4142  # "AB"

HEADER_LEN: Final = 4
MAX_LENGTH: Final = 0xFFFF  # of what follows the header
PACKET_SIZE: Final = 8192  # with the header, unless both sides are told otherwise
CHUNK_OVERHEAD: Final = 8  # of a SEND_BODY_CHUNK: header, type, length, and NUL
BODY_OVERHEAD: Final = 6  # of a packet of body: header, and length

# to the application; a packet of body has no type
FORWARD_REQUEST: Final = 2
SHUTDOWN: Final = 7
PING: Final = 8
CPING: Final = 10

# to the web server
SEND_BODY_CHUNK: Final = 3
SEND_HEADERS: Final = 4
END_RESPONSE: Final = 5
GET_BODY_CHUNK: Final = 6
CPONG: Final = 9

NULL: Final = 0xFFFF  # the length of a string that is none
CODED: Final = 0xA000  # | the code, in place of a header's name
STORED: Final = 0xFF  # the method is in the attribute STORED_METHOD
ARE_DONE: Final = 0xFF  # the end of the attributes

# attributes
CONTEXT: Final = 1
SERVLET_PATH: Final = 2
REMOTE_USER: Final = 3
AUTH_TYPE: Final = 4
QUERY_STRING: Final = 5
ROUTE: Final = 6
SSL_CERT: Final = 7
SSL_CIPHER: Final = 8
SSL_SESSION: Final = 9
REQ_ATTRIBUTE: Final = 10
SSL_KEY_SIZE: Final = 11
SECRET: Final = 12
STORED_METHOD: Final = 13

# by their codes, from 1 on
METHODS: Final = (
    "OPTIONS", "GET", "HEAD", "POST", "PUT", "DELETE", "TRACE", "PROPFIND", "PROPPATCH", "MKCOL",
    "COPY", "MOVE", "LOCK", "UNLOCK", "ACL", "REPORT", "VERSION-CONTROL", "CHECKIN", "CHECKOUT",
    "UNCHECKOUT", "SEARCH", "MKWORKSPACE", "UPDATE", "LABEL", "MERGE", "BASELINE-CONTROL",
    "MKACTIVITY",
)  # fmt: skip
REQUEST_HEADERS: Final = (
    "accept", "accept-charset", "accept-encoding", "accept-language", "authorization",
    "connection", "content-type", "content-length", "cookie", "cookie2", "host", "pragma",
    "referer", "user-agent",
)  # fmt: skip
ANSWER_HEADERS: Final = (
    "Content-Type", "Content-Language", "Content-Length", "Date", "Last-Modified", "Location",
    "Set-Cookie", "Set-Cookie2", "Servlet-Engine", "Status", "WWW-Authenticate",
)  # fmt: skip

_answer_codes: dict[str, bytes] = {
    name.lower(): struct.pack(">H", CODED | code) for code, name in enumerate(ANSWER_HEADERS, 1)
}
_request_codes: dict[str, bytes] = {
    name: struct.pack(">H", CODED | code) for code, name in enumerate(REQUEST_HEADERS, 1)
}
_method_codes: dict[str, int] = {name: code for code, name in enumerate(METHODS, 1)}

_pack_short = struct.Struct(">H").pack
_pack_start = struct.Struct(">HHB").pack
read_start = struct.Struct(">HH").unpack_from
_is_method = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch  # RFC 9110, section 9.1

END_AND_REUSE: Final = b"AB\x00\x02\x05\x01"
END_AND_CLOSE: Final = b"AB\x00\x02\x05\x00"
FLUSH: Final = b"AB\x00\x04\x03\x00\x00\x00"
PONG: Final = b"AB\x00\x01\x09"


class Reader:
    """Reads one packet's content from its beginning. Each raises ProtocolError at its end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.text = data.decode("latin-1")  # the indices of bytes and text agree
        self.pos = 0
        self.end = len(data)

    def byte(self) -> int:
        pos = self.pos
        if pos >= self.end:
            raise ProtocolError("a packet is cut short")
        self.pos = pos + 1
        return self.data[pos]

    def short(self) -> int:
        pos = self.pos
        if pos + 2 > self.end:
            raise ProtocolError("a packet is cut short")
        self.pos = pos + 2
        return self.data[pos] << 8 | self.data[pos + 1]

    def string(self) -> str | None:
        """Give a string, or None for one that is none."""
        length = self.short()
        return None if length == NULL else self.rest(length)

    def rest(self, length: int) -> str:
        """Give a string whose length was read already, and take the NUL behind it."""
        start = self.pos
        stop = start + length
        if stop >= self.end:
            raise ProtocolError(f"a string of {length} bytes ends beyond its packet")
        if self.data[stop]:
            raise ProtocolError(f"a string of {length} bytes has no NUL behind it")
        self.pos = stop + 1
        return self.text[start:stop]

    def finish(self) -> None:
        if self.pos != self.end:
            raise ProtocolError(f"{self.end - self.pos} bytes follow the end of a packet's content")


class Forward:
    """What a FORWARD_REQUEST says. Texts are latin-1; None, where there is none."""

    def __init__(self) -> None:
        self.method = ""
        self.protocol: str | None = None
        self.uri = ""  # the path, percent-encoded, without a query
        self.remote_addr: str | None = None
        self.remote_host: str | None = None
        self.server_name: str | None = None
        self.server_port = 0
        self.is_ssl = False
        self.headers: Headers = []  # names as they came, coded ones in lower case
        self.attributes: dict[int, str] = {}  # by their codes, but for REQ_ATTRIBUTE
        self.named: Headers = []  # REQ_ATTRIBUTE: name and value


def decode_forward(data: bytes) -> Forward:
    """Read the content of a FORWARD_REQUEST, its type included. Raises ProtocolError."""
    reader = Reader(data)
    reader.byte()
    forward = Forward()
    code = reader.byte()
    forward.protocol = reader.string()
    uri = reader.string()
    if uri is None:
        raise ProtocolError("a request without a path")
    forward.uri = uri
    forward.remote_addr = reader.string()
    forward.remote_host = reader.string()
    forward.server_name = reader.string()
    forward.server_port = reader.short()
    forward.is_ssl = reader.byte() != 0
    forward.headers = _decode_headers(reader, REQUEST_HEADERS)
    _decode_attributes(reader, forward)
    if code == STORED:
        forward.method = forward.attributes.get(STORED_METHOD, "")
        if not _is_method(forward.method):
            raise ProtocolError("a request whose method is stored, and not there")
    elif 0 < code <= len(METHODS):
        forward.method = METHODS[code - 1]
    else:
        raise ProtocolError(f"{code} is no method")
    return forward


def _decode_headers(reader: Reader, known: tuple[str, ...]) -> Headers:
    headers: Headers = []
    for _ in range(reader.short()):
        length = reader.short()
        if length & 0xFF00 == CODED:
            code = length & 0xFF
            if not 0 < code <= len(known):
                raise ProtocolError(f"{code} is no header")
            name = known[code - 1]
        elif length == NULL:
            raise ProtocolError("a header without a name")
        else:
            name = reader.rest(length)
        headers.append((name, reader.string() or ""))
    return headers


def _decode_attributes(reader: Reader, forward: Forward) -> None:
    while True:
        code = reader.byte()
        if code == ARE_DONE:
            break
        if code == REQ_ATTRIBUTE:
            name = reader.string()
            if name is None:
                raise ProtocolError("an attribute without a name")
            forward.named.append((name, reader.string() or ""))
        elif CONTEXT <= code <= STORED_METHOD:
            if code in forward.attributes:
                raise ProtocolError(f"the attribute {code} came twice")
            value = str(reader.short()) if code == SSL_KEY_SIZE else reader.string()
            if value is not None:
                forward.attributes[code] = value
        else:
            raise ProtocolError(f"{code} is no attribute")
    reader.finish()


class PacketReader:
    """Cuts the bytes of one direction into packets, which begin with `magic`."""

    def __init__(self, magic: int) -> None:
        self.rest = b""  # the beginning of a packet that is not whole
        self._magic = magic

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes, and give the contents of the packets that end in them.

        Raises ProtocolError for what is no packet; those before it are lost.
        """
        data = self.rest + data if self.rest else data
        found: list[bytes] = []
        pos = 0
        while len(data) - pos >= HEADER_LEN:
            magic, length = read_start(data, pos)
            if magic != self._magic:
                raise ProtocolError(f"{magic:#06x} is not what a packet of AJP begins with")
            stop = pos + HEADER_LEN + length
            if stop > len(data):
                break
            found.append(data[pos + HEADER_LEN : stop])
            pos = stop
        self.rest = data[pos:]
        return found


def packet(kind: int, content: bytes, magic: int = TO_SERVER) -> bytes:
    """Give a packet of type `kind`, which counts to the at most 65,535 bytes of its content."""
    return b"".join((_pack_start(magic, len(content) + 1, kind), content))


def encode_string(text: str | None) -> bytes:
    """Raises UnicodeEncodeError for text outside latin-1, ValueError for what is too long."""
    if text is None:
        return b"\xff\xff"
    data = text.encode("latin-1")
    if len(data) >= NULL:
        raise ValueError(f"a string of {len(data)} bytes is too long for a packet")
    return b"".join((_pack_short(len(data)), data, b"\0"))


def encode_forward(forward: Forward) -> bytes:
    """Give a FORWARD_REQUEST; ValueError for one that no packet holds."""
    code = _method_codes.get(forward.method, STORED)
    parts = [
        bytes((code,)),
        encode_string(forward.protocol),
        encode_string(forward.uri),
        encode_string(forward.remote_addr),
        encode_string(forward.remote_host),
        encode_string(forward.server_name),
        struct.pack(">HBH", forward.server_port, forward.is_ssl, len(forward.headers)),
    ]
    for name, value in forward.headers:
        parts.append(_request_codes.get(name.lower()) or encode_string(name))
        parts.append(encode_string(value))
    attributes = dict(forward.attributes)
    if code == STORED:
        attributes[STORED_METHOD] = forward.method
    for code, text in attributes.items():
        parts.append(bytes((code,)))
        parts.append(_pack_short(int(text)) if code == SSL_KEY_SIZE else encode_string(text))
    for name, value in forward.named:
        parts += [bytes((REQ_ATTRIBUTE,)), encode_string(name), encode_string(value)]
    parts.append(bytes((ARE_DONE,)))
    content = b"".join(parts)
    if len(content) >= MAX_LENGTH:
        raise ValueError(f"a request of {len(content)} bytes is too long for a packet")
    return packet(FORWARD_REQUEST, content, TO_APPLICATION)


def encode_head(status: str, headers: Headers) -> bytes:
    """Give SEND_HEADERS for a status such as "200 OK". Raises as `encode_string`."""
    code, _, reason = status.partition(" ")
    parts = [_pack_short(int(code)), encode_string(reason), _pack_short(len(headers))]
    for name, value in headers:
        parts.append(_answer_codes.get(name.lower()) or encode_string(name))
        parts.append(encode_string(value))
    content = b"".join(parts)
    if len(content) >= MAX_LENGTH:
        raise ValueError(f"a head of {len(content)} bytes is too long for a packet")
    return packet(SEND_HEADERS, content)


class AnswerHead:
    """What SEND_HEADERS says: a status line such as "200 OK", and the headers."""

    def __init__(self, status: str, headers: Headers) -> None:
        self.status = status
        self.headers = headers


def decode_head(data: bytes) -> AnswerHead:
    """Read the content of SEND_HEADERS, its type included. Raises ProtocolError."""
    reader = Reader(data)
    reader.byte()
    status = f"{reader.short():03} {reader.string() or ''}"
    headers = _decode_headers(reader, ANSWER_HEADERS)
    reader.finish()
    return AnswerHead(status, headers)
