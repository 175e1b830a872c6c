"""A web server's side of AJP over a real socket, right or wrong, as told. Every wait ends."""

from __future__ import annotations

import socket
import time
from typing import Any, Self

from tests import ajp_model
from tests.ajp_model import Answer, WebServer, body, forward
from tests.raw import PATIENCE


class Peer:
    """One connection. `address` is a path, or a host and a port.

    The body of the request that is under way, `rest`, is sent as it is asked for, by pieces of at
    most `piece` bytes, as Apache does.
    """

    def __init__(self, address: Any, piece: int = 8186, size: int = 8192) -> None:
        if isinstance(address, tuple):
            self.socket = socket.create_connection(address, PATIENCE)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(PATIENCE)
            self.socket.connect(str(address))
        self.piece = piece
        self.rest: bytes | None = None  # None: nothing is sent of itself
        self.server = WebServer(size, asked=self._asked)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def _asked(self, size: int) -> None:
        if self.rest is not None:
            size = min(size, self.piece)
            piece, self.rest = self.rest[:size], self.rest[size:]
            self.send(body(piece))

    def receive(self, until: float) -> bool:
        """Receive once; false at the end. Raises what recv raises."""
        self.socket.settimeout(max(0.001, until - time.monotonic()))
        data = self.socket.recv(65536)
        self.server.read(data)
        return bool(data)

    def answer(self) -> Answer:
        """Wait for a whole answer. Raises ConnectionError when the connection ends before."""
        end = time.monotonic() + PATIENCE
        count = len(self.server.answers)
        while len(self.server.answers) == count:
            if not self.receive(end):
                raise ConnectionError("the connection has ended")
        return self.server.answers[-1]

    def until(self, text: bytes) -> None:
        """Wait until `text` has come in the answer that is under way."""
        end = time.monotonic() + PATIENCE
        while text not in self.server.answer.body:
            assert self.receive(end), self.server.answer

    def ask(
        self, uri: str = "/hello", data: bytes = b"", how: str = "known", **options: Any
    ) -> Answer:
        """Make a request as Apache does, its body's length `known`, "chunked" or over "http2"."""
        headers = list(options.pop("headers", ()))
        protocol = "HTTP/1.1"
        if how == "chunked":
            headers.append(("transfer-encoding", "chunked"))
        elif how == "http2":
            protocol = "HTTP/2.0"
        elif data:
            headers.append(("content-length", str(len(data))))
        method = options.pop("method", "POST" if data else "GET")
        self.send(forward(method, uri, headers, protocol=protocol, **options))
        self.rest = data
        if how != "chunked" and data:
            self._asked(8186)
        return self.answer()

    def ping(self) -> None:
        """Send a CPING, and wait for the CPONG."""
        end = time.monotonic() + PATIENCE
        count = self.server.pongs
        self.send(ajp_model.CPING)
        while self.server.pongs == count:
            assert self.receive(end), "the connection has ended"

    def closed(self) -> bool:
        """Wait for the end of the connection, in whatever way; was there no answer before it?"""
        count = len(self.server.answers)
        end = time.monotonic() + PATIENCE
        try:
            while self.receive(end):
                pass
        except ConnectionError:
            pass
        return len(self.server.answers) == count
