"""AJP 1.3, the web server's side. No I/O."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

from fulgate.errors import ProtocolError
from fulgate.exchange import Buffer, Role, encode_head
from fulgate.protocols.ajp_packets import (
    AUTH_TYPE,
    BODY_OVERHEAD,
    CONTEXT,
    CPING,
    CPONG,
    END_RESPONSE,
    GET_BODY_CHUNK,
    PACKET_SIZE,
    QUERY_STRING,
    REMOTE_USER,
    ROUTE,
    SECRET,
    SEND_BODY_CHUNK,
    SEND_HEADERS,
    SERVLET_PATH,
    SSL_CERT,
    SSL_CIPHER,
    SSL_KEY_SIZE,
    SSL_SESSION,
    TO_APPLICATION,
    TO_SERVER,
    Forward,
    PacketReader,
    decode_head,
    encode_forward,
    packet,
)
from fulgate.protocols.fastcgi_client import FastCGIClient, Params, Request

__all__ = ["AJPClient", "AJPRequest"]

# What has an attribute of its own.
ATTRIBUTES: Final = {
    "REMOTE_USER": REMOTE_USER,
    "AUTH_TYPE": AUTH_TYPE,
    "SSL_CLIENT_CERT": SSL_CERT,
    "SSL_CIPHER": SSL_CIPHER,
    "SSL_SESSION_ID": SSL_SESSION,
    "SSL_CIPHER_USEKEYSIZE": SSL_KEY_SIZE,
    "AJP_CONTEXT": CONTEXT,
    "AJP_SERVLET_PATH": SERVLET_PATH,
    "AJP_JVM_ROUTE": ROUTE,
    "AJP_SECRET": SECRET,
}
NAMED: Final = {
    "REMOTE_PORT": "AJP_REMOTE_PORT",
    "SERVER_ADDR": "AJP_LOCAL_ADDR",
    "SSL_PROTOCOL": "AJP_SSL_PROTOCOL",
}

MAX_USELESS: Final = 1000  # packets of an answer that say nothing
MAX_ENDS: Final = 16  # times that an application is told that there is no more body

_pack_body = struct.Struct(">HHH").pack
_read_short = struct.Struct(">H").unpack_from


def forward_of(params: Params) -> Forward:
    """Give the request that CGI variables describe: what `fulgate.protocols.ajp` makes of it.

    The path is that of REQUEST_URI, and AJP_SECRET is the secret. Variables that AJP has no place
    for are left out.
    """
    given = {_text(name): _text(value) for name, value in params}
    forward = Forward()
    forward.method = given.get("REQUEST_METHOD", "GET")
    forward.protocol = given.get("SERVER_PROTOCOL", "HTTP/1.1")
    path = given.get("SCRIPT_NAME", "") + given.get("PATH_INFO", "")
    forward.uri = given.get("REQUEST_URI", quote(path.encode("latin-1"))).partition("?")[0]
    forward.remote_addr = given.get("REMOTE_ADDR")
    forward.remote_host = given.get("REMOTE_HOST")
    forward.server_name = given.get("SERVER_NAME")
    port = given.get("SERVER_PORT", "")
    forward.server_port = int(port) & 0xFFFF if port.isdecimal() else 80
    forward.is_ssl = given.get("HTTPS", "").lower() in ("on", "1")
    if given.get("QUERY_STRING"):
        forward.attributes[QUERY_STRING] = given["QUERY_STRING"]
    for name, value in given.items():
        if name.startswith("HTTP_"):
            forward.headers.append((name[5:].lower().replace("_", "-"), value))
        elif name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            if value:
                forward.headers.append((name.lower().replace("_", "-"), value))
        elif name in ATTRIBUTES:
            forward.attributes[ATTRIBUTES[name]] = value
        elif name in NAMED:
            forward.named.append((NAMED[name], value))
        elif name.startswith("AJP_"):
            forward.named.append((name[4:], value))
    return forward


def _text(text: str | bytes) -> str:
    return text.decode("latin-1") if isinstance(text, bytes) else text


class AJPRequest(Request):
    """A request over AJP. Its body leaves piece by piece, when the application asks for it.

    What `send` was given is kept until then; `pending` is how many bytes that are.
    """

    pending = 0

    def __init__(self, length: int, most: int) -> None:
        super().__init__(1, Role.RESPONDER, keep=True)
        self._unsent: list[Buffer] = []
        self._left = length  # of the body, for `send` to give
        self._most = most  # bytes in a packet
        self._asked = most if length else 0  # the first packet goes without being asked for
        self._ends = 0  # how often the application was told that there is no more

    @property
    def owes(self) -> bool:
        """Is the application waiting for a packet of body?"""
        return self._asked > 0

    def send(self, data: Buffer) -> list[Buffer]:
        """Give what may leave of the body, now that `data` is there.

        Raises ValueError for more of it than CONTENT_LENGTH says.
        """
        if self.stdin_ended:
            raise RuntimeError("the body of this request has ended already")
        size = len(data)
        if size > self._left:
            raise ValueError("over AJP a body has as many bytes as CONTENT_LENGTH says")
        self._left -= size
        if size and not self.ended:
            self._unsent.append(data)
            self.pending += size
        return self.some()

    def end(self) -> list[Buffer]:
        if self.stdin_ended:
            raise RuntimeError("the body of this request has ended already")
        self.stdin_ended = True
        return self.some()

    def ask(self, size: int) -> list[Buffer]:
        """The application asks for up to `size` bytes.

        Raises ProtocolError where it asks again and again for what has ended.
        """
        if self._ends > MAX_ENDS:
            raise ProtocolError("the application asks for more body than there is")
        self._asked = min(size, self._most) or self._most
        return self.some()

    def some(self) -> list[Buffer]:
        """Give a packet of body, if one is asked for and may leave."""
        if self.ended or self.aborted or not self._asked:
            return []
        if not self.pending and not self.stdin_ended:
            return []
        size = min(self._asked, self.pending)
        data = b"".join(self._unsent)
        self._unsent = [data[size:]] if size < len(data) else []
        self.pending -= size
        self._asked = 0
        self._ends += not size
        return [b"".join((_pack_body(TO_APPLICATION, size + 2, size), data[:size]))]

    def abort(self) -> list[Buffer]:
        """Give up: AJP has no word for it, and so the connection is to be closed."""
        self.aborted = self.aborted or not self.ended
        return []


class AJPClient(FastCGIClient):
    """One connection to an application, with the interface of FastCGI's."""

    def __init__(self, packet_size: int = PACKET_SIZE) -> None:
        super().__init__()
        self.pongs = 0
        self._pings = 0
        self._useless = 0  # packets that say nothing, since a request began
        self._size = packet_size
        self._request: AJPRequest | None = None
        self._reuse = True
        self._reader = PacketReader(TO_SERVER)

    @property
    def behind(self) -> int:  # type: ignore[override]  # it is computed here
        request = self._request
        return request.pending if request is not None else 0

    @property
    def idle(self) -> bool:
        """Is there no request, and no part of a packet, and may there be another request?"""
        return self._reuse and self._request is None and not self._reader.rest

    def begin(
        self, params: Params, role: Role = Role.RESPONDER, keep: bool = True, id: int = 0
    ) -> tuple[Request, list[Buffer]]:
        """Begin a request; give it, and the bytes to send. `keep` and `id` mean nothing to AJP.

        Raises RuntimeError while another one is on the connection, ValueError for a request that
        no packet holds, or for another role than the responder's.
        """
        if self._request is not None:
            raise RuntimeError("a connection of AJP carries one request at a time")
        if role is not Role.RESPONDER:
            raise ValueError("AJP has no other role than the responder's")
        forward = forward_of(params)
        length = dict(forward.headers).get("content-length", "")
        data = encode_forward(forward)
        if len(data) > self._size:
            raise ValueError(f"a request of {len(data)} bytes; AJP packets have {self._size}")
        request = AJPRequest(int(length) if length.isdecimal() else 0, self._size - BODY_OVERHEAD)
        self._request = request
        self._useless = 0
        return request, [data]

    def get_values(self, names: Iterable[str] = ()) -> list[Buffer]:
        """Raise ValueError: there is no such thing."""
        raise ValueError("AJP has no GET_VALUES")

    def ping(self) -> list[Buffer]:
        """Give a CPING; `pongs` counts the answers."""
        self._pings += 1
        return [packet(CPING, b"", TO_APPLICATION)]

    def feed(self, data: bytes) -> list[Request]:
        """Take received bytes and return the requests that these bytes MOVED.

        Raises ProtocolError, and nothing else, whatever the bytes; then the connection is to be
        closed, and `eof` gives the requests that are cut by it.
        """
        moved: list[Request] = []
        for content in self._reader.feed(data):
            self._packet(content, moved)
        return moved

    def eof(self, reset: bool = False) -> list[Request]:
        """Take note that the connection ended; return the requests whose answers are cut."""
        cut: list[Request] = [self._request] if self._request is not None else []
        for request in cut:
            request.cut = True
        self._request = None
        self._reader.rest = b""
        return cut

    def _packet(self, content: bytes, moved: list[Request]) -> None:
        if not content:
            raise ProtocolError("an empty packet")
        kind = content[0]
        if kind == CPONG and len(content) == 1:
            self.pongs += 1
            if self.pongs > self._pings:
                raise ProtocolError("a CPONG that nobody asked for")
            return
        request = self._request
        if request is None:
            raise ProtocolError(f"a packet of type {kind}, and nothing was asked for")
        if kind == SEND_HEADERS:
            if request.received:
                raise ProtocolError("the answer has two heads")
            self._put(request, _head(content))
        elif kind in (SEND_BODY_CHUNK, END_RESPONSE) and not request.received:
            raise ProtocolError("the answer has no head")
        elif kind == SEND_BODY_CHUNK:
            self._put(request, piece := _piece(content))
            if not piece:  # "flush"
                self._useless += 1
                if self._useless > MAX_USELESS:
                    raise ProtocolError(f"more than {MAX_USELESS} packets that say nothing")
        elif kind == GET_BODY_CHUNK and len(content) == 3:
            if request.owes:
                raise ProtocolError("body was asked for before the last of it had come")
            self.out += request.ask(_read_short(content, 1)[0])
        elif kind == END_RESPONSE and len(content) == 2:
            request.ended = request.stdout_ended = True
            self._reuse = content[1] == 1 and not request.owes
            request.keep = self._reuse
            self._request = None
        else:
            raise ProtocolError(f"a packet of type {kind} and {len(content)} bytes")
        if request not in moved:
            moved.append(request)

    def _put(self, request: AJPRequest, data: bytes) -> None:
        if data:
            request.stdout.append(data)
        request.received += len(data)


def _head(content: bytes) -> bytes:
    """Give a head as CGI has it."""
    head = decode_head(content)
    for text in (head.status, *(part for pair in head.headers for part in pair)):
        if "\r" in text or "\n" in text:
            raise ProtocolError("the answer's head has a line's end in it")
    if any(":" in name for name, _ in head.headers):  # else its rest would be the value
        raise ProtocolError("the answer's head has a colon in a name")
    return encode_head(head.status, head.headers)


def _piece(content: bytes) -> bytes:
    if len(content) < 4 or _read_short(content, 1)[0] != len(content) - 4:
        raise ProtocolError(f"a piece of {len(content)} bytes has another length in it")
    return content[3:-1]
