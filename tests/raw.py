"""A web server's side of FastCGI in single records, over a real socket: right or wrong, as told.

It shares no code with the package. Every wait ends at a deadline.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable, Mapping
from typing import Any, Self

from tests.model import (
    BEGIN_REQUEST,
    GET_VALUES,
    PARAMS,
    STDIN,
    Answer,
    Record,
    WebServer,
    read_pairs,
)

PATIENCE = 30.0  # seconds


def record(kind: int, id: int, content: bytes = b"", padding: int = 0, version: int = 1) -> bytes:
    head = struct.pack(">BBHHBx", version, kind, id, len(content), padding)
    return head + content + b"\xaa" * padding


def begin(id: int = 1, role: int = 1, keep: bool = True, padding: int = 0) -> bytes:
    return record(BEGIN_REQUEST, id, struct.pack(">HB5x", role, keep), padding)


def pair(name: bytes, value: bytes) -> bytes:
    lengths = b""
    for text in (name, value):
        n = len(text)
        lengths += struct.pack(">B", n) if n < 128 else struct.pack(">I", n | 1 << 31)
    return lengths + name + value


def pairs(params: Iterable[tuple[str, str]]) -> bytes:
    return b"".join([pair(n.encode("latin-1"), v.encode("latin-1")) for n, v in params])


def stream(
    kind: int, id: int, data: bytes, end: bool = True, cut: int = 65535, padding: int = 0
) -> bytes:
    """A stream in records of at most `cut` bytes, and with `end` the empty one."""
    pieces = [data[at : at + cut] for at in range(0, len(data), cut)]
    return b"".join([record(kind, id, p, padding) for p in [*pieces, *([b""] if end else [])]])


def environ(path: str = "/hello", query: str = "", **params: str) -> list[tuple[str, str]]:
    """What nginx would send, the least of it."""
    return [
        ("REQUEST_METHOD", params.pop("REQUEST_METHOD", "GET")),
        ("SCRIPT_NAME", ""),
        ("PATH_INFO", path),
        ("QUERY_STRING", query),
        ("REQUEST_URI", path + ("?" + query if query else "")),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("SERVER_NAME", "localhost"),
        ("SERVER_PORT", "80"),
        *params.items(),
    ]


def head(path: str = "/hello", query: str = "", **options: Any) -> bytes:
    """BEGIN_REQUEST and the whole of PARAMS.

    `options` are `id`, `keep`, `cut` and `padding`, as for `begin` and `stream`, and parameters.
    """
    id = options.pop("id", 1)
    keep = options.pop("keep", True)
    cut = options.pop("cut", 65535)
    padding = options.pop("padding", 0)
    block = stream(PARAMS, id, pairs(environ(path, query, **options)), cut=cut, padding=padding)
    return begin(id, keep=keep, padding=padding) + block


def post(length: int) -> dict[str, str]:
    return {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": str(length)}


def values(*names: bytes, padding: int = 0) -> bytes:
    return record(GET_VALUES, 0, b"".join([pair(name, b"") for name in names]), padding)


class Raw:
    """One connection. `address` is a path, a host and a port, or a socket that is connected."""

    def __init__(self, address: Any, source: str = "") -> None:
        if isinstance(address, socket.socket):
            self.socket = address
            self.socket.settimeout(PATIENCE)
        elif isinstance(address, tuple):
            local = (source, 0) if source else None
            self.socket = socket.create_connection(address, PATIENCE, local)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(PATIENCE)
            self.socket.connect(str(address))
        self.reader = WebServer()
        self.got = 0  # bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def expect(self, id: int = 1) -> Answer:
        return self.reader.expect(id)

    def receive(self, until: float) -> bool:
        """Receive once; false at the end. Raises TimeoutError and what the reader raises."""
        self.socket.settimeout(max(0.001, until - time.monotonic()))
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            data = b""
        self.got += len(data)
        self.reader.read(data)
        return bool(data)

    def answer(self, id: int = 1) -> Answer:
        """Wait for the end of an answer. Raises EOFError when it is cut."""
        until = time.monotonic() + PATIENCE
        answer = self.reader.answers[id]
        while not answer.ended:
            if not self.receive(until):
                raise EOFError(f"closed after {answer.stdout[:1000]!r}")
        return answer

    def until(self, id: int, text: bytes) -> Answer:
        """Wait until `text` has come on STDOUT."""
        until = time.monotonic() + PATIENCE
        answer = self.reader.answers[id]
        while text not in answer.stdout:
            if not self.receive(until):
                raise EOFError(f"closed after {answer.stdout[:1000]!r}")
        return answer

    def request(self, path: str = "/hello", query: str = "", **options: Any) -> Answer:
        """Make a whole request, and wait for its answer."""
        body: bytes = options.pop("body", b"")
        id: int = options.get("id", 1)
        padding: int = options.get("padding", 0)
        cut: int = options.get("cut", 65535)
        if body:
            options = {**post(len(body)), **options}
        self.expect(id)
        self.send(head(path, query, **options), stream(STDIN, id, body, cut=cut, padding=padding))
        return self.answer(id)

    def management(self) -> Record:
        """Wait for the next management record."""
        until = time.monotonic() + PATIENCE
        while not self.reader.management:
            if not self.receive(until):
                raise EOFError("closed instead of a management record")
        return self.reader.management.pop(0)

    def values(self, *names: bytes) -> Mapping[bytes, bytes]:
        self.send(values(*names))
        return dict(read_pairs(self.management().content))

    def closed(self) -> bool:
        """Wait for the end of the connection; was there nothing before it?"""
        before = self.got
        until = time.monotonic() + PATIENCE
        while self.receive(until):
            pass
        return self.got == before

    def end(self) -> None:
        """Say that nothing more comes, as a web server that closes does."""
        self.socket.shutdown(socket.SHUT_WR)
