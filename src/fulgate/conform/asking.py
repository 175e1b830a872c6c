"""One connection to the server that is checked, in single records: right or wrong, as told."""

from __future__ import annotations

import socket
import time
from collections import defaultdict
from collections.abc import Callable
from types import TracebackType
from typing import Final

from fulgate.client.records import Describer, Record, RecordReader
from fulgate.conform.statements import Failed
from fulgate.conform.target import HELLO, Target
from fulgate.errors import BindError, ConfigError, ProtocolError
from fulgate.protocols.fastcgi_records import (
    END_REQUEST,
    GET_VALUES,
    NULL_REQUEST_ID,
    STDERR,
    STDOUT,
    decode_pairs,
    encode_pair,
    record,
)

__all__ = ["Asking", "Reply", "expect_body", "says_hello"]

SHOWN: Final = 4  # records that a message tells of
CHUNK: Final = 65536


class Reply:
    """What has come for one request id."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def _stream(self, kind: int) -> bytes:
        return b"".join([one.content for one in self.records if one.kind == kind])

    @property
    def stdout(self) -> bytes:
        return self._stream(STDOUT)

    @property
    def stderr(self) -> bytes:
        return self._stream(STDERR)

    @property
    def ended(self) -> bool:
        """Has END_REQUEST come?"""
        return any(one.kind == END_REQUEST for one in self.records)

    @property
    def app_status(self) -> int:
        return int.from_bytes(self._end[:4], "big")

    @property
    def protocol_status(self) -> int:
        return self._end[4]

    @property
    def _end(self) -> bytes:
        content = next(one.content for one in self.records if one.kind == END_REQUEST)
        if len(content) != 8:
            raise Failed(f"END_REQUEST has {len(content)} bytes")
        return content

    @property
    def head(self) -> list[bytes]:
        """The lines of the answer's head."""
        return _split(self.stdout)[0]

    @property
    def body(self) -> bytes:
        return _split(self.stdout)[1]

    @property
    def status(self) -> int:
        """The status of the answer: 200 where its head has none, 0 where it has no head."""
        for line in self.head:
            name, _, value = line.partition(b":")
            if name.lower() == b"status":
                return int(value[:5]) if value[:5].strip().isdigit() else 0
            if line.startswith(b"HTTP/1."):
                return int(line[9:12]) if line[9:12].isdigit() else 0
        return 200 if self.head else 0

    def header(self, wanted: bytes) -> bytes | None:
        """Give the value of a header, or None."""
        for line in self.head:
            name, colon, value = line.partition(b":")
            if colon and name.lower() == wanted:
                return value.strip()
        return None


def _split(stdout: bytes) -> tuple[list[bytes], bytes]:
    lines: list[bytes] = []
    rest = stdout
    while b"\n" in rest:
        line, _, rest = rest.partition(b"\n")
        line = line.removesuffix(b"\r")
        if not line:
            return lines, rest
        lines.append(line)
    return [], b""


class Asking:
    """A connection. Every wait ends after the target's timeout, and then raises Failed.

    `address` is instead of the target's endpoint; `source` is the address to connect
    from. Raises Failed when there is no connection.
    """

    def __init__(
        self, target: Target, address: tuple[str, int] | str = "", source: str = ""
    ) -> None:
        self.timeout = target.timeout
        self.closed = False  # the server has closed it
        self.order: list[Record] = []  # all that came
        self.management: list[Record] = []
        self._replies: dict[int, Reply] = defaultdict(Reply)
        self._reader = RecordReader()
        try:
            self.socket = _connect(target, address, source)
        except (OSError, BindError, ConfigError) as error:
            raise Failed(f"cannot connect: {_reason(error)}") from None

    def __enter__(self) -> Asking:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        """Send; what cannot be sent because the server has closed is dropped.

        What comes meanwhile is received, so that neither side waits for the other for ever.
        """
        data = memoryview(b"".join(parts))
        until = time.monotonic() + self.timeout
        while data and not self.closed:
            if time.monotonic() > until:
                raise Failed(f"it took nothing for {self.timeout:g} s; {self.shown()}")
            self.socket.settimeout(min(self.timeout, 0.1))
            try:
                data = data[self.socket.send(data) :]
                until = time.monotonic() + self.timeout
            except TimeoutError:
                self._receive(0.001)
            except OSError:
                while self._receive(self.timeout) and not self.closed:
                    pass  # what it said before it closed
                self.closed = True

    def reply(self, id: int = 1) -> Reply:
        """Give what has come so far for a request."""
        return self._replies[id]

    def answer(self, id: int = 1) -> Reply:
        """Wait for the end of an answer."""
        reply = self._replies[id]
        if not self.wait(lambda: reply.ended):
            raise Failed(self._instead("END_REQUEST"))
        return reply

    def management_record(self) -> Record:
        """Wait for the next management record, and take it."""
        if not self.wait(lambda: bool(self.management)):
            raise Failed(self._instead("management record"))
        return self.management.pop(0)

    def values(self, *names: bytes) -> list[tuple[str, str]] | None:
        """Ask for values (4.1), and give what is told; None when that is not answered."""
        self.send(record(GET_VALUES, NULL_REQUEST_ID, b"".join(encode_pair(n, b"") for n in names)))
        try:
            return decode_pairs(self.management_record().content)
        except ProtocolError as error:
            raise Failed(f"GET_VALUES_RESULT is malformed: {error}") from None
        except Failed:
            return None

    def expect_end(self) -> None:
        """Wait for the server to close the connection."""
        if not self.wait(lambda: self.closed):
            raise Failed(f"it was not closed within {self.timeout:g} s; {self.shown()}")

    def wait(self, holds: Callable[[], bool], timeout: float = 0.0) -> bool:
        """Receive until something holds; false when it does not at the end, or in time."""
        until = time.monotonic() + (timeout or self.timeout)
        while not holds():
            left = until - time.monotonic()
            if self.closed or left <= 0:
                return False
            self._receive(left)
        return True

    def receive(self) -> None:
        """Take what is there, without waiting for it."""
        while not self.closed and self._receive(0):
            pass

    def _receive(self, timeout: float) -> bool:
        self.socket.settimeout(timeout)
        try:
            data = self.socket.recv(CHUNK)
        except (TimeoutError, BlockingIOError):
            return False
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return True
        try:
            found = self._reader.feed(data)
        except ProtocolError as error:
            raise Failed(f"what it sent is {error}") from None
        for one in found:
            self.order.append(one)
            if one.id == NULL_REQUEST_ID:
                self.management.append(one)
            else:
                self._replies[one.id].records.append(one)
        return True

    def _instead(self, wanted: str) -> str:
        if self.closed:
            return f"it closed without {wanted}; {self.shown()}"
        return f"no {wanted} within {self.timeout:g} s; {self.shown()}"

    def shown(self) -> str:
        """Say what has come."""
        if not self.order:
            return "nothing came"
        describer = Describer()
        lines = [describer.lines(one)[0] for one in self.order]
        if len(lines) > SHOWN:
            lines = [*lines[: SHOWN - 1], f"{len(lines) - SHOWN} more", lines[-1]]
        return "what came: " + "; ".join(lines)


def _connect(target: Target, address: tuple[str, int] | str, source: str) -> socket.socket:
    if not address:
        return target.endpoint.connect(target.timeout)
    if isinstance(address, tuple):
        return socket.create_connection(address, target.timeout, (source, 0) if source else None)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(target.timeout)
    sock.connect(address)
    return sock


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def says_hello(asking: Asking, data: bytes = b"", id: int = 1) -> Reply:
    """Wait for the answer of /hello, after sending `data`. Raises Failed for any other."""
    asking.send(data)
    reply = asking.answer(id)
    expect_body(reply, HELLO)
    return reply


def expect_body(reply: Reply, body: bytes) -> None:
    """Raise Failed unless an answer is a 200 with this body."""
    if reply.protocol_status:
        raise Failed(f"it was refused, protocolStatus {reply.protocol_status}")
    if reply.status != 200:
        raise Failed(f"the status is {reply.status}, the answer begins {reply.stdout[:60]!r}")
    if reply.body != body:
        raise Failed(f"{_bytes(reply.body)} came instead of {_bytes(body)}")


def _bytes(data: bytes) -> str:
    return repr(data) if len(data) <= 40 else f"{len(data):,} bytes, {data[:16]!r}..."
