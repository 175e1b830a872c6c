"""A web server's side of SCGI, right or wrong, as told; and a slow, obvious reader of it.

It shares no code with the package. Every wait ends at a deadline.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from tests.raw import PATIENCE, environ

Pairs = list[tuple[bytes, bytes]]


def netstring(content: bytes) -> bytes:
    return b"%d:%s," % (len(content), content)


def block(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([name + b"\0" + value + b"\0" for name, value in pairs])


def head(path: str = "/hello", query: str = "", length: int = 0, **params: str) -> bytes:
    """The headers of a request, as nginx sends them."""
    pairs = [("CONTENT_LENGTH", str(length)), ("SCGI", "1"), *environ(path, query, **params)]
    return netstring(block([(n.encode("latin-1"), v.encode("latin-1")) for n, v in pairs]))


def request(path: str = "/hello", query: str = "", body: bytes = b"", **params: str) -> bytes:
    if body:
        params = {"REQUEST_METHOD": "POST", **params}
    return head(path, query, len(body), **params) + body


class Wrong(Exception):
    """It is no SCGI."""


@dataclass
class Read:
    """What a request says, as far as it has come."""

    pairs: Pairs = field(default_factory=list)
    length: int = -1
    whole: bool = False
    body: bytes = b""


def read(data: bytes, digits: int = 10) -> Read:
    """Read a request from its beginning, by the specification. Raises Wrong."""
    found = Read()
    number = b""
    at = 0
    while at < len(data) and data[at : at + 1] in [b"%d" % n for n in range(10)]:
        number += data[at : at + 1]
        at += 1
    if len(number) > digits or number[:1] == b"0":
        raise Wrong("length")
    if at == len(data):
        return found
    if data[at : at + 1] != b":" or not number:
        raise Wrong("colon")
    at += 1
    content = data[at : at + int(number)]
    at += int(number)
    if at >= len(data):
        return found
    if data[at : at + 1] != b",":
        raise Wrong("comma")
    strings = []
    while content:
        text, nul, content = content.partition(b"\0")
        if not nul:
            raise Wrong("NUL")
        strings.append(text)
    if len(strings) % 2:
        raise Wrong("a name without a value")
    names, values = strings[0::2], strings[1::2]
    found.pairs = list(zip(names, values, strict=True))
    if names[:1] != [b"CONTENT_LENGTH"] or b"" in names:
        raise Wrong("names")
    if dict(found.pairs).get(b"SCGI") != b"1":
        raise Wrong("SCGI")
    if not values[0] or any(byte not in b"0123456789" for byte in values[0]):
        raise Wrong("CONTENT_LENGTH")
    found.length = int(values[0])
    found.whole = True
    found.body = data[at + 1 : at + 1 + found.length]
    return found


class Answer:
    """An answer of CGI, as it came."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        head, _, self.body = data.partition(b"\r\n\r\n")
        self.head = head.decode("latin-1").split("\r\n")

    @property
    def status(self) -> int:
        assert self.head[0].startswith("Status: "), self.data[:200]
        return int(self.head[0].split()[1])

    def header(self, name: str) -> str | None:
        """A header's value; `name` is in small letters."""
        found = [line.partition(": ") for line in self.head]
        return {key.lower(): value for key, _, value in found}.get(name)


class Peer:
    """One connection. `address` is a path, or a host and a port."""

    def __init__(self, address: Any) -> None:
        if isinstance(address, tuple):
            self.socket = socket.create_connection(address, PATIENCE)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(PATIENCE)
            self.socket.connect(str(address))
        self.got = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def receive(self, until: float) -> bool:
        """Receive once; false at the end. Raises ConnectionError for an end that is none."""
        self.socket.settimeout(max(0.001, until - time.monotonic()))
        data = self.socket.recv(65536)
        self.got += data
        return bool(data)

    def until(self, text: bytes) -> bytes:
        """Wait until `text` has come."""
        end = time.monotonic() + PATIENCE
        while text not in self.got:
            assert self.receive(end), self.got[:1000]
        return self.got

    def answer(self) -> Answer:
        """Wait for the end of the connection. Raises ConnectionError for one that is a reset."""
        end = time.monotonic() + PATIENCE
        while self.receive(end):
            pass
        return Answer(self.got)

    def closed(self) -> bool:
        """Wait for the end of the connection, in whatever way; was there nothing before it?"""
        before = self.got
        with contextlib.suppress(ConnectionError):
            self.answer()
        return self.got == before
