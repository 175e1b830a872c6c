"""The server that is held against the statements, and the requests that are made of it."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from fulgate.endpoint import Endpoint
from fulgate.exchange import Role
from fulgate.protocols.fastcgi_records import (
    BEGIN_REQUEST,
    MAX_LENGTH,
    PARAMS,
    STDIN,
    encode_pair,
    record,
)

__all__ = ["HELLO", "Pairs", "Target", "begin", "encode", "stream"]

HELLO: Final = b"Hello, world!\n"
"""What the application answers at /hello."""

NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Target:
    """A server, and how it is to be asked.

    `timeout` is in seconds, for each wait. `crowd` is how many connections the statements about
    resources make. `deadline` is within how many seconds a peer that dribbles must have been
    closed; 0 does not wait for it. `spawn` is a command that starts the server anew; none where it
    is empty.
    """

    endpoint: Endpoint
    timeout: float = 5.0
    crowd: int = 64
    deadline: float = 0.0
    script_filename: str = ""
    spawn: tuple[str, ...] = ()

    def params(self, path: str, query: str = "", more: Mapping[str, str] = NOTHING) -> Pairs:
        """Give what a web server would send for a path, the least of it; `more` goes over it."""
        found = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_URI": path + ("?" + query if query else ""),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "REMOTE_ADDR": "127.0.0.1",
        }
        if self.script_filename:
            found["SCRIPT_FILENAME"] = self.script_filename
        return list({**found, **more}.items())

    def head(
        self,
        path: str,
        query: str = "",
        *,
        id: int = 1,
        keep: bool = True,
        length: int = 0,
        cut: int = MAX_LENGTH,
        padding: int = 0,
        more: Mapping[str, str] = NOTHING,
    ) -> bytes:
        """Give BEGIN_REQUEST and the whole of PARAMS; `length` is that of a body that may follow.

        `cut` is the longest content of a record, and each record is padded by `padding` bytes.
        """
        if length:
            more = {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": str(length), **more}
        block = encode(self.params(path, query, more))
        return begin(id, keep=keep, padding=padding) + stream(
            PARAMS, id, block, cut=cut, padding=padding
        )

    def request(
        self,
        path: str,
        query: str = "",
        body: bytes = b"",
        *,
        id: int = 1,
        keep: bool = True,
        cut: int = MAX_LENGTH,
        padding: int = 0,
        more: Mapping[str, str] = NOTHING,
    ) -> bytes:
        """Give a whole request: what `head` gives, and STDIN."""
        length = len(body)
        head = self.head(
            path, query, id=id, keep=keep, length=length, cut=cut, padding=padding, more=more
        )
        return head + stream(STDIN, id, body, cut=cut, padding=padding)


def begin(id: int = 1, role: int = Role.RESPONDER, keep: bool = True, padding: int = 0) -> bytes:
    """Give a BEGIN_REQUEST; `role` may be one that does not exist."""
    return record(BEGIN_REQUEST, id, struct.pack(">HB5x", role, keep), padding)


def encode(params: Iterable[tuple[str, str]]) -> bytes:
    """Give name-value pairs in their wire form."""
    return b"".join([encode_pair(n.encode("latin-1"), v.encode("latin-1")) for n, v in params])


def stream(
    kind: int, id: int, data: bytes, *, cut: int = MAX_LENGTH, padding: int = 0, end: bool = True
) -> bytes:
    """Give a stream in records of at most `cut` bytes; with `end` the empty one that ends it."""
    pieces = [data[at : at + cut] for at in range(0, len(data), cut)]
    return b"".join([record(kind, id, p, padding) for p in [*pieces, *([b""] if end else [])]])
