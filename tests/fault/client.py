"""A FastCGI client that blocks, and tells what a server did wrong. For tests."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from dataclasses import dataclass, field

BEGIN_REQUEST, ABORT_REQUEST, END_REQUEST, PARAMS, STDIN, STDOUT, STDERR = range(1, 8)


class Flaw(AssertionError):
    """The server did what no server may do."""


class Closed(Exception):
    """The connection was closed before the answer's end."""


def record(type: int, id: int, content: bytes = b"") -> bytes:
    return struct.pack("!BBHHBB", 1, type, id, len(content), 0, 0) + content


def stream(type: int, id: int, data: bytes) -> bytes:
    cuts = range(0, len(data), 32768)
    return b"".join(record(type, id, data[at : at + 32768]) for at in cuts)


def pair(name: str, value: str) -> bytes:
    return struct.pack("!BI", len(name), len(value) | 1 << 31) + (name + value).encode()


def head(id: int, path: str, length: int | None = None, keep: bool = True) -> bytes:
    """Give BEGIN_REQUEST and the whole PARAMS stream of a request."""
    params = {
        "REQUEST_METHOD": "GET" if length is None else "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "REQUEST_URI": path,
        "QUERY_STRING": "",
        "CONTENT_LENGTH": "" if length is None else str(length),
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
    }
    block = b"".join(pair(name, value) for name, value in params.items())
    begin = struct.pack("!HB5x", 1, int(keep))
    return record(BEGIN_REQUEST, id, begin) + record(PARAMS, id, block) + record(PARAMS, id)


@dataclass
class Answer:
    stdout: bytearray = field(default_factory=bytearray)
    ends: int = 0
    app_status: int = 0
    protocol_status: int = 0

    @property
    def status(self) -> str:
        """The CGI status line, such as "200 OK"."""
        for line in bytes(self.stdout).split(b"\r\n\r\n")[0].split(b"\r\n"):
            if line.lower().startswith(b"status:"):
                return line[7:].strip().decode("latin-1")
        return "200 OK"

    @property
    def body(self) -> bytes:
        return bytes(self.stdout).partition(b"\r\n\r\n")[2]


class Connection:
    """One connection to the server at a Unix socket. Every wait ends at a deadline."""

    def __init__(self, path: str, patience: float) -> None:
        self.patience = patience
        self.answers: dict[int, Answer] = {}
        self.last_id = 0
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(patience)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def new_id(self) -> int:
        """Give an id not used before here, so that a second END_REQUEST is seen as such."""
        self.last_id += 1
        self.answers[self.last_id] = Answer()
        return self.last_id

    def send(self, data: bytes) -> None:
        """Send all. Raises Flaw when the server takes nothing."""
        with contextlib.suppress(ConnectionError):  # an answer may wait to be read all the same
            try:
                self._socket.sendall(data)
            except TimeoutError:
                raise Flaw("silence: the server does not read") from None

    def request(self, path: str, body: bytes | None = None) -> Answer:
        """Send a whole request, and read its whole answer."""
        id = self.new_id()
        data = head(id, path, None if body is None else len(body))
        self.send(data + stream(STDIN, id, body or b"") + record(STDIN, id))
        return self.answer(id)

    def answer(self, id: int) -> Answer:
        """Read until END_REQUEST of `id`. Raises Closed, and Flaw at the deadline."""
        until = time.monotonic() + self.patience
        while not self.answers[id].ends:
            if not self._read_record(until):
                raise Closed
        return self.answers[id]

    def drain(self) -> None:
        """Say that nothing more will come, and read to the end. Raises Flaw when none comes."""
        until = time.monotonic() + self.patience
        with contextlib.suppress(OSError):  # closed already
            self._socket.shutdown(socket.SHUT_WR)
        while self._read_record(until):
            pass

    def _receive(self, n: int, until: float) -> bytes:
        while len(self._received) < n:
            self._socket.settimeout(max(until - time.monotonic(), 0.001))
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise Flaw("silence: neither an answer nor a closed connection") from None
            except ConnectionError:
                data = b""
            if not data:
                return b""
            self._received += data
        taken, self._received = self._received[:n], self._received[n:]
        return taken

    def _read_record(self, until: float) -> bool:
        header = self._receive(8, until)
        if not header:
            return False
        version, type, id, length, padding, _ = struct.unpack("!BBHHBB", header)
        if version != 1 or id not in self.answers:
            raise Flaw(f"a record that belongs to no request: {header!r}")
        content = self._receive(length + padding, until)[:length] if length + padding else b""
        if length and not content:
            return False
        answer = self.answers[id]
        if answer.ends:
            second = "a second END_REQUEST" if type == END_REQUEST else f"type {type}"
            raise Flaw(f"{second} after END_REQUEST for the request {id}")
        if type == STDOUT:
            answer.stdout += content
        elif type == END_REQUEST:
            answer.ends += 1
            answer.app_status, answer.protocol_status = struct.unpack("!IB3x", content)
        elif type != STDERR:
            raise Flaw(f"a record of type {type}")
        return True
