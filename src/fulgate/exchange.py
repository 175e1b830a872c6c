"""One request and its answer: the noun that protocols, gateways and drivers share. No I/O.

A protocol makes exchanges out of bytes, a gateway has an application answer them, a driver
carries the bytes. They never import one another; they meet here.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final

from fulgate.errors import Aborted, LimitExceeded

try:
    from mypy_extensions import mypyc_attr
except ImportError:
    from fulgate.attributes import mypyc_attr

__all__ = [
    "JOIN_BELOW",
    "Buffer",
    "Carrier",
    "Exchange",
    "Headers",
    "Limits",
    "Reply",
    "Role",
    "ServerProtocol",
    "Store",
    "SyncGateway",
    "encode_head",
]

Buffer = bytes | memoryview
Headers = list[tuple[str, str]]


class Role(enum.IntEnum):
    """What the web server wants of the application (FastCGI 1.0, section 6)."""

    RESPONDER = 1
    AUTHORIZER = 2
    FILTER = 3


RESPONDER: Final = Role.RESPONDER
FILTER: Final = Role.FILTER

# Below this, one joined buffer is cheaper than a list of buffers.
JOIN_BELOW: Final = 32768


class Limits:
    """What a protocol accepts of one request; 0 means no limit.

    `params_size` and `body` are in bytes, `params` is a count of name-value pairs.
    """

    def __init__(self, params_size: int = 262144, params: int = 1000, body: int = 1 << 30) -> None:
        self.params_size = params_size
        self.params = params
        self.body = body


def encode_head(status: str, headers: Headers) -> bytes:
    """Give the head of a CGI answer (RFC 3875, section 6.2): `Status: ...`, headers, empty line.

    `status` is like "200 OK"; names and values are latin-1 text without CR, LF or NUL, which the
    gateway has checked. Raises UnicodeEncodeError for text outside latin-1.
    """
    parts = ["Status: ", status]
    for name, value in headers:
        parts.append("\r\n")
        parts.append(name)
        parts.append(": ")
        parts.append(value)
    parts.append("\r\n\r\n")
    return "".join(parts).encode("latin-1")


class Store:
    """Where a driver keeps what came of a body, and has no place in memory."""

    def take(self, data: bool) -> bytes:
        """Take what came first of STDIN, or of DATA; b"" when there is nothing."""
        raise NotImplementedError

    def has(self, data: bool) -> bool:
        """Is there something of STDIN, or of DATA?"""
        raise NotImplementedError


class Exchange:
    """One request, and its answer put into wire form. No I/O, no callbacks.

    A protocol subclasses it: what is read (`params`, `body`, ...) is filled in by the protocol's
    `feed`, and the methods that answer return the bytes to put on the wire. All calls for the
    exchanges of one connection are made under that connection's lock.
    """

    # what came
    raw: bytes = b""  # the PARAMS block as it came; `pairs` reads it
    repeated = False  # a name came more than once: `pairs` has them all
    content_length = -1  # what CONTENT_LENGTH says; -1 when it says nothing usable
    body_size = 0  # bytes waiting in `body`, and in `data`
    store: Store | None = None  # what came before what waits
    received = 0  # bytes of STDIN in all, and of DATA
    params_ended = False
    stdin_ended = False
    reading_data = False  # a Filter's application has had all of STDIN, and wants DATA
    aborted = False  # given up by the peer, or detached after a deadline
    refused: LimitExceeded | None = None  # answer with this instead of the application
    # what goes
    status = ""  # the staged status line, e.g. "200 OK"
    head_sent = False
    ended = False  # `finish` or `fail` was called
    broken = False  # `fail` was called
    sent = 0  # bytes of the answer's body
    frame_size = 0  # the most that `frame` takes; 0 where the protocol has no such thing
    # for the driver and the log
    leaving = False  # the application is done with it, and a file goes on to be sent
    began = 0.0  # time.monotonic() when its PARAMS had ended
    error = ""  # why the application failed: an exception's type, or "request_timeout"
    noted = False  # that is known to the status
    after: list[Callable[[], object]] | None = None  # run once the client has it all

    def __init__(self, id: int, role: Role, keep: bool) -> None:
        self.id = id
        self.role = role
        self.keep = keep  # may the connection live on after the answer?
        self.params: dict[str, Any] = {}  # CGI variables, latin-1; becomes the WSGI environ
        self.body: list[Buffer] = []  # STDIN, received and not yet taken
        self.data: list[bytes] = []  # FCGI_DATA, the same
        self.data_ended = role is not FILTER  # others have none
        self.headers: Headers = []

    @property
    def complete(self) -> bool:
        """Has all arrived that the role needs before, at the latest, the application starts?"""
        if not self.params_ended:
            return False
        if self.role is RESPONDER:
            return self.stdin_ended
        if self.role is Role.AUTHORIZER:
            return True
        return self.input_ended

    @property
    def input_ended(self) -> bool:
        """Have all of its streams ended?"""
        return self.stdin_ended and self.data_ended

    @property
    def stream_ended(self) -> bool:
        """Has the stream ended that `take` takes from?"""
        return self.data_ended if self.reading_data else self.stdin_ended

    def pairs(self) -> list[tuple[str, str]]:
        """Give the parameters in the order in which they came, repeated names included."""
        raise NotImplementedError

    def take(self) -> bytes:
        """Take what has arrived of the body; b"" when there is nothing at the moment.

        Of a Filter's that is STDIN, and DATA from the moment on at which `reading_data` is set.
        """
        store = self.store
        if store is not None and store.has(self.reading_data):
            return store.take(self.reading_data)
        if not self.body_size:
            return b""
        if self.data:
            return self._take_one()
        parts = self.body
        first = parts[0]
        data = first if len(parts) == 1 and isinstance(first, bytes) else b"".join(parts)
        self.body = []
        self.body_size = 0
        return data

    def _take_one(self) -> bytes:
        """Take from the one stream, while there may be something of the other, too."""
        if self.reading_data:
            data = b"".join(self.data)
            self.data = []
        else:
            data = b"".join(self.body)
            self.body = []
        self.body_size -= len(data)
        return data

    @property
    def stored(self) -> bool:
        """Is there more to take of this stream, from where a driver keeps it?"""
        return self.store is not None and self.store.has(self.reading_data)

    def drop(self) -> None:
        """Forget what has arrived and was not taken."""
        self.body = []
        self.data = []
        self.body_size = 0

    def start(self, status: str, headers: Headers) -> None:
        """Stage the head; nothing leaves yet. May be repeated until something was sent."""
        if self.head_sent:
            raise RuntimeError("the head of this answer was sent already")
        self.status = status
        self.headers = headers

    def head(self) -> bytes:
        """Give the staged head in wire form: as CGI has it, where a protocol has no other."""
        return encode_head(self.status, self.headers)

    def take_head(self) -> bytes:
        """Give the head, when it was not sent before; else b"".

        Raises Aborted, and RuntimeError when the answer was not started, or has ended.
        """
        if self.aborted:
            raise Aborted("the request was given up by the web server")
        if self.ended:
            raise RuntimeError("this answer has ended already")
        if self.head_sent:
            return b""
        if not self.status:
            raise RuntimeError("the answer was not started")
        head = self.head()
        self.head_sent = True
        return head

    def send(self, data: Buffer) -> list[Buffer]:
        """Give the wire form of a piece of the body; the first call carries the head.

        b"" sends the head alone, if it was not sent before.
        """
        raise NotImplementedError

    def finish(self, data: Buffer = b"", app_status: int = 0) -> list[Buffer]:
        """Give head (if not sent before) + data + end of streams + end of the request."""
        raise NotImplementedError

    def frame(self, size: int) -> Buffer:
        """Give what goes before `size` bytes of the body that the driver sends by itself.

        They may come from a file, and are at most `frame_size`. The first call carries the head.
        """
        raise NotImplementedError

    def fail(self) -> list[Buffer]:
        """Give up an answer that has begun. The peer must not take it for a whole one.

        Web servers take END_REQUEST with any appStatus for a complete answer; only a connection
        that closes without it reaches the client as an error. So nothing of the answer is written
        any more and `keep` turns false, unless the connection carries other requests too.
        """
        raise NotImplementedError

    def want(self, n: int) -> list[Buffer]:
        """Ask the peer for `n` more bytes of body, where the protocol is one that must be asked."""
        return []

    def log(self, text: str) -> list[Buffer]:
        """Give the wire form of a line for the web server's error log (FCGI_STDERR)."""
        return []

    def refuse(
        self, status: str, headers: Headers | None = None, app_status: int = 0
    ) -> list[Buffer]:
        """Give a whole small answer of the server's own, such as "413 Content Too Large"."""
        text = (status + "\n").encode("latin-1")
        self.start(
            status,
            [
                ("Content-Type", "text/plain; charset=utf-8"),
                ("Content-Length", str(len(text))),
                *(headers or []),
            ],
        )
        body = b"" if self.params.get("REQUEST_METHOD") == "HEAD" else text
        return self.finish(body, app_status)


class Reply:
    """A whole answer of the server's own: a status line, a content type, and a body."""

    def __init__(self, status: str, type: str, body: bytes) -> None:
        self.status = status
        self.type = type
        self.body = body


class ServerProtocol:
    """One connection, as an application server's protocol sees it. No I/O.

    `name` is what stands before the "+" of endpoints.
    """

    name = "fastcgi"
    out: list[Buffer]  # what the protocol owes by itself: management records, refusals, ends
    closing: bool  # close the connection once `out` and all answers have left
    # Close it by a reset, where there is such: its mere end would pass for that of a broken answer.
    reset = False
    shared = False  # several requests are, have been or may soon be on it at once
    shown = False  # the peer has shown that: by a request beside another one, or by a question

    def feed(self, data: bytes) -> list[Exchange]:
        """Take received bytes and return the exchanges that these bytes MOVED.

        Moved: PARAMS ended, some body came, a stream ended, it was aborted or is refused.
        Raises ProtocolError or LimitExceeded, and nothing else, whatever the bytes; then the
        connection is to be closed, and `eof` gives the exchanges that this aborts.
        """
        raise NotImplementedError

    def may_follow(self, exchange: Exchange) -> bool:
        """May another request come behind this one's body, before it has its answer?"""
        return False

    def eof(self) -> list[Exchange]:
        """Take note that the peer is gone; return the exchanges that are aborted by it."""
        raise NotImplementedError

    def done(self, exchange: Exchange) -> None:
        """Take note that the exchange's answer has ended; its id may be used again."""
        raise NotImplementedError

    @property
    def count(self) -> int:
        """How many requests have begun, and not ended?"""
        raise NotImplementedError

    def requests(self) -> list[Exchange]:
        """Give those requests, also the ones whose PARAMS have not ended."""
        raise NotImplementedError

    @property
    def idle(self) -> bool:
        """Is there no request, not even a part of one, on this connection?"""
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class Carrier:
    """What a driver offers to a gateway that answers an exchange in a thread of its own.

    Each call may block, and raises Aborted when the request was given up meanwhile.
    """

    sends_files = False  # has it `finish_file`?

    def receive(self, exchange: Exchange) -> bytes:
        """Wait for the next piece of the body and take it; b"" at its end."""
        raise NotImplementedError

    def send(self, exchange: Exchange, data: Buffer) -> None:
        """Send a piece of the answer; b"" sends the staged head alone."""
        raise NotImplementedError

    def finish(self, exchange: Exchange, data: Buffer = b"", app_status: int = 0) -> None:
        """Send the last piece of the answer, and its end."""
        raise NotImplementedError

    def finish_file(self, exchange: Exchange, fd: int, offset: int, size: int) -> None:
        """Send `size` bytes, above 0, of a regular file from `offset` on, and the answer's end.

        The descriptor is the carrier's from now on, whatever happens. The file may still be on its
        way when this returns; when it turns out to be too short, the answer breaks.
        """
        raise NotImplementedError

    def fail(self, exchange: Exchange) -> None:
        """Break an answer that has begun, so that the client sees an error."""
        raise NotImplementedError

    def log(self, exchange: Exchange, text: str) -> None:
        """Send a line for the web server's error log, where the protocol has such."""
        raise NotImplementedError

    def look(self, exchange: Exchange) -> None:
        """See whether the peer has given the request up, where nobody else sees to that."""


SyncGateway = Callable[[Exchange, Carrier], None]
