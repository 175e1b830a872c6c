"""AJP 1.3 written and read slowly and plainly, as a web server does. No code of the package."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

METHODS = {"OPTIONS": 1, "GET": 2, "HEAD": 3, "POST": 4, "PUT": 5, "DELETE": 6, "MKACTIVITY": 27}
HEADERS = {
    "accept": 0xA001, "accept-charset": 0xA002, "accept-encoding": 0xA003,
    "accept-language": 0xA004, "authorization": 0xA005, "connection": 0xA006,
    "content-type": 0xA007, "content-length": 0xA008, "cookie": 0xA009, "cookie2": 0xA00A,
    "host": 0xA00B, "pragma": 0xA00C, "referer": 0xA00D, "user-agent": 0xA00E,
}  # fmt: skip
ANSWERED = [
    "Content-Type", "Content-Language", "Content-Length", "Date", "Last-Modified", "Location",
    "Set-Cookie", "Set-Cookie2", "Servlet-Engine", "Status", "WWW-Authenticate",
]  # fmt: skip
ATTRIBUTES = {
    "context": 1, "servlet_path": 2, "remote_user": 3, "auth_type": 4, "query_string": 5,
    "route": 6, "ssl_cert": 7, "ssl_cipher": 8, "ssl_session": 9, "secret": 12,
    "stored_method": 13,
}  # fmt: skip

SEND_BODY_CHUNK, SEND_HEADERS, END_RESPONSE, GET_BODY_CHUNK, CPONG = 3, 4, 5, 6, 9

Pairs = Iterable[tuple[str, str]]


class Broken(Exception):
    """The other side broke the rules."""


def need(rule: bool, why: str) -> None:
    if not rule:
        raise Broken(why)


def packet(content: bytes) -> bytes:
    return b"\x12\x34" + struct.pack(">H", len(content)) + content


def string(text: str | None) -> bytes:
    if text is None:
        return b"\xff\xff"
    data = text.encode("latin-1")
    return struct.pack(">H", len(data)) + data + b"\0"


def forward(
    method: str = "GET",
    uri: str | None = "/hello",
    headers: Pairs = (("host", "example.org"),),
    attributes: Iterable[tuple[str, str | None]] = (),
    named: Iterable[tuple[str, str]] = (),
    *,
    protocol: str | None = "HTTP/1.1",
    remote_addr: str | None = "192.0.2.7",
    remote_host: str | None = None,
    server_name: str | None = "example.org",
    server_port: int = 80,
    ssl: bool = False,
    key_size: int = 0,
    coded: bool = True,
) -> bytes:
    """A FORWARD_REQUEST."""
    headers, attributes = list(headers), list(attributes)
    code = METHODS.get(method, 0xFF)
    if code == 0xFF:
        attributes.append(("stored_method", method))
    out = bytes([2, code]) + string(protocol) + string(uri) + string(remote_addr)
    out += string(remote_host) + string(server_name) + struct.pack(">HB", server_port, ssl)
    out += struct.pack(">H", len(headers))
    for name, value in headers:
        known = HEADERS.get(name) if coded else None
        out += (struct.pack(">H", known) if known else string(name)) + string(value)
    for name, text in attributes:
        out += bytes([ATTRIBUTES[name]]) + string(text)
    if key_size:
        out += b"\x0b" + struct.pack(">H", key_size)
    for name, value in named:
        out += b"\x0a" + string(name) + string(value)
    return packet(out + b"\xff")


def post(length: int, **options: object) -> bytes:
    return forward("POST", headers=[("content-length", str(length))], **options)  # type: ignore[arg-type]


def body(data: bytes = b"") -> bytes:
    """A packet of body; without data the end of the body, as Apache has it."""
    return packet(struct.pack(">H", len(data)) + data)


CPING = packet(b"\x0a")


@dataclass
class Answer:
    """What came back for one request."""

    status: int = 0
    reason: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    pieces: list[bytes] = field(default_factory=list)  # an empty one is a flush
    asked: list[int] = field(default_factory=list)  # how many bytes, each time
    ended: bool = False
    reuse: bool = False

    def header(self, name: str) -> str | None:
        return next((v for n, v in self.headers if n.lower() == name.lower()), None)


class WebServer:
    """Reads what the application sends. `asked` is called for each GET_BODY_CHUNK."""

    def __init__(self, size: int = 8192, asked: Callable[[int], None] | None = None) -> None:
        self.size = size
        self.data = b""
        self.asked = asked
        self.answer = Answer()
        self.answers: list[Answer] = []
        self.pongs = 0

    def read(self, data: bytes) -> None:
        self.data += data
        while len(self.data) >= 4:
            need(self.data[:2] == b"AB", "not a packet of the application")
            (length,) = struct.unpack(">H", self.data[2:4])
            need(length + 4 <= self.size, f"a packet of {length + 4} bytes")
            if len(self.data) < 4 + length:
                return
            content = self.data[4 : 4 + length]
            self.data = self.data[4 + length :]
            self.message(content[0], content[1:])

    def message(self, kind: int, content: bytes) -> None:
        answer = self.answer
        if kind == CPONG:
            need(not content, "a CPONG with content")
            self.pongs += 1
        elif kind == GET_BODY_CHUNK:
            (size,) = struct.unpack(">H", content)
            answer.asked.append(size)
            if self.asked is not None:
                self.asked(size)
        elif kind == SEND_HEADERS:
            need(not answer.status, "two heads")
            self.head(content)
        elif kind == SEND_BODY_CHUNK:
            need(answer.status > 0, "a body without a head")
            (size,) = struct.unpack(">H", content[:2])
            need(len(content) == 2 + size + 1 and content[-1:] == b"\0", "a piece's length")
            answer.pieces.append(content[2:-1])
            answer.body += content[2:-1]
        elif kind == END_RESPONSE:
            need(answer.status > 0, "an end without a head")
            need(content in (b"\0", b"\1"), "an end that says neither")
            answer.ended = True
            answer.reuse = content == b"\1"
            self.answers.append(answer)
            self.answer = Answer()
        else:
            raise Broken(f"a packet of type {kind}")

    def head(self, content: bytes) -> None:
        answer = self.answer
        (answer.status,) = struct.unpack(">H", content[:2])
        answer.reason, content = self.string(content[2:])
        (count,) = struct.unpack(">H", content[:2])
        content = content[2:]
        for _ in range(count):
            if content[0] == 0xA0:
                name, content = ANSWERED[content[1] - 1], content[2:]
            else:
                name, content = self.string(content)
            value, content = self.string(content)
            answer.headers.append((name, value))
        need(not content, "something follows the head")

    @staticmethod
    def string(content: bytes) -> tuple[str, bytes]:
        (length,) = struct.unpack(">H", content[:2])
        need(len(content) > 2 + length and content[2 + length] == 0, "a string's length")
        return content[2 : 2 + length].decode("latin-1"), content[3 + length :]


# What an application reads


@dataclass
class Request:
    """A FORWARD_REQUEST, read from the description."""

    method: str
    fields: list[str | None]  # protocol, uri, remote_addr, remote_host, server_name
    port: int
    ssl: bool
    headers: list[tuple[str, str]]
    attributes: dict[int, str]
    named: list[tuple[str, str]]


def read_forward(content: bytes) -> Request:
    """Read a FORWARD_REQUEST's content, type included. Raises Broken."""
    rest = content[1:]

    def take(size: int) -> bytes:
        nonlocal rest
        need(len(rest) >= size, "cut short")
        taken, rest = rest[:size], rest[size:]
        return taken

    def short() -> int:
        return int.from_bytes(take(2), "big")

    def text(length: int | None = None) -> str | None:
        length = short() if length is None else length
        if length == 0xFFFF:
            return None
        data = take(length)
        need(take(1) == b"\0", "no NUL")
        return data.decode("latin-1")

    code = take(1)[0]
    fields = [text() for _ in range(5)]
    need(fields[1] is not None, "no path")
    port, ssl, headers = short(), take(1) != b"\0", []
    for _ in range(short()):
        length = short()
        if length >> 8 == 0xA0:
            names = [name for name, known in HEADERS.items() if known == length]
            need(len(names) == 1, "an unknown header")
            name: str | None = names[0]
        else:
            name = text(length)
        need(name is not None, "no name")
        headers.append((str(name), text() or ""))
    attributes: dict[int, str] = {}
    named = []
    while (kind := take(1)[0]) != 0xFF:
        if kind == 10:
            name = text()
            need(name is not None, "no name")
            named.append((str(name), text() or ""))
            continue
        need(1 <= kind <= 13 and kind not in attributes, "an unknown attribute, or a second one")
        value = str(short()) if kind == 11 else text()
        if value is not None:
            attributes[kind] = value
    need(not rest, "something follows")
    names = ["", *METHODS_IN_ORDER]
    if code == 0xFF:
        method = attributes.get(13, "")
        need(bool(method) and all(c.isascii() and (c.isalnum() or c in TOKEN) for c in method), "")
    else:
        need(0 < code < len(names), "no such method")
        method = names[code]
    return Request(method, fields, port, ssl, headers, attributes, named)


TOKEN = "!#$%&'*+-.^_`|~"
METHODS_IN_ORDER = [
    "OPTIONS", "GET", "HEAD", "POST", "PUT", "DELETE", "TRACE", "PROPFIND", "PROPPATCH", "MKCOL",
    "COPY", "MOVE", "LOCK", "UNLOCK", "ACL", "REPORT", "VERSION-CONTROL", "CHECKIN", "CHECKOUT",
    "UNCHECKOUT", "SEARCH", "MKWORKSPACE", "UPDATE", "LABEL", "MERGE", "BASELINE-CONTROL",
    "MKACTIVITY",
]  # fmt: skip
